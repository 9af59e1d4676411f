"""Adherence of pictures by a judge: shares, sheets, neighbours, diversity."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from albums import Album, noise
from PIL import Image

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; pip install '.[eval]'")

from ldm_toolkit.errors import InputError, ModelError
from ldm_toolkit.evaluation import judged as judged_module
from ldm_toolkit.evaluation.adherence import Asked, adherence, held_out_prompts
from ldm_toolkit.evaluation.judged import judged
from ldm_toolkit.evaluation.pictures import Renders
from ldm_toolkit.evaluation.subject import Share, Subject
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import Judge, JudgeNet
from ldm_toolkit.storybook.render import render

pytestmark = pytest.mark.usefixtures("judge_bundled")
SIZE = 48


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_module, "FEWEST", 4)
    monkeypatch.setattr("ldm_toolkit.evaluation.distances.FEWEST", 4)
    monkeypatch.setattr("ldm_toolkit.evaluation.distances._GROUPS", 2)


def test_shares_are_those_of_the_verdicts(
    subject: Callable[..., Subject], judge_file: Path, tmp_path: Path
) -> None:
    asked = held_out_prompts(8, 0)
    pictures = Renders(asked, SIZE)
    found = judged(subject(pictures), judge=None, neighbours=0)
    judge = Judge.load(judge_file)
    expected = adherence(judge.verdicts([pictures.image(i) for i in range(8)]), asked)
    assert found.scores["everything right"] == expected.everything
    assert found.scores["refused"] == expected.refused
    for name, one in expected.attributes.items():
        assert found.scores[name.replace("_", " ")] == one
    assert found.scores["Fréchet distance of renders"].value > 0
    assert found.files == (tmp_path / "worst.png",)
    assert Image.open(tmp_path / "worst.png").size[0] > 192
    assert found.settings["split"] == scenes.SPLIT_VERSION


def test_renders_of_the_same_scenes_are_at_no_distance(subject: Callable[..., Subject]) -> None:
    """What is compared with is the world at seed + 1, so those very scenes lie at 0."""
    pictures = Renders(held_out_prompts(8, 6), SIZE)
    found = judged(subject(pictures, seed=5), judge=None, neighbours=0)
    assert found.scores["Fréchet distance to renders"].value == pytest.approx(0, abs=1e-3)
    assert found.scores["Fréchet distance of renders"].value > 1e-2


def test_copies_of_the_training_are_found(
    subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that are renders of the training have a neighbour at no distance: themselves."""
    copies = [Asked("a copy", {}, scenes.sample_scene(0, index, "train")) for index in (7, 2, 4)]
    sheets = {}

    def kept(images: list, labels: list, **_: object) -> Image.Image:
        sheets[len(sheets)] = images
        return images[0]

    monkeypatch.setattr(judged_module, "contact_sheet", kept)
    found = judged(subject(Renders(copies, SIZE)), judge=None, neighbours=9)
    for measure in ("nearest training render", "nearest training render by pixels"):
        assert found.scores[measure].value == pytest.approx(0, abs=1e-3)
        assert found.scores[f"{measure}, of renders"].value > 1e-2
        assert found.scores[f"{measure}, of renders"].count == 3
    assert (found.settings["training_renders"], found.settings["training_seed"]) == (9, 0)
    assert tmp_path / "nearest.png" in found.files
    shown = [one.tobytes() for one in sheets[len(sheets) - 1]]
    assert [shown[0], shown[3], shown[6]] == [shown[1], shown[4], shown[7]]
    assert [shown[0], shown[3], shown[6]] == [shown[2], shown[5], shown[8]]
    other = judged(subject(Renders(copies, SIZE)), judge=None, neighbours=9, training_seed=1)
    assert other.scores["nearest training render"].value > 1e-2


