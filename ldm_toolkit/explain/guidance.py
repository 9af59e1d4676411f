"""What classifier-free guidance does: the same noise at several scales, and where the words act."""

import dataclasses
from typing import Any

import numpy as np
import torch

from ldm_toolkit.explain.observed import Observed
from ldm_toolkit.explain.picture import (
    BLUE,
    SEQUENTIAL,
    VERMILION,
    Picture,
    colour_bar,
    curves,
    largest,
    row_label,
    show,
)
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import Recipe
from ldm_toolkit.theory.diffusion import predicted_noise

__all__ = ["again", "guidance_difference", "guidance_scales", "prediction_differences"]

_SCALES = (1.0, 2.0, 4.0, 7.5, 12.0)
_OPTIONS = (
    "negative_prompt", "steps", "guidance", "width", "height", "scheduler", "guidance_rescale",
    "guidance_interval", "reuse_every", "reuse_depth", "reuse_power", "gate", "attention_every",
    "clip_skip", "eta",
)  # fmt: skip


def again(recipe: Recipe) -> dict[str, object]:
    """A recipe's options for another call, without prompt and seed."""
    fields = dataclasses.asdict(recipe)
    return {name: fields[name] for name in _OPTIONS}


def guidance_scales(pipeline: LatentPipeline, observed: Observed) -> Picture:
    """The run's prompt and noise at several guidance scales, its own among them."""
    recipe = observed.recipe
    scales = sorted({*_SCALES, recipe.guidance})
    picture = Picture("guidance", "guidance-scales", "Guidance", (12, 12 / len(scales) + 0.6))
    axes = picture.grid(1, len(scales))[0]
    contrasts = {}
    for place, scale in zip(axes, scales, strict=True):
        if scale == recipe.guidance:
            image = observed.image
        else:
            options = again(recipe) | {"guidance": scale, "seed": recipe.seed}
            image = pipeline(recipe.prompt, **options).images[0]  # type: ignore[arg-type]
        contrasts[scale] = float(np.asarray(image, dtype=np.float32).std())
        mark = " (this run)" if scale == recipe.guidance else ""
        show(place, image, f"{scale:g}{mark}", note=f"contrast {contrasts[scale]:.0f}")
    low, high = scales[0], scales[-1]
    picture.caption = (
        f"The same prompt, seed {recipe.seed} and {recipe.steps} steps at guidance scales from "
        f"{low:g} to {high:g}. The prediction used is unconditional + scale (conditional - "
        "unconditional): 1 is the conditional prediction alone, more goes past it, away from what "
        "the model would draw without words. Large scales overdo contrast and colours: here the "
        "standard deviation of the pixels goes "
        f"from {contrasts[low]:.0f} to {contrasts[high]:.0f} of 255."
    )
    return picture


def prediction_differences(pipeline: LatentPipeline, observed: Observed) -> torch.Tensor:
    """Conditional minus unconditional noise at each x_t of a run, (N, C, h, w) float32."""
    recipe = observed.recipe
    embeddings = pipeline.encode_prompt([recipe.negative_prompt, recipe.prompt])
    kind = pipeline.components.scheduler_config.get("prediction_type", "epsilon")
    found = []
    for place, step in enumerate(observed.steps):
        both = observed.inputs[place : place + 1].repeat(2, 1, 1, 1)
        raw = pipeline.predict_noise(both, step.timestep, embeddings).cpu()
        noise = predicted_noise(kind, raw, both, observed.alpha_bar(place))
        found.append(noise[1:] - noise[:1])
    return torch.cat(found)


def guidance_difference(pipeline: LatentPipeline, observed: Observed) -> Picture:
    """How far apart the two predictions are: over the steps, and place by place."""
    differences = prediction_differences(pipeline, observed)
    sizes = differences.square().mean((1, 2, 3)).sqrt().numpy()
    maps = differences.square().mean(1).sqrt().numpy()  # (N, h, w)
    shown = observed.shown
    picture = Picture("guidance", "guidance-difference", "Where the words pull", (12, 6.4))
    halves: Any = picture.subfigures(2, 1, height_ratios=[1.6, 1])
    upper, lower = halves
    axes = upper.subplots(2, len(shown), squeeze=False)
    row_label(axes[0, 0], "predicted x_0")
    row_label(axes[1, 0], "difference")
    reach = largest(maps)
    for column, place in enumerate(shown):
        label = f"{place + 1} of {len(maps)}"
        show(axes[0, column], observed.previews[column], label)
        drawn = show(axes[1, column], maps[place], span=(0, reach), colours=SEQUENTIAL)
    colour_bar(upper, drawn, list(axes.ravel()), "difference")
    curve = lower.subplots()
    curves(curve, "root mean square of the difference", "evaluation of the network")
    curve.plot(range(1, len(sizes) + 1), sizes, color=BLUE, linewidth=2, marker="o", markersize=4)
    curve.plot([place + 1 for place in shown], sizes[list(shown)], "o", color=VERMILION)
    curve.set_ylim(0, 1.1 * largest(sizes, 1))  # whole dots, also where all are alike
    curve.xaxis.get_major_locator().set_params(integer=True)
    top = int(sizes.argmax())
    negative = "the negative prompt" if observed.recipe.negative_prompt else "the empty prompt"
    picture.caption = (
        "Guidance pushes along the difference between the noise that the network predicts with the "
        f"prompt and with {negative}. All maps share one scale of colours (root mean square over "
        f"the channels). The two predictions are furthest apart, {sizes[top]:.3f}, at evaluation "
        f"{top + 1} of {len(sizes)} and {sizes[-1]:.3f} apart at the last; bright places are those "
        "which the words decide."
    )
    return picture
