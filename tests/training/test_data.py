"""Image folders: every form of captions, every problem named at once, pictures safely opened."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_toolkit.errors import InputError
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data import ImageFolder, StorybookScenes, open_source
from ldm_toolkit.training.held_out import Part
from ldm_toolkit.training.prepare import _name

NAMES = ["b.png", "a.jpg", "c.webp"]


@pytest.fixture
def folder(tmp_path):
    """Three pictures of different shapes without captions."""
    for index, name in enumerate(NAMES):
        size = (80 + 20 * index, 70)
        Image.new("RGB", size, (80 * index, 30, 200)).save(tmp_path / name, quality=95)
    return tmp_path


def write_jsonl(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


def captions(source):
    return [source.captions(index) for index in range(len(source))]


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_jsonl_in_its_own_order(folder, key):
    write_jsonl(folder, [{"file_name": name, key: f"a {name}"} for name in NAMES] + ["", "  "])
    source = ImageFolder(folder, 64)
    assert captions(source) == [(f"a {name}",) for name in NAMES]
    assert source.image(2).getpixel((5, 5))[0] == pytest.approx(160, abs=3)


def test_several_captions_of_a_picture(folder):
    write_jsonl(folder, [{"file_name": "b.png", "text": ["one", "two"]}])
    assert captions(ImageFolder(folder, 64)) == [("one", "two")]


def test_columns_of_other_names(folder):
    (folder / "metadata.csv").write_text("picture,text,long\nb.png,x,a long one\n")
    config = DataConfig(data=str(folder), size=64, image_column="picture", caption_column="long")
    assert captions(open_source(config)) == [("a long one",)]


def test_csv_with_quotes_newlines_and_the_mark_of_excel(folder):
    text = 'file_name,text\nb.png,"a dog, ""Rex"""\na.jpg,"two\nlines"\nc.webp,Hündchen 🐶\n'
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = captions(ImageFolder(folder, 64))
    assert found == [('a dog, "Rex"',), ("two\nlines",), ("Hündchen 🐶",)]


def test_txt_files_in_the_order_of_the_names(folder):
    for name in NAMES:
        (folder / name).with_suffix(".txt").write_text(f" a {name}\n")
    assert captions(ImageFolder(folder, 64)) == [("a a.jpg",), ("a b.png",), ("a c.webp",)]


def test_pictures_have_the_names_of_their_files(folder):
    for name in NAMES:
        (folder / name).with_suffix(".txt").write_text("x")
    source = ImageFolder(folder, 64)
    assert [source.name(index) for index in range(3)] == ["a.jpg", "b.png", "c.webp"]
    part = Part(source, [2, 0])
    assert [part.name(index) for index in range(2)] == ["c.webp", "a.jpg"]
    both = [_name([part, source], index) for index in range(5)]
    assert both == ["c.webp", "a.jpg", "a.jpg", "b.png", "c.webp"]
    scenes = open_source(DataConfig(data="storybook", count=3, size=64))
    assert scenes.name(2) == "scene 2"


def test_the_folder_of_the_split(folder):
    for name in NAMES:
        (folder / name).with_suffix(".txt").write_text("x")
    config = DataConfig(data=str(folder.parent), data_split=folder.name, size=64)
    assert len(open_source(config)) == 3


