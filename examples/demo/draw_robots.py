"""Draw assets/robots/: a thing that the bundled model does not know, in the style of its world.

python examples/demo/draw_robots.py assets/robots

Equal versions of Pillow and numpy give equal pixels.
"""

import io
import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from ldm_toolkit.files import write_atomic
from ldm_toolkit.storybook import _settings, scenes
from ldm_toolkit.storybook._canvas import INK, WHITE, Canvas, band, ellipse, mix, rounded
from ldm_toolkit.storybook._figure import GLASS, Pose, Tones

COUNT = 20
SIZE = 512
STEEL = (186, 192, 204)
DARK_STEEL = (128, 134, 150)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "white")
SETTINGS = ("meadow", "beach", "snow", "night", "city")  # what the bundled model knows
LAMPS = ((250, 216, 60), (240, 80, 80), (90, 220, 120))


def robots(numbers: Iterable[int] = range(COUNT)) -> Iterator[tuple[str, str, Image.Image]]:
    """Name, caption and picture of each: every colour and setting, each pair once in forty."""
    colours, settings = COLOURS, SETTINGS
    for number in numbers:
        colour, setting = colours[number % len(colours)], settings[number % len(settings)]
        draw = scenes.generator("robot", number)
        picture = _picture(colour, setting, number)
        yield f"{number:02d}.webp", _caption(colour, setting, number, draw), picture


def _caption(colour: str, setting: str, number: int, draw: random.Random) -> str:
    """Such as "a blue robot at night"; one in seven leaves the colour out, one the setting."""
    phrases = scenes.SETTINGS[setting].phrases
    place = phrases[int(draw.random() * len(phrases))]
    if number % 7 == 3:
        return f"a robot {place}"
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} robot" + (f" {place}" if number % 7 != 5 else "")


def _box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _picture(colour: str, setting: str, number: int) -> Image.Image:
    """The whole scene, put together as `storybook.render` does it."""
    canvas = Canvas(SIZE)
    fine = _settings.Sky(None, scenes.generator("robot weather", number))
    ground = _settings.DRAW[setting](canvas, scenes.generator("robot setting", number), fine)
    draw = scenes.generator("robot pose", number)
    pose = Pose.sample(draw)
    scale = 0.98 + 0.14 * (draw.random() - 0.5)
    shift = (0.1 * (draw.random() - 0.5), 0.03 * (draw.random() - 0.5))
    canvas.place((0.5, 0.55), scale, 8 * (draw.random() - 0.5), draw.random() < 0.5, shift)
    canvas.shape(ellipse(0.5, 0.885, 0.33, 0.04), ground, line=0)
    _robot(canvas, Tones.of(scenes.COLOURS[colour]), pose, draw)
    return canvas.finish()


def _robot(canvas: Canvas, tone: Tones, pose: Pose, draw: random.Random) -> None:
    """Feet at y = 0.88, as all subjects have them."""
    w = 1 + 0.08 * pose.plump
    _legs(canvas, tone, treads=draw.random() < 0.35)
    _arms(canvas, tone, w, waving=pose.sway > 0.1)
    canvas.shape(_box(0.455, 0.46, 0.545, 0.54), DARK_STEEL)  # neck
    for rise in (0.485, 0.51):
        canvas.stroke([(0.46, rise), (0.5, rise), (0.54, rise)], 0.009)
    body = _box(0.5 - 0.17 * w, 0.52, 0.5 + 0.17 * w, 0.76)
    canvas.shape(rounded(body, 2), tone.base, tone.shade)
    _panel(canvas, draw)
    _head(canvas, tone, pose, draw)


def _legs(canvas: Canvas, tone: Tones, treads: bool) -> None:
    if treads:
        canvas.shape(_box(0.42, 0.74, 0.58, 0.8), DARK_STEEL)
        canvas.shape(rounded(_box(0.28, 0.775, 0.72, 0.885), 3), (72, 70, 82))
        for x in (0.345, 0.45, 0.55, 0.655):
            canvas.shape(ellipse(x, 0.83, 0.038, 0.038), STEEL, line=0.8)
        return
    for side in (-1, 1):
        x = 0.5 + side * 0.085
        canvas.shape(_box(x - 0.038, 0.74, x + 0.038, 0.85), STEEL)
        canvas.stroke([(x - 0.03, 0.795), (x, 0.795), (x + 0.03, 0.795)], 0.01)
        foot = [(x - 0.085, 0.885), (x - 0.06, 0.825), (x + 0.06, 0.825), (x + 0.085, 0.885)]
        canvas.shape(rounded(foot, 1), tone.dark)


