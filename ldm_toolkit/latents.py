"""Latents: the seed rule, the first noise, the way from pictures and back."""

import copy
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_toolkit.compilation import explained
from ldm_toolkit.errors import NumericalError, UserError
from ldm_toolkit.models.components import Components

__all__ = [
    "decode_latents",
    "initial_noise",
    "latents_to_pil",
    "make_generators",
    "pil_to_latents",
    "pil_to_pixels",
    "pixels_to_latents",
    "pixels_to_pil",
    "slerp",
]

_log = logging.getLogger(__name__)


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A CPU generator of its own for each picture: all noise of the picture comes from it."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_noise(
    sources: Sequence[int | torch.Generator], shape: tuple[int, int, int]
) -> torch.Tensor:
    """The first noise of each picture, float32 on the CPU: (C, h, w) -> (B, C, h, w).

    A source is a seed or the picture's generator, which goes on to make the steps' noise. The
    noise of a picture depends on its own source only, never on batch or device.
    """
    generators = [
        source
        if isinstance(source, torch.Generator)
        else torch.Generator("cpu").manual_seed(source)
        for source in sources
    ]
    return torch.cat(
        [torch.randn((1, *shape), generator=one, dtype=torch.float32) for one in generators]
    )


def pil_to_latents(
    images: Sequence[Image.Image],
    components: Components,
    generators: Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """Pictures of one size -> latents of unit variance, (B, C, h, w) float32.

    See ``pixels_to_latents``. Raises UserError for sizes.
    """
    multiple = components.latent_factor
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise UserError(f"the pictures must have one size, not {sorted(sizes)}")
    width, height = sizes.pop()
    if width % multiple or height % multiple:
        raise UserError(
            f"a picture of {width}x{height} has sides that are no multiples of {multiple}"
        )
    return pixels_to_latents([pil_to_pixels(image) for image in images], components, generators)


@torch.no_grad()
def pixels_to_latents(
    pixels: Iterable[torch.Tensor],
    components: Components,
    generators: Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """Pixels from -1 to 1, each (3, H, W) -> latents of unit variance, (B, C, h, w) float32.

    The mean of the VAE's posterior, or a draw from it with one generator a picture. Encoded one at
    a time, so a picture's latents do not depend on its neighbours.
    """
    vae = components.vae
    latents = []
    for index, one in enumerate(pixels):
        with explained():
            posterior = vae.encode(one[None].to(components.device, components.dtype)).latent_dist
        latent = posterior.mean.float()
        if generators is not None:
            noise = initial_noise([generators[index]], tuple(latent.shape[1:]))
            latent = latent + posterior.std.float() * noise.to(latent.device)
        latents.append((latent - components.latent_shift) * components.latent_scale)
    return torch.cat(latents)


def slerp(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """The point between two noises on the arc, not the chord: of noise's own length.

    Shoemake 1985, eq. for Slerp; weight 0 gives ``start``, 1 ``end``; any equal shapes.
    """
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = cosine.clamp(-1, 1).acos()
    if float(angle.sin()) < 1e-4:  # the same or opposite directions: no arc to follow
        return torch.lerp(start, end, weight)
    first, second = ((1 - weight) * angle).sin(), (weight * angle).sin()
    return (first * start + second * end) / angle.sin()


@torch.no_grad()
def decode_latents(
    latents: torch.Tensor, components: Components, *, tiled: bool = False
) -> torch.Tensor:
    """Latents -> pixels from -1 to 1 and a little beyond: (B, C, h, w) -> (B, 3, H, W) float32.

    One picture at a time: equal bits in every batch, and memory for one picture. Where half
    precision overflows, as the VAE of Stable Diffusion 2 does in float16, the picture is decoded
    once more in float32. ``tiled`` takes a part of a large picture at a time, by diffusers' tiles:
    less memory, but the VAE's normalisation sees the part alone, so colours differ a little.
    Raises NumericalError for NaN or infinity, which would be a black picture.
    """
    scaled = latents.to(components.device).float() / components.latent_scale
    scaled = scaled + components.latent_shift
    vae = copy.copy(components.vae)  # the same layers; another run may decode with them right now
    vae.use_tiling = tiled
    return torch.cat([_decode_one(one[None], vae, components.dtype) for one in scaled])


def _decode_one(scaled: torch.Tensor, vae: Any, dtype: torch.dtype) -> torch.Tensor:
    """The VAE's answer to (1, C, h, w) float32, (1, 3, H, W) float32. Raises NumericalError."""
    with explained():
        pixels = vae.decode(scaled.to(dtype)).sample.float()
    if torch.isfinite(pixels).all():
        return pixels
    name = str(dtype).removeprefix("torch.")
    if dtype != torch.float32 and torch.isfinite(scaled).all():
        _log.warning("NaN or infinity in the VAE in %s; decoding in float32", name)
        pixels = copy.deepcopy(vae).float().decode(scaled).sample
    if not torch.isfinite(pixels).all():
        raise NumericalError(
            f"the VAE's picture holds NaN or infinity in {name}; the model's weights are broken"
        )
    return pixels


def pil_to_pixels(image: Image.Image) -> torch.Tensor:
    """A picture as RGB pixels from -1 to 1, (3, H, W) float32."""
    levels = np.asarray(image.convert("RGB"), dtype=np.float32)
    pixels = levels / 255 * 2 - 1  # in this order: the same last bits as diffusers' processor
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def pixels_to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels from -1 to 1, (B, 3, H, W), as RGB pictures."""
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(one.permute(1, 2, 0).cpu().numpy()) for one in levels]


def latents_to_pil(
    latents: torch.Tensor, components: Components, *, tiled: bool = False
) -> list[Image.Image]:
    """Latents as RGB pictures: (B, C, h, w) -> B pictures of W x H. See ``decode_latents``."""
    return pixels_to_pil(decode_latents(latents, components, tiled=tiled))
