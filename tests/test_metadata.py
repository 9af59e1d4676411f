"""What the files say about themselves, read by other means than ours."""

import contextlib
import io
import json
import logging
import random
import re
import time
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image, JpegImagePlugin
from samples import HOSTILE_PROMPTS, recipe

from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.images import (
    image_bytes,
    is_lossy,
    open_image,
    pixels_sha256,
    read_recipe,
    save_image,
)
from ldm_toolkit.metadata import jpeg_xmp, recipe_in_xmp, xmp_packet

FORMATS = ["png", "webp", "jpg"]
LOSSLESS = ["png", "webp"]
ORIGIN = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def noise(width: int = 24, height: int = 16) -> Image.Image:
    data = random.Random(1).randbytes(width * height * 3)
    return Image.frombytes("RGB", (width, height), data)


def gradient(side: int = 64) -> Image.Image:
    """A smooth picture with a sharp coloured edge, which half colour resolution would smear."""
    places = [(x, y) for y in range(side) for x in range(side)]
    data = bytes(v for x, y in places for v in (x * 3, y * 3, 200 if x % 16 < 8 else 40))
    return Image.frombytes("RGB", (side, side), data)


def parameters_in(data: bytes) -> str:
    """The web UIs' text where they look for it."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            return image.info["parameters"]
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return comment[8:].decode("utf-16-be")


def read_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and fields by the grammar of the web UIs' infotext.

    Lines; the last one holds the fields if it has three or more; a line that begins with
    ``Negative prompt:`` begins the negative prompt. A field is ``key: value`` up to a comma, the
    value quoted as JSON where it holds a separator; a key begins with a word character and goes on
    with those, blanks, ``-`` and ``/``.
    """
    *lines, last = text.strip().split("\n")
    fields = _fields(last)
    if len(fields) < 3:
        lines, fields = [*lines, last], []
    parts: dict[bool, list[str]] = {False: [], True: []}
    negative = False
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            negative, line = True, line.removeprefix("Negative prompt:").strip()
        parts[negative].append(line)
    names = [key for key, _ in fields]
    assert len(set(names)) == len(names), "a field stands there twice"
    return "\n".join(parts[False]), "\n".join(parts[True]), dict(fields)


def _fields(line: str) -> list[tuple[str, str]]:
    found, place = [], 0
    while place < len(line):
        colon = line.find(":", place)
        if colon < 0:
            break
        key = line[place:colon].strip()
        place = colon + 1
        while line[place : place + 1].isspace():
            place += 1
        if line[place : place + 1] == '"':
            value, end = json.JSONDecoder().raw_decode(line, place)
        else:
            end = line.find(",", place) if "," in line[place:] else len(line)
            value = line[place:end]
        if re.fullmatch(r"\w[\w \-/]+", key):
            found.append((key, value))
        place = end + 1
    return found


def bare(text: str) -> str:
    """What is left of a prompt when the ways to fold and to disarm it do not count."""
    return re.sub(r"\s", "", text).replace("\0", "\ufffd")


# --- 50 hostile prompts, three formats ---


def test_the_table_is_as_long_as_promised() -> None:
    assert len(set(HOSTILE_PROMPTS)) == 50


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", HOSTILE_PROMPTS, ids=range(len(HOSTILE_PROMPTS)))
def test_hostile_prompts_stay_prompts(prompt: str, format: str, tmp_path: Path) -> None:
    made = recipe(prompt=prompt, negative_prompt=prompt[::-1], pixels_sha256="a" * 64)
    path = tmp_path / f"a.{format}"
    save_image(noise(), path, made, overwrite=False)
    assert read_recipe(path) == made
    data = path.read_bytes()
    positive, negative, fields = read_infotext(parameters_in(data))
    assert bare(positive) == bare(prompt)
    assert bare(negative) == bare(prompt[::-1])
    assert (fields["Steps"], fields["Seed"], fields["Size"]) == ("50", "42", "64x64")
    assert (fields["Sampler"], fields["CFG scale"]) == ("DDIM", "7.5")
    assert set(fields) == {
        "Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model", "Version",
    }  # fmt: skip
    text = parameters_in(data)
    assert len(text.splitlines()) <= 3
    for name in ("Steps:", "Negative prompt:"):
        assert text.count(name) <= 1, "viewers search for it anywhere"
    for private in (Path.home(), tmp_path, Path.cwd()):
        for encoding in ("utf-8", "utf-16-be"):
            assert str(private).encode(encoding) not in data


