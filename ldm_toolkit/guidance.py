"""Classifier-free guidance: two predictions become one."""

from dataclasses import dataclass

import torch

from ldm_toolkit.recipe import Recipe

__all__ = ["Guidance", "combine", "rescale"]


@dataclass(frozen=True)
class Guidance:
    """How strongly, and in which part of the steps, the conditional prediction is followed.

    ``interval`` is [start, stop) in fractions of the executed steps (Kynkäänniemi et al. 2024);
    outside of it, and with scale 1, the conditional prediction stands alone.
    """

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, recipe: Recipe) -> "Guidance":
        """The guidance that a recipe asks for."""
        return cls(recipe.guidance, recipe.guidance_rescale, recipe.guidance_interval)

    @property
    def active(self) -> bool:
        """Whether the unconditional prediction is needed at all."""
        return self.scale != 1 and self.interval[0] < self.interval[1]

    def active_at(self, index: int, steps: int) -> bool:
        """Whether step ``index`` of ``steps`` needs it."""
        start, stop = self.interval
        return self.active and start <= index / steps < stop

    def apply(self, prediction: torch.Tensor) -> torch.Tensor:
        """The guided prediction of both halves, negative first: (2B, ...) -> (B, ...)."""
        negative, positive = prediction.chunk(2)
        guided = combine(negative, positive, self.scale)
        return rescale(guided, positive, self.rescale) if self.rescale else guided


def combine(negative: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """The prediction pushed from the negative one past the positive one.

    Ho and Salimans 2022, eq. 6, with scale = 1 + w. Any equal shapes.
    """
    return negative + scale * (positive - negative)


def rescale(guided: torch.Tensor, positive: torch.Tensor, factor: float) -> torch.Tensor:
    """The guided prediction with its spread pulled towards that of the positive one.

    Lin et al. 2023 ("Common Diffusion Noise Schedules and Sample Steps are Flawed"), eq. 15 and 16;
    the spread is a picture's own. (B, ...), factor from 0 (unchanged) to 1.
    """
    axes = tuple(range(1, guided.ndim))
    spread = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return factor * (guided * spread) + (1 - factor) * guided
