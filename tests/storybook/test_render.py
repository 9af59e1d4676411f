"""Pictures of scenes and the data sets made of them."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_toolkit.storybook import __main__ as command
from ldm_toolkit.storybook import render as rendering
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.render import drawing_sha256, render

WEARINGS = [
    (subject, accessory)
    for subject, row in scenes.SUBJECTS.items()
    for accessory in (None, *row.accessories)
]


def _scene(subject="dog", colour="brown", accessory="hat", setting="beach", seed=0):
    return scenes.make_scene(scenes.Composition(subject, colour, accessory, setting), seed)


def _pixels(scene: scenes.Scene, size: int) -> np.ndarray:
    return np.asarray(render(scene, size), dtype=float)


def test_the_same_scene_gives_the_same_picture():
    assert render(_scene(), 96).tobytes() == render(_scene(), 96).tobytes()


@pytest.mark.parametrize("module", ["_animals", "_things", "_accessories", "_settings"])
def test_what_is_drawn_in_another_way_has_another_hash(module, monkeypatch):
    drawing = importlib.import_module(f"ldm_toolkit.storybook.{module}")
    before = drawing_sha256.__wrapped__()
    assert before == drawing_sha256()
    name = list(drawing.DRAW)[-1]
    monkeypatch.setitem(drawing.DRAW, name, next(iter(drawing.DRAW.values())))
    if module in ("_animals", "_things"):
        monkeypatch.setitem(rendering._DRAW, name, drawing.DRAW[name])
    assert drawing_sha256.__wrapped__() != before


def test_seeds_give_different_pictures():
    assert len({render(_scene(seed=seed), 64).tobytes() for seed in range(20)}) == 20


@pytest.mark.parametrize(("subject", "accessory"), WEARINGS)
def test_every_wearing_is_drawn_in_every_setting(subject, accessory):
    for seed, setting in enumerate(scenes.SETTINGS):
        picture = render(_scene(subject, "red", accessory, setting, seed), 64)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        if accessory is not None:
            plain = render(_scene(subject, "red", None, setting, seed), 64)
            assert plain.tobytes() != picture.tobytes()


@pytest.mark.parametrize("subject", scenes.SUBJECTS)
@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_the_colour_covers_much_of_the_picture(subject, colour):
    pixels = _pixels(_scene(subject, colour, None, "night", 1), 64)
    near = np.abs(pixels - scenes.COLOURS[colour]).max(-1) < 40
    assert near.mean() > 0.06


def test_size_does_not_change_the_picture():
    for index in range(12):
        scene = scenes.sample_scene(2, index, "all")
        large = np.asarray(render(scene, 512).resize((256, 256), Image.Resampling.BOX), float)
        assert np.abs(large - _pixels(scene, 256)).mean() < 3.0


def test_the_figure_stays_inside_the_picture():
    for subject, accessory in WEARINGS:
        for seed in range(6):
            pixels = _pixels(_scene(subject, "red", accessory, "snow", seed), 64)
            border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
            ink = np.abs(border - (40, 30, 48)).max(-1) < 25
            assert ink.mean() < 0.02, (subject, accessory, seed)


@pytest.mark.parametrize(("place", "looks"), [("left", 1), ("middle", 1), ("right", -1)])
def test_a_figure_looks_into_the_picture(place, looks):
    for seed in range(8):
        fish = replace(_scene("fish", "red", None, "desert", seed), size="small", place=place)
        pixels = _pixels(fish, 128)
        red = (pixels[..., 0] - pixels[..., 1:].max(-1) > 120).nonzero()[1]
        white_of_the_eye = (pixels.min(-1) > 250).nonzero()[1]
        assert np.sign(np.median(white_of_the_eye) - red.mean()) == looks, seed


@pytest.mark.parametrize("setting", ["meadow", "beach", "night"])
def test_sun_and_moon_are_where_the_light_comes_from(setting):
    for seed in range(8):
        sky = _pixels(_scene("turtle", "green", None, setting, seed), 64)[:20]
        shining = (sky[..., 0] > 240) & (sky[..., 2] > 100) & (sky[..., 2] < 235)
        assert shining[:, :32].sum() > 3 * shining[:, 32:].sum(), seed


def test_too_small_is_an_error():
    with pytest.raises(ValueError, match="at least 8 pixels"):
        render(_scene(), 4)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _render_command(folder: Path, *more: str) -> int:
    return command.main(["render", "--count", "6", "--size", "32", "--out", str(folder), *more])


def test_render_command_writes_an_imagefolder(tmp_path, capsys):
    folder = tmp_path / "set"
    assert _render_command(folder, "--seed", "4") == 0
    assert capsys.readouterr().out == f"{folder}\n"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(path.name for path in folder.glob("*.png")) == [row["file_name"] for row in rows]
    for index, row in enumerate(rows):
        scene = scenes.sample_scene(4, index)
        said = scenes.caption(scene, 4)
        assert (row["text"], row["subject"]) == (said.text, scene.subject)
        assert row["mentions"] == sorted(said.mentions)
        picture = Image.open(folder / row["file_name"])
        assert picture.tobytes() == render(scene, 32).tobytes()


def test_render_command_repeats_its_bytes(tmp_path):
    for name in ("one", "two"):
        assert _render_command(tmp_path / name) == 0
    assert _render_command(tmp_path / "other", "--seed", "1") == 0
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
    assert _contents(tmp_path / "one") != _contents(tmp_path / "other")


def test_render_command_keeps_what_is_there(tmp_path, capsys):
    assert _render_command(tmp_path / "set") == 0
    before = _contents(tmp_path / "set")
    assert _render_command(tmp_path / "set", "--seed", "9") == 2
    assert "not empty" in capsys.readouterr().err
    assert _contents(tmp_path / "set") == before
    assert _render_command(tmp_path / "set", "--seed", "9", "--overwrite") == 0
    assert _contents(tmp_path / "set") != before


def test_overwrite_spares_folders_that_are_no_data_set(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert _render_command(tmp_path, "--overwrite") == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--size", "x"], ["--split", "dev"], ["-z"]])
def test_wrong_use_is_one_line_and_exit_code_2(tmp_path, capsys, wrong):
    assert _render_command(tmp_path / "set", *wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_exit_code_74(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert _render_command(tmp_path / "file" / "set") == 74
    assert capsys.readouterr().err.startswith("error: cannot write")


@pytest.mark.parametrize("attribute", command.SHEET_ATTRIBUTES)
def test_sheet_command(tmp_path, attribute):
    sheet = tmp_path / "sheet.png"
    options = ["--by", attribute, "--tile", "16", "--columns", "2", "--out", str(sheet)]
    assert command.main(["sheet", *options]) == 0
    assert Image.open(sheet).size == (32, 16 * len(command.SHEET_ATTRIBUTES[attribute]))
