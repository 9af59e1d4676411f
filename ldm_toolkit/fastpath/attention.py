"""Attention layers that a run may tell what it knows already, and ask for what it wants to keep.

The processors hold nothing of a run: all of it comes in with each call, as a ``State``, so that
runs with different prompts and settings go on at once, and torch.compile sees tensors come in and
go out. What is kept, and when it is used, is decided in ``fastpath.reuse``.
"""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["State", "beside", "install", "self_attention", "takes_state", "words_of"]

# diffusers' ways to compute the attention of a Stable Diffusion UNet; others stay as they are.
_KNOWN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")


class State(NamedTuple):
    """What one call of a UNet brings for its attention layers and takes away, by their names.

    ``words``: keys and values of the prompts, (B, T, C) each. ``answers``: what layers answer
    without computing, (B, h w, C). ``kept``: gets the answers of the layers whose names are in it.
    """

    words: dict[str, tuple[Tensor, Tensor]]
    answers: dict[str, Tensor]
    kept: dict[str, Tensor | None]


class StatefulProcessor:
    """diffusers' attention processor ``inner`` with a ``State`` beside the call; without one, it.

    ``place`` is the layer's name in its UNet.
    """

    def __init__(self, inner: Any = None, place: str = "") -> None:
        if inner is None:  # as diffusers makes a processor of a class that it finds in a UNet
            from diffusers.models.attention_processor import AttnProcessor2_0

            inner = AttnProcessor2_0()
        self.inner, self.place = inner, place

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """diffusers' call of a processor, and the state of the run."""
        if state is None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        if self.place in state.answers:
            return state.answers[self.place]
        if self.place in state.words:
            attn = _Knowing(attn, *state.words[self.place])
        answer = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        if self.place in state.kept:
            state.kept[self.place] = answer
        return answer


class _Knowing:
    """An attention layer that knows its keys and values: any processor computes with them."""

    def __init__(self, attn: Any, key: Tensor, value: Tensor) -> None:
        self._attn, self._key, self._value = attn, key, value

    def to_k(self, _: Tensor) -> Tensor:
        return self._key

    def to_v(self, _: Tensor) -> Tensor:
        return self._value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)


def beside(text: Tensor, state: State | None) -> dict[str, Any]:
    """What a diffusers UNet or one of its blocks is called with for its attention layers."""
    handed = {"state": state} if state is not None else None
    return {"encoder_hidden_states": text, "cross_attention_kwargs": handed}


def install(unet: Any) -> None:
    """Make the attention layers of a Stable Diffusion UNet take a ``State``.

    Without one they compute as before. A UNet whose text does not reach them as it comes in, and a
    processor of another kind, stay as they are: ``takes_state`` tells.
    """
    config = unet.config
    if config.dual_cross_attention or config.encoder_hid_dim_type or config.cross_attention_norm:
        return
    unet.set_attn_processor(
        {
            place: StatefulProcessor(one, place) if type(one).__name__ in _KNOWN else one
            for place, one in unet.attn_processors.items()
        }
    )


def takes_state(unet: Any) -> bool:
    """Whether every attention layer of a UNet takes a ``State``."""
    return all(
        "state" in inspect.signature(processor.__call__).parameters
        for processor in unet.attn_processors.values()
    )


def _layers(unet: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of every attention layer, the names as a ``State`` has them."""
    for place in unet.attn_processors:
        yield place, unet.get_submodule(place.removesuffix(".processor"))


def words_of(unet: Any, text: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of the text (B, T, D) in every cross-attention layer, (B, T, C) each.

    By the layers' own projections, LoRAs and all, so that they are the bits of every evaluation.
    """
    return {
        place: (layer.to_k(text), layer.to_v(text))
        for place, layer in _layers(unet)
        if layer.is_cross_attention
    }


def self_attention(unet: Any) -> list[str]:
    """Names of the layers whose places attend to each other, not to the text."""
    return [place for place, layer in _layers(unet) if not layer.is_cross_attention]
