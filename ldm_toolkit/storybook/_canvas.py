"""Drawing primitives in the unit square: rounded shapes with thick outlines, at any size."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point] | np.ndarray

INK: RGB = (40, 30, 48)
WHITE: RGB = (255, 255, 255)
LINE = 0.0125  # width of an outline as a share of the picture
OVERSAMPLING = 2


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """The colour that lies `share` of the way from the first to the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> np.ndarray:
    """The points of an ellipse around (x, y), turned clockwise by `degrees`."""
    local = _CIRCLE * (rx, ry)
    if degrees:
        turn = math.radians(degrees)
        cos, sin = math.cos(turn), math.sin(turn)
        local = local @ np.array(((cos, sin), (-sin, cos)))
    return local + np.array((x, y))


def smooth(points: Points, closed: bool = True, steps: int = 7) -> np.ndarray:
    """A curve through all the points (Catmull-Rom spline)."""
    p = np.asarray(points, dtype=float)
    if not closed:
        p = np.concatenate((2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]))
    before, start = np.roll(p, 1, 0), p
    end, after = np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (q[:, None, :] for q in (before, start, end, after))
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    if not closed:
        return np.concatenate((curve[1:-2].reshape(-1, 2), p[-2:-1]))
    return curve.reshape(-1, 2)


def rounded(points: Points, rounds: int = 2) -> np.ndarray:
    """A polygon with its corners cut off smoothly (Chaikin)."""
    p = np.asarray(points, dtype=float)
    for cut in (0.14, 0.25, 0.25)[:rounds]:
        following = np.roll(p, -1, 0)
        p = np.stack((p + (following - p) * cut, following + (p - following) * cut), 1)
        p = p.reshape(-1, 2)
    return p


def band(points: Points, width: float, end_width: float | None = None) -> np.ndarray:
    """The outline of a smooth thick stroke with round ends, its width changing to `end_width`."""
    line = smooth(points, closed=False)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    normal = np.stack((-along[:, 1], along[:, 0]), 1)
    final = width if end_width is None else end_width
    half = np.linspace(width / 2, final / 2, len(line))[:, None]
    angles = np.linspace(0, math.pi, 9)[1:-1, None]
    tip = line[-1] + half[-1] * (np.cos(angles) * normal[-1] + np.sin(angles) * along[-1])
    tail = line[0] - half[0] * (np.cos(angles) * normal[0] + np.sin(angles) * along[0])
    return np.concatenate((line + normal * half, tip, (line - normal * half)[::-1], tail))


class Canvas:
    """A picture under construction; `place` moves, sizes, turns and mirrors what follows."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pixels = size * OVERSAMPLING
        self._image = Image.new("RGB", (self._pixels, self._pixels))
        self._draw = ImageDraw.Draw(self._image)
        self._matrix = np.eye(2)
        self._shift = np.zeros(2)
        self._line = LINE
        self.light: tuple[RGB, float] | None = None
        """A colour that all others go towards, and how far; the light of a background."""

    def place(self, centre: Point, scale: float, degrees: float, flip: bool, shift: Point) -> None:
        """Map later coordinates: mirror, turn and size around `centre`, then shift."""
        turn = math.radians(degrees)
        cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
        mirror = np.diag((-1.0 if flip else 1.0, 1.0))
        self._matrix = mirror @ np.array(((cos, sin), (-sin, cos)))
        middle = np.asarray(centre)
        self._shift = middle + shift - middle @ self._matrix
        self._line = LINE * scale

    def gradient(self, top: RGB, bottom: RGB) -> None:
        """Fill the whole picture from top to bottom."""
        top, bottom = self._lit(top), self._lit(bottom)
        share = np.linspace(0, 1, self._pixels)[:, None]
        column = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
        strip = Image.fromarray(column.round().astype(np.uint8)[:, None, :])
        self._image.paste(strip.resize((self._pixels, self._pixels), Image.Resampling.NEAREST))

    def shape(self, points: Points, fill: RGB, shade: RGB | None = None, line: float = 1.0) -> None:
        """A filled outline of `line` times the usual thickness (0 for none).

        With `shade`, the lower right rim of the shape is darker, as if lit from the upper left.
        """
        p = self._mapped(points)
        if line:
            self._polygon(_offset(p, self._line * line / 2), INK)
            p = _offset(p, -self._line * line / 2)
        self._polygon(p, fill if shade is None else shade)
        if shade is not None:
            middle = (p.min(0) + p.max(0)) / 2
            spread = (p.max(0) - p.min(0)).min()
            self._polygon((p - middle) * 0.88 + middle - 0.045 * spread, fill)

    def union(
        self, shapes: Iterable[Points], fill: RGB, shade: RGB | None = None, line: float = 1.0
    ) -> None:
        """Several shapes as one: a single outline around them all."""
        mapped = [self._mapped(points) for points in shapes]
        half = self._line * line / 2
        for p in mapped:
            self._polygon(_offset(p, half), INK)
        inner = [_offset(p, -half) for p in mapped]
        for p in inner:
            self._polygon(p, fill if shade is None else shade)
        if shade is not None:
            for p in inner:
                middle = (p.min(0) + p.max(0)) / 2
                spread = (p.max(0) - p.min(0)).min()
                self._polygon((p - middle) * 0.88 + middle - 0.05 * spread, fill)

    def stroke(self, points: Points, width: float = LINE, fill: RGB = INK) -> None:
        """A smooth line without an outline of its own."""
        self._polygon(self._mapped(band(points, width)), fill)

    def finish(self) -> Image.Image:
        """The picture at its final size, its edges smoothed."""
        return self._image.reduce(OVERSAMPLING)

    def _mapped(self, points: Points) -> np.ndarray:
        return np.asarray(points, dtype=float) @ self._matrix + self._shift

    def _polygon(self, points: np.ndarray, fill: RGB) -> None:
        self._draw.polygon((points * self._pixels - 0.5).ravel().tolist(), fill=self._lit(fill))

    def _lit(self, fill: RGB) -> RGB:
        return fill if self.light is None else mix(fill, *self.light)


_TURNS = np.linspace(0, 2 * math.pi, 49)[:-1]
_CIRCLE = np.stack((np.cos(_TURNS), np.sin(_TURNS)), 1)


def _offset(points: np.ndarray, distance: float) -> np.ndarray:
    """The polygon moved outwards by `distance` (inwards if negative), corners mitred."""
    edge = np.roll(points, -1, 0) - points
    edge /= np.maximum(np.hypot(edge[:, 0], edge[:, 1]), 1e-9)[:, None]
    area = np.sum(
        points[:, 0] * np.roll(points[:, 1], -1) - np.roll(points[:, 0], -1) * points[:, 1]
    )
    sign = 1.0 if area > 0 else -1.0
    normal = np.stack((edge[:, 1], -edge[:, 0]), 1) * sign
    both = normal + np.roll(normal, 1, 0)
    length = np.sum(both * both, 1)
    return points + both * (2 * distance / np.maximum(length, 1.2))[:, None]
