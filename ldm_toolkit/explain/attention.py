"""Where in the picture the UNet looks at each word."""

import math
from typing import Any

import numpy as np

from ldm_toolkit.explain.observed import Observed
from ldm_toolkit.explain.picture import Picture, drawable, show
from ldm_toolkit.explain.words import find_words
from ldm_toolkit.pipeline import LatentPipeline

__all__ = ["attention_maps", "word_maps"]

_COLUMNS = 4
_SHOWN = 14


def word_maps(pipeline: LatentPipeline, observed: Observed) -> dict[str, np.ndarray]:
    """The attention (h, w) that the start marks, each word, and end with padding get.

    A word's map is the sum of its tokens', of equal words that of all; all maps together are 1 at
    every place. Names are the words in quotes.
    """
    shares = observed.attention.numpy()
    length = pipeline.components.tokenizer.model_max_length
    starts = list(range(0, len(shares), length))
    maps = {"start": shares[starts].sum(0)}
    left = set(range(len(shares))) - set(starts)
    for word in find_words(pipeline, observed.recipe.prompt):
        name = f'"{word.text}"'
        maps[name] = maps.get(name, 0) + shares[list(word.places)].sum(0)
        left -= set(word.places)
    maps["end and padding"] = shares[sorted(left)].sum(0)
    return maps


def attention_maps(pipeline: LatentPipeline, observed: Observed) -> Picture:
    """The picture and a heat map a word over it, each with the share that the word gets."""
    maps = word_maps(pipeline, observed)
    names = list(maps)
    shown = [*names[: _SHOWN + 1], names[-1]] if len(names) > _SHOWN + 2 else names
    rows = math.ceil((len(shown) + 1) / _COLUMNS)
    picture = Picture("text", "attention", "Where each word acts", (10, 2.75 * rows + 0.4))
    axes = picture.grid(rows, _COLUMNS).ravel()
    show(axes[0], observed.image, "the picture")
    grey = np.asarray(observed.image.convert("L")) * 0.5 + 127
    for place, name in zip(axes[1:], shown, strict=False):
        _heat(place, grey, maps[name], name)
    for place in axes[len(shown) + 1 :]:
        place.set_visible(False)
    words = {name: float(one.mean()) for name, one in maps.items() if name.startswith('"')}
    frame = float(maps["start"].mean() + maps["end and padding"].mean())
    most = max(words, key=lambda name: _contrast(maps[name]), default=None)
    recipe = observed.recipe
    reused = " (what one took over from others does not count again)"
    picture.caption = (
        "In every cross-attention layer each place of the picture spreads one unit of attention "
        f"over the {len(observed.attention)} tokens; the maps are its mean over heads, layers and "
        f"the {len(observed.steps)} evaluations of the network"
        f"{reused if recipe.reuse_every > 1 or recipe.gate < 1 else ''}, so at every place the "
        "shares of all tokens sum to 1. "
        "Each map has colours of its own, from its lowest value to its highest. "
        f"{frame:.0%} goes to the marks of start and end and to the padding, which hold no word"
    )
    picture.caption += (
        f"; relative to its mean, attention differs most from place to place for {most}, by a "
        f"standard deviation of {_contrast(maps[most]):.0%}."
        if most is not None
        else ": this prompt has none."
    )
    return picture


def _heat(axes: Any, grey: np.ndarray, values: np.ndarray, name: str) -> None:
    """A map over a pale picture, more opaque where it is higher."""
    low, high = float(values.min()), float(values.max())
    strength = (values - low) / max(high - low, 1e-12)
    show(axes, grey, drawable(name, 24), span=(0, 255), colours="gray",
         note=f"{values.mean():.1%} of the attention ({low:.1%} to {high:.1%})")  # fmt: skip
    extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
    axes.imshow(
        strength,
        cmap="inferno",
        alpha=0.1 + 0.75 * strength,
        extent=extent,
        interpolation="bilinear",
    )


def _contrast(values: np.ndarray) -> float:
    """How much a map differs from place to place, for its mean."""
    return float(values.std() / values.mean())
