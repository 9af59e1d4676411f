"""What a user may ask of one picture, and what is wrong with it. Level 1: no torch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ldm_toolkit.errors import UserError, suggestion
from ldm_toolkit.speed import PRESETS, Preset
from ldm_toolkit.values import number_problem, range_problem, text_problem

__all__ = [
    "MAX_LAYERS",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STEPS",
    "GenerateOptions",
    "interval_problem",
    "power_problem",
]

MAX_SEED = 2**63 - 1
MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_LAYERS = 64


def _help(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What a user asked for, one picture; None where nothing was said.

    Raises UserError that names every wrong option at once.
    """

    prompt: str = _help("what the picture shows")
    negative_prompt: str = _help("what the picture must not show", "")
    steps: int = _help("denoising steps; more is slower and finer", 50)
    guidance: float = _help("how strictly the picture follows the prompt; 1 switches it off", 7.5)
    seed: int | None = _help("number that fixes the noise; drawn at random when not given", None)
    width: int | None = _help("width in pixels; the model's own when not given", None)
    height: int | None = _help("height in pixels; the model's own when not given", None)
    scheduler: str | None = _help("solver, see --list-schedulers; the model's own by default", None)
    guidance_rescale: float | None = _help(
        "pull a guided picture's contrast back, 0 to 1 (Lin et al. 2023)", None
    )
    speed: str = _help(
        "exact computes everything in every step, balanced and fast reuse some of it", "exact"
    )
    guidance_interval: tuple[float, float] | None = _help(
        "guide only from START up to STOP, fractions of the steps (Kynkäänniemi et al. 2024)",
        None,
    )
    reuse_every: int | None = _help(
        "compute the UNet's deep part only in every N-th evaluation, of which a step has one, or "
        "two with solvers such as heun (DeepCache, Ma et al. 2024)",
        None,
    )
    reuse_depth: int | None = _help(
        "skip connections of the UNet that the evaluations between compute; more is nearer and "
        "slower",
        None,
    )
    reuse_power: float | None = _help(
        "above 1 the deep part is computed more often at the beginning, below 1 at the end", None
    )
    gate: float | None = _help(
        "from this fraction of the steps on, 0 to 1, the prompt's attention stays what it was "
        "(T-GATE, Zhang et al. 2024); 1 never",
        None,
    )
    attention_every: int | None = _help(
        "after the first fifth of the steps, compute a layer of self-attention only when its last "
        "answer is N evaluations old (Pyramid Attention Broadcast, Zhao et al. 2024)",
        None,
    )
    clip_skip: int = _help("leave out the last N layers of the text encoder", 0)
    eta: float = _help("share of fresh noise in each step, for ddim and tcd; 0 is none", 0.0)
    strength: float | None = _help(
        "how far an image is redrawn, 0 to 1; 0.75 by default, 1 with a mask", None
    )

    def __post_init__(self) -> None:
        if isinstance(self.guidance_interval, list):
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        problems = text_problem("prompt", self.prompt)
        problems += text_problem("negative_prompt", self.negative_prompt)
        problems += range_problem("steps", self.steps, 1, MAX_STEPS)
        problems += number_problem("guidance", self.guidance, 1000)
        if self.seed is not None:
            problems += range_problem("seed", self.seed, 0, MAX_SEED)
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None:
                problems += range_problem(name, value, 1, MAX_SIDE)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            kind = type(self.scheduler).__name__
            problems.append(f"scheduler must be a name, not {kind}")
        for name in ("guidance_rescale", "strength"):
            if getattr(self, name) is not None:
                problems += number_problem(name, getattr(self, name), 1)
        if self.guidance_interval is not None:
            problems += interval_problem(self.guidance_interval)
        problems += range_problem("clip_skip", self.clip_skip, 0, MAX_LAYERS)
        problems += number_problem("eta", self.eta, 1)
        problems += self._speed_problems()
        if problems:
            raise UserError("; ".join(problems))

    @property
    def settled_speed(self) -> Preset:
        """What ``speed`` stands for, with what was asked for by itself in its place."""
        preset = PRESETS[self.speed]
        asked = {one.name: getattr(self, one.name) for one in dataclasses.fields(preset)}
        given = {name: value for name, value in asked.items() if value is not None}
        return dataclasses.replace(preset, **given)

    def _speed_problems(self) -> list[str]:
        problems = []
        if self.speed not in PRESETS:
            hint = suggestion(self.speed, PRESETS) if isinstance(self.speed, str) else ""
            known = ", ".join(PRESETS)
            problems.append(f"speed must be one of {known}, not {self.speed!r:.80}{hint}")
        given = {
            name: getattr(self, name) for name in ("reuse_every", "reuse_depth", "attention_every")
        }
        for name, value in given.items():
            if value is not None:
                problems += range_problem(name, value, 1, MAX_STEPS)
        if self.gate is not None:
            problems += number_problem("gate", self.gate, 1)
        if self.reuse_power is not None:
            problems += power_problem(self.reuse_power)
        return problems


def interval_problem(value: object) -> list[str]:
    """A line about a guidance interval that is no (start, stop) within 0 and 1, or nothing."""
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and not any(number_problem("", end, 1) for end in value)
        and value[0] <= value[1]
    ):
        return []
    return [
        "guidance_interval must be (start, stop), fractions of the steps with "
        f"0 <= start <= stop <= 1, not {value!r:.80}"
    ]


def power_problem(value: object) -> list[str]:
    """A line about a power that is not positive, or nothing."""
    problems = number_problem("reuse_power", value, 10)
    return problems if problems or value else ["reuse_power must be positive"]
