"""What a call gives, checked: prompts, seeds, picture, mask, latents."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ldm_toolkit import latents as latents_
from ldm_toolkit import starts
from ldm_toolkit.errors import UserError, suggestion
from ldm_toolkit.files import sha256_bytes
from ldm_toolkit.images import pixels_sha256, to_rgb
from ldm_toolkit.models.components import Components
from ldm_toolkit.recipe import GenerateOptions, Inputs, ModelDefaults, Recipe

__all__ = [
    "OPTIONS",
    "Given",
    "batch_of",
    "frame_options",
    "prompt_list",
    "seed_list",
    "warn_if_small",
]

_log = logging.getLogger(__name__)
# Share of the model's own side below which pictures fall apart.
_SMALL = 0.6

OPTIONS = tuple(field.name for field in dataclasses.fields(GenerateOptions))
"""What a call may be asked of each of its pictures."""


@dataclass(frozen=True)
class Given:
    """What a call gives beside the text."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    latents: torch.Tensor | None = None

    @classmethod
    def of(
        cls, image: Image.Image | None, mask: Image.Image | None, latents: torch.Tensor | None
    ) -> "Given":
        """Checked for what they are, pictures as RGB. Raises UserError."""
        pictures: dict[str, Any] = {"image": image, "mask": mask}
        for name, picture in pictures.items():
            if picture is None:
                continue
            if not isinstance(picture, Image.Image):
                kind = type(picture).__name__
                raise UserError(f"{name} must be a PIL picture, not {kind}; see images.open_image")
            try:
                pictures[name] = to_rgb(picture)
            except (OSError, ValueError) as error:  # closed, or cut short
                raise UserError(f"{name} cannot be read: {error}") from error
        return cls(**pictures, latents=latents)

    def inputs(self, components: Components, count: int) -> Inputs:
        """Hashes and size, for the recipe. Raises UserError for what does not fit the model."""
        if components.inpainting and (self.image is None or self.mask is None):
            raise UserError("an inpainting model needs an image and a mask")
        size = self.image.size if self.image is not None else None
        if self.latents is not None:
            size = self._latents_size(components, count)
        return Inputs(
            image_sha256=pixels_sha256(self.image) if self.image is not None else None,
            mask_sha256=pixels_sha256(self.mask) if self.mask is not None else None,
            size=size,
        )

    def _latents_size(self, components: Components, count: int) -> tuple[int, int]:
        """(width, height) of the pictures that the latents become. Raises UserError."""
        latents: Any = self.latents
        channels = components.latent_channels
        if self.image is not None:
            raise UserError("latents and image exclude each other: both say where the run starts")
        shape = tuple(latents.shape) if isinstance(latents, torch.Tensor) else ()
        if len(shape) != 4 or shape[:2] != (count, channels) or not latents.is_floating_point():
            what = shape or type(latents).__name__
            raise UserError(f"latents must be a tensor ({count}, {channels}, h, w), not {what}")
        if not torch.isfinite(latents).all():
            raise UserError("the latents hold NaN or infinity")
        height, width = latents.shape[2:]
        return width * components.latent_factor, height * components.latent_factor

    def digests(self, count: int) -> list[str | None]:
        """The hash of each picture's own latents as float32."""
        if self.latents is None:
            return [None] * count
        rows = self.latents.detach().float().cpu().contiguous()
        return [sha256_bytes(row.numpy().tobytes()) for row in rows]

    def start(
        self,
        solver: Any,
        recipe: Recipe,
        components: Components,
        generators: Sequence[torch.Generator],
    ) -> starts.Start:
        """Where the run begins."""
        size = recipe.width, recipe.height
        if self.image is None or recipe.strength is None:
            shape = components.latent_shape(*size)
            noise = latents_.initial_noise(generators, shape)
            if self.latents is not None:
                own = self.latents.detach().float().cpu()
                if tuple(own.shape[1:]) != shape:
                    raise UserError(f"latents of {tuple(own.shape)} are no picture of {size}")
                noise[: len(own)] = own
            return starts.from_noise(solver, noise.to(components.device))
        picture = self.image.resize(size, Image.Resampling.LANCZOS)
        how = (solver, recipe.steps, recipe.strength, picture)
        if self.mask is None:
            return starts.from_image(*how, components, generators)
        mask = self.mask.resize(size, Image.Resampling.LANCZOS)
        return starts.from_mask(*how, mask, components, generators)


def prompt_list(prompt: str | Sequence[str], images_per_prompt: int) -> list[str]:
    """One prompt a picture: prompt p comes images_per_prompt times. Raises UserError."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError("prompt must be a text or a list of texts")
    if not texts:
        raise UserError("the list of prompts is empty")
    if type(images_per_prompt) is not int or images_per_prompt < 1:
        raise UserError(
            f"images_per_prompt must be a whole number from 1, not {images_per_prompt!r:.80}"
        )
    return [text for text in texts for _ in range(images_per_prompt)]


def seed_list(seed: int | Sequence[int] | None, count: int) -> list[int] | None:
    """The seeds when each picture has one of its own choice. Raises UserError."""
    if not isinstance(seed, list | tuple):
        return None
    if len(seed) != count or not all(type(one) is int and one >= 0 for one in seed):
        raise UserError(f"a list of seeds needs {count} whole numbers from 0, one an image")
    return list(seed)


def batch_of(batch_size: int | None, count: int) -> int:
    """How many pictures are computed together. Raises UserError."""
    if batch_size is None:
        return count
    if type(batch_size) is not int or batch_size < count:
        raise UserError(
            f"batch_size must be a whole number from {count}, the pictures of this call, "
            f"not {batch_size!r:.80}"
        )
    return batch_size


def frame_options(options: Mapping[str, Any]) -> GenerateOptions:
    """What all frames of ``interpolate`` share; prompt and seed are each frame's own.

    Raises UserError, also for what only a call takes, such as an image.
    """
    known = [name for name in OPTIONS if name not in ("prompt", "seed", "strength")]
    problems = [
        f"interpolate takes no {name!r:.80}"
        + (suggestion(name, ["prompts", "seeds"]) or suggestion(name, known))
        for name in options
        if name not in known
    ]
    if problems:
        raise UserError(f"{'; '.join(problems)} (its options: {', '.join(known)})")
    return GenerateOptions(prompt="", **options)


@functools.cache
def warn_if_small(width: int, height: int, defaults: ModelDefaults) -> None:
    """Say once a size that the model was trained for much larger pictures."""
    if width < _SMALL * defaults.width or height < _SMALL * defaults.height:
        _log.warning(
            "%s was trained at %dx%d; at %dx%d it draws poorly",
            *(defaults.name, defaults.width, defaults.height, width, height),
        )
