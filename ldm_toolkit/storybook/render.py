"""Pictures of scenes: the same scene gives the same picture, at any size."""

import hashlib
import random
from functools import cache

from PIL import Image

from ldm_toolkit.storybook import _accessories, _animals, _settings, _things, scenes
from ldm_toolkit.storybook._canvas import RGB, Canvas, ellipse, mix
from ldm_toolkit.storybook._figure import Pose, Tones

SHADE_RANGE = 0.08  # how far the seed may lighten or darken a colour
SMALL = 0.55  # of the size of a big subject
SIDES = {"left": -0.24, "middle": 0.0, "right": 0.24}

_DRAW = _animals.DRAW | _things.DRAW
_AFLOAT = ("boat", "rocket")
_HEADROOM = {"hat": 0.05, "crown": 0.05, "umbrella": 0.14}


def render(scene: scenes.Scene, size: int = 512) -> Image.Image:
    """Draw the scene as an RGB picture of size x size pixels.

    Everything that the scene leaves open (place, size, pose, shade, background) comes from its
    seed. Coordinates are shares of the picture, so every size shows the same picture.
    """
    if size < 8:
        raise ValueError(f"size is {size}: a picture needs at least 8 pixels")
    canvas = Canvas(size)
    sky, ground = background(canvas, scene)
    draw = scenes.generator("pose", scene.seed)
    pose = Pose.sample(draw)
    _place(canvas, scene, draw)
    if scene.subject not in _AFLOAT:
        canvas.shape(ellipse(0.5, 0.885, 0.33, 0.04), ground, line=0)
    canvas.light = None
    base = scenes.COLOURS[scene.colour]
    change = SHADE_RANGE * (2 * draw.random() - 1)
    if scene.colour != "white":
        base = mix(base, (255, 255, 255) if change > 0 else (0, 0, 0), abs(change))
    anchors = _DRAW[scene.subject](canvas, Tones.of(base), pose)
    if scene.accessory is not None:
        colour = scenes.ACCESSORY_RGB[scene.accessory_colour or "red"]
        _accessories.DRAW[scene.accessory](canvas, anchors, colour)
    canvas.place((0.5, 0.5), 1.0, 0.0, False, (0.0, 0.0))
    sky.in_front(canvas)
    return canvas.finish()


def background(canvas: Canvas, scene: scenes.Scene) -> tuple[_settings.Sky, RGB]:
    """Draw the scene's setting in its weather; its sky, and its ground's colour in the shade."""
    sky = _settings.Sky(scene.weather, scenes.generator("weather", scene.seed))
    ground = _settings.DRAW[scene.setting](canvas, scenes.generator("setting", scene.seed), sky)
    return sky, ground


@cache
def drawing_sha256() -> str:
    """Of small renders of every subject with all that it wears, in every setting: how we draw."""
    digest = hashlib.sha256()
    number, colours, settings = 0, tuple(scenes.COLOURS), tuple(scenes.SETTINGS)
    for subject, row in scenes.SUBJECTS.items():
        for worn in (None, *row.accessories):
            colour, setting = colours[number % len(colours)], settings[number % len(settings)]
            scene = scenes.make_scene(scenes.Composition(subject, colour, worn, setting), number)
            digest.update(render(scene, 32).tobytes())
            number += 1
    return digest.hexdigest()


def _place(canvas: Canvas, scene: scenes.Scene, draw: random.Random) -> None:
    """Where the figure stands, how large it is and which way it looks: into the picture.

    A figure in the middle looks to the right. That the prompt and the place settle it matters to
    guidance: where both ways are as likely, its strong steps draw one head at each end.
    """
    room = _HEADROOM.get(scene.accessory or "", 0.0)
    scale = (1.0 - room) + 0.08 * (draw.random() - 0.5)
    x, y = 0.08 * (draw.random() - 0.5), room / 2 + 0.03 * (draw.random() - 0.5)
    degrees, flip = 7 * (draw.random() - 0.5), scene.place == "right"
    if scene.size == "small":
        scale *= SMALL
        x += SIDES[scene.place]
        y += (1 - SMALL) * 0.3
    canvas.place((0.5, 0.55), scale, degrees, flip, (x, y))
