"""The animals: one function each, drawn in the unit square with its feet at y = 0.88."""

import math
from collections.abc import Callable

from ldm_toolkit.storybook._accessories import Anchors
from ldm_toolkit.storybook._canvas import (
    INK,
    WHITE,
    Canvas,
    band,
    ellipse,
    mix,
    rounded,
    smooth,
)
from ldm_toolkit.storybook._figure import (
    GLASS,
    NOSE,
    PINK,
    Pose,
    Tones,
    eyes_at,
    mirrored,
    smile,
)


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
    canvas.shape(smooth(mirrored(ear)), tone.dark)
    eyes = ((0.43, 0.39), (0.57, 0.39))
    eyes_at(canvas, eyes, 0.038, pose)
    canvas.shape(band([(0.5, 0.55), (0.5, 0.59), (0.5, 0.605)], 0.06), (240, 110, 130), line=0.8)
    canvas.shape(ellipse(0.5, 0.5, 0.105, 0.075), tone.light, line=0.8)
    canvas.shape(ellipse(0.5, 0.462, 0.046, 0.033), NOSE, line=0)
    canvas.shape(ellipse(0.488, 0.452, 0.012, 0.008), WHITE, line=0)
    canvas.stroke([(0.5, 0.48), (0.5, 0.52)], 0.011)
    smile(canvas, 0.5, 0.52, 0.055)
    return Anchors((0.5, 0.27), 0.38, ((0.414, 0.392), (0.586, 0.392)), 0.079, (0.5, 0.615), 0.3,
                   ears=0.2, hold=(0.72, 0.74))  # fmt: skip


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
    for outline, lining in ((ear, inner), (mirrored(ear), mirrored(inner))):
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
    smile(canvas, 0.5, 0.508, 0.05)
    return Anchors((0.5, 0.285), 0.36, eyes, 0.079, (0.5, 0.6), 0.24, ears=0.21, hold=(0.66, 0.72))


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
    eyes_at(canvas, eyes, 0.036, pose)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.115, 0.515, 0.03, 0.02), PINK, line=0)
        canvas.shape(ellipse(0.5 + side * 0.036, 0.528, 0.045, 0.035), tone.light, line=0)
    canvas.shape(rounded([(0.477, 0.545), (0.523, 0.545), (0.523, 0.592), (0.477, 0.592)], 1),
                 WHITE, line=0.7)  # fmt: skip
    canvas.stroke([(0.5, 0.55), (0.5, 0.59)], 0.007)
    canvas.shape(rounded([(0.472, 0.495), (0.528, 0.495), (0.5, 0.525)], 1), PINK, line=0.6)
    smile(canvas, 0.5, 0.526, 0.05)
    return Anchors((0.5, 0.345), 0.33, ((0.417, 0.447), (0.583, 0.447)), 0.077, (0.5, 0.632), 0.25,
                   ears=0.2, hold=(0.61, 0.7))  # fmt: skip


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
    eyes_at(canvas, eyes, 0.03, pose)
    canvas.shape(ellipse(0.5, 0.47, 0.1, 0.078), tone.light, line=0.8)
    canvas.shape(ellipse(0.5, 0.435, 0.05, 0.032), NOSE, line=0)
    canvas.shape(ellipse(0.485, 0.427, 0.013, 0.008), WHITE, line=0)
    canvas.stroke([(0.5, 0.45), (0.5, 0.49)], 0.011)
    smile(canvas, 0.5, 0.49, 0.045)
    return Anchors((0.5, 0.235), 0.38, ((0.415, 0.37), (0.585, 0.37)), 0.079, (0.5, 0.59), 0.32,
                   ears=0.215, hold=(0.785, 0.7))  # fmt: skip


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
    eyes_at(canvas, eyes[:1], 0.046, pose)
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
    eyes_at(canvas, eyes[:1], 0.052, pose)
    for x, y, radius in ((0.92, 0.47, 0.024), (0.955, 0.39, 0.018)):
        canvas.shape(ellipse(x, y, radius, radius), GLASS, line=0.6)
    return Anchors((0.64, 0.375), 0.32, eyes, 0.072, (0.66, 0.755), 0.3, tilt=10, profile=True)


