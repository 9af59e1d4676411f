"""What latents will look like, without the VAE."""

import dataclasses
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ldm_toolkit.errors import ModelError
from ldm_toolkit.hardware import lay_out
from ldm_toolkit.latents import pixels_to_latents, pixels_to_pil
from ldm_toolkit.models.components import Components, sharing_copy
from ldm_toolkit.models.networks import build_network, read_weights
from ldm_toolkit.models.preview_vae import check_preview_vae, enlargement

__all__ = ["preview", "with_preview_vae"]

_SIDE, _PATCH = 32, 4  # latent positions of the picture that the map is fitted to, and of a colour


def preview(latents: Tensor, components: Components) -> list[Image.Image]:
    """Latents (B, C, h, w) as soft pictures of the full size.

    By the small decoder of ``with_preview_vae`` if there is one. Otherwise each pixel is a linear
    map of the latents there, fitted once to the model's own VAE, as web UIs do it with numbers for
    Stable Diffusion's.
    """
    if components.preview_vae is not None:
        return pixels_to_pil(_decoded(latents, components))
    weights, shift = _fitted(components)
    colours = torch.einsum("bchw,cr->brhw", latents.float().cpu(), weights)
    small = pixels_to_pil((colours + shift[:, None, None]).clamp(-1, 1))
    factor = components.latent_factor
    return [
        one.resize((one.width * factor, one.height * factor), Image.Resampling.BICUBIC)
        for one in small
    ]


def with_preview_vae(components: Components, place: str | Path) -> Components:
    """The model with a small decoder: a folder or file in the format of diffusers' AutoencoderTiny.

    Raises ModelError.
    """
    config, weights = check_preview_vae(Path(place))
    if enlargement(config) != components.latent_factor:
        raise ModelError(
            f"preview_vae: it makes {enlargement(config)} pixels of a position of the latents, the "
            f"model's VAE {components.latent_factor}; they are of different models"
        )
    network = build_network("preview_vae", config, read_weights([weights]), components.dtype)
    network.to(components.device)
    lay_out([network], components.dtype)
    return dataclasses.replace(components, preview_vae=network)


@torch.no_grad()
def _decoded(latents: Tensor, components: Components) -> Tensor:
    """Latents (B, C, h, w) -> pixels from -1 to 1, (B, 3, H, W) float32, one picture at a time."""
    vae = components.preview_vae
    scaled = latents.to(components.device).float() / vae.config.scaling_factor
    scaled = (scaled + vae.config.shift_factor).to(components.dtype)
    return torch.cat([vae.decode(one[None]).sample.float() for one in scaled])


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
        # A copy is not compiled, which would take longer than all previews of a run.
        plain = dataclasses.replace(components, vae=sharing_copy(components.vae))
        latents = pixels_to_latents(pixels, plain).cpu()
        means = functional.avg_pool2d(pixels, components.latent_factor)
        rows = latents[0].flatten(1).T.double()  # (positions, C)
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        found = torch.linalg.lstsq(rows, means[0].flatten(1).T.double()).solution.float()
        _maps[components.vae] = found[:-1], found[-1]
    return _maps[components.vae]
