"""What latents will look like, at a thousandth of the VAE's price."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ldm_toolkit.latents import pixels_to_latents, pixels_to_pil
from ldm_toolkit.models.components import Components

__all__ = ["preview"]

_SIDE, _PATCH = 32, 4  # latent positions of the picture that the map is fitted to, and of a colour


def preview(latents: Tensor, components: Components) -> list[Image.Image]:
    """Latents (B, C, h, w) as soft pictures of the full size.

    Each pixel is a linear map of the latents there, fitted once to the model's own VAE, as web UIs
    do it with numbers for Stable Diffusion's.
    """
    weights, shift = _fitted(components)
    colours = torch.einsum("bchw,cr->brhw", latents.float().cpu(), weights)
    small = pixels_to_pil((colours + shift[:, None, None]).clamp(-1, 1))
    factor = components.latent_factor
    return [
        one.resize((one.width * factor, one.height * factor), Image.Resampling.BICUBIC)
        for one in small
    ]


_maps: WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def _fitted(components: Components) -> tuple[Tensor, Tensor]:
    """Weights (C, 3) and shift (3,) from latents to pixels from -1 to 1, by least squares.

    Fitted to one picture of random soft colours, which the VAE encodes once in its life.
    """
    if components.vae not in _maps:
        draw = torch.Generator().manual_seed(0)
        patches = torch.rand(1, 3, _SIDE // _PATCH, _SIDE // _PATCH, generator=draw) * 2 - 1
        side = _SIDE * components.latent_factor
        pixels = functional.interpolate(patches, (side, side), mode="bilinear")
        latents = pixels_to_latents(pixels, components).cpu()
        means = functional.avg_pool2d(pixels, components.latent_factor)
        rows = latents[0].flatten(1).T.double()  # (positions, C)
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        found = torch.linalg.lstsq(rows, means[0].flatten(1).T.double()).solution.float()
        _maps[components.vae] = found[:-1], found[-1]
    return _maps[components.vae]