def _elephant(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.07 * pose.plump
    canvas.shape(ellipse(0.5, 0.7, 0.22 * w, 0.17), tone.base, tone.shade)
    for x in (0.37, 0.63):
        leg = [(x - 0.075, 0.7), (x + 0.075, 0.7), (x + 0.08, 0.885), (x - 0.08, 0.885)]
        canvas.shape(rounded(leg, 2), tone.base)
        for toe in (-0.04, 0.0, 0.04):
            canvas.shape(ellipse(x + toe, 0.868, 0.017, 0.016), WHITE, line=0.6)
    flap = 6 * pose.sway
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.235, 0.42, 0.14, 0.175, side * (12 + flap)),
                     tone.base, tone.shade)  # fmt: skip
        canvas.shape(ellipse(0.5 + side * 0.235, 0.425, 0.085, 0.12, side * (12 + flap)),
                     mix(tone.light, PINK, 0.35), line=0)  # fmt: skip
    canvas.shape(ellipse(0.5, 0.42, 0.18 * w, 0.165), tone.base, tone.shade)
    eyes = ((0.425, 0.385), (0.575, 0.385))
    eyes_at(canvas, eyes, 0.033, pose)
    for side in (-1, 1):
        tusk = [(0.5 + side * 0.075, 0.52), (0.5 + side * 0.085, 0.575), (0.5 + side * 0.11, 0.605)]
        canvas.shape(band(tusk, 0.036, 0.015), WHITE, line=0.8)
    end = (0.6 + 0.02 * pose.sway, 0.69)
    canvas.shape(band([(0.5, 0.45), (0.495, 0.58), (0.525, 0.685), end], 0.105, 0.062), tone.base)
    for y in (0.52, 0.565, 0.61):
        canvas.stroke([(0.462, y), (0.495, y + 0.012), (0.53, y)], 0.008)
    return Anchors((0.5, 0.275), 0.34, eyes, 0.068, hold=(0.72, 0.72))


