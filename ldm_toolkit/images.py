"""Pictures in and out: the one safe reader, the one writer, and the recipe inside the file.

Level 1: Pillow only, no torch. Everything in the package that opens a picture from outside goes
through `open_image`, or `decode_image` where it lies in a file of many; every picture that the
package makes is written by `save_image`.
"""

import dataclasses
import io
import json
import logging
import os
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from ldm_toolkit import metadata
from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.files import PICTURE_SUFFIXES, sha256_bytes, write_atomic
from ldm_toolkit.recipe import Recipe

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "RECIPE_KEY",
    "contact_sheet",
    "decode_image",
    "image_bytes",
    "is_lossy",
    "is_untouched",
    "open_image",
    "picture_bytes",
    "pixels_sha256",
    "read_recipe",
    "save_animation",
    "save_image",
    "to_rgb",
]

MAX_PIXELS = 64_000_000
"""The largest picture that is read, in pixels of its header."""

MAX_BYTES = 256 * 2**20
"""The largest picture file that is read."""

RECIPE_KEY = "ldm_toolkit"
"""Keyword of the PNG text chunk that holds the recipe as JSON."""

_FORMATS = ("PNG", "JPEG", "WEBP")

# The texts of a PNG that are read here.
_READ = (RECIPE_KEY.encode(), b"XML:com.adobe.xmp")

# The longest side that a format can hold.
_MAX_SIDES = {"png": 2**31 - 1, "webp": 16_383, "jpg": 65_500}

# What Pillow's readers raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
)

_log = logging.getLogger(__name__)


def save_image(
    image: Image.Image, path: str | Path, recipe: Recipe | None = None, *, overwrite: bool
) -> None:
    """Write ``image`` as PNG, WebP or JPEG, by the path's suffix; it says how it was made.

    The file appears whole or not at all. Raises UserError for another suffix, CannotWrite, also
    for an existing file unless ``overwrite``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise UserError(f"cannot write {path}: its name must end in {', '.join(PICTURE_SUFFIXES)}")
    data = image_bytes(image, recipe, format=PICTURE_SUFFIXES[suffix])
    write_atomic(path, data, overwrite=overwrite)


def image_bytes(image: Image.Image, recipe: Recipe | None = None, *, format: str = "png") -> bytes:
    """The file of an RGB picture: pixels, recipe, origin; no time, host, user or path.

    ``format`` is png, webp (both lossless) or jpg (quality 95, full colour resolution). Without a
    recipe the file says nothing but that a model made it. Equal pictures with equal recipes give
    equal bytes. ``pixels_sha256`` in the recipe is of the pixels before encoding. Raises UserError
    for another format or a side too long for it.
    """
    if format not in _MAX_SIDES:
        raise UserError(f"format must be one of {', '.join(_MAX_SIDES)}, not {format!r:.80}")
    if max(image.size) > _MAX_SIDES[format]:
        raise UserError(f"{format} holds {_MAX_SIDES[format]} pixels a side at most; use png")
    image = image.convert("RGB")
    # Pillow would copy an ICC profile, a comment or a transparent colour out of `info`.
    image.info = {}
    text = parameters = None
    if recipe is not None:
        recipe = dataclasses.replace(
            recipe,
            pixels_sha256=recipe.pixels_sha256 or pixels_sha256(image),
            encoded_sha256=(
                metadata.jpeg_sha256(_jpeg(image, None, None)) if format == "jpg" else None
            ),
        )
        text = _ascii_json(recipe.to_json())
        parameters = _plain_text(recipe.parameters_text())
    return {"png": _png, "webp": _webp, "jpg": _jpeg}[format](image, text, parameters)


def _png(image: Image.Image, recipe: str | None, parameters: str | None) -> bytes:
    """Text chunks before the pixels, so that a reader finds them without decoding."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp_packet())
    if recipe is not None:
        chunks.add_itxt(RECIPE_KEY, recipe)
    if parameters is not None:
        # The web UIs write tEXt, which is Latin-1; anything beyond ASCII needs iTXt to be exact.
        (chunks.add_text if parameters.isascii() else chunks.add_itxt)("parameters", parameters)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, compress_level=6)
    return buffer.getvalue()


