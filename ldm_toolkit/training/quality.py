"""What an autoencoder makes of pictures before and after its training: PSNR, SSIM, LPIPS, rFID.

OUTPUT/quality.json holds the means over pictures and their standard deviations. Reconstructions go
through the posterior's mean, in float32, in the range that a picture file can hold. The Fréchet
distance of Heusel et al. 2017 between pictures and reconstructions is measured of a thousand of
them and more; of few, its bias is larger than what a training changes.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ldm_toolkit.errors import install_hint
from ldm_toolkit.files import write_atomic
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.models.components import module_hash
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.perceptual import Lpips, cached_frechet, cached_lpips

__all__ = ["Quality", "measures_of"]

logger = logging.getLogger(__name__)
_ROWS = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS (VGG)", 4),
         "rfid": ("rFID", 2)}  # fmt: skip
_ENOUGH = 1000  # pictures for a Fréchet distance
Measure = Callable[[Tensor, Tensor], Tensor]


class Quality:
    """Measures an autoencoder before and after its training on the same pictures.

    ``held_out`` says that none of the pictures is trained on. ``lpips`` is given where it is loaded
    already; otherwise it is used where nothing has to be downloaded, as the Fréchet distance is.
    """

    def __init__(
        self,
        pictures: Source,
        held_out: bool,
        file: Path,
        accelerator: Accelerator,
        lpips: Lpips | None = None,
    ) -> None:
        self._pictures, self._file, self._accelerator = pictures, file, accelerator
        self._measures = measures_of(lpips, accelerator.device)
        frechet = cached_frechet() if len(pictures) >= _ENOUGH else None
        if not all(gather_object([frechet is not None])):  # the processes compute it together
            frechet = None
        self._frechet = None if frechet is None else frechet.to(accelerator.device)
        self._found: dict[str, Any] = {
            "pictures": "held out" if held_out else "training",
            "count": len(pictures),
            "data": pictures.fingerprint,
        }

    def before(self, vae: AutoencoderKL) -> None:
        """Measure what the training starts from, once for all starts of a run. Raises CannotWrite.

        A run that goes on finds it in the file, where it is about the same weights and pictures.
        """
        self._found["model"] = module_hash(vae)
        told = _read(self._file)
        same = all(told.get(name) == value for name, value in self._found.items())
        known = told.get("before") if same else None
        wanted = {*self._measures, *(["rfid"] if self._frechet is not None else [])}
        lacking = not isinstance(known, dict) or not wanted <= known.keys()
        if any(gather_object([lacking])):
            known = self._measured(vae)
        self._found["before"] = known
        self._write()

    def after(self, vae: AutoencoderKL) -> None:
        """Measure what the training has made, and show both. Raises CannotWrite."""
        self._found["after"] = self._measured(vae)
        self._write()
        if self._accelerator.is_main_process:
            logger.info("%s", _table(self._found))
            if "ssim" not in self._measures:
                logger.info("SSIM needs torchmetrics: %s", install_hint("train"))

    def _write(self) -> None:
        if self._accelerator.is_main_process:
            write_atomic(self._file, json.dumps(self._found, indent=2).encode())

    @torch.no_grad()
    def _measured(self, vae: AutoencoderKL) -> dict[str, Any]:
        """Mean and deviation of each measure; each process looks at its share of the pictures."""
        accelerator, own = self._accelerator, []
        vae.to(accelerator.device)  # type: ignore[arg-type]
        for index in range(
            accelerator.process_index, len(self._pictures), accelerator.num_processes
        ):
            pixels = pil_to_pixels(self._pictures.image(index))[None].to(accelerator.device)
            made = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
            values = {name: float(one(made, pixels)) for name, one in self._measures.items()}
            own.append((index, values))
            if self._frechet is not None:
                self._frechet.update(pixels / 2 + 0.5, real=True)
                self._frechet.update(made / 2 + 0.5, real=False)
        found = _summary([values for _, values in sorted(gather_object(own))])
        if self._frechet is not None:
            found["rfid"] = {"mean": float(self._frechet.compute())}
            self._frechet.reset()
        return found


def _summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over pictures, one row a picture."""
    found = {}
    for name in rows[0]:
        if all(name in row for row in rows):  # a machine may lack a network that another has
            column = torch.tensor([row[name] for row in rows], dtype=torch.float64)
            found[name] = {"mean": float(column.mean()), "std": float(column.std(correction=0))}
    return found


def _table(found: Mapping[str, Any]) -> str:
    """The means before and after, a line a measure."""
    lines = [f"quality on {found['count']} {found['pictures']} pictures: before, after"]
    for name, (title, digits) in _ROWS.items():
        if name in found["before"] and name in found["after"]:
            means = [f"{found[when][name]['mean']:>9.{digits}f}" for when in ("before", "after")]
            lines.append(f"{title:<12}" + "".join(means))
    return "\n".join(lines)


def measures_of(lpips: Lpips | None, device: torch.device) -> dict[str, Measure]:
    """What can be measured here, by name; pictures are in [-1, 1]."""
    found: dict[str, Measure] = {"psnr": _psnr}
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return found

    def similarity(made: Tensor, pixels: Tensor) -> Tensor:
        found = ssim(made / 2 + 0.5, pixels / 2 + 0.5, data_range=1.0)
        return found if isinstance(found, Tensor) else found[0]  # the others of a full answer

    found["ssim"] = similarity
    lpips = lpips if lpips is not None else cached_lpips()
    if lpips is not None:
        found["lpips"] = lpips.to(device)
    return found


def _psnr(made: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB; 100 for equal pictures, as JSON knows no infinity."""
    error = (made - pixels).square().mean()
    return (10 * torch.log10(4.0 / error)).clamp(max=100.0)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
