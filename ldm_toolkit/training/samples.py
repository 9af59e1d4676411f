"""Sample pictures during training; the pipeline is a callable handed in."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from ldm_toolkit.files import write_atomic
from ldm_toolkit.images import image_bytes
from ldm_toolkit.latents import pil_to_pixels, pixels_to_pil
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.methods.unet_step import UNetMethod

__all__ = ["Draw", "draw_prompts", "draw_reconstructions"]

Draw = Callable[[Path, Sequence[str], Path | None], list[Image.Image]]
"""Draws one picture a prompt with the model in a folder and the LoRA or the textual inversion of a
file, if there is one; its name is the method's ``adapter_file``."""


def draw_prompts(
    method: UNetMethod,
    complete: Callable[[Path], Path],
    prompts: Sequence[str],
    file: Path,
    draw: Draw,
) -> None:
    """A strip of pictures, one a prompt, with what the method has trained so far.

    ``complete`` adds to a folder what the method does not save and returns the model's folder.
    Raises CannotWrite.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        folder.mkdir()
        method.save(folder)
        adapter = folder / method.adapter_file if method.adapter_file is not None else None
        _write_strip(draw(complete(folder), prompts, adapter), file)


@torch.inference_mode()
def draw_reconstructions(vae: AutoencoderKL, source: Source, file: Path, count: int = 4) -> None:
    """Pictures of the data beside their reconstructions. Raises CannotWrite."""
    device = next(vae.parameters()).device
    training = vae.training
    vae.eval()
    strip = []
    for index in range(min(count, len(source))):
        picture = source.image(index)
        latents = vae.encode(pil_to_pixels(picture)[None].to(device)).latent_dist.mean
        strip += [picture, *pixels_to_pil(vae.decode(latents).sample.float())]
    vae.train(training)
    _write_strip(strip, file)


def _write_strip(pictures: Sequence[Image.Image], file: Path) -> None:
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * width, 0))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, image_bytes(strip))
