"""Sizes that pictures are brought to: one square, or buckets of several shapes.

A picture is shrunk or enlarged until it covers its size, and what stands out on two sides is cut
off, half on either side.
"""

from dataclasses import dataclass
from fractions import Fraction

from PIL import Image

__all__ = ["Geometry", "bucket_shapes", "fit"]

_STEP = 64  # a UNet that halves latents three times takes no other sides

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The (width, height) that there are; every picture gets the one whose shape is nearest."""

    shapes: tuple[Size, ...]

    @classmethod
    def square(cls, size: int) -> "Geometry":
        """size x size for all."""
        return cls(((size, size),))

    @classmethod
    def buckets(cls, size: int) -> "Geometry":
        """The shapes of `bucket_shapes`."""
        return cls(bucket_shapes(size))

    def nearest(self, width: int, height: int) -> Size:
        """The shape of which the least is cut off; of equals the larger, then the narrower."""

        def cost(shape: Size) -> tuple[Fraction, int, int]:
            # Exact: rounding must not decide between two shapes, here so and elsewhere so.
            across, down = width * shape[1], height * shape[0]
            stretch = Fraction(max(across, down), min(across, down))
            return stretch, -shape[0] * shape[1], shape[0]

        return self.shapes[0] if len(self.shapes) == 1 else min(self.shapes, key=cost)

    @property
    def key(self) -> str:
        """What the hash of the data says of the sizes."""
        if len(self.shapes) == 1:
            return str(self.shapes[0][0])
        return "buckets " + " ".join(f"{width}x{height}" for width, height in self.shapes)


def bucket_shapes(size: int) -> tuple[Size, ...]:
    """(width, height) in multiples of 64 with at most, and nearly, size * size pixels.

    Sides go from half of ``size`` to twice it; to every side belongs the longest other one, so no
    bucket needs more memory than the square.
    """
    middle = max(size // _STEP, 1) * _STEP
    low = max(-(-size // 2 // _STEP), 1) * _STEP
    shapes = {(middle, middle)}
    for side in range(low, 2 * size + 1, _STEP):
        other = size * size // side // _STEP * _STEP
        if other >= low:
            shapes |= {(side, other), (other, side)}
    return tuple(sorted(shapes))


def fit(
    image: Image.Image, shape: Size, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The middle of a picture at the size ``shape``."""
    return image.resize(shape, resampling, box=crop_box(image.size, shape))


def crop_box(size: Size, shape: Size) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest part of ``size`` that has the sides of ``shape``."""
    width, height = size
    wide, high = width, height
    if width * shape[1] > height * shape[0]:
        wide = max((2 * height * shape[0] + shape[1]) // (2 * shape[1]), 1)
    else:
        high = max((2 * width * shape[1] + shape[0]) // (2 * shape[0]), 1)
    wide, high = min(wide, width), min(high, height)
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def cut_share(size: Size, shape: Size) -> float:
    """The share of a picture's area that `fit` cuts off."""
    left, top, right, bottom = crop_box(size, shape)
    return 1 - (right - left) * (bottom - top) / (size[0] * size[1])
