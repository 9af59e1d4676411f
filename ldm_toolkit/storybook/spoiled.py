"""Pictures that show nothing of the storybook world: what a judge must refuse."""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook._canvas import Canvas
from ldm_toolkit.storybook.render import background, render

__all__ = ["SPOILED", "spoil"]


def _noise(draw: random.Random, size: int, split: str) -> Image.Image:
    """Coloured noise, fine or coarse, around some grey."""
    rng = np.random.default_rng(draw.getrandbits(32))
    side = max(2, round(size / 2 ** draw.uniform(0, 5)))
    level, spread = draw.uniform(60, 200), draw.uniform(20, 90)
    pixels = np.clip(rng.normal(level, spread, (side, side, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def _blank(draw: random.Random, size: int, split: str) -> Image.Image:
    """One colour, or one that passes into another."""

    def colour() -> tuple[int, int, int]:
        return draw.randrange(256), draw.randrange(256), draw.randrange(256)

    canvas, first = Canvas(size), colour()
    canvas.gradient(first, first if draw.random() < 0.5 else colour())
    return canvas.finish()


def _background(draw: random.Random, size: int, split: str) -> Image.Image:
    """A setting without a subject."""
    scene = scenes.sample_scene(draw.getrandbits(30), 0, split)
    canvas = Canvas(size)
    sky, _ = background(canvas, scene)
    sky.in_front(canvas)
    return canvas.finish()


def _shuffled(draw: random.Random, size: int, split: str) -> Image.Image:
    """A picture cut into squares that are laid out in another order."""
    picture = _scene(draw, size, split)
    count = draw.choice((3, 4, 6))
    side = size // count
    corners = [(x * side, y * side) for x in range(count) for y in range(count)]
    order = corners[:]
    draw.shuffle(order)
    made = picture.copy()
    for (x, y), (left, top) in zip(corners, order, strict=True):
        made.paste(picture.crop((left, top, left + side, top + side)), (x, y))
    return made


def _melted(draw: random.Random, size: int, split: str) -> Image.Image:
    """Two subjects in one: blended everywhere, or each the other's half."""
    seed = draw.getrandbits(30)
    first = scenes.sample_scene(seed, 0, split)
    index = 1
    while True:
        second = scenes.sample_scene(seed, index, split)
        index += 1
        if second.subject != first.subject and second.size == first.size == "big":
            break
        if first.size != "big":
            seed, index = seed + 1, 1
            first = scenes.sample_scene(seed, 0, split)
    pictures = render(first, size), render(second, size)
    if draw.random() < 0.5:
        return Image.blend(*pictures, draw.uniform(0.38, 0.62))
    mask = np.zeros((size, size), np.uint8)
    middle = round(size * draw.uniform(0.42, 0.58))
    if draw.random() < 0.5:
        mask[:, middle:] = 255
    else:
        mask[middle:, :] = 255
    soft = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(size * draw.uniform(0, 0.05)))
    return Image.composite(*pictures, soft)


def _scene(draw: random.Random, size: int, split: str) -> Image.Image:
    return render(scenes.sample_scene(draw.getrandbits(30), 0, split), size)


SPOILED: dict[str, Callable[[random.Random, int, str], Image.Image]] = {
    "noise": _noise,
    "blank": _blank,
    "background": _background,
    "shuffled": _shuffled,
    "melted": _melted,
}
"""Kinds of bad pictures; half-denoised ones need a model and are made where one is at hand."""


def spoil(kind: str, seed: int, size: int, split: str = "train") -> Image.Image:
    """A bad picture of a kind, of size x size pixels; a pure function of its arguments."""
    return SPOILED[kind](scenes.generator("spoiled", kind, seed), size, split)
