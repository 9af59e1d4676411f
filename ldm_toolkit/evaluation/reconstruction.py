"""``ldm-eval recon``: what is left of pictures after a model's VAE has coded and decoded them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_toolkit import latents
from ldm_toolkit.errors import ModelError, UserError, install_hint
from ldm_toolkit.evaluation.distances import frechet
from ldm_toolkit.evaluation.extractors import Extractor, open_extractor
from ldm_toolkit.evaluation.intervals import mean
from ldm_toolkit.evaluation.report import FEWEST, Report
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.models.components import Components, module_hash
from ldm_toolkit.training.perceptual import lpips_weights
from ldm_toolkit.training.quality import measures_of

__all__ = ["cut", "reconstruction"]


def reconstruction(subject: Subject, *, features: str, inception_weights: Path | None) -> Report:
    """PSNR, SSIM and LPIPS between pictures and reconstructions, and their Fréchet distance.

    Through the posterior's mean, in the model's data type; pictures are cut to the multiple that
    the VAE needs. LPIPS is told where its weights are on this machine, the distance where its
    network is.
    """
    components = subject.pipe().components
    notes = []
    extractor = None
    try:
        extractor = open_extractor(features, inception_weights, subject.device)
    except (ModelError, UserError) as error:
        notes.append(f"no Fréchet distance: {error}")
    measures = measures_of(None, components.device)
    if "lpips" not in measures:
        notes.append(_without_lpips())
    names = list(measures)

    @torch.inference_mode()
    def compute(block: Sequence[int]) -> np.ndarray:
        rows = []
        for index in block:
            image = cut(subject.pictures.image(index), components.latent_factor)
            pixels = latents.pil_to_pixels(image)[None].to(components.device)
            made = _reconstructed(image, components)
            values = [float(one(made, pixels)) for one in measures.values()]
            rows.append([*values, *_seen(extractor, made, pixels)])
        return np.array(rows, dtype=np.float32)

    vae = module_hash(components.vae)
    key = " ".join(["reconstruction", vae, str(components.dtype), *names])
    key += f" {extractor.key}" if extractor is not None else ""
    rows = subject.rows(subject.pictures, key, compute, "reconstructing")
    scores = {name: mean(rows[:, column].tolist()) for column, name in enumerate(names)}
    settings: dict[str, Any] = {"vae_sha256": vae, "dtype": str(components.dtype)}
    settings["pictures"] = len(rows)
    if extractor is not None and len(rows) < FEWEST:
        notes.append(f"no Fréchet distance of less than {FEWEST} pictures")
    elif extractor is not None:
        before, after = np.split(rows[:, len(names) :], 2, axis=1)
        scores["rfid"] = frechet(before, after)
        settings |= extractor.settings
    return Report(scores, settings, tuple(notes))


def _without_lpips() -> str:
    """What LPIPS lacks, and where it is had from."""
    try:
        file, address = lpips_weights()
    except (ImportError, RuntimeError):  # torchvision for another torch: RuntimeError
        return f"no LPIPS: it needs torchmetrics and torchvision, {install_hint('lpips')}"
    return f"no LPIPS: put {address} at {file}"


def _reconstructed(image: Image.Image, components: Components) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1] float32."""
    coded = latents.pil_to_latents([image], components)
    return latents.decode_latents(coded, components).clamp(-1, 1)


def _seen(extractor: Extractor | None, made: torch.Tensor, pixels: torch.Tensor) -> Sequence[float]:
    """Features of the picture and of its reconstruction, one after the other."""
    if extractor is None:
        return ()
    both = latents.pixels_to_pil(torch.cat([pixels, made]))
    return extractor.compute(both).flatten().tolist()


def cut(image: Image.Image, multiple: int) -> Image.Image:
    """The middle of a picture whose sides are multiples of a number."""
    width, height = (side // multiple * multiple for side in image.size)
    if width == 0 or height == 0:
        raise UserError(
            f"a picture of {image.width}x{image.height} is too small: the VAE needs {multiple} "
            "pixels a side"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
