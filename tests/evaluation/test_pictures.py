"""What --images and --reference name: folders, tables, shards, our pictures, rendered scenes."""

import json
import tarfile
from pathlib import Path

import pytest
import samples
from albums import noise
from PIL import Image

from ldm_toolkit.errors import InputError
from ldm_toolkit.evaluation.adherence import held_out_prompts
from ldm_toolkit.evaluation.pictures import open_pictures
from ldm_toolkit.images import save_image
from ldm_toolkit.storybook import __main__ as storybook
from ldm_toolkit.storybook.render import render


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and nothing else."""
    place = tmp_path / "pictures"
    place.mkdir()
    for index, image in enumerate(noise(3, size=20)):
        image.save(place / f"{index}.png")
    return place


def test_a_folder_of_pictures_needs_no_captions(folder: Path) -> None:
    found = open_pictures(str(folder))
    assert [found.image(i).tobytes() for i in range(3)] == [x.tobytes() for x in noise(3, size=20)]
    assert [found.caption(i) for i in range(len(found))] == [None] * 3
    assert found.asked(0) is None
    assert len(open_pictures(str(folder), count=2)) == 2
    assert open_pictures(str(folder), size=12).image(0).size == (12, 12)
    (folder / "README.md").write_text("about them")
    assert len(open_pictures(str(folder))) == 3


def test_captions_beside_pictures_in_metadata_and_in_pictures_of_ours(folder: Path) -> None:
    save_image(noise(1)[0], folder / "0.png", samples.recipe(), overwrite=True)
    assert open_pictures(str(folder)).caption(0) == "a dog wearing hat"
    for index in range(3):
        (folder / f"{index}.txt").write_text(f"number {index}\n")
    assert open_pictures(str(folder)).caption(1) == "number 1"
    row = {"file_name": "2.png", "text": ["the second", "another"]}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    found = open_pictures(str(folder))
    assert (len(found), found.caption(0)) == (1, "the second")


def test_a_picture_is_told_from_others_by_pixels_caption_and_size(folder: Path) -> None:
    first = open_pictures(str(folder))
    assert first.digest(0) == open_pictures(str(folder)).digest(0)
    assert len({first.digest(i) for i in range(3)}) == 3
    assert first.digest(0) != open_pictures(str(folder), size=12).digest(0)
    for index in range(3):
        (folder / f"{index}.txt").write_text("a caption")
    assert first.digest(0) != open_pictures(str(folder)).digest(0)


def test_rendered_folders_know_what_was_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "renders"
    arguments = ["render", "--count", "4", "--size", "32", "--split", "test", "--out", str(place)]
    assert storybook.main(arguments) == 0
    found, expected = open_pictures(str(place)), held_out_prompts(4, 0)
    assert [found.asked(index) for index in range(4)] == expected
    assert found.caption(2) == expected[2].prompt


def test_scenes_are_rendered_when_asked_for() -> None:
    found = open_pictures("storybook", count=3, size=40, seed=2)
    asked = held_out_prompts(3, 2)
    assert [found.asked(index) for index in range(3)] == asked
    assert found.image(1).tobytes() == render(asked[1].scene, 40).tobytes()
    assert len({found.digest(index) for index in range(3)}) == 3
    assert found.digest(0) != open_pictures("storybook", count=3, size=48, seed=2).digest(0)


def test_shards_and_tables_need_no_captions(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for path in sorted(folder.iterdir()):
            shard.add(path, path.name)
    found = open_pictures(str(tmp_path / "x.tar"))
    assert (len(found), found.caption(0)) == (3, None)
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    bytes_ = [{"bytes": path.read_bytes()} for path in sorted(folder.iterdir())]
    rows = {"image": bytes_, "label": [1, 2, 3]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    table = open_pictures(str(tmp_path / "x.parquet"))
    assert (len(table), table.caption(2)) == (3, None)
    assert table.image(2).tobytes() == noise(3, size=20)[2].tobytes()
    datasets.Dataset.from_dict(rows | {"said": ["a", "b", "c"]}).to_parquet(
        str(tmp_path / "y.parquet")
    )
    columns = {"caption_column": "said"}
    assert open_pictures(str(tmp_path / "y.parquet"), columns=columns).caption(1) == "b"


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        open_pictures(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        open_pictures(str(tmp_path / "empty"))
    (folder / "0.txt").write_text("a caption of one only")
    with pytest.raises(InputError, match=r"2 problems in .*1\.png: no caption"):
        open_pictures(str(folder))
    (folder / "0.txt").unlink()
    (folder / "1.png").write_bytes(b"no picture")
    found = open_pictures(str(folder))
    with pytest.raises(InputError, match=r"1\.png"):
        found.image(1)
    Image.new("RGB", (9, 9)).save(folder / "3.bmp")
    with pytest.raises(InputError, match=r"\.bmp is not read"):
        open_pictures(str(folder))