def _webp(image: Image.Image, recipe: str | None, parameters: str | None) -> bytes:
    """Lossless; the recipe in XMP, the web UIs' text in EXIF."""
    exif = metadata.comment_exif(parameters) if parameters is not None else b""
    buffer = io.BytesIO()
    packet = metadata.xmp_packet(recipe).encode()
    image.save(buffer, "WEBP", lossless=True, quality=80, method=4, xmp=packet, exif=exif)
    return buffer.getvalue()


def _jpeg(image: Image.Image, recipe: str | None, parameters: str | None) -> bytes:
    """The recipe in XMP, extended XMP when it is long; the web UIs' text in EXIF where it fits."""
    exif = metadata.comment_exif(parameters) if parameters is not None else b""
    if len(exif) > metadata.JPEG_SEGMENT:
        _log.warning("the web UIs' text is too long for a JPEG and left out; the recipe is whole")
        exif = b""
    packet, segments = metadata.jpeg_xmp(recipe)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling="4:4:4", xmp=packet, exif=exif)
    return metadata.insert_segments(buffer.getvalue(), segments)


def save_animation(
    frames: Iterable[Image.Image],
    path: str | Path,
    *,
    seconds: float = 0.1,
    overwrite: bool = False,
) -> None:
    """Write frames one after the other, ``seconds`` each, as .gif, .webp or .mp4, without end.

    .mp4 needs the package imageio with its ffmpeg. Raises UserError for another suffix, no frames
    or a missing writer, CannotWrite.
    """
    pictures = [frame.convert("RGB") for frame in frames]
    suffix = Path(path).suffix.lower()
    if not pictures or not seconds > 0:
        raise UserError("an animation needs a frame and a duration above 0")
    buffer = io.BytesIO()
    if suffix in (".gif", ".webp"):
        options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
        pictures[0].save(
            buffer, suffix[1:], save_all=True, append_images=pictures[1:],
            duration=round(1000 * seconds), loop=0, **options,
        )  # fmt: skip
    elif suffix == ".mp4":
        _write_mp4(buffer, pictures, seconds)
    else:
        raise UserError(f"cannot write {path}: its name must end in .gif, .webp or .mp4")
    write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def _write_mp4(buffer: io.BytesIO, pictures: Sequence[Image.Image], seconds: float) -> None:
    try:
        import imageio.v3
        import numpy as np

        levels = [np.asarray(picture) for picture in pictures]
        imageio.v3.imwrite(buffer, levels, extension=".mp4", fps=1 / seconds)
    except ImportError as error:
        raise UserError(
            "an .mp4 needs a writer that is not installed: pip install 'imageio[ffmpeg]'; "
            ".gif and .webp need nothing more"
        ) from error


def read_recipe(path: str | Path) -> Recipe:
    """The recipe inside a picture of ours: data from outside, checked by `Recipe.from_json`.

    Raises InputError for a picture without one, UserError for a recipe that is not ours.
    """
    with _opened(picture_bytes(path), path) as image:
        text = _recipe_text(image)
    if text is None:
        raise InputError(
            f"{path} holds no recipe; only pictures that ldm-gen or save_image wrote do, and many "
            "programs remove it when they save the picture again"
        )
    return Recipe.from_json(text)


def _recipe_text(image: Image.Image) -> str | None:
    """The recipe's JSON where the picture's format keeps it."""
    if image.format == "PNG":
        if RECIPE_KEY not in image.info:
            # Other programs put text behind the pixels; Pillow comes to it, and to its limits on
            # text, when it has decoded those.
            image.load()
        text = image.info.get(RECIPE_KEY)
        return text if isinstance(text, str) else None
    packet = image.info.get("xmp")
    if not isinstance(packet, bytes):
        return None
    segments = [data for name, data in getattr(image, "applist", []) if name == "APP1"]
    return metadata.recipe_in_xmp(packet, segments)


