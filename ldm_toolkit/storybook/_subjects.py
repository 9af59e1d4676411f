"""The subjects: one function each, drawn in the unit square with its feet at y = 0.88."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ldm_toolkit.storybook._accessories import Anchors
from ldm_toolkit.storybook._canvas import (
    INK,
    RGB,
    WHITE,
    Canvas,
    band,
    ellipse,
    mix,
    rounded,
    smooth,
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


def _eyes(canvas: Canvas, places: tuple[tuple[float, float], ...], size: float, pose: Pose) -> None:
    """Round eyes that look the way the pose says."""
    for x, y in places:
        canvas.shape(ellipse(x, y, size, size * 1.12), WHITE, line=0.8)
        px = x + pose.look * size * 0.22
        canvas.shape(ellipse(px, y + size * 0.1, size * 0.66, size * 0.76), INK, line=0)
        canvas.shape(ellipse(px - size * 0.22, y - size * 0.22, size * 0.24, size * 0.24),
                     WHITE, line=0)  # fmt: skip


def _smile(canvas: Canvas, x: float, y: float, width: float) -> None:
    for side in (-1, 1):
        canvas.stroke([(x, y), (x + side * width * 0.5, y + width * 0.38),
                       (x + side * width, y + width * 0.12)], 0.011)  # fmt: skip


def _mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(1 - x, y) for x, y in points]


def _dog(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.08 * pose.plump
    tip = (0.86, 0.55 - 0.05 * pose.sway)
    canvas.shape(band([(0.62, 0.8), (0.78, 0.74), tip], 0.075, 0.045), tone.base)
    canvas.shape(ellipse(0.5, 0.71, 0.185 * w, 0.18), tone.base, tone.shade)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.15 * w, 0.845, 0.08, 0.045), tone.base, tone.shade)
    canvas.shape(ellipse(0.5, 0.7, 0.1, 0.12), tone.light, line=0)
    for x in (0.44, 0.56):
        canvas.shape(band([(x, 0.72), (x, 0.78), (x, 0.84)], 0.085), tone.base)
    canvas.shape(ellipse(0.5, 0.425, 0.2 * w, 0.175), tone.base, tone.shade)
    ear = [(0.37, 0.275), (0.29, 0.29), (0.23, 0.4), (0.215 - 0.02 * pose.sway, 0.54),
           (0.27, 0.585), (0.325, 0.5), (0.35, 0.4)]  # fmt: skip
    canvas.shape(smooth(ear), tone.dark)
    canvas.shape(smooth(_mirrored(ear)), tone.dark)
    eyes = ((0.43, 0.39), (0.57, 0.39))
    _eyes(canvas, eyes, 0.038, pose)
    canvas.shape(band([(0.5, 0.55), (0.5, 0.59), (0.5, 0.605)], 0.06), (240, 110, 130), line=0.8)
    canvas.shape(ellipse(0.5, 0.5, 0.105, 0.075), tone.light, line=0.8)
    canvas.shape(ellipse(0.5, 0.462, 0.046, 0.033), NOSE, line=0)
    canvas.shape(ellipse(0.488, 0.452, 0.012, 0.008), WHITE, line=0)
    canvas.stroke([(0.5, 0.48), (0.5, 0.52)], 0.011)
    _smile(canvas, 0.5, 0.52, 0.055)
    return Anchors((0.5, 0.27), 0.38, ((0.414, 0.392), (0.586, 0.392)), 0.079, (0.5, 0.615), 0.3)


def _cat(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.08 * pose.plump
    tail = [(0.6, 0.83), (0.73, 0.81), (0.8, 0.71), (0.8, 0.58), (0.85 + 0.03 * pose.sway, 0.47)]
    canvas.shape(band(tail, 0.05, 0.045), tone.base)
    body = [(0.42, 0.54), (0.37, 0.66), (0.5 - 0.18 * w, 0.8), (0.36, 0.87), (0.5, 0.885),
            (0.64, 0.87), (0.5 + 0.18 * w, 0.8), (0.63, 0.66), (0.58, 0.54)]  # fmt: skip
    canvas.shape(smooth(body), tone.base, tone.shade)
    canvas.shape(ellipse(0.5, 0.7, 0.07, 0.1), tone.light, line=0)
    for x in (0.455, 0.545):
        canvas.shape(band([(x, 0.74), (x, 0.8), (x, 0.85)], 0.065), tone.base)
    ear = [(0.295, 0.42), (0.285, 0.17), (0.455, 0.3)]
    inner = [(0.325, 0.36), (0.318, 0.23), (0.41, 0.305)]
    for outline, lining in ((ear, inner), (_mirrored(ear), _mirrored(inner))):
        canvas.shape(rounded(outline, 2), tone.base)
        canvas.shape(lining, PINK, line=0)
    canvas.shape(ellipse(0.5, 0.435, 0.215 * w, 0.165), tone.base, tone.shade)
    eyes = ((0.415, 0.415), (0.585, 0.415))
    for x, y in eyes:
        canvas.shape(ellipse(x, y, 0.046, 0.048), (206, 232, 120), line=0.8)
        px = x + 0.008 * pose.look
        canvas.shape(ellipse(px, y, 0.015, 0.038), INK, line=0)
        canvas.shape(ellipse(px - 0.012, y - 0.016, 0.01, 0.01), WHITE, line=0)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.042, 0.513, 0.052, 0.038), tone.light, line=0)
        for rise in (-0.03, 0.005, 0.04):
            start = (0.5 + side * 0.11, 0.505 + rise * 0.4)
            canvas.stroke([start, (0.5 + side * 0.27, 0.495 + rise * 1.4)], 0.009)
    canvas.shape(rounded([(0.47, 0.475), (0.53, 0.475), (0.5, 0.508)], 1), PINK, line=0.6)
    _smile(canvas, 0.5, 0.508, 0.05)
    return Anchors((0.5, 0.285), 0.36, eyes, 0.079, (0.5, 0.6), 0.24)


def _rabbit(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.08 * pose.plump
    lean = 13 + 4 * pose.sway
    canvas.shape(ellipse(0.69, 0.79, 0.062, 0.062), mix(tone.light, WHITE, 0.6))
    for side in (-1, 1):
        x, y = 0.5 + side * (0.115 + 0.003 * lean), 0.215
        canvas.shape(ellipse(x, y, 0.058, 0.175, side * lean), tone.base, tone.shade)
        canvas.shape(ellipse(x, y + 0.015, 0.028, 0.125, side * lean), PINK, line=0)
    canvas.shape(ellipse(0.5, 0.725, 0.185 * w, 0.16), tone.base, tone.shade)
    canvas.shape(ellipse(0.5, 0.745, 0.1, 0.105), tone.light, line=0)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.11, 0.865, 0.1, 0.04), tone.base, tone.shade)
        canvas.shape(ellipse(0.5 + side * 0.1, 0.685, 0.038, 0.075, side * -24), tone.base)
    canvas.shape(ellipse(0.5, 0.475, 0.195 * w, 0.155), tone.base, tone.shade)
    eyes = ((0.43, 0.445), (0.57, 0.445))
    _eyes(canvas, eyes, 0.036, pose)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.115, 0.515, 0.03, 0.02), PINK, line=0)
        canvas.shape(ellipse(0.5 + side * 0.036, 0.528, 0.045, 0.035), tone.light, line=0)
    canvas.shape(rounded([(0.477, 0.545), (0.523, 0.545), (0.523, 0.592), (0.477, 0.592)], 1),
                 WHITE, line=0.7)  # fmt: skip
    canvas.stroke([(0.5, 0.55), (0.5, 0.59)], 0.007)
    canvas.shape(rounded([(0.472, 0.495), (0.528, 0.495), (0.5, 0.525)], 1), PINK, line=0.6)
    _smile(canvas, 0.5, 0.526, 0.05)
    return Anchors((0.5, 0.345), 0.33, ((0.417, 0.447), (0.583, 0.447)), 0.077, (0.5, 0.632), 0.25)


def _bear(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.07 * pose.plump
    for side in (-1, 1):
        foot = 0.5 + side * 0.155
        canvas.shape(ellipse(foot, 0.83, 0.095, 0.062), tone.base, tone.shade)
        hand = (0.5 + side * 0.285 * w, 0.7 - 0.05 * pose.sway * side)
        arm = [(0.5 + side * 0.15, 0.61), (0.5 + side * 0.24 * w, 0.65), hand]
        canvas.shape(band(arm, 0.105, 0.1), tone.base)
        canvas.shape(ellipse(0.5 + side * 0.165, 0.265, 0.075, 0.075), tone.base, tone.shade)
        canvas.shape(ellipse(0.5 + side * 0.165, 0.27, 0.042, 0.042), tone.light, line=0)
    canvas.shape(ellipse(0.5, 0.695, 0.215 * w, 0.185), tone.base, tone.shade)
    canvas.shape(ellipse(0.5, 0.715, 0.135, 0.13), tone.light, line=0)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.165, 0.838, 0.055, 0.036), tone.light, line=0)
    canvas.shape(ellipse(0.5, 0.395, 0.215 * w, 0.18), tone.base, tone.shade)
    eyes = ((0.42, 0.37), (0.58, 0.37))
    _eyes(canvas, eyes, 0.03, pose)
    canvas.shape(ellipse(0.5, 0.47, 0.1, 0.078), tone.light, line=0.8)
    canvas.shape(ellipse(0.5, 0.435, 0.05, 0.032), NOSE, line=0)
    canvas.shape(ellipse(0.485, 0.427, 0.013, 0.008), WHITE, line=0)
    canvas.stroke([(0.5, 0.45), (0.5, 0.49)], 0.011)
    _smile(canvas, 0.5, 0.49, 0.045)
    return Anchors((0.5, 0.235), 0.38, ((0.415, 0.37), (0.585, 0.37)), 0.079, (0.5, 0.59), 0.32)


def _bird(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    beak = (255, 214, 60) if tone.base[0] > 200 and 80 < tone.base[1] < 180 else (255, 150, 40)
    for x in (0.45, 0.57):
        canvas.shape(band([(x, 0.76), (x, 0.81), (x, 0.86)], 0.03), beak, line=0.8)
        canvas.shape(band([(x - 0.04, 0.872), (x + 0.02, 0.868), (x + 0.07, 0.872)], 0.03), beak,
                     line=0.8)  # fmt: skip
    lift = 0.04 * pose.sway
    for rise in (0.0, 0.075):
        feather = [(0.34, 0.62), (0.2, 0.53 + rise), (0.09, 0.45 + rise - lift)]
        canvas.shape(band(feather, 0.11, 0.07), tone.dark)
    body = [(0.6, 0.24), (0.71, 0.27), (0.765, 0.37), (0.75, 0.5), (0.73, 0.63), (0.63, 0.76),
            (0.48, 0.79 + 0.01 * pose.plump), (0.33, 0.74), (0.24, 0.62), (0.32, 0.55),
            (0.42, 0.48), (0.465, 0.36), (0.51, 0.27)]  # fmt: skip
    canvas.shape(smooth(body), tone.base)
    canvas.shape(smooth([(0.7, 0.5), (0.72, 0.6), (0.63, 0.73), (0.5, 0.765), (0.52, 0.66),
                         (0.62, 0.56)]), tone.light, line=0)  # fmt: skip
    wing = [(0.54, 0.52), (0.57, 0.6), (0.5, 0.69), (0.36, 0.7), (0.22, 0.66 - lift),
            (0.33, 0.58), (0.43, 0.52)]  # fmt: skip
    canvas.shape(smooth(wing), tone.shade)
    canvas.stroke([(0.3, 0.645), (0.4, 0.64), (0.48, 0.6)], 0.011)
    canvas.shape(rounded([(0.745, 0.375), (0.925, 0.45), (0.735, 0.51)], 2), beak)
    canvas.stroke([(0.75, 0.45), (0.865, 0.45)], 0.01)
    eyes = ((0.63, 0.36), (0.765, 0.325))
    _eyes(canvas, eyes[:1], 0.046, pose)
    return Anchors((0.605, 0.255), 0.31, eyes, 0.064, (0.65, 0.555), 0.26, tilt=-6, profile=True)


def _fish(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    h = 1 + 0.06 * pose.plump
    swing = 0.03 * pose.sway
    tail = [(0.32, 0.56), (0.2, 0.42), (0.06, 0.36 + swing), (0.11, 0.56), (0.06, 0.76 + swing),
            (0.2, 0.7)]  # fmt: skip
    canvas.shape(smooth(tail), tone.dark)
    canvas.shape(smooth([(0.34, 0.45), (0.36, 0.32), (0.43, 0.27), (0.53, 0.33), (0.6, 0.43)]),
                 tone.dark)  # fmt: skip
    canvas.shape(smooth([(0.42, 0.72), (0.36, 0.84), (0.46, 0.83), (0.54, 0.74)]), tone.dark)
    body = [(0.24, 0.56), (0.36, 0.56 - 0.16 * h), (0.56, 0.56 - 0.205 * h), (0.76, 0.47),
            (0.87, 0.57), (0.77, 0.68), (0.56, 0.56 + 0.205 * h),
            (0.36, 0.56 + 0.15 * h)]  # fmt: skip
    canvas.shape(smooth(body), tone.base, tone.shade)
    canvas.stroke([(0.6, 0.42), (0.555, 0.56), (0.6, 0.7)], 0.012)
    for x, y in ((0.34, 0.52), (0.43, 0.47), (0.43, 0.61), (0.34, 0.62)):
        canvas.stroke([(x - 0.02, y - 0.035), (x + 0.02, y), (x - 0.02, y + 0.035)], 0.011,
                      tone.dark)  # fmt: skip
    canvas.shape(smooth([(0.57, 0.6), (0.48, 0.6), (0.42, 0.68), (0.5, 0.71)]), tone.dark)
    canvas.stroke([(0.85, 0.61), (0.79, 0.62), (0.76, 0.6)], 0.013)
    canvas.shape(ellipse(0.75, 0.635, 0.028, 0.018), PINK, line=0)
    eyes = ((0.69, 0.505), (0.835, 0.5))
    _eyes(canvas, eyes[:1], 0.052, pose)
    for x, y, radius in ((0.92, 0.47, 0.024), (0.955, 0.39, 0.018)):
        canvas.shape(ellipse(x, y, radius, radius), GLASS, line=0.6)
    return Anchors((0.64, 0.375), 0.32, eyes, 0.072, (0.66, 0.755), 0.3, tilt=10, profile=True)


def _car(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    roof = 0.36 + 0.02 * pose.plump
    canvas.shape(rounded([(0.06, 0.76), (0.06, 0.57), (0.22, 0.545), (0.32, roof), (0.63, roof),
                          (0.77, 0.54), (0.92, 0.57), (0.95, 0.76)], 3), tone.base)  # fmt: skip
    canvas.shape([(0.085, 0.68), (0.925, 0.68), (0.92, 0.74), (0.085, 0.74)], tone.dark, line=0)
    canvas.shape(rounded([(0.285, 0.54), (0.355, roof + 0.05), (0.465, roof + 0.05),
                          (0.465, 0.54)], 1), GLASS, line=0.8)  # fmt: skip
    canvas.shape(rounded([(0.51, 0.54), (0.51, roof + 0.05), (0.61, roof + 0.05), (0.7, 0.54)], 1),
                 GLASS, line=0.8)  # fmt: skip
    canvas.stroke([(0.488, 0.555), (0.488, 0.74)], 0.01)
    canvas.stroke([(0.53, 0.6), (0.58, 0.6)], 0.016)
    canvas.shape(ellipse(0.905, 0.62, 0.028, 0.034), (255, 240, 150), line=0.8)
    canvas.shape(ellipse(0.085, 0.62, 0.02, 0.034), (236, 70, 60), line=0.8)
    for x in (0.27, 0.735):
        canvas.shape(ellipse(x, 0.765, 0.108, 0.108), (66, 62, 74))
        canvas.shape(ellipse(x, 0.765, 0.055, 0.055), (206, 208, 216), line=0.8)
    return Anchors((0.475, roof - 0.01), 0.38, tilt=-4 * pose.sway)


def _house(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    peak = 0.27 + 0.02 * pose.plump
    canvas.shape([(0.64, 0.24), (0.73, 0.24), (0.73, 0.5), (0.64, 0.5)], (176, 120, 104))
    canvas.shape([(0.23, 0.5), (0.77, 0.5), (0.77, 0.88), (0.23, 0.88)], tone.base)
    canvas.shape([(0.7, 0.53), (0.76, 0.53), (0.76, 0.87), (0.7, 0.87)], tone.shade, line=0)
    canvas.shape(rounded([(0.13, 0.55), (0.5, peak), (0.87, 0.55)], 1), tone.dark)
    for left in (0.285, 0.585):
        canvas.shape([(left, 0.6), (left + 0.13, 0.6), (left + 0.13, 0.72), (left, 0.72)],
                     (255, 240, 170), line=0.8)  # fmt: skip
        canvas.stroke([(left + 0.065, 0.6), (left + 0.065, 0.72)], 0.01)
        canvas.stroke([(left, 0.66), (left + 0.13, 0.66)], 0.01)
    canvas.shape(rounded([(0.44, 0.88), (0.44, 0.66), (0.56, 0.66), (0.56, 0.88)], 1), WOOD)
    canvas.shape(ellipse(0.535, 0.78, 0.013, 0.013), (255, 220, 90), line=0)
    canvas.shape(ellipse(0.5, 0.455, 0.045, 0.045), (255, 240, 170), line=0.8)
    return Anchors((0.5, peak + 0.035), 0.36, tilt=-5 * pose.sway)


def _boat(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    canvas.shape(ellipse(0.5, 0.84, 0.46, 0.09), (96, 176, 222), line=0)
    canvas.shape(band([(0.47, 0.24), (0.47, 0.45), (0.47, 0.68)], 0.032), WOOD)
    bulge = 0.03 * pose.sway
    canvas.shape(smooth([(0.5, 0.28), (0.66 + bulge, 0.42), (0.8, 0.6), (0.65, 0.615),
                         (0.5, 0.61), (0.505, 0.45)]), tone.base)  # fmt: skip
    canvas.stroke([(0.55, 0.5), (0.62, 0.495), (0.69, 0.5)], 0.035, tone.light)
    canvas.shape(smooth([(0.44, 0.33), (0.43, 0.47), (0.44, 0.6), (0.33, 0.615), (0.2, 0.6),
                         (0.34, 0.46)]), (246, 244, 236))  # fmt: skip
    hull = [(0.1, 0.655), (0.5, 0.675), (0.91, 0.645), (0.83, 0.78), (0.73, 0.86), (0.28, 0.86),
            (0.17, 0.78)]  # fmt: skip
    canvas.shape(rounded(hull, 2), tone.base)
    canvas.shape([(0.2, 0.795), (0.81, 0.795), (0.735, 0.85), (0.28, 0.85)], tone.dark, line=0)
    for x in (0.34, 0.5, 0.66):
        canvas.shape(ellipse(x, 0.735, 0.03, 0.03), GLASS, line=0.8)
    wave = [(0.04 + 0.092 * k, 0.87 + (0.014 if k % 2 else -0.014)) for k in range(11)]
    canvas.shape(band(wave, 0.045), (96, 176, 222), line=0)
    canvas.stroke(wave, 0.014, (214, 238, 250))
    return Anchors((0.47, 0.255), 0.36, tilt=-5 * pose.sway)


def _tree(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    trunk = (104, 70, 50) if tone.base[0] > tone.base[2] + 60 and tone.base[0] < 160 else WOOD
    canvas.shape(rounded([(0.445, 0.55), (0.44, 0.78), (0.37, 0.885), (0.63, 0.885), (0.56, 0.78),
                          (0.555, 0.55)], 1), trunk)  # fmt: skip
    canvas.stroke([(0.5, 0.7), (0.5, 0.76), (0.49, 0.82)], 0.011)
    w = 1 + 0.07 * pose.plump
    puffs = [(0.5, 0.34, 0.165), (0.5 - 0.17 * w, 0.43, 0.135), (0.5 + 0.17 * w, 0.43, 0.135),
             (0.5 - 0.13 * w, 0.56, 0.12), (0.5 + 0.13 * w, 0.56, 0.12),
             (0.5, 0.53, 0.15)]  # fmt: skip
    canvas.union([ellipse(x, y, r, r) for x, y, r in puffs], tone.base)
    for x, y, r in puffs[3:5]:
        canvas.stroke([(x - r * 0.5, y + r * 0.45), (x, y + r * 0.65), (x + r * 0.5, y + r * 0.45)],
                      0.014, tone.dark)  # fmt: skip
    for x, y in ((0.42, 0.33), (0.34, 0.45), (0.6, 0.43), (0.48, 0.5)):
        canvas.stroke([(x - 0.04, y + 0.01), (x, y - 0.015), (x + 0.04, y + 0.01)], 0.02,
                      tone.light)  # fmt: skip
    return Anchors((0.5, 0.205), 0.36, tilt=-5 * pose.sway)


DRAW: dict[str, Callable[[Canvas, Tones, Pose], Anchors]] = {
    "dog": _dog,
    "cat": _cat,
    "rabbit": _rabbit,
    "bear": _bear,
    "bird": _bird,
    "fish": _fish,
    "car": _car,
    "house": _house,
    "boat": _boat,
    "tree": _tree,
}
