"""What rows of the benchmark of speed say together: losses, ratios, whether a promise is kept."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_toolkit.evaluation.intervals import Interval, bootstrap, mean, paired_difference, share

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A promise: times as fast as exact, at most so many points lost, and at the upper bound."""

    ratio: float
    loss: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A setting's pictures against exact's of the same prompts and seeds; shares, not points.

    ``psnr`` is None for exact itself.
    """

    right: Interval
    everything: Interval
    loss: Interval
    everything_loss: Interval
    drop: Interval
    psnr: Interval | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Median seconds of a picture and of a step, times as fast as exact, the latents' PSNR."""

    seconds: float
    step: float
    ratio: Interval
    psnr: float | None


def quality_of(rows: Rows, exact: Rows) -> Quality:
    """What a setting costs, from rows of the same prompts in the same order."""
    own, before = [_right(row) for row in rows], [_right(row) for row in exact]
    whole, whole_before = [_all(row) for row in rows], [_all(row) for row in exact]
    sure, sure_before = ([one["log_probability"] for one in some] for some in (rows, exact))
    likeness = [row["psnr"] for row in rows if "psnr" in row]
    return Quality(
        right=mean(own),
        everything=share(int(sum(whole)), len(whole)),
        loss=paired_difference(own, before),
        everything_loss=paired_difference(whole, whole_before),
        drop=paired_difference(sure, sure_before),
        psnr=mean(likeness) if likeness else None,
        seconds=statistics.median(row["seconds"] for row in rows),
    )


def _right(row: Mapping[str, Any]) -> float:
    """The share of what the prompt asks for that the picture shows."""
    return statistics.fmean(row["right"].values())


def _all(row: Mapping[str, Any]) -> float:
    return float(all(row["right"].values()))


def pace_of(rows: Rows) -> Pace:
    """Medians over rounds; the ratio is of the two pictures of a round."""
    ratios = [row["exact_seconds"] / row["seconds"] for row in rows]
    return Pace(
        seconds=statistics.median(row["seconds"] for row in rows),
        step=statistics.median(row["step"] for row in rows),
        ratio=bootstrap(len(ratios), lambda some: statistics.median(ratios[k] for k in some)),
        psnr=rows[0].get("psnr"),
    )


def verdict(target: Target, ratio: Interval, loss: Interval) -> tuple[str, bool]:
    """Whether a promise is kept: in words with all numbers, and in one.

    The bound is the upper end of the loss's two-sided 95 % interval, which is strict.
    """
    lost, bound = 100 * loss.value, 100 * loss.high
    kept = ratio.value >= target.ratio and lost <= target.loss and bound <= target.bound
    words = (
        f"{'met' if kept else 'not met'}: {ratio.value:.2f}x exact (at least {target.ratio:g}), "
        f"loses {lost:.2f} points (at most {target.loss:g}), {bound:.2f} at the upper bound "
        f"(at most {target.bound:g}), {loss.count} prompts"
    )
    return words, kept


def frontier(found: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of (speed, loss) that no other beats in both, fastest first."""

    def beaten(name: str) -> bool:
        speed, loss = found[name]
        return any(
            other[0] >= speed and other[1] <= loss and other != (speed, loss)
            for other in found.values()
        )

    return sorted((name for name in found if not beaten(name)), key=lambda one: -found[one][0])


def reached(likeness: Mapping[str, Mapping[int, float]], goal: float) -> dict[str, int | None]:
    """The fewest steps in which each solver comes as near as ``goal``; None where it never does."""
    return {
        name: min((steps for steps, one in by_steps.items() if one >= goal), default=None)
        for name, by_steps in likeness.items()
    }


def points(one: Interval) -> str:
    """ "0.3 (-0.4 to 1.1)": a difference of shares, in points."""
    return f"{100 * one.value:.2f} ({100 * one.low:.2f} to {100 * one.high:.2f})"
