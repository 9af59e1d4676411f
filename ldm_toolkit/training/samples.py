"""Sample pictures during training; the pipeline is a callable handed in."""

import shutil
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
from ldm_toolkit.training.methods.protocol import Method

__all__ = ["Draw", "draw_prompts", "draw_reconstructions"]

Draw = Callable[[Path, Sequence[str]], list[Image.Image]]
"""Draws one picture a prompt with the model in a folder."""


def draw_prompts(
    method: Method, rest: Path, prompts: Sequence[str], file: Path, draw: Draw
) -> None:
    """A strip of pictures, one a prompt, from the method's network and the other parts in ``rest``.

    Raises CannotWrite.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary, "model")
        without = shutil.ignore_patterns("checkpoints", "samples", "cache")
        shutil.copytree(rest, model, ignore=without)
        method.save(model)
        _write_strip(draw(model, prompts), file)


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