def is_lossy(path: str | Path) -> bool:
    """Whether the file is a JPEG, whose pixels are not those that were encoded."""
    with _opened(picture_bytes(path), path) as image:
        return image.format in ("JPEG", "MPO")


def is_untouched(path: str | Path, recipe: Recipe) -> bool:
    """Whether the pixels in a picture's file are those that the recipe in it was written with.

    A JPEG without a hash of its own cannot say, and counts as touched. Raises InputError.
    """
    data = picture_bytes(path)
    image = decode_image(data, path)
    if recipe.encoded_sha256 is not None:
        return metadata.jpeg_sha256(data) == recipe.encoded_sha256
    return pixels_sha256(image) == recipe.pixels_sha256


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256 of the RGB bytes, row by row: the same before saving and after loading."""
    return sha256_bytes(image.convert("RGB").tobytes())


def open_image(path: str | Path) -> Image.Image:
    """Read a picture of unknown origin: PNG, JPEG or WebP, one frame, at most 64 megapixels.

    Returns RGB, upright by its EXIF orientation, alpha laid over white, without metadata. The
    size is checked in the header, before a pixel is decoded. Raises InputError.
    """
    return decode_image(picture_bytes(path), path)


def decode_image(data: bytes, name: str | Path) -> Image.Image:
    """A picture whose file is in memory, under the rules of `open_image`.

    ``name`` is what errors call it. Raises InputError.
    """
    if len(data) > MAX_BYTES:
        raise InputError(_too_many_bytes(name))
    with _opened(data, name) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: alpha laid over white, 16 bits brought to 8, no metadata."""
    # convert() would clip 16-bit modes to white.
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    result = image.convert("RGB")
    result.info = {}
    return result


def contact_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], *, columns: int = 5, cell: int = 192
) -> Image.Image:
    """Small copies of ``pictures`` in a grid, each with its label below: one RGB picture.

    A label may have several lines.
    Raises InputError when there is nothing to show or a label is missing.
    """
    if not pictures or len(pictures) != len(labels):
        raise InputError("a contact sheet needs at least one picture and one label for each")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = max(label.count("\n") for label in labels)
    gap, line = 8, 16 + 15 * lines
    size = (columns * (cell + gap) + gap, rows * (cell + line + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = gap + (index % columns) * (cell + gap)
        top = gap + (index // columns) * (cell + line + gap)
        sheet.paste(ImageOps.contain(picture.convert("RGB"), (cell, cell)), (left, top))
        draw.text((left, top + cell + 2), label, fill="black", spacing=4)
    return sheet


@contextmanager
def _opened(data: bytes, path: str | Path) -> Iterator[Image.Image]:
    """The header of a picture file, checked; decoding errors in the block become InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF is common and harmless
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            data = metadata.without_notes(data, _READ)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_header(image, path)
                yield image
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture that can be read here; use a PNG, JPEG or WebP file"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_too_many_pixels(path)) from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; use a smaller picture") from error
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: {error}") from error


def picture_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file of acceptable size; a pipe or device would block or never end.

    Raises InputError.
    """
    path = Path(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file; name a PNG, JPEG or WebP file")
        if status.st_size > MAX_BYTES:
            raise InputError(_too_many_bytes(path))
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error


def _check_header(image: Image.Image, path: str | Path) -> None:
    """Refuse what would cost too much to decode or has more than one meaning."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(_too_many_pixels(path))
    # Phones store a depth or brightness map as second picture of a JPEG ("MPO"); the first counts.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{path} is animated; save one frame of it as PNG")


def _too_many_bytes(path: str | Path) -> str:
    return f"{path} is larger than {MAX_BYTES >> 20} MB; use a smaller file"


def _too_many_pixels(path: str | Path) -> str:
    return f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels; shrink it first"


def _ascii_json(text: str) -> str:
    """The same JSON with escapes only, so that any string, also half a surrogate, survives."""
    if text.isascii() and "\0" not in text:
        return text
    return json.dumps(json.loads(text), ensure_ascii=True, sort_keys=False)


def _plain_text(text: str) -> str:
    """What a text chunk can hold: no NUL, which would end it, and no half surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