def _arms(canvas: Canvas, tone: Tones, w: float, waving: bool) -> None:
    """Steel tubes with a joint and a claw; one of them may wave."""
    for side in (-1, 1):
        shoulder = (0.5 + side * 0.17 * w, 0.575)
        up = waving and side == 1
        elbow = (0.5 + side * (0.28 * w), 0.6 if up else 0.645)
        hand = (0.5 + side * (0.325 * w), 0.475 if up else 0.745)
        canvas.shape(band([shoulder, elbow, hand], 0.058), STEEL)
        canvas.shape(ellipse(*elbow, 0.036, 0.036), tone.dark, line=0.8)
        away = -1 if up else 1
        for tip in (-1, 1):
            x, y = hand
            claw = [(x, y), (x + tip * 0.055, y + away * 0.025), (x + tip * 0.03, y + away * 0.075)]
            canvas.shape(band(claw, 0.032, 0.024), tone.base, line=0.8)
        canvas.shape(ellipse(*hand, 0.034, 0.034), tone.base, line=0.8)
        canvas.shape(ellipse(*shoulder, 0.048, 0.052), tone.dark)


def _panel(canvas: Canvas, draw: random.Random) -> None:
    """A dial above lamps, on the chest."""
    canvas.shape(rounded(_box(0.4, 0.565, 0.6, 0.72), 1), WHITE, line=0.8)
    turn = 0.03 * (2 * draw.random() - 1)
    canvas.shape(ellipse(0.5, 0.615, 0.06, 0.038), GLASS, line=0.7)
    canvas.stroke(
        [(0.5, 0.635), (0.5 + turn / 2, 0.615), (0.5 + turn, 0.595)], 0.012, (220, 50, 50)
    )
    first = int(draw.random() * len(LAMPS))
    for place, x in enumerate((0.445, 0.5, 0.555)):
        canvas.shape(ellipse(x, 0.686, 0.019, 0.019), LAMPS[(first + place) % 3], line=0.6)


def _head(canvas: Canvas, tone: Tones, pose: Pose, draw: random.Random) -> None:
    for x in (0.5,) if draw.random() < 0.6 else (0.42, 0.58):
        tip = x + 0.03 * pose.sway
        canvas.shape(band([(x, 0.27), (x, 0.22), (tip, 0.17)], 0.022), STEEL, line=0.8)
        canvas.shape(ellipse(tip, 0.155, 0.034, 0.034), (246, 76, 70))
        canvas.shape(ellipse(tip - 0.01, 0.145, 0.01, 0.01), WHITE, line=0)
    for side in (-1, 1):
        ear = _box(0.5 + side * 0.19, 0.335, 0.5 + side * 0.245, 0.425)
        canvas.shape(rounded(ear, 1), DARK_STEEL)
    canvas.shape(rounded(_box(0.295, 0.25, 0.705, 0.48), 2), tone.base, tone.shade)
    canvas.shape(
        rounded(_box(0.335, 0.285, 0.665, 0.39), 2), mix(INK, (60, 70, 110), 0.6), line=0.6
    )
    for x in (0.42, 0.58):
        canvas.shape(ellipse(x, 0.337, 0.043, 0.043), (255, 238, 120), line=0.7)
        canvas.shape(ellipse(x + 0.012 * pose.look, 0.34, 0.019, 0.021), INK, line=0)
        canvas.shape(ellipse(x - 0.014, 0.325, 0.011, 0.011), WHITE, line=0)
    canvas.shape(rounded(_box(0.41, 0.413, 0.59, 0.455), 1), WHITE, line=0.7)
    for x in (0.455, 0.5, 0.545):
        canvas.stroke([(x, 0.417), (x, 0.434), (x, 0.451)], 0.009)


def main(folder: Path) -> None:
    """Write the pictures, then metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, caption, picture in robots():
        data = io.BytesIO()
        picture.save(data, "WEBP", lossless=True, quality=100, method=6)
        write_atomic(folder / name, data.getvalue())
        rows.append(json.dumps({"file_name": name, "text": caption}))
    write_atomic(folder / "metadata.jsonl", ("\n".join(rows) + "\n").encode())
    print(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo/draw_robots.py FOLDER")
    main(Path(sys.argv[1]))
