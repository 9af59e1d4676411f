"""What a run keeps from step to step: when it is computed, who gets it, and for how long.

All of it is in the dictionary that each part of a run hands to every evaluation:

- keys and values of the prompts in the cross-attention layers, which are the same in every step:
  the picture stays what it is;
- deep features of the UNet, for the evaluations that leave the deep part out;
- answers of attention layers: of the self-attention ones for the next evaluations, of the
  cross-attention ones for the rest of the run.
"""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ldm_toolkit.compilation import compiled
from ldm_toolkit.denoise import StepInfo
from ldm_toolkit.fastpath import openvino
from ldm_toolkit.fastpath.attention import State, beside, self_attention, takes_state, words_of
from ldm_toolkit.fastpath.halves import Halves
from ldm_toolkit.models.components import Components
from ldm_toolkit.recipe import Recipe

__all__ = ["Reuse"]

_DEEP = "deep features"
_WORDS = "keys and values"
_ANSWERS = "answers of attention layers"
_OWN = "names of the self-attention layers"
# Powers are the C library's: what is a whole number may come out just below it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Reuse:
    """What of a run's evaluations is computed anew, and what is what an earlier one computed.

    One evaluation in ``every`` is whole. With a ``power`` above 1 they lie closer at the beginning
    of a run, below 1 at its end, and where that is too close for all of them there are fewer (Ma
    et al. 2024, section 3.4, has uniform and non-uniform steps). ``depth`` is that of
    ``halves.Halves``.
    From the fraction ``gate`` of the run on, cross-attention answers what it answered last (Zhang
    et al. 2024, "T-GATE"). After the first fifth of the run, in which the picture's layout is
    settled, a layer of self-attention answers what it computed last until that is
    ``attention_every`` evaluations old (Zhao et al. 2024, "Pyramid Attention Broadcast"); a deep
    layer then waits for the next whole evaluation.
    """

    every: int = 1
    depth: int = 1
    power: float = 1.0
    gate: float = 1.0
    attention_every: int = 1

    @classmethod
    def of(cls, recipe: Recipe) -> "Reuse":
        """What a recipe asks for."""
        return cls(
            recipe.reuse_every,
            recipe.reuse_depth,
            recipe.reuse_power,
            recipe.gate,
            recipe.attention_every,
        )

    def whole_at(self, evaluation: int, total: int) -> bool:
        """Whether an evaluation of ``total`` computes the deep part; the first always does."""
        if self.power == 1:
            return evaluation % self.every == 0
        wholes = math.ceil(total / self.every)
        places = (total * (k * self.every / total) ** self.power for k in range(wholes))
        return evaluation in (int(place + _ROUNDING) for place in places)

    def frozen_at(self, evaluation: int, total: int) -> bool:
        """Whether cross-attention answers what it did; never in the first evaluation."""
        return evaluation > 0 and evaluation / total >= self.gate

    def broadcast_at(self, evaluation: int, total: int, computed: int) -> bool:
        """Whether self-attention answers what it did at ``computed``; never in the first fifth."""
        late = evaluation > math.ceil(total / 5)
        return late and evaluation - computed < self.attention_every

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
        unet = components.unet
        stateful = components.backend == "torch"
        state = self._state(unet, text, step, kept) if stateful else None
        cut = _cut(components, self.depth) if self.every > 1 else None
        deep = _rows_of(kept.get(_DEEP), len(x))
        if cut is None:
            prediction = unet(x, timestep, **beside(text, state), return_dict=False)[0]
        elif deep is None or self.whole_at(step.evaluation, step.total):
            prediction, kept[_DEEP] = cut.whole(x, timestep, text, state)
        else:
            prediction = cut.shallow(x, timestep, text, deep, state)
        if state is not None:
            fresh = {
                place: (step.evaluation, answer)
                for place, answer in state.kept.items()
                if answer is not None
            }
            kept[_ANSWERS] = kept.get(_ANSWERS, {}) | fresh
        return prediction

    def _state(self, unet: Any, text: Tensor, step: StepInfo, kept: dict[str, Any]) -> State | None:
        """What the attention layers get in this evaluation, and are asked for."""
        rows = len(text)
        if rows not in kept.get(_WORDS, ()):  # the first evaluation, or guidance begins or ends
            kept[_WORDS] = {rows: words_of(unet, text) if takes_state(unet) else None}
            kept[_OWN] = self_attention(unet) if self.attention_every > 1 else []
        words = kept[_WORDS][rows]
        if words is None:
            return None
        answers = {}
        for place, (computed, answer) in kept.get(_ANSWERS, {}).items():
            if place in words:
                given = self.frozen_at(step.evaluation, step.total)
            else:
                given = self.broadcast_at(step.evaluation, step.total, computed)
            fitting = _rows_of(answer, rows)
            if given and fitting is not None:
                answers[place] = fitting
        cross = words if self.gate < 1 else ()
        return State(words, answers, dict.fromkeys([*cross, *kept[_OWN]]))


def _rows_of(kept: Tensor | None, rows: int) -> Tensor | None:
    """What was kept for as many rows: where guidance has ended, that of the positive half."""
    if kept is None or len(kept) < rows:
        return None
    return kept[len(kept) - rows :]


# By network, so that each is cut, and compiled, once; a network that is gone takes its entry along.
_made: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()


def _cut(components: Components, depth: int) -> Any:
    if components.backend == "openvino":
        return openvino.halves(components.unet, depth)
    by_depth = _made.setdefault(components.unet, {})
    if depth not in by_depth:
        cut: Any = Halves(components.unet, depth).eval()
        if components.compiled:
            cut.whole = compiled(cut.whole, components.device)
            cut.shallow = compiled(cut.shallow, components.device)
        by_depth[depth] = cut
    return by_depth[depth]
