"""Backgrounds: one function a setting. Muted, without outlines, so that the subject stands out.

Each returns the colour of the ground in the shade. Sun, moon and window are at the left, where
the light of the figures comes from: strong guidance draws what may be at either side at both.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ldm_toolkit.storybook._canvas import RGB, WHITE, Canvas, band, ellipse, mix, rounded, smooth
from ldm_toolkit.storybook._tables import WEATHERS


def _between(draw: random.Random, low: float, high: float) -> float:
    return low + (high - low) * draw.random()


@dataclass(frozen=True)
class Sky:
    """The sky of a weather, None for the setting's own; its details come from `draw`."""

    weather: str | None
    draw: random.Random

    def paint(self, canvas: Canvas, top: RGB, bottom: RGB) -> None:
        """The whole picture's gradient; what is drawn later has the weather's light."""
        if self.weather is None:
            canvas.gradient(top, bottom)
            return
        row = WEATHERS[self.weather]
        canvas.gradient(*row.sky)
        if self.weather == "night":
            _moon_and_stars(canvas, self.draw)
        elif self.weather == "rain":
            for column in range(5):
                x, y = (column + self.draw.random()) / 5, _between(self.draw, 0.03, 0.12)
                _cloud(canvas, x, y, _between(self.draw, 0.075, 0.1), (92, 102, 122))
        canvas.light = (row.light, row.share)

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, fill: RGB) -> None:
        """The sun where the setting has it; low and red at sunset."""
        if self.weather is None:
            canvas.shape(ellipse(x, y, radius, radius), fill, line=0)
        elif self.weather == "sunset":
            light, canvas.light = canvas.light, None
            canvas.shape(ellipse(x, 0.36, 0.15, 0.15), (255, 226, 130), line=0)
            canvas.shape(ellipse(x, 0.36, 0.12, 0.12), (255, 112, 66), line=0)
            canvas.light = light

    def in_front(self, canvas: Canvas) -> None:
        """What falls between the picture and who looks at it."""
        if self.weather != "rain":
            return
        for column in range(7):
            for row in range(6):
                x = (column + _between(self.draw, 0.1, 0.9)) / 7
                y = (row + _between(self.draw, 0.0, 0.8)) / 6
                length = _between(self.draw, 0.04, 0.06)
                canvas.stroke([(x, y), (x - length * 0.3, y + length)], 0.009, (206, 226, 250))


def _cloud(canvas: Canvas, x: float, y: float, size: float, fill: RGB) -> None:
    for dx, dy, radius in ((-0.9, 0.1, 0.55), (0.0, -0.15, 0.8), (0.9, 0.1, 0.6)):
        canvas.shape(ellipse(x + dx * size, y + dy * size, radius * size, radius * size * 0.8),
                     fill, line=0)  # fmt: skip


def _hill(canvas: Canvas, left: float, middle: float, right: float, fill: RGB) -> None:
    top = smooth([(-0.1, left), (0.22, (left + middle) / 2), (0.5, middle),
                  (0.8, (middle + right) / 2), (1.1, right)], closed=False)  # fmt: skip
    canvas.shape([*map(tuple, top), (1.1, 1.1), (-0.1, 1.1)], fill, line=0)


def _meadow(canvas: Canvas, draw: random.Random, sky: Sky) -> RGB:
    sky.paint(canvas, (150, 208, 246), (222, 242, 252))
    sky.sun(canvas, 0.14, 0.13, 0.085, (255, 236, 130))
    for x in (_between(draw, 0.74, 0.9), _between(draw, 0.36, 0.5)):
        _cloud(canvas, x, _between(draw, 0.1, 0.24), 0.065, WHITE)
    _hill(canvas, _between(draw, 0.5, 0.6), 0.58, _between(draw, 0.44, 0.56), (150, 206, 120))
    _hill(canvas, _between(draw, 0.6, 0.68), 0.67, _between(draw, 0.62, 0.72), (178, 224, 120))
    for _ in range(9):
        x, y = _between(draw, 0.03, 0.97), _between(draw, 0.73, 0.97)
        petal = (WHITE, (255, 190, 214))[draw.random() < 0.5]
        canvas.stroke([(x, y), (x, y + 0.035)], 0.008, (110, 170, 80))
        canvas.shape(ellipse(x, y, 0.019, 0.019), petal, line=0)
        canvas.shape(ellipse(x, y, 0.008, 0.008), (250, 200, 70), line=0)
    return 140, 190, 92


