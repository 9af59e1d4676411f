"""Where a run starts: from noise, from a picture, from a picture and a mask.

Text-to-image, image-to-image and inpainting differ in the first latents, in what the UNet sees
beside them and in what is put back after a step: here, and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from ldm_toolkit.denoise import Blend
from ldm_toolkit.latents import (
    initial_noise,
    pil_to_latents,
    pil_to_pixels,
    pixels_to_latents,
)
from ldm_toolkit.models.components import Components

__all__ = ["Start", "from_image", "from_mask", "from_noise"]


@dataclass(frozen=True)
class Start:
    """What the loop starts with.

    ``latents`` (B, C, h, w) are as noisy as the scheduler's timestep number ``begin``; ``beside``
    (B, 1 + C, h, w) is what an inpainting UNet sees beside them: mask and masked picture.
    """

    latents: torch.Tensor
    begin: int = 0
    beside: torch.Tensor | None = None
    blend: Blend | None = None


def from_noise(solver: Any, noise: torch.Tensor) -> Start:
    """Text-to-image: nothing but noise (B, C, h, w) of unit variance."""
    return Start(noise * solver.init_noise_sigma)


def from_image(
    solver: Any,
    steps: int,
    strength: float,
    picture: Image.Image,
    components: Components,
    generators: Sequence[torch.Generator],
) -> Start:
    """Image-to-image: the picture, as noisy as ``strength`` of the steps can take away.

    SDEdit, Meng et al. 2022; draws as diffusers' pipeline does: posterior, then noise.
    """
    begin = _begin(solver, steps, strength)
    originals = pil_to_latents([picture] * len(generators), components, generators)
    shape = components.latent_shape(*picture.size)
    noise = initial_noise(generators, shape).to(originals.device)
    return Start(solver.add_noise(originals, noise, _first(solver, begin, noise)), begin)


def from_mask(
    solver: Any,
    steps: int,
    strength: float,
    picture: Image.Image,
    mask: Image.Image,
    components: Components,
    generators: Sequence[torch.Generator],
) -> Start:
    """Inpainting: white in ``mask`` is drawn anew, black stays; both of the run's size.

    An inpainting UNet (9 channels) sees mask and masked picture. With another one the kept part is
    put back after every step, as noisy as the step left the rest (Lugmayr et al. 2022, eq. 8,
    without resampling). Draws as diffusers' pipeline does: picture, noise, masked picture.
    """
    begin = _begin(solver, steps, strength)
    pixels = pil_to_pixels(picture)[None]  # (1, 3, H, W)
    hole = _hole(mask)  # (1, 1, H, W)
    shape = components.latent_shape(*picture.size)
    small = functional.interpolate(hole, size=shape[1:]).to(components.device)
    count = len(generators)
    originals = torch.empty(0)  # an inpainting UNet that starts from noise needs none
    if strength < 1 or not components.inpainting:
        originals = pixels_to_latents(pixels.expand(count, -1, -1, -1), components, generators)
    noise = initial_noise(generators, shape).to(components.device)
    latents = noise * solver.init_noise_sigma
    if strength < 1:
        latents = solver.add_noise(originals, noise, _first(solver, begin, noise))
    if components.inpainting:
        masked = (pixels * (1 - hole)).expand(count, -1, -1, -1)
        seen = pixels_to_latents(masked, components, generators)
        return Start(latents, begin, torch.cat([small.expand(count, -1, -1, -1), seen], dim=1))
    # diffusers encodes the masked picture here too and does not use it; that draw comes before
    # the noise that stochastic schedulers take from the same generators.
    initial_noise(generators, shape)

    def blend(left: torch.Tensor, timestep: torch.Tensor | None) -> torch.Tensor:
        kept = originals
        if timestep is not None:
            kept = solver.add_noise(originals, noise, timestep.reshape(1))
        return (1 - small) * kept + small * left

    return Start(latents, begin, blend=blend)


def _begin(solver: Any, steps: int, strength: float) -> int:
    """The place in the timesteps after which ``strength`` of the steps are left."""
    begin = (steps - min(int(steps * strength), steps)) * solver.order
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(begin)
    return begin


def _first(solver: Any, begin: int, like: torch.Tensor) -> torch.Tensor:
    """The first timestep, one a picture."""
    return solver.timesteps[begin : begin + 1].repeat(len(like))


def _hole(mask: Image.Image) -> torch.Tensor:
    """A mask as (1, 1, H, W) of 0 and 1, where 1 is drawn anew: the brighter half of the greys."""
    levels = pil_to_pixels(mask.convert("L"))[None, :1]  # from -1 to 1
    return (levels >= 0).float()