def test_what_is_no_place_at_all(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    for place in ("nowhere", "a/b/c", str(tmp_path / "x.txt"), "", "a\0b", str(tmp_path / "x.zip")):
        with pytest.raises(InputError, match="--data"):
            open_source(DataConfig(data=place, size=64))


def test_pictures_in_folders_below(folder):
    (folder / "deep").mkdir()
    (folder / "b.png").rename(folder / "deep" / "b.png")
    write_jsonl(folder, [{"file_name": "deep/b.png", "text": "x"}])
    assert ImageFolder(folder, 64).image(0).size == (64, 64)


def test_every_missing_caption_is_named(folder):
    (folder / "b.txt").write_text("x")
    with pytest.raises(InputError, match=r"2 problems.*a\.jpg: no caption.*c\.webp: no caption"):
        ImageFolder(folder, 64)


def test_every_problem_is_named_at_once(folder):
    (folder / "c.webp").write_bytes(b"no picture")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    rows = [
        {"file_name": "a.jpg", "text": " "},
        {"file_name": "b.png", "text": "x"},
        {"file_name": "c.webp", "text": "x"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../../secret.png", "text": "x"},
        {"file_name": "/etc/passwd", "text": "x"},
        {"file_name": "a.jpg"},
        {"file_name": 3, "text": "x"},
        {"file_name": "a.jpg", "text": None},
        ["a.jpg", "x"],
        "{not json",
    ]
    write_jsonl(folder, rows)
    with pytest.raises(InputError) as caught:
        ImageFolder(folder, 64)
    told = str(caught.value)
    assert told.startswith("11 problems")
    for part in (
        "a.jpg: empty caption", "b.png: ", "c.webp: ", "gone.png: ", "metadata.jsonl:5: file_name",
        "metadata.jsonl:6: file_name", "metadata.jsonl:7: expected", "metadata.jsonl:8: expected",
        "metadata.jsonl:9: expected", "metadata.jsonl:10: expected", "metadata.jsonl:11: not JSON",
    ):  # fmt: skip
        assert part in told, part


def test_many_problems_are_counted(folder):
    write_jsonl(folder, [{"file_name": f"{n}.png", "text": "x"} for n in range(30)])
    with pytest.raises(InputError, match=r"30 problems.*and 10 more"):
        ImageFolder(folder, 64)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metadata.jsonl", b"\xff\xfe\x00"),
        ("metadata.csv", b"\xff\xfe\x00"),
        ("metadata.csv", b"name,words\nb.png,x\n"),
        ("metadata.csv", b"file_name,text\nb.png\n"),
        ("metadata.csv", b"file_name,text\nb.png,x,y,z\nq.png,x\n"),
        ("metadata.jsonl", "file_name text".encode("utf-16")),
        ("metadata.parquet", b"PAR1"),
        ("metadata.jsonl", b""),
        ("metadata.csv", b""),
        ("metadata.jsonl", b"[" * 100_000),
        ("b.txt", b"\xff\xfe\x00"),
    ],
)
def test_broken_metadata_is_an_input_error(folder, name, data):
    (folder / name).write_bytes(data)
    with pytest.raises(InputError):
        ImageFolder(folder, 64)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (64, 64)).save(outside)
    (folder / "link.png").symlink_to(outside)
    write_jsonl(folder, [{"file_name": "link.png", "text": "x"}])
    with pytest.raises(InputError, match="leads out of"):
        ImageFolder(folder, 64)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(InputError, match="holds no pictures with captions"):
        ImageFolder(tmp_path, 64)
    with pytest.raises(InputError, match="is not a folder"):
        ImageFolder(tmp_path / "none", 64)


def test_unnamed_pictures_are_told(folder, caplog):
    caplog.set_level("INFO", "ldm_toolkit")
    write_jsonl(folder, [{"file_name": "b.png", "text": "x"}])
    assert len(open_source(DataConfig(data=str(folder), size=64))) == 1
    assert "2 pictures that metadata.jsonl does not name" in caplog.text


def test_rotation_and_transparency_are_applied(tmp_path):
    """open_image does both: the left half of the stored picture ends on top, alpha on white."""
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste("blue", (0, 0, 32, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for name in ("turned", "clear"):
        (tmp_path / f"{name}.txt").write_text("x")
    source = ImageFolder(tmp_path, 64)
    assert source.image(0).getpixel((32, 32)) == (255, 255, 255)
    turned = source.image(1)
    assert turned.getpixel((32, 5)) == (0, 0, 255)
    assert turned.getpixel((32, 60)) == (255, 0, 0)


def test_pictures_are_cropped_in_the_middle(tmp_path):
    picture = Image.new("RGB", (192, 64), "red")
    picture.paste("blue", (64, 0, 128, 64))
    picture.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("x")
    assert np.asarray(ImageFolder(tmp_path, 64).image(0)).reshape(-1, 3).tolist() == [
        [0, 0, 255]
    ] * (64 * 64)


def test_the_fingerprint_sees_pictures_captions_and_size(folder):
    rows = [{"file_name": name, "text": "x"} for name in NAMES]
    write_jsonl(folder, rows)
    seen = {ImageFolder(folder, 64).fingerprint, ImageFolder(folder, 64).fingerprint}
    seen.add(ImageFolder(folder, 72).fingerprint)
    write_jsonl(folder, [*rows[:-1], {"file_name": NAMES[-1], "text": "y"}])
    seen.add(ImageFolder(folder, 64).fingerprint)
    Image.new("RGB", (80, 70), "green").save(folder / "b.png")
    seen.add(ImageFolder(folder, 64).fingerprint)
    assert len(seen) == 4


def test_pixels_span_minus_one_to_one():
    picture = Image.new("RGB", (3, 2), (0, 255, 51))
    pixels = pil_to_pixels(picture)
    assert pixels.shape == (3, 2, 3)
    assert pixels[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_storybook_scenes_on_the_fly():
    source = open_source(DataConfig(data="storybook", count=5, size=64), captions=3, seed=2)
    assert isinstance(source, StorybookScenes)
    assert len(source) == 5
    assert source.image(4).size == (64, 64)
    assert source.image(4).tobytes() == source.image(4).tobytes() != source.image(3).tobytes()
    assert len(source.captions(1)) == 3
    others = [StorybookScenes(5, 64, 3, 3), StorybookScenes(6, 64, 3, 2)]
    assert source.fingerprint not in {other.fingerprint for other in others}
    assert torch.isfinite(pil_to_pixels(source.image(0))).all()