@pytest.mark.parametrize("format", FORMATS)
def test_half_surrogates_of_a_file_name_survive(format: str, tmp_path: Path) -> None:
    made = recipe(model={"name": "caf\udce9", "revision": "", "sha256": ""})
    save_image(noise(), tmp_path / f"a.{format}", made, overwrite=False)
    assert read_recipe(tmp_path / f"a.{format}").model == made.model
    assert read_infotext(parameters_in((tmp_path / f"a.{format}").read_bytes()))[2]["Seed"] == "42"


# --- what is in the files ---


@pytest.mark.parametrize("format", FORMATS)
def test_equal_input_gives_equal_bytes(format: str) -> None:
    plain, loaded = noise(), noise()
    loaded.info = {"icc_profile": b"x" * 100, "comment": b"home", "exif": b"Exif\0\0", "xmp": b"x"}
    first = image_bytes(plain, recipe(), format=format)
    assert first == image_bytes(loaded, recipe(), format=format)
    assert set(loaded.info) == {"icc_profile", "comment", "exif", "xmp"}, "the caller's stays"
    with Image.open(io.BytesIO(first)) as image:
        assert not {"icc_profile", "comment"} & set(image.info)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("told", [True, False])
def test_the_origin_is_marked_in_standard_xmp(format: str, told: bool) -> None:
    data = image_bytes(noise(), recipe() if told else None, format=format)
    packet = re.search(rb"<\?xpacket begin=.*?<\?xpacket end=.*?\?>", data, flags=re.DOTALL)
    assert packet is not None, "found by scanning, as tools for unknown formats do"
    root = ElementTree.fromstring(packet[0])
    description = next(root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"))
    assert description.attrib[SOURCE_TYPE] == ORIGIN


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_recipe_nothing_but_the_origin_is_said(format: str, tmp_path: Path) -> None:
    data = image_bytes(noise(), format=format)
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif()
        assert not {"parameters", "ldm_toolkit", "exif"} & set(image.info)
    assert b"Recipe" not in data
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match="holds no recipe"):
        read_recipe(tmp_path / "a")


@pytest.mark.parametrize("format", ["webp", "jpg"])
def test_the_comment_has_the_type_that_other_readers_expect(format: str) -> None:
    assert b"MM\0*\0\0\0\x08" in (data := image_bytes(noise(), recipe(), format=format))
    assert b"\x92\x86\0\x07" in data, "UserComment must be UNDEFINED"


# --- pixels ---


