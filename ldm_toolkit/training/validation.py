"""The loss on held-out pictures: a number by which two runs can be compared.

Nothing in it is drawn anew. Pictures, captions, the noise of each picture and the timesteps are the
same in every validation of every run, whatever its seed, batch size and number of processes.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.training.cache import Rows
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.methods.unet_step import UNetMethod
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.objectives import reconstruction_loss
from ldm_toolkit.training.rng import generator
from ldm_toolkit.training.run_state import RunState

__all__ = ["HeldOut", "UNetHeldOut", "VAEHeldOut", "Validation", "summary"]

logger = logging.getLogger(__name__)
_BANDS = 10
_CONFIDENCE = 0.95


class HeldOut(Protocol):
    """Held-out pictures, and how wrong the network is about them."""

    bands: Sequence[str]
    """Names of the errors of a picture."""

    def __len__(self) -> int: ...

    def errors(self, picture: int) -> Tensor:
        """Errors of a picture, one a band."""


class UNetHeldOut:
    """Squared errors of the UNet's prediction, in the middle of each tenth of time.

    No timestep has a weight; errors count where they do in training.

    ``moments``, ``embeddings`` (token ids where the method has a text encoder), ``caption_rows``
    and ``masks`` are of the held-out pictures and as in `UNetMethod`; the latents are the
    posterior's mean, the caption is the first.
    """

    def __init__(
        self,
        method: UNetMethod,
        *,
        moments: Rows,
        embeddings: Rows,
        caption_rows: Sequence[Sequence[int]],
        scaling_factor: float,
        batch_size: int,
        masks: Rows | None = None,
    ) -> None:
        self._method, self._moments, self._rows = method, moments, caption_rows
        self._embeddings, self._scaling_factor = embeddings, scaling_factor
        self._batch_size, self._masks = batch_size, masks
        count = len(method.alphas_cumprod)
        edges = [count * band // _BANDS for band in range(_BANDS + 1)]
        pairs = list(itertools.pairwise(edges))
        self.bands: Sequence[str] = [f"{low}-{high - 1}" for low, high in pairs]
        self.timesteps = torch.tensor([(low + high) // 2 for low, high in pairs])

    def __len__(self) -> int:
        return len(self._moments)

    def errors(self, picture: int) -> Tensor:
        """Errors of a picture, one a band."""
        mean = self._moments[picture].float().chunk(2)[0]
        text = self._embeddings[self._rows[picture][0]]
        alone = {
            "latents": mean * self._scaling_factor,
            "noise": torch.randn(mean.shape, generator=generator(0, "validation", picture)),
            "text": text.float() if text.is_floating_point() else text,
        }
        if self._masks is not None:
            alone["mask"] = self._masks[picture].float()
        found = []
        device = next(self._method.module.parameters()).device
        for timesteps in self.timesteps.split(self._batch_size):
            columns = {name: torch.stack([value] * len(timesteps)) for name, value in alone.items()}
            columns["timesteps"] = timesteps
            columns["alpha_bar"] = self._method.alphas_cumprod[timesteps]
            moved = {name: value.to(device) for name, value in columns.items()}
            found.append(self._method.module.errors(**moved))
        return torch.cat(found)


class VAEHeldOut:
    """Distance of whole pictures from their reconstructions through the posterior's mean."""

    bands: Sequence[str] = ("all",)

    def __init__(self, method: VAEMethod, source: Source, distance: str) -> None:
        self._vae, self._source, self._distance = method.vae, source, distance

    def __len__(self) -> int:
        return len(self._source)

    def errors(self, picture: int) -> Tensor:
        """The distance of one picture."""
        device = next(self._vae.parameters()).device
        pixels = pil_to_pixels(self._source.image(picture))[None].to(device)
        made = self._vae.decode(self._vae.encode(pixels).latent_dist.mean).sample
        return reconstruction_loss(made, pixels, 0.0, self._distance)[None]


class Validation:
    """Measures held-out pictures every so many steps, and after the last."""

    def __init__(self, held_out: HeldOut, every: int) -> None:
        self._held_out, self._every = held_out, every

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after this step of so many."""
        return step % self._every == 0 or step == steps

    def measure(self, run: RunState) -> dict[str, Any]:
        """The losses with the weights as they are and, where there is one, with their average."""
        held_out = self._held_out
        found = {"raw": summary(_errors(held_out, run), held_out.bands)}
        if run.averages:
            with run.averaged():
                found["averaged"] = summary(_errors(held_out, run), held_out.bands)
        if run.accelerator.is_main_process:
            losses = ", ".join(f"{name} {one['loss']:.5g}" for name, one in found.items())
            logger.info(
                "step %d, loss on %d held-out pictures: %s", run.step, len(held_out), losses
            )
        return {"pictures": len(held_out), **found}


@torch.no_grad()
def _errors(held_out: HeldOut, run: RunState) -> Tensor:
    """Errors of all pictures, (N, bands) float64; each process computes its share of them."""
    accelerator = run.accelerator
    table = torch.zeros(len(held_out), len(held_out.bands))
    with _evaluating(run.method.module), accelerator.autocast():
        for picture in range(accelerator.process_index, len(held_out), accelerator.num_processes):
            table[picture] = held_out.errors(picture).float().cpu()
    if accelerator.num_processes > 1:  # the others' rows are zeros here: the sum is exact
        table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()
    return table.double()


def summary(errors: Tensor, bands: Sequence[str]) -> dict[str, Any]:
    """Mean over pictures of errors (N, bands), half its 95 % confidence interval, means of bands.

    Student's interval: the pictures are the independent draws, the bands of one are not.
    """
    from scipy.special import stdtrit

    of_pictures = errors.mean(dim=1)
    count = len(of_pictures)
    found: dict[str, Any] = {"loss": float(of_pictures.mean())}
    if count > 1:
        quantile = float(stdtrit(count - 1, (1 + _CONFIDENCE) / 2))
        found["margin"] = quantile * float(of_pictures.std()) / math.sqrt(count)
    if len(bands) > 1:
        found["bands"] = dict(zip(bands, errors.mean(dim=0).tolist(), strict=True))
    return found


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the block nothing drops out; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
