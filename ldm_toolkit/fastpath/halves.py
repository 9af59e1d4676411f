"""The UNet as two functions: one that keeps its deep features, and one that takes them as given.

Deep features change slowly from step to step (Ma et al. 2024, "DeepCache"), so that a shallow
evaluation between two whole ones costs a fraction and changes the picture little. Both functions
have static shapes, for torch.compile and CUDA graphs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath.attention import State, beside

__all__ = ["Halves", "most_depth"]

_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
_PLAIN = (
    "class_embed_type",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_embedding_act_fn",
)


class _Layer(nn.Module):
    """A residual block with the attention behind it, and what changes the size after both."""

    def __init__(self, resnet: Any, attention: Any, upsampler: Any = None) -> None:
        super().__init__()
        self.resnet, self.attention, self.upsampler = resnet, attention, upsampler

    def forward(self, x: Tensor, time: Tensor, words: Mapping[str, Any]) -> Tensor:
        x = self.resnet(x, time)
        if self.attention is None:
            return x
        return self.attention(x, **words, return_dict=False)[0]


class _Smaller(nn.Module):
    def __init__(self, sampler: Any) -> None:
        super().__init__()
        self.sampler = sampler

    def forward(self, x: Tensor, time: Tensor, words: Mapping[str, Any]) -> Tensor:
        return self.sampler(x)


class Halves(nn.Module):
    """A UNet cut at a depth: how many of its skip connections a shallow evaluation computes anew.

    Depth 1 is the outermost connection alone; ``most_depth`` is all of them, but not the middle.
    The layers are the UNet's own, not copies; whether it can be cut so, ``most_depth`` tells.
    """

    def __init__(self, unet: Any, depth: int) -> None:
        super().__init__()
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.middle, self.conv_out = unet.conv_in, unet.mid_block, unet.conv_out
        norm = unet.conv_norm_out
        self.norm_out = nn.Sequential(norm, unet.conv_act) if norm is not None else nn.Identity()
        self.down = nn.ModuleList(_down(unet))
        self.up = nn.ModuleList(_up(unet))
        self._deep = len(self.up) - depth  # the up layers that a shallow evaluation leaves out
        self._factor = 2 ** sum(layer.upsampler is not None for layer in self.up)

    def whole(
        self, x: Tensor, timestep: Tensor, text: Tensor, state: State | None = None
    ) -> tuple[Tensor, Tensor]:
        """The UNet's prediction, the same bits as its own, and the deep features at the cut."""
        time, skips = self._begin(x, timestep)
        words = beside(text, state)
        for layer in self.down:
            skips.append(layer(skips[-1], time, words))
        hidden = skips[-1]
        if self.middle is not None:
            hidden = self.middle(hidden, time, **(words if _attends(self.middle) else {}))
        hidden = self._climb(hidden, skips, 0, self._deep, time, words)
        return self._end(hidden, skips, time, words), hidden

    def shallow(
        self, x: Tensor, timestep: Tensor, text: Tensor, deep: Tensor, state: State | None = None
    ) -> Tensor:
        """The prediction with the deep features of another step."""
        time, skips = self._begin(x, timestep)
        words = beside(text, state)
        for layer in self.down[: len(self.up) - self._deep - 1]:
            skips.append(layer(skips[-1], time, words))
        return self._end(deep, skips, time, words)

    def _begin(self, x: Tensor, timestep: Tensor) -> tuple[Tensor, list[Tensor]]:
        waves = self.time_proj(timestep.reshape(-1).expand(len(x))).to(x.dtype)
        return self.time_embedding(waves), [self.conv_in(x)]

    def _climb(
        self,
        x: Tensor,
        skips: list[Tensor],
        first: int,
        last: int,
        time: Tensor,
        words: Mapping[str, Any],
    ) -> Tensor:
        """The up layers first to last - 1; each takes the last of ``skips`` away."""
        odd = any(side % self._factor for side in skips[0].shape[2:])
        layers: list[Any] = list(self.up)[first:last]
        for layer in layers:
            x = layer(torch.cat([x, skips.pop()], dim=1), time, words)
            if layer.upsampler is not None:
                x = layer.upsampler(x, skips[-1].shape[2:] if odd else None)
        return x

    def _end(
        self, x: Tensor, skips: list[Tensor], time: Tensor, words: Mapping[str, Any]
    ) -> Tensor:
        x = self._climb(x, skips, self._deep, len(self.up), time, words)
        return self.conv_out(self.norm_out(x))


def most_depth(unet: Any) -> int:
    """The largest depth at which this UNet can be cut. Raises UserError for other architectures."""
    blocks = [*unet.down_blocks, *unet.up_blocks]
    foreign = {type(block).__name__ for block in blocks} - set(_BLOCKS)
    if foreign:
        raise UserError(
            f"reusing deep features knows the UNets of Stable Diffusion 1.x and 2.x; this one has "
            f"{', '.join(sorted(foreign))}: pass reuse_every 1"
        )
    settings = [name for name in _PLAIN if getattr(unet.config, name, None) is not None]
    settings += ["center_input_sample"] if unet.config.center_input_sample else []
    if settings or any(getattr(block, "b1", None) for block in unet.up_blocks):
        what = settings[0] if settings else "FreeU"
        raise UserError(
            f"reusing deep features does not know a UNet with {what}; pass reuse_every 1"
        )
    return sum(len(block.resnets) for block in unet.up_blocks) - 1


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _attentions(block: Any) -> list[Any]:
    return list(block.attentions) if _attends(block) else [None] * len(block.resnets)


def _down(unet: Any) -> Iterator[nn.Module]:
    for block in unet.down_blocks:
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            yield _Layer(resnet, attention)
        for sampler in block.downsamplers or []:
            yield _Smaller(sampler)


def _up(unet: Any) -> Iterator[nn.Module]:
    for block in unet.up_blocks:
        upsampler = block.upsamplers[0] if block.upsamplers else None
        last = len(block.resnets) - 1
        for index, pair in enumerate(zip(block.resnets, _attentions(block), strict=True)):
            yield _Layer(*pair, upsampler if index == last else None)
