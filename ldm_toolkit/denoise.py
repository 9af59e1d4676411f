"""The denoising loop: a generator that yields one frozen Step a UNet evaluation.

Progress, previews, cancelling and saving intermediates are plain ``for`` loops around it.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from ldm_toolkit.errors import NumericalError, UserError
from ldm_toolkit.guidance import Guidance
from ldm_toolkit.prompts import Conditioning

__all__ = ["Blend", "Predict", "Show", "Step", "StepInfo", "denoise", "predicted_original"]


@dataclass(frozen=True)
class StepInfo:
    """Where the loop is: scheduler step, UNet evaluation, how many of these, both halves or one."""

    index: int
    evaluation: int
    total: int
    guided: bool


# The UNet as a function (model input, timestep, conditioning, step) -> prediction in any dtype:
# (B, C, h, w) in, (2B, C, h, w) out when step.guided (negative half first), else (B, C, h, w).
Predict = Callable[[torch.Tensor, torch.Tensor, Conditioning, StepInfo], torch.Tensor]
# Latents (B, C, h, w) -> pictures.
Show = Callable[[torch.Tensor], list[Image.Image]]
# What a step left and the next timestep (None after the last) -> what the next step gets.
Blend = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One UNet evaluation: what it left (``latents``) and what it promises (``denoised``).

    ``latents`` are as the scheduler keeps them, ``denoised`` is the predicted x0; both
    (B, C, h, w) float32. ``sigma`` is the noise per signal at this evaluation.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    latents: torch.Tensor = field(repr=False)
    denoised: torch.Tensor = field(repr=False)
    _preview: Show | None = field(default=None, repr=False, compare=False)
    _decode: Show | None = field(default=None, repr=False, compare=False)

    def first(self, count: int) -> "Step":
        """The same step of the first ``count`` pictures of the batch."""
        return replace(self, latents=self.latents[:count], denoised=self.denoised[:count])

    def previews(self) -> list[Image.Image]:
        """The predicted pictures, one a picture of the batch: soft, and nearly for nothing."""
        return _asked(self._preview)(self.denoised)

    def preview(self) -> Image.Image:
        """The predicted picture of the first in the batch, as ``previews``."""
        return _asked(self._preview)(self.denoised[:1])[0]

    def decoded(self) -> Image.Image:
        """The predicted picture of the first in the batch, by the VAE: the price of some steps."""
        return _asked(self._decode)(self.denoised[:1])[0]


def _asked(show: Show | None) -> Show:
    if show is None:
        raise UserError("this loop was started without a preview function")
    return show


def denoise(
    predict: Predict,
    scheduler: Any,
    latents: torch.Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    generators: Sequence[torch.Generator],
    preview: Show | None = None,
    decode: Show | None = None,
    *,
    begin: int = 0,
    eta: float = 0.0,
    blend: Blend | None = None,
) -> Iterator[Step]:
    """Run a scheduler whose timesteps are set over latents (B, C, h, w) float32, already noisy.

    ``generators`` are one a picture and make all noise of the steps. ``begin`` is the place in
    ``scheduler.timesteps`` that the latents are at; ``blend`` gets what each step left. Scheduler
    arithmetic is in float32 whatever the model computes in. Raises NumericalError for NaN or
    infinity.
    """
    timesteps = scheduler.timesteps[begin:]
    total = len(timesteps)
    steps = (total - 1) // scheduler.order + 1
    extras = _step_arguments(scheduler, generators, eta)
    latents = latents.float()
    for evaluation, timestep in enumerate(timesteps):
        index = evaluation // scheduler.order
        info = StepInfo(index, evaluation, total, guidance.active_at(index, steps))
        with torch.no_grad():
            model_input = scheduler.scale_model_input(latents, timestep)
            raw = predict(model_input, timestep, conditioning, info)
            prediction = guidance.apply(raw.float()) if info.guided else raw.float()
            alpha, sigma = _noise_level(scheduler, begin + evaluation, timestep)
            kind = scheduler.config.prediction_type
            denoised = predicted_original(prediction, model_input, alpha, sigma, kind)
            latents = scheduler.step(prediction, timestep, latents, **extras, return_dict=False)[0]
            if blend is not None:
                last = evaluation + 1 == total
                latents = blend(latents, None if last else timesteps[evaluation + 1])
        if not torch.isfinite(latents).all():  # a sync point; a black picture costs more
            raise NumericalError(_nonfinite(evaluation + 1, total, raw.dtype))
        ratio = sigma / alpha if alpha else math.inf
        yield Step(evaluation, total, float(timestep), ratio, latents, denoised, preview, decode)


def predicted_original(
    prediction: torch.Tensor, x_t: torch.Tensor, alpha: float, sigma: float, prediction_type: str
) -> torch.Tensor:
    """The predicted x0 of x_t = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1.

    Ho et al. 2020, eq. 15 (epsilon); Salimans and Ho 2022, section 4 (v). Same shape as x_t.
    Raises UserError for another prediction type.
    """
    if prediction_type == "epsilon":
        return (x_t - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * prediction
    if prediction_type == "sample":
        return prediction
    raise UserError(f"prediction type {prediction_type!r} is not epsilon, v_prediction or sample")


def _noise_level(scheduler: Any, evaluation: int, timestep: torch.Tensor) -> tuple[float, float]:
    """(alpha, sigma) of the model's input at an evaluation, alpha^2 + sigma^2 = 1.

    Every family agrees after ``scale_model_input``: the k-diffusion ones divide by
    sqrt(sigma^2 + 1) there, the others keep this form all along.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    index = evaluation
    if evaluation % 2 and hasattr(scheduler, "sigmas_interpol"):  # dpm2, the half-way level
        sigmas = scheduler.sigmas_interpol
        index -= hasattr(scheduler, "sigmas_up")  # dpm2_a keeps it one place earlier
    ratio = float(sigmas[index])
    alpha = 1 / math.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def _nonfinite(step: int, total: int, dtype: torch.dtype) -> str:
    """What to say, and to advise, about NaN or infinity."""
    advice = (
        "the model's weights are broken or the guidance is too strong"
        if dtype == torch.float32
        else "load the model with dtype float32"
    )
    name = str(dtype).removeprefix("torch.")
    return f"NaN or infinity in the latents after step {step} of {total} in {name}; {advice}"


def _step_arguments(
    scheduler: Any, generators: Sequence[torch.Generator], eta: float
) -> dict[str, Any]:
    """What this scheduler's ``step`` takes beside the prediction, as diffusers' pipeline does."""
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"generator": list(generators), "eta": eta}
    return {name: value for name, value in offered.items() if name in accepted}
