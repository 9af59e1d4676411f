"""Attention for training on a CPU: backwards the fused kernel is slow where tokens are few."""

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

__all__ = ["ByLength", "suit_attention"]

# Queries times keys up to which products and a softmax, one after the other, are faster.
_MOST_PAIRS = 1024 * 1024


class ByLength:
    """diffusers' plain attention for few tokens in bfloat16 on a CPU, else its fused one.

    Forwards and backwards the plain one takes a seventh to six tenths of the time there; with more
    tokens, or in float32, it is the slower one and keeps every score.
    """

    def __init__(self) -> None:
        self._plain, self._fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """As diffusers calls a processor: hidden states (B, N, D) in and out."""
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        few = hidden_states.shape[1] * keys.shape[1] <= _MOST_PAIRS
        chosen = self._plain if few and _bfloat16_on_cpu(hidden_states) else self._fused
        answer: Tensor = chosen(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        return answer


def _bfloat16_on_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    computed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return computed == torch.bfloat16


def suit_attention(unet: Any) -> None:
    """Let a UNet that diffusers' fused attention computes choose by the number of tokens."""
    if all(type(one) is AttnProcessor2_0 for one in unet.attn_processors.values()):
        unet.set_attn_processor(ByLength())
