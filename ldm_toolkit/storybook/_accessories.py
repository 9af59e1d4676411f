"""What subjects wear: one function an accessory, drawn at the subject's anchor points."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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

LENS: RGB = (226, 242, 250)


@dataclass(frozen=True)
class Anchors:
    """Where a subject wears things, in the subject's own coordinates.

    `width` is the width of the head, the measure of every accessory; `tilt` in degrees;
    in `profile` only the first of the two eyes is seen. `ears` is how far headphones sit from the
    middle of the eyes, `hold` where a string or a handle is held.
    """

    top: tuple[float, float]
    width: float
    eyes: tuple[tuple[float, float], tuple[float, float]] = ((0.42, 0.4), (0.58, 0.4))
    lens: float = 0.075
    neck: tuple[float, float] = (0.5, 0.6)
    neck_width: float = 0.28
    tilt: float = 0.0
    profile: bool = False
    ears: float = 0.2
    hold: tuple[float, float] = (0.7, 0.7)


def _at(origin: tuple[float, float], unit: float, degrees: float, points: object) -> np.ndarray:
    """Points given in units of `unit` around `origin`, turned clockwise."""
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.asarray(points, dtype=float) * unit @ np.array(((cos, sin), (-sin, cos))) + origin


def _hat(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    shade = mix(fill, INK, 0.3)
    trim = WHITE if sum(fill) < 420 else mix(fill, INK, 0.75)

    def put(points: object) -> np.ndarray:
        return _at(anchors.top, anchors.width, anchors.tilt, points)

    brim = ellipse(0, 0.02, 0.5, 0.09)
    canvas.shape(put(brim), fill, shade)
    tube = [(-0.3, 0.0), (-0.34, -0.48), (-0.2, -0.51), (0.2, -0.51), (0.34, -0.48), (0.3, 0.0),
            (0.0, 0.05)]  # fmt: skip
    canvas.shape(put(rounded(tube, 2)), fill, shade)
    canvas.shape(put([(-0.3, -0.19), (0, -0.14), (0.3, -0.19), (0.285, -0.03), (0, 0.03),
                      (-0.285, -0.03)]), trim, line=0.5)  # fmt: skip


def _crown(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    def put(points: object) -> np.ndarray:
        return _at(anchors.top, anchors.width, anchors.tilt, points)

    tips = ((-0.42, -0.36), (0.0, -0.46), (0.42, -0.36))
    canvas.shape(put([(-0.34, 0.06), tips[0], (-0.19, -0.17), tips[1], (0.19, -0.17), tips[2],
                      (0.34, 0.06), (0.0, 0.1)]), fill, mix(fill, INK, 0.22))  # fmt: skip
    jewel = (230, 50, 70) if fill[0] < 235 or fill[1] > 150 else (70, 200, 245)
    for x, y in tips:
        canvas.shape(put(ellipse(x, y, 0.06, 0.06)), jewel, line=0.7)
    canvas.shape(put(ellipse(0, -0.06, 0.07, 0.08)), jewel, line=0.7)


def _glasses(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    (left_x, left_y), (right_x, right_y) = anchors.eyes
    radius, width = anchors.lens, 0.024
    bridge = [(left_x + radius, left_y), ((left_x + right_x) / 2, (left_y + right_y) / 2 - 0.012),
              (right_x - radius, right_y)]  # fmt: skip
    canvas.shape(band(bridge, width), fill, line=0.8)
    arm = [(left_x - radius, left_y), (left_x - radius - 0.05, left_y - 0.015)]
    canvas.shape(band(arm, width), fill, line=0.8)
    if not anchors.profile:
        arm = [(right_x + radius, right_y), (right_x + radius + 0.05, right_y - 0.015)]
        canvas.shape(band(arm, width), fill, line=0.8)
    for index, (x, y) in enumerate(anchors.eyes):
        canvas.shape(ellipse(x, y, radius + width / 2, radius + width / 2), fill)
        canvas.shape(ellipse(x, y, radius - width / 2, radius - width / 2), LENS, line=0.6)
        if index == 0 or not anchors.profile:
            pupil = radius * 0.45
            canvas.shape(ellipse(x, y + 0.004, pupil, pupil * 1.15), INK, line=0)
            shine = ellipse(x - pupil * 0.35, y - pupil * 0.35, pupil * 0.36, pupil * 0.36)
            canvas.shape(shine, WHITE, line=0)


def _scarf(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    x, y = anchors.neck
    half, thick = anchors.neck_width / 2, 0.085
    stripe = mix(fill, WHITE, 0.72)

    def put(points: object) -> np.ndarray:
        return _at((x, y), 1.0, anchors.tilt, points)

    hanging = [(half * 0.45, 0.02), (half * 0.62, 0.11), (half * 0.66, 0.21)]
    canvas.shape(put(band(hanging, 0.085, 0.1)), fill, mix(fill, INK, 0.2))
    for low in (0.12, 0.185):
        across = [(half * 0.63 - 0.04, low + 0.008), (half * 0.63 + 0.042, low)]
        canvas.stroke(put(across), 0.024, stripe)
    loop = [(-half, -0.03), (-half * 0.5, 0.015), (0.0, 0.03), (half * 0.5, 0.015), (half, -0.03)]
    canvas.shape(put(band(loop, thick)), fill, mix(fill, INK, 0.2))
    for at, tip in ((-0.62, -0.5), (-0.1, 0.0), (0.9, 0.82)):
        top = -0.032 - 0.035 * abs(at) + 0.03
        canvas.stroke(put([(half * at, top - 0.018), (half * tip, top + 0.048)]), 0.022, stripe)
    canvas.shape(put(ellipse(half * 0.45, 0.012, 0.05, 0.052)), fill, mix(fill, INK, 0.2))


def _bow_tie(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    def put(points: object) -> np.ndarray:
        return _at(anchors.neck, anchors.width, anchors.tilt, points)

    for side in (-1, 1):
        wing = [(0, -0.04), (side * 0.4, -0.2), (side * 0.44, 0.0), (side * 0.4, 0.2), (0, 0.04)]
        canvas.shape(put(rounded(wing, 2)), fill, mix(fill, INK, 0.2))
        canvas.stroke(put([(side * 0.12, 0.0), (side * 0.25, -0.03)]), 0.01)
    canvas.shape(put(ellipse(0, 0, 0.095, 0.11)), mix(fill, INK, 0.22))


def _headphones(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    x = sum(eye[0] for eye in anchors.eyes) / 2
    y = sum(eye[1] for eye in anchors.eyes) / 2 + 0.02
    reach, top = anchors.ears, anchors.top[1] - 0.005
    arc = [(x + reach * math.cos(a), y - (y - top) * math.sin(a))
           for a in (math.pi * k / 8 for k in range(9))]  # fmt: skip
    canvas.shape(band(arc, 0.042), fill)
    for side in (-1, 1):
        inner, outer = x + side * (reach - 0.035), x + side * (reach + 0.05)
        cup = rounded([(inner, y - 0.085), (outer, y - 0.075), (outer, y + 0.075),
                       (inner, y + 0.085)], 2)  # fmt: skip
        canvas.shape(cup, fill, mix(fill, INK, 0.22))
        canvas.shape(ellipse(inner, y, 0.028, 0.075), mix(fill, INK, 0.55), line=0.7)


def _balloon(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    x, y = 0.865, 0.215
    hold_x, hold_y = anchors.hold
    string = [(hold_x, hold_y), ((hold_x + x) / 2 + 0.02, (hold_y + y) / 2 + 0.06), (x, y + 0.13)]
    canvas.stroke(string, 0.009)
    canvas.shape(ellipse(hold_x, hold_y, 0.014, 0.014), INK, line=0)
    canvas.shape([(x, y + 0.11), (x + 0.028, y + 0.155), (x - 0.028, y + 0.155)], fill, line=0.8)
    round_ = [(0, -0.125), (0.075, -0.09), (0.1, -0.01), (0.06, 0.08), (0, 0.125), (-0.06, 0.08),
              (-0.1, -0.01), (-0.075, -0.09)]  # fmt: skip
    canvas.shape(smooth([(x + dx, y + dy) for dx, dy in round_]), fill, mix(fill, INK, 0.2))
    canvas.shape(ellipse(x - 0.035, y - 0.05, 0.018, 0.03, 20), mix(fill, WHITE, 0.75), line=0)


def _umbrella(canvas: Canvas, anchors: Anchors, fill: RGB) -> None:
    x, y, half, rise = 0.66, 0.1, 0.35, 0.2
    low = anchors.hold[1]
    handle = [(x, y - rise), (x + 0.06, 0.3), (0.765, low - 0.12), (0.775, low)]
    canvas.shape(band(handle, 0.026), (122, 82, 52))
    hook = [(0.775, low), (0.78, low + 0.05), (0.815, low + 0.055), (0.825, low + 0.02)]
    canvas.shape(band(hook, 0.03), (122, 82, 52))
    dome = [(x + half * math.cos(a), y - rise * math.sin(a))
            for a in (math.pi * k / 14 for k in range(15))]  # fmt: skip
    ribs = [x + half * share for share in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    for left, right in itertools.pairwise(ribs):
        dome += [(left + (right - left) * t, y - 0.05 * math.sin(math.pi * t))
                 for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]  # fmt: skip
    canvas.shape(dome, fill)
    stripe = mix(fill, WHITE, 0.55)
    for left, right in (ribs[0:2], ribs[2:4]):
        lower = [(left + (right - left) * t, y - 0.045 * math.sin(math.pi * t) - 0.008)
                 for t in (0.06, 0.3, 0.5, 0.7, 0.94)]  # fmt: skip
        canvas.shape([*lower, (x, y - rise + 0.01)], stripe, line=0)
    for rib in ribs[1:-1]:
        middle = ((x + rib) / 2 + (rib - x) * 0.14, y - rise * 0.62)
        canvas.stroke([(x, y - rise), middle, (rib, y)], 0.008)
    canvas.shape(ellipse(x, y - rise - 0.012, 0.016, 0.022), INK, line=0)


DRAW: dict[str, Callable[[Canvas, Anchors, RGB], None]] = {
    "hat": _hat,
    "scarf": _scarf,
    "glasses": _glasses,
    "crown": _crown,
    "bow tie": _bow_tie,
    "headphones": _headphones,
    "balloon": _balloon,
    "umbrella": _umbrella,
}