def _penguin(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    w = 1 + 0.06 * pose.plump
    for x in (0.42, 0.58):
        canvas.shape(ellipse(x, 0.865, 0.075, 0.03), (255, 168, 40))
    lift = 0.05 * pose.sway
    for side in (-1, 1):
        flipper = [(0.5 + side * 0.17 * w, 0.53), (0.5 + side * 0.25 * w, 0.62 - lift * side),
                   (0.5 + side * 0.285 * w, 0.715 - lift * side)]  # fmt: skip
        canvas.shape(band(flipper, 0.085, 0.05), tone.base)
    body = [(0.5, 0.255), (0.64, 0.31), (0.665, 0.45), (0.69, 0.58), (0.5 + 0.215 * w, 0.72),
            (0.63, 0.84), (0.5, 0.865)]  # fmt: skip
    canvas.shape(smooth([*body, *mirrored(body[1:-1])[::-1]]), tone.base, tone.shade)
    belly = mix(tone.light, WHITE, 0.85)
    canvas.shape(ellipse(0.5, 0.7, 0.115 * w, 0.135), belly, line=0.7)
    for side in (-1, 1):
        canvas.shape(ellipse(0.5 + side * 0.068, 0.405, 0.078, 0.085), belly, line=0)
    eyes = ((0.435, 0.395), (0.565, 0.395))
    eyes_at(canvas, eyes, 0.034, pose)
    beak = [(0.445, 0.445), (0.5, 0.425), (0.555, 0.445), (0.5, 0.51)]
    canvas.shape(rounded(beak, 1), (255, 168, 40))
    canvas.stroke([(0.465, 0.456), (0.5, 0.468), (0.535, 0.456)], 0.008)
    return Anchors((0.5, 0.27), 0.32, eyes, 0.07, (0.5, 0.56), 0.3, ears=0.16, hold=(0.765, 0.715))


def _turtle(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    skin = mix(tone.light, (168, 206, 120), 0.45)
    nod = 0.012 * pose.sway
    canvas.shape(band([(0.18, 0.77), (0.1, 0.79), (0.05, 0.83)], 0.06, 0.02), skin)
    for x in (0.24, 0.59):
        leg = [(x - 0.065, 0.74), (x + 0.065, 0.74), (x + 0.075, 0.885), (x - 0.075, 0.885)]
        canvas.shape(rounded(leg, 2), skin)
    canvas.shape(band([(0.62, 0.76), (0.71, 0.72), (0.765, 0.58 + nod)], 0.13, 0.12), skin)
    canvas.shape(ellipse(0.8, 0.49 + nod, 0.135, 0.12), skin, mix(skin, INK, 0.14))
    rise = 0.31 + 0.02 * pose.plump
    dome = [(0.12, 0.77), (0.13, 0.64), (0.2, 0.77 - rise * 0.8), (0.4, 0.77 - rise),
            (0.6, 0.77 - rise * 0.8), (0.68, 0.64), (0.69, 0.77)]  # fmt: skip
    canvas.shape(rounded(dome, 3), tone.base, tone.shade)
    plate = [(0.32, 0.51), (0.49, 0.51), (0.545, 0.61), (0.47, 0.69), (0.335, 0.69), (0.26, 0.61)]
    canvas.shape(rounded(plate, 1), tone.base, line=0.8)
    for start, end in (((0.26, 0.61), (0.155, 0.62)), ((0.545, 0.61), (0.66, 0.62)),
                       ((0.335, 0.69), (0.3, 0.76)), ((0.47, 0.69), (0.51, 0.76))):  # fmt: skip
        canvas.stroke([start, end], 0.011)
    canvas.shape(band([(0.1, 0.775), (0.4, 0.79), (0.71, 0.775)], 0.05), tone.dark)
    eyes = ((0.815, 0.455 + nod), (0.93, 0.45 + nod))
    eyes_at(canvas, eyes[:1], 0.036, pose)
    canvas.stroke([(0.91, 0.535 + nod), (0.86, 0.555 + nod), (0.81, 0.545 + nod)], 0.011)
    return Anchors((0.775, 0.39 + nod), 0.27, eyes, 0.062, (0.745, 0.645), 0.2, tilt=4,
                   profile=True)  # fmt: skip


def _snail(canvas: Canvas, tone: Tones, pose: Pose) -> Anchors:
    skin = mix(tone.light, (240, 214, 160), 0.5)
    reach = 0.015 * pose.sway
    eyes = ((0.765 + reach, 0.4), (0.905 + reach, 0.4))
    for root, tip in zip((0.81, 0.86), eyes, strict=True):
        canvas.shape(band([(root, 0.57), (root + (tip[0] - root) * 0.4, 0.48), tip], 0.034), skin)
    foot = [(0.05, 0.87), (0.2, 0.8), (0.45, 0.78), (0.68, 0.77), (0.735, 0.66), (0.76, 0.555),
            (0.84, 0.52), (0.92, 0.565), (0.93, 0.66), (0.9, 0.79), (0.82, 0.87), (0.5, 0.885),
            (0.2, 0.885)]  # fmt: skip
    canvas.shape(smooth(foot), skin, mix(skin, INK, 0.14))
    radius = 0.255 + 0.012 * pose.plump
    x, y = 0.42, 0.58
    canvas.shape(ellipse(x, y, radius, radius), tone.base, tone.shade)
    turns = [(radius * (0.86 - 0.16 * a), a) for a in (0.4 * k for k in range(13))]
    spiral = [(x + r * math.cos(a + 0.9), y + r * math.sin(a + 0.9)) for r, a in turns]
    canvas.shape(band(spiral, 0.05, 0.03), tone.dark, line=0)
    canvas.stroke(spiral, 0.012)
    eyes_at(canvas, eyes, 0.042, pose)
    canvas.stroke([(0.9, 0.65), (0.865, 0.67), (0.83, 0.655)], 0.012)
    canvas.shape(ellipse(0.8, 0.63, 0.022, 0.014), PINK, line=0)
    return Anchors((x, y - radius + 0.012), 0.32, eyes, 0.066, (0.79, 0.745), 0.22)


DRAW: dict[str, Callable[[Canvas, Tones, Pose], Anchors]] = {
    "dog": _dog,
    "cat": _cat,
    "rabbit": _rabbit,
    "bear": _bear,
    "bird": _bird,
    "fish": _fish,
    "elephant": _elephant,
    "penguin": _penguin,
    "turtle": _turtle,
    "snail": _snail,
}
