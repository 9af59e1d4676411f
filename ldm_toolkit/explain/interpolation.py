"""Ways between two pictures: through the noise, and through the embeddings."""

from itertools import pairwise
from typing import Any

import numpy as np

from ldm_toolkit.errors import UserError
from ldm_toolkit.explain.guidance import again
from ldm_toolkit.explain.observed import Observed
from ldm_toolkit.explain.picture import Picture, quoted, show
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import MAX_SEED

__all__ = ["between_prompts", "between_seeds"]

_FRAMES = 6


def between_seeds(pipeline: LatentPipeline, observed: Observed) -> Picture:
    """The run's prompt on the arc from its noise to that of the next seed."""
    recipe = observed.recipe
    other = recipe.seed + 1 if recipe.seed < MAX_SEED else recipe.seed - 1
    seeds = [recipe.seed, other]
    picture, widest = _strip(
        pipeline, observed, recipe.prompt, seeds, "between-seeds", "From seed to seed"
    )
    first, second = (pipeline.initial_noise(seed, recipe.width, recipe.height) for seed in seeds)
    angle = np.degrees(np.arccos(float((first * second).sum() / (first.norm() * second.norm()))))
    picture.caption = (
        f"One prompt, and noise on the arc from seed {seeds[0]} to seed {seeds[1]}. In so many "
        f"dimensions ({first.numel():,}) two draws stand nearly at a right angle, here "
        f"{angle:.1f} degrees, and all have nearly the same length; spherical interpolation keeps "
        "the length, while half-way on the straight line noise would be too weak by a factor of "
        f"{float((first + second).norm() / (first.norm() + second.norm())):.2f}. Neighbours "
        "differ most between "
        f"pictures {widest + 1} and {widest + 2}: the noise moves evenly, the picture does not."
    )
    return picture


def between_prompts(pipeline: LatentPipeline, observed: Observed, other: str) -> Picture:
    """The run's noise with embeddings on the line from its prompt to another one."""
    recipe = observed.recipe
    if other == recipe.prompt:
        raise UserError("the second prompt is the first; say another one")
    picture, widest = _strip(
        pipeline, observed, [recipe.prompt, other], recipe.seed, "between-prompts",
        "From prompt to prompt",
    )  # fmt: skip
    picture.caption = (
        f"One noise (seed {recipe.seed}), and embeddings on the straight line from "
        f"{quoted(recipe.prompt)} to {quoted(other)}. The mixed embeddings are those of no "
        "sentence, and the model draws something for them all the same: it learnt a space, not a "
        f"list of words. Neighbours differ most between pictures {widest + 1} and {widest + 2}: "
        "even steps of the embeddings are no even steps of the picture."
    )
    return picture


def _strip(
    pipeline: LatentPipeline,
    observed: Observed,
    prompts: "str | list[str]",
    seeds: "int | list[int]",
    name: str,
    title: str,
) -> tuple[Picture, int]:
    """The frames in a row, and after which of them the step to the next is the largest."""
    options: dict[str, Any] = again(observed.recipe)
    frames = list(pipeline.interpolate(prompts, seeds, _FRAMES, **options))
    picture = Picture("interpolation", name, title, (12, 12 / _FRAMES + 0.55))
    axes = picture.grid(1, _FRAMES)[0]
    levels = [np.asarray(frame, dtype=np.float32) for frame in frames]
    steps = [float(np.abs(after - before).mean()) for before, after in pairwise(levels)]
    for number, (place, frame) in enumerate(zip(axes, frames, strict=True)):
        show(place, frame, f"{number / (_FRAMES - 1):.0%}")
    return picture, int(np.argmax(steps))
