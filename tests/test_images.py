"""The one reader, the one writer, the recipe inside."""

import io
import os
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from samples import HOSTILE_TEXTS, recipe

from ldm_toolkit.errors import CannotWrite, InputError, UserError
from ldm_toolkit.images import (
    MAX_PIXELS,
    contact_sheet,
    decode_image,
    image_bytes,
    open_image,
    pixels_sha256,
    read_recipe,
    save_animation,
    save_image,
)


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """A picture in which every pixel differs."""
    places = [(x, y) for y in range(height) for x in range(width)]
    data = bytes(v % 256 for x, y in places for v in (x * 10, y * 15, x + y))
    return Image.frombytes("RGB", (width, height), data)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, *chunks: bytes, pixels: bytes = b"\0" * 64) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def a1111_fields(text: str) -> dict[str, str]:
    """The web UIs' own way to read the last line of ``parameters``."""
    import json
    import re

    *_, last = text.strip().split("\n")
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


# --- writing ---


def test_saved_picture_and_recipe_come_back(tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    save_image(picture(), path, recipe(), overwrite=False)
    assert open_image(path).tobytes() == picture().tobytes()
    back = read_recipe(path)
    assert back.pixels_sha256 == pixels_sha256(picture()) == pixels_sha256(open_image(path))
    assert back.prompt == "a dog wearing hat"


def test_equal_input_gives_equal_bytes_whatever_the_picture_carries() -> None:
    plain = picture()
    loaded = picture()
    loaded.info = {"icc_profile": b"x" * 100, "comment": "home/someone", "transparency": (0, 0, 0)}
    assert image_bytes(plain, recipe()) == image_bytes(loaded, recipe())
    assert loaded.info, "the caller's picture stays as it was"


def test_chunks_for_others(tmp_path: Path) -> None:
    save_image(picture(), tmp_path / "a.png", recipe(), overwrite=False)
    with Image.open(tmp_path / "a.png") as image:
        info = image.info
    assert {"ldm_toolkit", "parameters"} <= set(info)
    assert "trainedAlgorithmicMedia" in str(info["XML:com.adobe.xmp"])
    fields = a1111_fields(info["parameters"])
    assert fields["Steps"] == "50"
    assert fields["Seed"] == "42"
    data = (tmp_path / "a.png").read_bytes()
    assert str(tmp_path).encode() not in data
    assert str(Path.home()).encode() not in data


@pytest.mark.parametrize("prompt", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
def test_hostile_prompts_stay_data(prompt: str, tmp_path: Path) -> None:
    made = recipe(prompt=prompt, negative_prompt=prompt)
    save_image(picture(), tmp_path / "a.png", made, overwrite=False)
    back = read_recipe(tmp_path / "a.png")
    assert (back.prompt, back.negative_prompt) == (prompt, prompt)
    with Image.open(tmp_path / "a.png") as image:
        fields = a1111_fields(image.info["parameters"])
    assert (fields["Steps"], fields["Seed"], fields["Size"]) == ("50", "42", "64x64")


def test_nul_in_a_prompt_survives_in_the_json(tmp_path: Path) -> None:
    save_image(picture(), tmp_path / "a.png", recipe(prompt="a\0b"), overwrite=False)
    assert read_recipe(tmp_path / "a.png").prompt == "a\0b"


def test_existing_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(CannotWrite, match="exists already"):
        save_image(picture(), path, recipe(), overwrite=False)
    assert path.read_bytes() == b"mine"
    save_image(picture(), path, recipe(), overwrite=True)
    assert read_recipe(path).seed == 42
    assert [name.name for name in tmp_path.iterdir()] == ["a.png"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "precious")
    save_image(picture(), tmp_path / "a.png", None, overwrite=True)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="No such file"):
        save_image(picture(), tmp_path / "no" / "a.png", None, overwrite=False)


def texts_last(png: bytes, *more: bytes) -> bytes:
    """A PNG whose text chunks, and ``more`` of them, lie behind the pixels."""
    chunks, place = [], 8
    while place < len(png):
        end = place + 12 + struct.unpack_from(">I", png, place)[0]
        chunks.append(png[place:end])
        place = end
    texts = [one for one in chunks if one[4:8] in (b"tEXt", b"zTXt", b"iTXt")]
    *others, end_mark = [one for one in chunks if one not in texts]
    return png[:8] + b"".join([*others, *texts, *more, end_mark])


def test_a_recipe_behind_the_pixels(tmp_path: Path) -> None:
    made = recipe(prompt="a d\u00f6g")
    data = texts_last(image_bytes(picture(), made))
    assert data.index(b"IDAT") < data.index(b"ldm_toolkit\0")
    (tmp_path / "a.png").write_bytes(data)
    assert read_recipe(tmp_path / "a.png").prompt == "a d\u00f6g"
    (tmp_path / "a.png").write_bytes(texts_last(image_bytes(picture())))
    with pytest.raises(InputError, match="holds no recipe"):
        read_recipe(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(data[: data.index(b"IDAT") + 20])
    with pytest.raises(InputError, match="damaged"):
        read_recipe(tmp_path / "a.png")


# --- recipes of strangers ---


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 2}', "[" * 100_000, '{"seed": NaN}'],
)
def test_forged_recipes_are_refused(text: str, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ldm_toolkit", text)
    picture().save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(UserError):
        read_recipe(tmp_path / "a.png")


def test_pictures_without_recipe(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        with pytest.raises(InputError, match="holds no recipe"):
            read_recipe(tmp_path / name)


# --- reading ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_by_content_not_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(encoded(picture(), kind))
    image = open_image(tmp_path / "a.bin")
    assert (image.mode, image.size, image.info) == ("RGB", (24, 16), {})


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG", exif=exif))
    image = open_image(tmp_path / "a.jpg")
    assert image.size == (16, 24)
    assert not image.getexif()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    source = Image.new(mode, (8, 8), {"I;16": 65535, "CMYK": (0, 0, 0, 0)}.get(mode, "white"))
    (tmp_path / "a").write_bytes(encoded(source, "JPEG" if mode == "CMYK" else "PNG"))
    image = open_image(tmp_path / "a")
    assert image.mode == "RGB"
    assert min(low for low, _ in image.getextrema()) >= 254


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.new("I;16", (8, 8), 32896).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("colour", [(255, 0, 0, 0), (0, 0, 0, 0)])
def test_transparency_lies_over_white(colour: tuple[int, ...], tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), colour).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGBA", (8, 8), colour).quantize().save(tmp_path / "p.png")
    assert open_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


def animation(kind: str, frames: int) -> bytes:
    rest = [Image.new("RGB", (8, 8), (n % 256, n // 256, 0)) for n in range(1, frames)]
    return encoded(Image.new("RGB", (8, 8), "red"), kind, save_all=True, append_images=rest)


def webp_bomb() -> bytes:
    """16383 x 16383 in the header and nothing behind it."""
    size = (16382).to_bytes(3, "little") * 2
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + size
    return b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


BOMB = zlib.compress(b"\0" * 50_000_000)
PACKED = zlib.compress(b"a" * 1_000_000)

BOMBS = {
    "60k x 60k png": raw_png(60_000, 60_000),
    "just too many pixels": raw_png(8_001, 8_000),
    "huge png": raw_png(2**31 - 1, 2**31 - 1),
    "wide png": raw_png(2**31 - 1, 1),
    "text bomb": raw_png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB)),
    "many texts": raw_png(8, 8, *[chunk(b"zTXt", b"ldm_toolkit\0\0" + PACKED)] * 80),
    "international text bomb": raw_png(8, 8, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)),
    "colour profile bomb": raw_png(8, 8, chunk(b"iCCP", b"a\0\0" + BOMB)),
    "animated png": animation("PNG", 300),
    "animated webp": animation("WEBP", 300),
    "webp canvas": webp_bomb(),
    "zero width": raw_png(0, 8),
    "pixels missing": raw_png(64, 64, pixels=b""),
}

DISGUISES = {
    "empty": b"",
    "text": b"hello",
    "html": b"<html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "psd": b"8BPS\0\1" + b"\0" * 64,
    "gif": encoded(picture(), "GIF"),
    "tiff": encoded(picture(), "TIFF"),
    "bmp": encoded(picture(), "BMP"),
    "ico": encoded(picture(), "ICO", bitmap_format="bmp"),
    "ppm": encoded(picture(), "PPM"),
    "tga": encoded(picture(), "TGA"),
    "pcx": encoded(picture(), "PCX"),
    "icns head": b"icns" + b"\0" * 64,
    "dds head": b"DDS " + b"\0" * 128,
    "jpeg2000 head": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 64,
    "zip": b"PK\3\4" + b"\0" * 64,
    "pickle": b"\x80\4\x95\0\0\0\0\0\0\0\0.",
    "png magic only": b"\x89PNG\r\n\x1a\n",
    "half a png": encoded(picture(200, 200), "PNG")[:200],
    "half a jpeg": encoded(picture(200, 200), "JPEG")[:700],
    "half a webp": encoded(picture(200, 200), "WEBP")[:60],
    "broken crc": raw_png(8, 8).replace(b"IHDR", b"IHDQ"),
}


@pytest.mark.parametrize("name", [*BOMBS, *DISGUISES])
def test_bombs_and_disguises_are_refused_fast(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes((BOMBS | DISGUISES)[name])
    before = Image.MAX_IMAGE_PIXELS
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            open_image(path)
    assert time.process_time() - started < 20
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == Image.MAX_IMAGE_PIXELS


TEXT_BOMBS = {
    "one": [chunk(b"zTXt", b"ldm_toolkit\0\0" + BOMB)],
    "many": [chunk(b"zTXt", b"ldm_toolkit\0\0" + PACKED)] * 80,
    "international": [chunk(b"iTXt", b"ldm_toolkit\0\1\0\0\0" + BOMB)],
}


@pytest.mark.parametrize("name", TEXT_BOMBS)
def test_text_bombs_behind_the_pixels_are_refused_fast(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(texts_last(raw_png(8, 8, pixels=b"\0" * 200), *TEXT_BOMBS[name]))
    for read in (read_recipe, open_image):
        started = time.process_time()
        with pytest.raises(InputError, match="damaged"):
            read(path)
        assert time.process_time() - started < 20


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    import resource

    assert len(BOMBS) >= 10
    assert len(DISGUISES) >= 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in BOMBS.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        with pytest.raises(InputError):
            open_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def exif(*entries: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    """An EXIF block with the entries (tag, type, count, value or offset) as they are given."""
    body = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    number = len(entries) if count is None else count
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", number) + body + b"\0\0\0\x08"


EXIFS = {
    "nothing": b"Exif\0\0",
    "no header": b"Exif\0\0garbage",
    "half a header": b"Exif\0\0MM\0*\0",
    "65535 entries in nothing": exif(count=65_535),
    "65535 entries of one tag": exif(*[(0x0112, 3, 1, b"\0\6")] * 5_000, count=65_535),
    "a value of 8 GB": exif((0x0112, 12, 2**30, b"\0\0\0\x08")),
    "a value behind the end": exif((0x0112, 2, 100, b"\xff\xff\xff\xff")),
    "unknown type": exif((0x0112, 99, 1, b"\0\6")),
    "orientation 99": exif((0x0112, 3, 1, b"\0\x63")),
    "orientation is text": exif((0x0112, 2, 4, b"six")),
    "orientation is two numbers": exif((0x0112, 3, 2, b"\0\6\0\6")),
    "orientation by zero": exif((0x0112, 5, 1, b"\0\0\0\x08")),
    "directories in a circle": exif((0x8769, 4, 1, b"\0\0\0\x08"), (0x8825, 4, 1, b"\0\0\0\x08")),
    "a directory behind the end": exif((0x8769, 4, 1, b"\x7f\xff\xff\xff")),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", EXIFS)
def test_hostile_exif_is_read_over_or_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    data = EXIFS[name]
    if kind == "PNG":
        path.write_bytes(raw_png(8, 8, chunk(b"eXIf", data[6:]), pixels=b"\0" * 200))
    else:
        path.write_bytes(encoded(picture(), kind, exif=data))
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = open_image(path)
        except InputError:
            image = picture()
    assert (image.mode, image.info) == ("RGB", {})
    assert time.process_time() - started < 20


def test_the_largest_allowed_header_passes() -> None:
    assert MAX_PIXELS == 8_000 * 8_000


def test_no_file_or_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.png", tmp_path, tmp_path / "pipe", Path("/dev/zero"), "a\0b"):
        with pytest.raises(InputError):
            open_image(path)


def test_a_picture_inside_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "PNG")
    assert decode_image(data, "x.tar:a.png").tobytes() == picture().tobytes()
    for damaged, told in ((data[:60], "is damaged"), (b"GIF89a", "is not a picture")):
        with pytest.raises(InputError, match=f"^x.tar:a.png {told}"):
            decode_image(damaged, "x.tar:a.png")
    monkeypatch.setattr("ldm_toolkit.images.MAX_BYTES", 50)
    with pytest.raises(InputError, match=r"^x\.tar:a\.png is larger than"):
        decode_image(data, "x.tar:a.png")


def test_contact_sheet() -> None:
    sheet = contact_sheet([picture()] * 7, [f"step {n}" for n in range(7)], columns=3, cell=32)
    assert sheet.size == (3 * 40 + 8, 3 * 56 + 8)
    with pytest.raises(InputError):
        contact_sheet([], [])


class TestAnimation:
    @pytest.mark.parametrize("suffix", [".gif", ".webp"])
    def test_frames_come_back(self, suffix: str, tmp_path: Path) -> None:
        colours = ["red", "green", "blue"]
        frames = (Image.new("RGB", (16, 8), colour) for colour in colours)
        save_animation(frames, tmp_path / f"film{suffix}", seconds=0.2)
        with Image.open(tmp_path / f"film{suffix}") as film:
            assert film.n_frames == 3
            for number, colour in enumerate(colours):
                film.seek(number)
                film.load()
                assert film.info["duration"] == 200
                expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
                assert film.convert("RGB").getpixel((5, 5)) == expected

    def test_what_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frame = Image.new("RGB", (8, 8))
        monkeypatch.setitem(sys.modules, "imageio", None)
        for name, frames, told in (
            ("film.avi", [frame], "must end in .gif, .webp or .mp4"),
            ("film.mp4", [frame], "imageio"),
            ("film.gif", [], "needs a frame"),
        ):
            with pytest.raises(UserError, match=told):
                save_animation(frames, tmp_path / name)
        (tmp_path / "film.gif").write_bytes(b"mine")
        with pytest.raises(CannotWrite):
            save_animation([frame], tmp_path / "film.gif")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt packed", "iCCP", "many", "bomb"])
def test_notes_of_other_programs_are_no_damage(kind: str, place: str, tmp_path: Path) -> None:
    """A workflow of ComfyUI takes megabytes; Pillow's own limits are 1 MB and 64 MB unpacked."""
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    save_image(image, tmp_path / "a.png", recipe(), overwrite=False)
    data = (tmp_path / "a.png").read_bytes()
    text = b"{workflow}" * 200_000
    content = {
        "tEXt": b"workflow\0" + text,
        "zTXt": b"workflow\0\0" + zlib.compress(text),
        "iTXt": b"workflow\0\0\0\0\0" + text,
        "iTXt packed": b"workflow\0\1\0\0\0" + zlib.compress(text),
        "iCCP": b"profile\0\0" + zlib.compress(text),
        "many": b"workflow\0" + text,
        "bomb": b"workflow\0\0" + BOMB,
    }[kind]
    name = {"many": "tEXt", "bomb": "zTXt"}.get(kind, kind[:4])
    notes = chunk(name.encode(), content) * (40 if kind == "many" else 1)
    at = 33 if place == "before" else len(data) - 12
    (tmp_path / "b.png").write_bytes(data[:at] + notes + data[at:])
    assert open_image(tmp_path / "b.png").tobytes() == image.tobytes()
    assert read_recipe(tmp_path / "b.png") == read_recipe(tmp_path / "a.png")
