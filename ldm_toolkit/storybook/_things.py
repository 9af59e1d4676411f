"""The things: one function each, drawn in the unit square with its foot at y = 0.88."""

from collections.abc import Callable

from ldm_toolkit.storybook._accessories import Anchors
from ldm_toolkit.storybook._canvas import (
    WHITE,
    Canvas,
    band,
    ellipse,
    rounded,
    smooth,
)
from ldm_toolkit.storybook._figure import (
    GLASS,
    WOOD,
    Pose,
    Tones,
    eyes_at,
    mirrored,
    smile,
)


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
    return Anchors((0.475, roof - 0.01), 0.38, tilt=-4 * pose.sway, hold=(0.86, 0.57))


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
    return Anchors((0.5, peak + 0.035), 0.36, tilt=-5 * pose.sway, hold=(0.85, 0.55))


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
    return Anchors((0.47, 0.255), 0.36, tilt=-5 * pose.sway, hold=(0.87, 0.67))


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
    return Anchors((0.5, 0.205), 0.36, tilt=-5 * pose.sway, hold=(0.72, 0.58))


def _mushroom(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.07 * pose.plump
    for x, height in ((0.27, 0.07), (0.34, 0.05), (0.7, 0.075), (0.76, 0.05)):
        canvas.stroke([(x, 0.885), (x + 0.02, 0.885 - height)], 0.014, (96, 160, 84))
    stem = [(0.41, 0.5), (0.59, 0.5), (0.6, 0.7), (0.66, 0.86), (0.5, 0.885), (0.34, 0.86),
            (0.4, 0.7)]  # fmt: skip
    canvas.shape(rounded(stem, 2), (248, 238, 216), (226, 208, 184))
    cap = [(0.13, 0.53), (0.17, 0.38), (0.3, 0.265), (0.5, 0.225), (0.7, 0.265), (0.83, 0.38),
           (0.87, 0.53), (0.68, 0.58), (0.5, 0.59), (0.32, 0.58)]  # fmt: skip
    canvas.shape(smooth([(0.5 + (x - 0.5) * w, y) for x, y in cap]), tone.base, tone.shade)
    spot = tone.dark if min(tone.base) > 200 else WHITE
    for x, y, r in ((0.5, 0.33, 0.058), (0.3, 0.43, 0.05), (0.7, 0.43, 0.05), (0.5, 0.495, 0.038),
                    (0.37, 0.32, 0.026), (0.645, 0.31, 0.026)):  # fmt: skip
        canvas.shape(ellipse(x, y, r, r * 0.85), spot, line=0.6)
    eyes = ((0.455, 0.68), (0.545, 0.68))
    eyes_at(canvas, eyes, 0.024, pose)
    smile(canvas, 0.5, 0.735, 0.035)
    return Anchors((0.5, 0.24), 0.36, ((0.43, 0.68), (0.57, 0.68)), 0.062, tilt=-5 * pose.sway)


def _rocket(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.06 * pose.plump
    flame = 0.875 + 0.02 * pose.sway
    canvas.shape(smooth([(0.41, 0.74), (0.42, 0.81), (0.5, flame), (0.58, 0.81), (0.59, 0.74)]),
                 (255, 150, 40))  # fmt: skip
    canvas.shape(smooth([(0.455, 0.75), (0.46, 0.79), (0.5, 0.83), (0.54, 0.79), (0.545, 0.75)]),
                 (255, 232, 110), line=0)  # fmt: skip
    for side in (-1, 1):
        fin = [(0.5 + side * 0.13, 0.52), (0.5 + side * 0.27, 0.68), (0.5 + side * 0.27, 0.83),
               (0.5 + side * 0.11, 0.74)]  # fmt: skip
        canvas.shape(rounded(fin, 1), tone.base, tone.shade)
    hull = [(0.5, 0.14), (0.58, 0.24), (0.5 + 0.15 * w, 0.4), (0.5 + 0.15 * w, 0.6), (0.61, 0.755),
            (0.5, 0.765)]  # fmt: skip
    canvas.shape(smooth([*hull, *mirrored(hull[1:-1])[::-1]]), tone.base, tone.shade)
    canvas.shape([(0.5, 0.145), (0.55, 0.195), (0.595, 0.27), (0.5, 0.29), (0.405, 0.27),
                  (0.45, 0.195)], tone.dark, line=0.8)  # fmt: skip
    canvas.shape(ellipse(0.5, 0.425, 0.083, 0.083), tone.light)
    canvas.shape(ellipse(0.5, 0.425, 0.058, 0.058), GLASS, line=0.8)
    canvas.stroke([(0.465, 0.42), (0.495, 0.39)], 0.014, WHITE)
    canvas.stroke([(0.36, 0.63), (0.5, 0.645), (0.64, 0.63)], 0.022, tone.light)
    canvas.shape(rounded([(0.478, 0.7), (0.522, 0.7), (0.522, 0.84), (0.478, 0.84)], 1), tone.dark)
    return Anchors((0.5, 0.175), 0.32, tilt=-4 * pose.sway, hold=(0.76, 0.7))


DRAW: dict[str, Callable[[Canvas, Tones, Pose], Anchors]] = {
    "car": _car,
    "house": _house,
    "boat": _boat,
    "tree": _tree,
    "mushroom": _mushroom,
    "rocket": _rocket,
}