def _beach(canvas: Canvas, draw: random.Random, sky: Sky) -> RGB:
    sky.paint(canvas, (176, 224, 250), (232, 246, 252))
    sky.sun(canvas, 0.16, 0.15, 0.09, (255, 230, 110))
    horizon = _between(draw, 0.4, 0.46)
    shore = _between(draw, 0.64, 0.7)
    canvas.shape([(-0.1, horizon), (1.1, horizon), (1.1, 1), (-0.1, 1)], (84, 180, 214), line=0)
    for row in (0.3, 0.62):
        y = horizon + (shore - horizon) * row
        start = _between(draw, -0.15, 0.0)
        wave = [(start + 0.08 * k, y + (0.011 if k % 2 else -0.011)) for k in range(16)]
        canvas.stroke(wave, 0.012, (190, 230, 242))
    edge = [(-0.1 + 0.15 * k, shore + (0.012 if k % 2 else -0.012)) for k in range(9)]
    canvas.shape(band(edge, 0.05), WHITE, line=0)
    canvas.shape([*edge, (1.1, 1.1), (-0.1, 1.1)], (246, 222, 164), line=0)
    for side in (1, -1):
        _starfish(canvas, 0.5 + (0.5 - draw.random() * 0.16) * side, _between(draw, 0.78, 0.92))
    return 218, 188, 126


def _starfish(canvas: Canvas, x: float, y: float) -> None:
    tips = [(0, -1), (0.3, -0.35), (0.95, -0.3), (0.45, 0.2), (0.6, 0.85),
            (0, 0.45), (-0.6, 0.85), (-0.45, 0.2), (-0.95, -0.3), (-0.3, -0.35)]  # fmt: skip
    canvas.shape([(x + 0.05 * dx, y + 0.05 * dy) for dx, dy in tips], (240, 150, 120), line=0)


def _snow(canvas: Canvas, draw: random.Random, sky: Sky) -> RGB:
    sky.paint(canvas, (142, 170, 204), (196, 214, 234))
    if sky.weather is not None:
        sky.sun(canvas, 0.2, 0, 0, WHITE)
    _hill(canvas, _between(draw, 0.52, 0.6), 0.56, _between(draw, 0.5, 0.6), (214, 226, 242))
    for x in (_between(draw, 0.04, 0.14), _between(draw, 0.86, 0.96)):
        _fir(canvas, x, _between(draw, 0.62, 0.68), _between(draw, 0.2, 0.27))
    _hill(canvas, _between(draw, 0.64, 0.7), 0.68, _between(draw, 0.64, 0.7), (234, 241, 250))
    for column in range(6):
        for row in range(5):
            x = (column + _between(draw, 0.1, 0.9)) / 6
            y = (row + _between(draw, 0.1, 0.9)) / 7
            radius = _between(draw, 0.009, 0.015)
            canvas.shape(ellipse(x, y, radius, radius), WHITE, line=0)
    return 190, 206, 230


def _fir(canvas: Canvas, x: float, y: float, size: float) -> None:
    for level, width in ((0.0, 0.42), (0.28, 0.34), (0.56, 0.24)):
        base = y - size * level
        left, right, tip = (x - width * size, base), (x + width * size, base), base - size * 0.5
        canvas.shape([left, (x, tip), right], (84, 124, 128), line=0)
        snow = [(x - width * size * 0.5, (base + tip) / 2), (x, tip),
                (x + width * size * 0.5, (base + tip) / 2)]  # fmt: skip
        canvas.shape(snow, (240, 245, 252), line=0)


def _night(canvas: Canvas, draw: random.Random, _sky: Sky) -> RGB:
    canvas.gradient(*WEATHERS["night"].sky)
    _moon_and_stars(canvas, draw)
    _hill(canvas, _between(draw, 0.58, 0.66), 0.62, _between(draw, 0.58, 0.66), (52, 70, 112))
    _hill(canvas, _between(draw, 0.68, 0.74), 0.72, _between(draw, 0.68, 0.74), (66, 92, 124))
    return 46, 66, 98


def _moon_and_stars(canvas: Canvas, draw: random.Random) -> None:
    x, y = _between(draw, 0.14, 0.2), _between(draw, 0.14, 0.19)
    canvas.shape(_crescent(x, y, 0.11), (250, 240, 186), line=0)
    for column in range(5):
        for row in range(3):
            if (column * 3 + row) % 4 != 3:
                star = (column + _between(draw, 0.2, 0.8)) / 5, (row + _between(draw, 0.2, 0.8)) / 6
                if abs(star[0] - x) > 0.13 or abs(star[1] - y) > 0.13:
                    _star(canvas, star[0], star[1], _between(draw, 0.018, 0.03))


