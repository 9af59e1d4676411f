"""Deep features of one step for the next ones: when they are computed, and who keeps them."""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ldm_toolkit.compilation import compiled
from ldm_toolkit.denoise import StepInfo
from ldm_toolkit.fastpath.halves import Halves
from ldm_toolkit.models.components import Components
from ldm_toolkit.recipe import Recipe

__all__ = ["Reuse"]

_DEEP = "deep features"


@dataclass(frozen=True)
class Reuse:
    """The whole UNet at some evaluations, its shallow part between them.

    ``every`` evaluations there is a whole one, on average; with a ``power`` above 1 they lie
    closer at the beginning of a run, below 1 at its end (Ma et al. 2024, section 3.4, has uniform
    and non-uniform steps). ``depth`` is that of ``halves.Halves``.
    """

    every: int
    depth: int = 1
    power: float = 1.0

    @classmethod
    def of(cls, recipe: Recipe) -> "Reuse | None":
        """What a recipe asks for; None where every evaluation is whole."""
        if recipe.reuse_every == 1:
            return None
        return cls(recipe.reuse_every, recipe.reuse_depth, recipe.reuse_power)

    def whole_at(self, evaluation: int, total: int) -> bool:
        """Whether an evaluation of ``total`` computes everything; the first always does."""
        wholes = math.ceil(total / self.every)
        places = (int(total * (k * self.every / total) ** self.power) for k in range(wholes))
        return evaluation in places

    def __call__(
        self,
        components: Components,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        step: StepInfo,
        kept: dict[str, Any],
    ) -> Tensor:
        """One UNet evaluation; ``kept`` is what this part of this run keeps from step to step."""
        cut = _cut(components, self.depth)
        deep = _rows_of(kept.get(_DEEP), len(x))
        if deep is None or self.whole_at(step.evaluation, step.total):
            prediction, kept[_DEEP] = cut.whole(x, timestep, text)
            return prediction
        return cut.shallow(x, timestep, text, deep)


def _rows_of(deep: Tensor | None, rows: int) -> Tensor | None:
    """The deep features of as many rows: where guidance has ended, those of the positive half."""
    if deep is None or len(deep) < rows:
        return None
    return deep[len(deep) - rows :]


# By network, so that each is cut, and compiled, once; a network that is gone takes its entry along.
_made: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()


def _cut(components: Components, depth: int) -> Any:
    by_depth = _made.setdefault(components.unet, {})
    if depth not in by_depth:
        cut: Any = Halves(components.unet, depth).eval()
        if components.compiled:
            cut.whole = compiled(cut.whole, components.device)
            cut.shallow = compiled(cut.shallow, components.device)
        by_depth[depth] = cut
    return by_depth[depth]
