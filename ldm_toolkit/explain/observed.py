"""A run of one picture that is watched: what the UNet saw, where its words looked.

The run is the pipeline's own on a copy of the UNet's modules that shares the weights; what watches
hangs on the copy, so nothing stays on the model and other runs notice nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ldm_toolkit.denoise import Step
from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.models.components import sharing_copy
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import Recipe
from ldm_toolkit.run import Run

__all__ = ["Observed", "observe"]

_SHOWN = 7


@dataclass(frozen=True)
class Observed:
    """A run, a Step a UNet evaluation, and what was seen in each.

    ``inputs`` (N, C, h, w) float32 is x_t = alpha x_0 + sigma noise with alpha^2 + sigma^2 = 1 as
    the UNet got it, whatever form the scheduler keeps. ``attention`` (T, h, w) is the share of each
    of the T tokens at each place of the latents; the mean over heads, layers and steps, without the
    layers that answered in a step what they had computed before, or were left out.
    """

    recipe: Recipe
    image: Image.Image = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    inputs: Tensor = field(repr=False)
    attention: Tensor = field(repr=False)

    @functools.cached_property
    def shown(self) -> tuple[int, ...]:
        """Evaluations spread evenly over the run, the first and the last among them."""
        places = np.linspace(0, len(self.steps) - 1, min(len(self.steps), _SHOWN)).round()
        return tuple(int(place) for place in np.unique(places))

    @functools.cached_property
    def previews(self) -> tuple[Image.Image, ...]:
        """The predicted x_0 of ``shown``, decoded."""
        return tuple(self.steps[place].decoded() for place in self.shown)

    def alpha_bar(self, place: int) -> Tensor:
        """How much of the squared x_t is signal at an evaluation; a scalar."""
        return 1 / (1 + torch.tensor(self.steps[place].sigma).square())


def observe(
    pipeline: LatentPipeline,
    prompt: str,
    *,
    follow: Callable[[Run], Iterable[Step]] | None = None,
    **options: Any,
) -> Observed:
    """Draw one picture and watch it; ``options`` are those of a call, its picture has its bits.

    ``follow`` passes the run's steps on, for example to show how far it is. Raises UserError as a
    call does, LdmToolkitError where memory is too small for a watched run.
    """
    watcher = _Watcher()
    unet = sharing_copy(pipeline.components.unet)
    # The first layer of a whole UNet, and of one of which deep features are reused.
    unet.conv_in.register_forward_pre_hook(watcher.begin)
    for place in unet.attn_processors:
        layer = unet.get_submodule(place.removesuffix(".processor"))
        layer.register_forward_pre_hook(functools.partial(watcher.asked, place), with_kwargs=True)
    components = dataclasses.replace(
        pipeline.components, unet=unet, compiled=False, backend="torch"
    )
    options["scheduler"] = pipeline.stream(prompt, **options).recipes[0].scheduler
    run = LatentPipeline(components).stream(prompt, **options)
    steps = tuple(follow(run) if follow is not None else run)
    if len(steps) != len(watcher.inputs):
        raise LdmToolkitError(
            "memory ran out while a run was watched; try a smaller picture or a smaller data type"
        )
    result = run.result
    return Observed(
        recipe=result.recipes[0],
        image=result.images[0],
        steps=steps,
        inputs=torch.cat(watcher.inputs),
        attention=watcher.attention(),
    )


class _Watcher:
    """Collects what the UNet of one run sees and attends to."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self._sum = torch.zeros(())
        self._layers = 0

    def begin(self, _layer: Any, arguments: tuple[Tensor, ...]) -> None:
        """An evaluation begins; its last row is the picture's, the negative prompt's comes first.

        The hook of a UNet's first layer.
        """
        self.inputs.append(arguments[0][-1:].float().cpu())

    def asked(
        self, place: str, attention: Any, arguments: tuple[Tensor, ...], options: dict[str, Any]
    ) -> None:
        """The attention layer at a place computes, or answers what its state knows. Its hook."""
        words, state = options.get("encoder_hidden_states"), options.get("state")
        if words is None or (state is not None and place in state.answers):
            return  # self-attention has no words
        self.attended(attention, arguments[0], words)

    def attended(self, attention: Any, hidden: Tensor, words: Tensor) -> None:
        """Add the shares (T, h, w) that the places of ``hidden`` (B, h w, C) give ``words``."""
        query = attention.head_to_batch_dim(attention.to_q(hidden[-1:])).float()
        key = attention.head_to_batch_dim(attention.to_k(words[-1:])).float()
        shares = attention.get_attention_scores(query, key).mean(0).T  # (T, h w)
        height, width = self.inputs[-1].shape[2:]
        small = _shrunk((height, width), shares.shape[1])
        maps = functional.interpolate(
            shares.reshape(1, -1, *small), size=(height, width), mode="bilinear"
        )
        self._sum = self._sum + maps[0].cpu()
        self._layers += 1

    def attention(self) -> Tensor:
        """The mean over all layers of all evaluations, (T, h, w)."""
        return self._sum / self._layers


def _shrunk(size: tuple[int, int], places: int) -> tuple[int, int]:
    """Height and width of a level of the UNet that has so many places: halved, rounded up."""
    height, width = size
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    return height, width