@pytest.mark.parametrize("picture", [noise(), gradient(), noise(1, 1), noise(7, 3)])
@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_keep_every_bit(format: str, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"a.{format}"
    save_image(picture, path, recipe(), overwrite=False)
    assert open_image(path).tobytes() == picture.tobytes()
    assert read_recipe(path).pixels_sha256 == pixels_sha256(open_image(path))
    assert not is_lossy(path)


def test_jpeg_is_close_and_its_recipe_knows_the_pixels_before(tmp_path: Path) -> None:
    path = tmp_path / "a.JPEG"
    save_image(gradient(), path, recipe(), overwrite=False)
    pairs = zip(open_image(path).tobytes(), gradient().tobytes(), strict=True)
    differences = [abs(a - b) for a, b in pairs]
    assert max(differences) <= 16
    assert sum(differences) / len(differences) < 1.5
    assert read_recipe(path).pixels_sha256 == pixels_sha256(gradient())
    assert is_lossy(path)
    with Image.open(path) as image:
        assert JpegImagePlugin.get_sampling(image) == 0


# --- where the edges are ---


@pytest.mark.parametrize("length", [1_000, 10_000, 60_000, 64_000, 65_000, 66_000, 150_000])
def test_long_recipes_are_whole_in_a_jpeg(
    length: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = recipe(prompt="<狗&" * (length // 8), pixels_sha256="a" * 64)
    with caplog.at_level(logging.WARNING):
        save_image(noise(), tmp_path / "a.jpg", made, overwrite=False)
    assert read_recipe(tmp_path / "a.jpg") == made
    data = (tmp_path / "a.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        has_comment = bool(image.getexif())
    assert has_comment != ("left out" in caplog.text)
    if has_comment:
        assert bare(read_infotext(parameters_in(data))[0]) == made.prompt


def test_every_length_around_a_segment_is_whole() -> None:
    for length in [*range(64_900, 65_300, 7), 130_700, 130_800, 130_900]:
        text = json.dumps({"a": "x" * length})
        packet, segments = jpeg_xmp(text)
        assert recipe_in_xmp(packet, [segment[4:] for segment in segments]) == text
        assert all(len(segment) <= 65_535 + 2 for segment in segments)


def test_a_lost_or_changed_part_of_a_long_recipe_is_no_recipe(tmp_path: Path) -> None:
    packet, segments = jpeg_xmp(json.dumps({"a": "x" * 150_000}))
    bodies = [segment[4:] for segment in segments]
    assert len(bodies) == 3
    assert recipe_in_xmp(packet, bodies[::-1]) is not None, "any order"
    assert recipe_in_xmp(packet, bodies[:2]) is None
    assert recipe_in_xmp(packet, [*bodies[:2], bodies[2].replace(b"x", b"y", 1)]) is None
    assert recipe_in_xmp(packet, [*bodies[:2], bodies[2][:60]]) is None


def test_other_programs_may_write_the_property_as_an_attribute() -> None:
    text = '{"a": "<&>"}'
    written = xmp_packet(text).replace("<ldm:Recipe>", "<x>").replace("</ldm:Recipe>", "</x>")
    assert recipe_in_xmp(written.encode()) is None
    attribute = xmp_packet().replace(
        "rdf:about=", 'xmlns:q="urn:ldm-toolkit:xmp/1.0/" q:Recipe="{&quot;b&quot;: 1}" rdf:about='
    )
    assert recipe_in_xmp(attribute.encode() + b"\0  ") == '{"b": 1}'


LAUGHS = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
PACKETS = {
    "empty": b"",
    "text": b"hello",
    "cut": xmp_packet("{}").encode()[:200],
    "billion laughs": f'<!DOCTYPE x [<!ENTITY e0 "ha">{LAUGHS}]><x>&e9;</x>'.encode(),
    "entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    "utf-16": xmp_packet("{}").encode("utf-16"),
    "not utf-8": b"<x>\xff</x>",
    "wrong declaration": b'<?xml version="1.0" encoding="nonsense"?><x/>',
    "deep": b"<a>" * 300_000,
    "deep and closed": b"<a>" * 100_000 + b"</a>" * 100_000,
    "long": b"<a>" + b" " * 9_000_000 + b"</a>",
    "empty property": b'<ldm:Recipe xmlns:ldm="urn:ldm-toolkit:xmp/1.0/"/>',
    "extension that is not there": jpeg_xmp("x" * 100_000)[0],
}


@pytest.mark.parametrize("name", PACKETS)
def test_packets_of_strangers_are_refused_fast(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "WEBP", lossless=True, xmp=PACKETS[name])
    (tmp_path / "a.webp").write_bytes(buffer.getvalue())
    started = time.process_time()
    with pytest.raises(InputError, match="holds no recipe"):
        read_recipe(tmp_path / "a.webp")
    assert time.process_time() - started < 20


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"seed": NaN}'])
@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_forged_recipes_are_refused(kind: str, text: str, tmp_path: Path) -> None:
    noise().save(tmp_path / "a", kind, xmp=xmp_packet(text).encode())
    with pytest.raises(UserError):
        read_recipe(tmp_path / "a")


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_give_one_kind_of_error(format: str, tmp_path: Path) -> None:
    whole = image_bytes(noise(), recipe(), format=format)
    chance = random.Random(7)
    path = tmp_path / "a"
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for read in (read_recipe, open_image):
                with contextlib.suppress(UserError):
                    read(path)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    for name in ("a.tiff", "a", ".png"):
        with pytest.raises(UserError, match=r"must end in .*\.webp"):
            save_image(noise(), tmp_path / name, recipe(), overwrite=False)
    with pytest.raises(UserError, match="png, webp, jpg"):
        image_bytes(noise(), format="jpeg")
    wide = Image.new("RGB", (16_384, 1))
    with pytest.raises(UserError, match="16383"):
        image_bytes(wide, format="webp")
    assert image_bytes(wide, format="jpg")
    assert list(tmp_path.iterdir()) == []
