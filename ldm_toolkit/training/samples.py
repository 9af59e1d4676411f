"""Sample pictures during training; the pipeline is a callable handed in."""

import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from ldm_toolkit.files import write_atomic
from ldm_toolkit.images import image_bytes, open_image
from ldm_toolkit.latents import pil_to_pixels, pixels_to_pil
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.methods.unet_step import UNetMethod
from ldm_toolkit.values import counted

__all__ = ["BEFORE_AFTER", "Draw", "draw_prompts", "draw_reconstructions", "sample_file",
           "write_before_after"]  # fmt: skip

logger = logging.getLogger(__name__)

BEFORE_AFTER = "before_after.png"

Draw = Callable[[Path, Sequence[str], Path | None], list[Image.Image]]
"""Draws one picture a prompt with the model in a folder and the LoRA or the textual inversion of a
file, if there is one; its name is the method's ``adapter_file``."""


def sample_file(output: Path, step: int) -> Path:
    """Where the sample pictures of a step lie: OUTPUT/samples/step-00000500.png."""
    return output / "samples" / f"step-{step:08d}.png"


def write_before_after(output: Path, steps: int) -> None:
    """OUTPUT/before_after.png: the sample pictures of step 0 above those of the last step.

    Nothing where either lack, as they do without ``--sample-every``. Raises CannotWrite.
    """
    files = [sample_file(output, step) for step in (0, steps)]
    if all(file.is_file() for file in files):
        write_atomic(output / BEFORE_AFTER, image_bytes(_joined([open_image(f) for f in files], 1)))
        logger.info("before training (above) and after (below): %s", output / BEFORE_AFTER)


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
    logger.info("drawing %s at the model's own size", counted(len(prompts), "sample picture"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        folder.mkdir()
        method.save(folder)
        adapter = folder / method.adapter_file if method.adapter_file is not None else None
        _write_strip(draw(complete(folder), prompts, adapter), file)


@torch.inference_mode()
def draw_reconstructions(vae: AutoencoderKL, source: Source, file: Path, count: int = 4) -> None:
    """Pictures of the data beside their reconstructions, whose PSNR is logged.

    Raises CannotWrite.
    """
    device = next(vae.parameters()).device
    training = vae.training
    vae.eval()
    strip = []
    for index in range(min(count, len(source))):
        picture = source.image(index)
        latents = vae.encode(pil_to_pixels(picture)[None].to(device)).latent_dist.mean
        strip += [picture, *pixels_to_pil(vae.decode(latents).sample.float())]
    vae.train(training)
    values = [np.asarray(picture, dtype=np.float64) for picture in strip]
    error = float(np.mean(np.square(np.stack(values[::2]) - np.stack(values[1::2]))))
    psnr = 10 * math.log10(255**2 / max(error, 1e-9))
    logger.info("reconstructions with a PSNR of %.2f dB: %s", psnr, file)
    _write_strip(strip, file)


def _write_strip(pictures: Sequence[Image.Image], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, image_bytes(_joined(pictures, len(pictures))))


def _joined(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows of so many."""
    width, height = (max(sides) for sides in zip(*(one.size for one in pictures), strict=True))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (width * columns, height * rows))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole
