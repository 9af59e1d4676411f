"""Pictures of scenes: the same scene gives the same picture, at any size."""

from PIL import Image

from ldm_toolkit.storybook import _accessories, _settings, _subjects, scenes
from ldm_toolkit.storybook._canvas import Canvas, ellipse, mix

SHADE_RANGE = 0.08  # how far the seed may lighten or darken a colour


def render(scene: scenes.Scene, size: int = 512) -> Image.Image:
    """Draw the scene as an RGB picture of size x size pixels.

    Everything that the scene leaves open (place, size, pose, shade, background) comes from its
    seed. Coordinates are shares of the picture, so every size shows the same picture.
    """
    if size < 8:
        raise ValueError(f"size is {size}: a picture needs at least 8 pixels")
    canvas = Canvas(size)
    ground = _settings.DRAW[scene.setting](canvas, scenes.generator("setting", scene.seed))
    draw = scenes.generator("pose", scene.seed)
    pose = _subjects.Pose.sample(draw)
    tall = scene.accessory in ("hat", "crown")
    scale = (0.95 if tall else 1.0) + 0.08 * (draw.random() - 0.5)
    shift = (0.08 * (draw.random() - 0.5), (0.025 if tall else 0.0) + 0.03 * (draw.random() - 0.5))
    canvas.place((0.5, 0.55), scale, 7 * (draw.random() - 0.5), draw.random() < 0.5, shift)
    if scene.subject != "boat":
        canvas.shape(ellipse(0.5, 0.885, 0.33, 0.04), ground, line=0)
    base = scenes.COLOURS[scene.colour]
    change = SHADE_RANGE * (2 * draw.random() - 1)
    if scene.colour != "white":
        base = mix(base, (255, 255, 255) if change > 0 else (0, 0, 0), abs(change))
    anchors = _subjects.DRAW[scene.subject](canvas, _subjects.Tones.of(base), pose)
    if scene.accessory is not None:
        colour = scenes.ACCESSORY_RGB[scene.accessory_colour or "red"]
        _accessories.DRAW[scene.accessory](canvas, anchors, colour)
    return canvas.finish()
