"""How much of a picture's computing is saved, and by what: data. Level 1: no torch."""

from dataclasses import dataclass

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """What a name such as "fast" stands for; each part can be asked for by itself too."""

    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse_every: int = 1
    reuse_depth: int = 1
    reuse_power: float = 1.0
    gate: float = 1.0
    attention_every: int = 1


PRESETS = {
    "exact": Preset(),
    "balanced": Preset((0.0, 0.8), 3, 2),
    "fast": Preset((0.0, 0.6), 5, 2),
}
