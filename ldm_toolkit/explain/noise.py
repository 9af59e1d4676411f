"""Noise put on a picture and taken off again: in one step, and over a whole run."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_toolkit.explain.observed import Observed
from ldm_toolkit.explain.picture import DIVERGING, Picture, quoted, row_label, show
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.theory.diffusion import predicted_sample

__all__ = ["added_noise", "one_step", "run_strip"]

_SHARES = (0.0, 0.1, 0.25, 0.4, 0.6, 0.8, 1.0)  # of the schedule


def added_noise(pipeline: LatentPipeline, image: Image.Image, seed: int) -> Picture:
    """A picture's latents with noise of several timesteps: decoded, and their first channel."""
    times, levels = _times(pipeline)
    noisy = _noised(pipeline, image, seed, times)
    picture = Picture("noise", "added-noise", "The forward process", (12, 4.0))
    axes = picture.grid(2, len(times))
    row_label(axes[0, 0], "decoded")
    row_label(axes[1, 0], "channel 1")
    for column, (time, level) in enumerate(zip(times, levels, strict=True)):
        decoded = pipeline.latents_to_pil(noisy[column : column + 1])[0]
        show(axes[0, column], decoded, f"t = {int(time)}")
        show(
            axes[1, column],
            noisy[column, 0].cpu().numpy(),
            span=(-3, 3),
            colours=DIVERGING,
            note=f"signal {level.sqrt():.0%}\nnoise {(1 - level).sqrt():.0%}",
        )
    equal = int((pipeline.make_scheduler("ddpm").alphas_cumprod - 0.5).abs().argmin())
    picture.caption = (
        "x_t = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) noise: the same picture and the same "
        f"noise at {len(times)} timesteps, with the factors of both below. The noise is added to "
        "the latents, not to pixels, so what the decoder makes of it is not grain but wrong shapes "
        f"and colours. After t = {equal} such latents hold more noise than signal; fine "
        "shapes drown first, and large ones are what a model decides first on the way back."
    )
    return picture


def one_step(pipeline: LatentPipeline, image: Image.Image, prompt: str, seed: int) -> Picture:
    """What the network makes of each of these noisy latents in a single evaluation."""
    times, levels = _times(pipeline)
    latents = pipeline.pil_to_latents(image).cpu()
    noisy = _noised(pipeline, image, seed, times).cpu()
    embeddings = pipeline.encode_prompt(prompt)
    kind = pipeline.components.scheduler_config.get("prediction_type", "epsilon")
    picture = Picture("noise", "one-step", "Back in a single step", (12, 4.0))
    axes = picture.grid(2, len(times))
    row_label(axes[0, 0], "x_t")
    row_label(axes[1, 0], "predicted x_0")
    errors = []
    for column, (time, level) in enumerate(zip(times, levels, strict=True)):
        x_t = noisy[column : column + 1]
        prediction = pipeline.predict_noise(x_t, time, embeddings).cpu()
        x_0 = predicted_sample(kind, prediction, x_t, level)
        errors.append(float((x_0 - latents).square().mean().sqrt()))
        show(axes[0, column], pipeline.latents_to_pil(x_t)[0], f"t = {int(time)}")
        show(axes[1, column], pipeline.latents_to_pil(x_0)[0], note=f"off by {errors[-1]:.2f}")
    picture.caption = (
        "Above the noisy latents, decoded; below the picture that a single evaluation of the "
        f"network predicts from them and from {quoted(prompt)}, without guidance. The "
        f"root of the mean squared error of the latents goes from {errors[0]:.2f} at "
        f"t = {int(times[0])} to {errors[-1]:.2f} at t = {int(times[-1])}. Where noise hides the "
        "picture, the best guess is the mean of all pictures that fit, which is blurred: that is "
        "why sampling takes many small steps."
    )
    return picture


def run_strip(pipeline: LatentPipeline, observed: Observed) -> Picture:
    """x_t and the predicted x_0 of a run, at evaluations spread over it."""
    shown = observed.shown
    recipe = observed.recipe
    picture = Picture("noise", "run", "A run, step by step", (12, 4.0))
    axes = picture.grid(2, len(shown))
    row_label(axes[0, 0], "x_t")
    row_label(axes[1, 0], "predicted x_0")
    final = observed.steps[-1].latents.cpu()
    distances = []
    middle = shown[len(shown) // 2] + 1
    for column, place in enumerate(shown):
        step = observed.steps[place]
        noisy = observed.inputs[place : place + 1]
        distances.append(float((step.denoised.cpu() - final).square().mean().sqrt()))
        show(axes[0, column], pipeline.latents_to_pil(noisy)[0], f"{place + 1} of {step.total}")
        show(
            axes[1, column],
            observed.previews[column],
            note=f"t = {step.timestep:.0f}, sigma = {step.sigma:.2f}",
        )
    picture.caption = (
        f"{recipe.scheduler} with {recipe.steps} steps, guidance {recipe.guidance:g} and seed "
        f"{recipe.seed}: above what the network is given, below the picture that it believes in at "
        "that moment. Each step goes only a part of the way to the predicted x_0 and asks again. "
        f"The belief's latents are off from the final ones by {distances[0]:.2f} at first, "
        f"{distances[len(distances) // 2]:.2f} at number {middle}, {distances[-1]:.2f} at last."
    )
    return picture


def _times(pipeline: LatentPipeline) -> tuple[Tensor, Tensor]:
    """Timesteps over the schedule and their alpha_bar."""
    levels = pipeline.make_scheduler("ddpm").alphas_cumprod
    times = torch.tensor(np.unique([round(share * (len(levels) - 1)) for share in _SHARES]))
    return times, levels[times]


def _noised(pipeline: LatentPipeline, image: Image.Image, seed: int, times: Tensor) -> Tensor:
    """The picture's latents at each of the timesteps, with one noise for all; (N, C, h, w)."""
    latents = pipeline.pil_to_latents(image)
    noise = pipeline.initial_noise(seed, *image.size).to(latents.device)
    return torch.cat([pipeline.add_noise(latents, noise, time[None]) for time in times])
