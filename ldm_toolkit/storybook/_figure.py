"""What the drawings of subjects share: shades of a colour, poses, eyes and mouths."""

import random
from dataclasses import dataclass

from ldm_toolkit.storybook._canvas import (
    INK,
    RGB,
    WHITE,
    Canvas,
    ellipse,
    mix,
)

PINK: RGB = (250, 150, 168)
NOSE: RGB = (44, 34, 48)
GLASS: RGB = (196, 232, 248)
WOOD: RGB = (122, 82, 52)


@dataclass(frozen=True)
class Tones:
    """The shades of one colour that a figure is painted with."""

    base: RGB
    shade: RGB
    dark: RGB
    light: RGB

    @classmethod
    def of(cls, base: RGB) -> "Tones":
        """Shades that keep the colour's name: grey ones for white, golden ones for yellow."""
        pale = min(base) > 225
        cool = (96, 100, 116) if pale else (70, 60, 110)
        golden = base[0] > 200 and base[1] > 110 and base[2] < 110
        deep = mix(base, (186, 100, 16), 0.25) if golden else mix(base, INK, 0.3)
        return cls(
            base=base,
            shade=mix(base, cool, 0.13 if pale else 0.2),
            dark=mix(base, cool, 0.2) if pale else deep,
            light=mix(base, WHITE, 0.9) if pale else mix(base, WHITE, 0.45),
        )


@dataclass(frozen=True)
class Pose:
    """Proportions and gestures; each about -1 to 1."""

    plump: float
    sway: float
    look: float

    @classmethod
    def sample(cls, draw: random.Random) -> "Pose":
        """A pose from three draws."""
        plump, sway, look = (2 * draw.random() - 1 for _ in range(3))
        return cls(plump, sway, look)


def eyes_at(
    canvas: Canvas, places: tuple[tuple[float, float], ...], size: float, pose: Pose
) -> None:
    """Round eyes that look the way the pose says."""
    for x, y in places:
        canvas.shape(ellipse(x, y, size, size * 1.12), WHITE, line=0.8)
        px = x + pose.look * size * 0.22
        canvas.shape(ellipse(px, y + size * 0.1, size * 0.66, size * 0.76), INK, line=0)
        canvas.shape(ellipse(px - size * 0.22, y - size * 0.22, size * 0.24, size * 0.24),
                     WHITE, line=0)  # fmt: skip


def smile(canvas: Canvas, x: float, y: float, width: float) -> None:
    """A mouth whose corners point up, its middle at (x, y)."""
    for side in (-1, 1):
        canvas.stroke([(x, y), (x + side * width * 0.5, y + width * 0.38),
                       (x + side * width, y + width * 0.12)], 0.011)  # fmt: skip


def mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points on the other side of the middle."""
    return [(1 - x, y) for x, y in points]