def _crescent(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """A moon open towards the middle of the picture."""
    outer = [(math.cos(a), math.sin(a)) for a in (math.radians(5 * k) for k in range(-25, 26))]
    inner = [
        (0.82 * math.cos(a) - 0.55, 0.82 * math.sin(a))
        for a in (math.radians(7 * k) for k in range(13, -14, -1))
    ]
    return [(x - radius * dx, y + radius * dy) for dx, dy in outer + inner]


def _star(canvas: Canvas, x: float, y: float, size: float) -> None:
    points = [(0, -1), (0.24, -0.24), (1, 0), (0.24, 0.24), (0, 1), (-0.24, 0.24), (-1, 0),
              (-0.24, -0.24)]  # fmt: skip
    canvas.shape([(x + size * dx, y + size * dy) for dx, dy in points], (255, 248, 206), line=0)


def _city(canvas: Canvas, draw: random.Random, sky: Sky) -> RGB:
    sky.paint(canvas, (198, 206, 222), (232, 230, 232))
    if sky.weather is not None:
        sky.sun(canvas, 0.18, 0, 0, WHITE)
    walls = ((150, 150, 170), (172, 164, 176), (136, 144, 160), (164, 172, 184))
    left, turn = -0.04 - 0.05 * draw.random(), int(draw.random() * 4)
    while left < 1.0:
        width = _between(draw, 0.17, 0.23)
        middle = 1 - abs(left + width / 2 - 0.5) * 2
        top = 0.12 + 0.22 * middle + _between(draw, -0.06, 0.1)
        _building(canvas, left, top, width, walls[turn % 4])
        left, turn = left + width, turn + 1
    canvas.shape([(-0.1, 0.7), (1.1, 0.7), (1.1, 0.77), (-0.1, 0.77)], (206, 204, 208), line=0)
    canvas.shape([(-0.1, 0.77), (1.1, 0.77), (1.1, 1.1), (-0.1, 1.1)], (120, 120, 130), line=0)
    start = _between(draw, -0.2, 0.0)
    for k in range(6):
        x = start + 0.24 * k
        canvas.shape([(x, 0.925), (x + 0.13, 0.925), (x + 0.12, 0.95), (x - 0.01, 0.95)],
                     (240, 240, 236), line=0)  # fmt: skip
    return 92, 92, 104


def _building(canvas: Canvas, left: float, top: float, width: float, wall: RGB) -> None:
    corners = [(left, top), (left + width, top), (left + width, 0.75), (left, 0.75)]
    canvas.shape(corners, wall, line=0)
    canvas.shape([(left + width * 0.88, top), *corners[1:3], (left + width * 0.88, 0.75)],
                 mix(wall, (60, 60, 90), 0.25), line=0)  # fmt: skip
    y = top + 0.045
    while y < 0.64:
        for column in (0.14, 0.52):
            x = left + width * column
            glass = rounded([(x, y), (x + width * 0.24, y), (x + width * 0.24, y + 0.05),
                             (x, y + 0.05)], 1)  # fmt: skip
            canvas.shape(glass, (252, 236, 170), line=0)
        y += 0.105


def _forest(canvas: Canvas, draw: random.Random, sky: Sky) -> RGB:
    sky.paint(canvas, (186, 222, 196), (226, 242, 212))
    if sky.weather is not None:
        sky.sun(canvas, 0.26, 0, 0, WHITE)
    for far in (True, False):
        bark = (150, 136, 122) if far else (112, 92, 84)
        leaf = (142, 184, 142) if far else (88, 142, 100)
        places = (0.18, 0.36, 0.6, 0.8) if far else (0.04, 0.96)
        for place in places:
            x = place + _between(draw, -0.04, 0.04)
            half = 0.018 if far else 0.042
            foot = 0.66 if far else 0.76
            trunk = [(x - half, 0.0), (x + half, 0.0), (x + half * 1.5, foot),
                     (x - half * 1.5, foot)]  # fmt: skip
            canvas.shape(trunk, bark, line=0)
            for step in range(4):
                dx, dy = _between(draw, -0.1, 0.1), 0.04 + 0.055 * step
                radius = _between(draw, 0.065, 0.09) * (1.0 if far else 1.25)
                canvas.shape(ellipse(x + dx, dy, radius * 1.2, radius), leaf, line=0)
    _hill(canvas, _between(draw, 0.64, 0.68), 0.66, _between(draw, 0.64, 0.68), (124, 168, 100))
    for _ in range(7):
        x, y = _between(draw, 0.03, 0.97), _between(draw, 0.76, 0.96)
        for lean in (-0.022, 0.0, 0.022):
            canvas.stroke([(x, y), (x + lean, y - 0.045)], 0.012, (86, 136, 76))
    return 96, 138, 80


def _desert(canvas: Canvas, draw: random.Random, sky: Sky) -> RGB:
    sky.paint(canvas, (252, 214, 150), (255, 240, 206))
    sky.sun(canvas, 0.2, 0.16, 0.11, (255, 250, 226))
    _hill(canvas, _between(draw, 0.42, 0.52), 0.56, _between(draw, 0.42, 0.52), (238, 184, 116))
    _hill(canvas, _between(draw, 0.58, 0.64), 0.6, _between(draw, 0.5, 0.6), (228, 164, 94))
    for x in (_between(draw, 0.05, 0.11), _between(draw, 0.89, 0.95)):
        _cactus(canvas, x, _between(draw, 0.7, 0.76), _between(draw, 0.24, 0.32))
    _hill(canvas, _between(draw, 0.7, 0.76), 0.72, _between(draw, 0.7, 0.76), (240, 190, 122))
    for _ in range(4):
        x, y = _between(draw, 0.04, 0.96), _between(draw, 0.82, 0.96)
        canvas.shape(ellipse(x, y, _between(draw, 0.018, 0.03), 0.014), (198, 146, 100), line=0)
    return 206, 150, 92


def _cactus(canvas: Canvas, x: float, foot: float, height: float) -> None:
    green = (104, 150, 104)
    canvas.shape(band([(x, foot + 0.06), (x, foot - height / 2), (x, foot - height)], 0.06), green,
                 line=0)  # fmt: skip
    for side, low in ((-1, 0.35), (1, 0.5)):
        y = foot - height * low
        arm = [(x, y), (x + side * 0.055, y - 0.005), (x + side * 0.06, y - height * 0.3)]
        canvas.shape(band(arm, 0.036), green, line=0)


def _room(canvas: Canvas, draw: random.Random, _sky: Sky) -> RGB:
    canvas.gradient((238, 214, 202), (244, 224, 210))
    start = _between(draw, 0.0, 0.1)
    for k in range(10):
        left = start + 0.11 * k - 0.06
        canvas.shape([(left, 0), (left + 0.045, 0), (left + 0.045, 0.7), (left, 0.7)],
                     (232, 204, 192), line=0)  # fmt: skip
    _window(canvas, _between(draw, 0.19, 0.23), _between(draw, 0.2, 0.24))
    x, y = _between(draw, 0.78, 0.83), _between(draw, 0.17, 0.22)
    canvas.shape(_box(x, y, 0.1, 0.08), (176, 128, 88), line=0)
    canvas.shape(_box(x, y, 0.078, 0.058), (214, 232, 222), line=0)
    canvas.shape([(x - 0.078, y + 0.058), (x - 0.02, y - 0.02), (x + 0.03, y + 0.058)],
                 (140, 170, 150), line=0)  # fmt: skip
    canvas.shape([(-0.1, 0.68), (1.1, 0.68), (1.1, 0.71), (-0.1, 0.71)], (250, 242, 232), line=0)
    canvas.shape([(-0.1, 0.71), (1.1, 0.71), (1.1, 1.1), (-0.1, 1.1)], (206, 160, 116), line=0)
    for row, low in enumerate((0.78, 0.86, 0.95)):
        canvas.shape([(-0.1, low), (1.1, low), (1.1, low + 0.006), (-0.1, low + 0.006)],
                     (178, 132, 92), line=0)  # fmt: skip
        for k in range(3):
            left = 0.18 * row + 0.37 * k + start
            canvas.shape(_box(left, low - 0.04, 0.003, 0.04), (178, 132, 92), line=0)
    canvas.shape(ellipse(0.5, 0.89, 0.46, 0.085), (196, 116, 110), line=0)
    canvas.shape(ellipse(0.5, 0.89, 0.4, 0.068), (222, 158, 140), line=0)
    return 188, 122, 110


def _window(canvas: Canvas, x: float, y: float) -> None:
    canvas.shape(_box(x, y, 0.13, 0.15), (250, 246, 238), line=0)
    canvas.shape(_box(x, y, 0.108, 0.128), (170, 214, 244), line=0)
    canvas.shape(ellipse(x, y + 0.12, 0.1, 0.05), (150, 200, 130), line=0)
    canvas.shape(_box(x, y, 0.009, 0.13), (250, 246, 238), line=0)
    canvas.shape(_box(x, y, 0.11, 0.009), (250, 246, 238), line=0)
    for side in (-1, 1):
        curtain = [(x + side * 0.15, y - 0.17), (x + side * 0.07, y - 0.17),
                   (x + side * 0.1, y), (x + side * 0.11, y + 0.17),
                   (x + side * 0.16, y + 0.17)]  # fmt: skip
        canvas.shape(curtain, (206, 132, 128), line=0)


def _box(x: float, y: float, half_width: float, half_height: float) -> list[tuple[float, float]]:
    """The corners of a rectangle around (x, y)."""
    left, right, top, low = x - half_width, x + half_width, y - half_height, y + half_height
    return [(left, top), (right, top), (right, low), (left, low)]


DRAW: dict[str, Callable[[Canvas, random.Random, Sky], RGB]] = {
    "meadow": _meadow,
    "beach": _beach,
    "snow": _snow,
    "night": _night,
    "city": _city,
    "forest": _forest,
    "desert": _desert,
    "room": _room,
}
