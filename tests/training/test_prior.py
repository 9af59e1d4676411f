"""Folders of one caption: what is drawn, once, and what is only read."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data import Plan, Source, open_source
from ldm_toolkit.training.data.folder import only_pictures
from ldm_toolkit.training.data.geometry import Geometry
from ldm_toolkit.training.prior import check_class, complete_class


class Painter:
    """Draws a colour a seed and remembers the seeds; may be interrupted before one of them."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.seeds: list[int] = []
        self.interrupted_at = interrupted_at

    def __call__(self, seeds: Sequence[int]) -> Iterator[Image.Image]:
        for seed in seeds:
            if seed == self.interrupted_at:
                raise KeyboardInterrupt
            self.seeds.append(seed)
            yield Image.new("RGB", (16, 16), (seed, 0, 0))


def colours(folder: Path) -> dict[str, int]:
    """The seed of each picture there, by name."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path.name] = image.getpixel((0, 0))[0]
    return found


@pytest.mark.parametrize("exists", [False, True])
def test_pictures_are_drawn_once_each_of_its_seed(exists, tmp_path):
    folder, painter = tmp_path / "a" / "class", Painter()
    if exists:
        folder.mkdir(parents=True)
    complete_class(folder, "a dog", 3, 40, painter)
    assert colours(folder) == {"00000.png": 40, "00001.png": 41, "00002.png": 42}
    assert json.loads((folder / "class.json").read_text()) == {"prompt": "a dog", "seed": 40}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    complete_class(folder, "a dog", 3, 7, painter)
    assert painter.seeds == [40, 41, 42]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_interrupted_folder_is_completed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete_class(tmp_path, "a dog", 4, 40, Painter(interrupted_at=42))
    assert colours(tmp_path) == {"00000.png": 40, "00001.png": 41}
    painter = Painter()
    complete_class(tmp_path, "a dog", 4, 9, painter)  # of the seed that it began with
    assert painter.seeds == [42, 43]
    more = Painter()
    complete_class(tmp_path, "a dog", 5, 40, more)
    assert more.seeds == [44]
    complete_class(tmp_path, "a dog", 2, 40, more)
    assert len(colours(tmp_path)) == 5


def test_what_cannot_be_drawn_leaves_no_folder(tmp_path):
    def refuse(seeds: Sequence[int]) -> list[Image.Image]:
        raise UserError(f"lacks {len(seeds)}")

    with pytest.raises(UserError, match="lacks 3"):
        complete_class(tmp_path / "class", "a dog", 3, 0, refuse)
    assert not (tmp_path / "class").exists()


def test_pictures_of_another_origin_stay_as_they_are(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.JPEG")
    painter = Painter()
    complete_class(tmp_path, "a dog", 3, 0, painter)
    assert painter.seeds == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine.JPEG"]
    (tmp_path / "file").write_text("x")
    complete_class(tmp_path / "file", "a dog", 3, 0, painter)
    assert painter.seeds == []


def test_another_prompt_and_a_damaged_record_are_told(tmp_path):
    complete_class(tmp_path, "a dog", 1, 0, Painter())
    with pytest.raises(UserError, match="holds pictures of 'a dog', not of the class prompt 'cat'"):
        complete_class(tmp_path, "cat", 1, 0, Painter())
    for damaged in ("{", "[]", "{}", '{"prompt": "a dog", "seed": "x"}'):
        (tmp_path / "class.json").write_text(damaged)
        with pytest.raises(InputError, match=r"class\.json is damaged .* remove it") as caught:
            complete_class(tmp_path, "a dog", 1, 0, Painter())
        assert "\n" not in str(caught.value)


# --- reading ---


def prompted(folder: Path, size: int = 64, prompt: str = "a dog") -> Source:
    """The pictures of a folder under one caption."""
    return open_source(DataConfig(data=str(folder), size=size), caption=prompt)


def test_pictures_are_shrunk_and_cropped_under_one_caption(tmp_path):
    picture = Image.new("RGB", (96, 64), (0, 0, 255))
    picture.paste((255, 0, 0), (16, 0, 80, 64))  # the square in the middle
    picture.save(tmp_path / "b.png")
    Image.new("L", (32, 32), 9).save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "b.txt").write_text("a caption that is not read")
    source = prompted(tmp_path)
    assert len(source) == 2
    assert [source.captions(index) for index in range(2)] == [("a dog",), ("a dog",)]
    assert source.image(0).getpixel((5, 5)) == (9, 9, 9)
    middle = source.image(1)
    assert (middle.size, middle.mode) == ((64, 64), "RGB")
    assert middle.getcolors() == [(64 * 64, (255, 0, 0))]


def test_metadata_does_not_count_where_one_caption_is_given(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "not read"}')
    source = prompted(tmp_path)
    assert [source.captions(index) for index in range(len(source))] == [("a dog",), ("a dog",)]


def test_without_captions_there_are_none(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    config = DataConfig(data=str(tmp_path), size=64)
    plan = Plan(Geometry.square(64), token_counts=lambda texts: [max(map(len, texts))])
    assert open_source(config, plan=plan, caption="").captions(0) == ()


def test_the_fingerprint_is_that_of_size_content_and_caption(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    first = prompted(tmp_path).fingerprint
    assert prompted(tmp_path).fingerprint == first
    assert prompted(tmp_path, prompt="a cat").fingerprint != first
    assert prompted(tmp_path, size=72).fingerprint != first
    Image.new("RGB", (64, 64), (1, 0, 0)).save(tmp_path / "a.png")
    assert prompted(tmp_path).fingerprint != first


def test_folders_that_cannot_be_used(tmp_path):
    for place in ("nowhere", "storybook"):
        with pytest.raises(InputError, match=rf"--data .*{place} is not a folder"):
            prompted(tmp_path / place if place == "nowhere" else Path(place))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no pictures .*; expected PNG, JPEG or WebP"):
        prompted(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    for name in ("bad.png", "worse.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2 problems in .*bad\.png: .*; worse\.jpg: ") as caught:
        prompted(tmp_path)
    assert "good.png" not in str(caught.value)


def test_a_folder_that_cannot_hold_the_class_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--class-data .*file is not a folder"):
        check_class(tmp_path / "file", "a dog")
    check_class(tmp_path / "nowhere", "a dog")
    complete_class(tmp_path / "class", "a dog", 1, 0, Painter())
    check_class(tmp_path / "class", "a dog")
    with pytest.raises(UserError, match="holds pictures of 'a dog', not of the class prompt 'cat'"):
        check_class(tmp_path / "class", "cat")


def test_folders_without_anything_but_pictures(tmp_path):
    assert not only_pictures(tmp_path)
    assert not only_pictures(tmp_path / "nowhere")
    for name in ("a.png", "b.JPG", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    assert only_pictures(tmp_path)
    (tmp_path / "a.txt").write_text("a caption")
    assert not only_pictures(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "more").mkdir()
    assert not only_pictures(tmp_path)