def test_the_nearest_by_pixels_is_told_as_a_difference_of_pixels(
    subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture that is most like a render of the training comes first."""
    sheets: list[tuple[list, list]] = []

    def kept(images: list, labels: list, **_: object) -> Image.Image:
        sheets.append((images, labels))
        return images[0]

    monkeypatch.setattr(judged_module, "contact_sheet", kept)
    copy = Asked("a copy", {}, scenes.sample_scene(0, 3, "train"))
    pictures = Renders([*held_out_prompts(2, 0), copy], SIZE)
    found = judged(subject(pictures), judge=None, neighbours=5)
    small = [
        np.asarray(one.resize((24, 24), Image.Resampling.BOX), dtype=float) / 255
        for one in [*(pictures.image(i) for i in range(3)), *_training_renders(5)]
    ]
    expected = [
        min(np.sqrt(np.square(one - render).mean()) for render in small[3:]) for one in small[:3]
    ]
    by_pixels = found.scores["nearest training render by pixels"]
    assert by_pixels.value == pytest.approx(np.mean(expected), rel=1e-3)
    images, labels = sheets[-1]
    assert labels[0] == "picture 3"
    assert [images[0].tobytes()] * 2 == [images[1].tobytes(), images[2].tobytes()]
    told = {name: float(pixels.rpartition(" ")[2])
            for name, pixels in zip(labels[::3], labels[2::3], strict=True)}  # fmt: skip
    for index, one in enumerate(expected):
        assert told[f"picture {index + 1}"] == pytest.approx(one, rel=1e-2, abs=1e-6)


def _training_renders(count: int) -> list[Image.Image]:
    return [render(scenes.sample_scene(0, index, "train"), SIZE) for index in range(count)]


def test_a_second_judge_tells_its_own(subject: Callable[..., Subject], tmp_path: Path) -> None:
    torch.manual_seed(8)
    Judge(JudgeNet("inverted", (8, 16)), threshold=0.0).save(tmp_path / "second.safetensors")
    pictures = Renders(held_out_prompts(4, 0), SIZE)
    found = judged(subject(pictures), judge=tmp_path / "second.safetensors", neighbours=0)
    assert found.scores["second judge: refused"].value == 0
    assert "second judge: everything right" in found.scores
    assert len(found.settings["second_judge_sha256"]) == 64


def test_diversity_is_of_pictures_of_one_prompt(subject: Callable[..., Subject]) -> None:
    """Adherence is of the first of each; equal ones have no diversity."""
    asked = held_out_prompts(5, 0)
    same, others = asked * 3, [*asked, *held_out_prompts(10, 1)]
    alone = judged(subject(Renders(asked, SIZE)), judge=None, neighbours=0)
    copied = judged(subject(Renders(same, SIZE), per_prompt=3), judge=None, neighbours=0)
    varied = judged(subject(Renders(others, SIZE), per_prompt=3), judge=None, neighbours=0)
    assert copied.scores["diversity"].value == pytest.approx(0, abs=1e-4)
    assert varied.scores["diversity"].value > 1e-2
    assert varied.scores["diversity"].count == 5
    assert "diversity" not in alone.scores
    assert any("--per-prompt" in note for note in alone.notes)
    for found in (copied, varied):
        assert found.scores["everything right"] == alone.scores["everything right"]


def test_what_was_wrong_stands_under_the_picture() -> None:
    scene = replace(scenes.sample_scene(0, 0, "test"), subject="dog", colour="red")
    asked = Asked("a red dog " + "indeed " * 8, {"subject": "dog", "colour": "red"}, scene)
    verdict = judged_module.Verdict(True, {"subject": "cat", "colour": "red"}, {})
    lines = judged_module._told(verdict, asked).splitlines()
    assert lines[0].startswith("a red dog")
    assert lines[-1] == "dog: saw cat"
    assert max(map(len, lines)) <= 34
    assert judged_module._told(replace(verdict, valid=False), asked).endswith("refused")


def test_only_the_first_process_writes_sheets(
    subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Share, "wait", lambda _: None)
    judged(subject(Renders(held_out_prompts(4, 0), SIZE)), judge=None, neighbours=0)
    (tmp_path / "worst.png").unlink()
    second = subject(Renders(held_out_prompts(4, 0), SIZE), share=Share(1, 2))
    judged(second, judge=None, neighbours=0)
    assert not (tmp_path / "worst.png").exists()


def test_pictures_that_nobody_asked_for(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="should show; expected --prompts N"):
        judged(subject(Album(noise(2))), judge=None, neighbours=0)
    monkeypatch.setattr("ldm_toolkit.storybook.JUDGE_FILE", tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="is not there"):
        judged(subject(Album(noise(2))), judge=None, neighbours=0)
