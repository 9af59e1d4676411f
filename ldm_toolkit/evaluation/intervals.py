"""Error bars: shares, means, and paired differences. Level 1: no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "around", "bootstrap", "jackknife", "mean", "paired_difference", "share"]

_Z = 1.959963984540054  # of the normal distribution, 95 % on both sides


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """The four fields as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


def share(hits: int, count: int) -> Interval:
    """A share of ``count``, with the score interval of Wilson (1927).

    It stays within 0 and 1 and is not empty at either end. Raises ValueError for no samples.
    """
    if count < 1:
        raise ValueError("a share of no samples: expected at least one")
    p, z2 = hits / count, _Z * _Z / count
    middle = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(p * (1 - p) * z2 + z2 * z2 / 4) / (1 + z2)
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half), count)


def mean(values: Sequence[float]) -> Interval:
    """A mean, with the interval of the normal distribution and the sample's own deviation."""
    data = np.asarray(values, dtype=float)
    if not len(data):
        raise ValueError("a mean of no samples: expected at least one")
    half = _Z * float(data.std(ddof=1)) / math.sqrt(len(data)) if len(data) > 1 else math.inf
    middle = float(data.mean())
    return Interval(middle, middle - half, middle + half, len(data))


def bootstrap(
    count: int, statistic: Callable[[np.ndarray], float], *, rounds: int = 1000, seed: int = 0
) -> Interval:
    """A statistic of samples given by their indices, with its percentile interval.

    ``statistic`` gets an array of ``count`` indices, drawn with repetition (Efron 1979).
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(rounds)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(statistic(np.arange(count)), float(low), float(high), count)


def around(value: float, deviation: float, count: int, least: float = -math.inf) -> Interval:
    """A value with the interval of the normal distribution; it does not go below ``least``."""
    half = _Z * deviation
    return Interval(value, max(least, value - half), value + half, count)


def jackknife(
    count: int, statistic: Callable[[int | None], float], *, groups: int = 10, least: float = 0.0
) -> Interval:
    """A statistic of ``count`` samples, with the deviation that leaving out groups shows.

    ``statistic`` is asked for all samples (None) and without each of ``groups`` equal parts: the
    delete-a-group jackknife (Efron & Stein 1981). Unlike a bootstrap it repeats no sample, which a
    Fréchet distance would take for narrower features.
    """
    without = np.array([statistic(group) for group in range(groups)])
    deviation = math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    return around(statistic(None), deviation, count, least)


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Mean of second - first over the same prompts and seeds, with a bootstrap over the pairs."""
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    return bootstrap(len(differences), lambda chosen: float(differences[chosen].mean()), seed=seed)
