"""A Run is one call on its way, a Result its end."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from ldm_toolkit.denoise import Step
from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.memory import Room
from ldm_toolkit.recipe import Recipe

__all__ = ["Result", "Run"]


@dataclass(frozen=True)
class Result:
    """What a call made: pictures, the recipe of each, final latents (B, C, h, w) float32."""

    images: list[Image.Image]
    recipes: list[Recipe]
    latents: torch.Tensor


class Run:
    """One call on its way: iterating yields a Step a UNet evaluation, then ``result`` is there.

    ``recipes`` and ``total`` are known before the first step; leaving the loop early cancels. The
    recipes of ``result`` differ from them where memory ran out, see ``memory.Room``.
    """

    def __init__(
        self, steps: Iterator[Step], recipes: list[Recipe], total: int, room: Room
    ) -> None:
        self.recipes = recipes
        self.total = total
        self._steps = steps
        self._room = room
        self._last: Step | None = None
        self._result: Result | None = None

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        self._last = next(self._steps)
        return self._last

    @property
    def result(self) -> Result:
        """Pictures, recipes, latents; decoded at the first use. Raises LdmToolkitError early."""
        if self._last is None or self._last.index + 1 < self.total:
            raise LdmToolkitError("the run has no result before its end; iterate it through")
        if self._result is None:
            latents = self._last.latents
            images = self._room.decode(latents)
            changes = self._room.changes
            recipes = [
                dataclasses.replace(recipe, pixels_sha256=pixels_sha256(image), **changes)
                for recipe, image in zip(self.recipes, images, strict=True)
            ]
            self._result = Result(images, recipes, latents)
        return self._result
