"""Two sides in pairs: known differences, and the page that shows them."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from albums import Album, noise
from PIL import Image
from samples import HOSTILE_PROMPTS

from ldm_toolkit import storybook
from ldm_toolkit.evaluation import comparison
from ldm_toolkit.evaluation.adherence import Asked
from ldm_toolkit.evaluation.comparison import compared
from ldm_toolkit.evaluation.comparison_page import Pair, comparison_page
from ldm_toolkit.evaluation.report import table
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import Judge

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; pip install '.[eval]'")

Subjects = Callable[..., Subject]
NAMES = ("storybook", "storybook,steps=3")


class Known(Album):
    """Pictures of which somebody knows what they should show."""

    def __init__(self, images: list[Image.Image], wanted: list[dict[str, str]]) -> None:
        super().__init__(images, [f"prompt {index}" for index in range(len(images))])
        self.wanted = wanted

    def asked(self, index: int) -> Asked:  # type: ignore[override]
        return Asked(self.captions[index], self.wanted[index], scenes.sample_scene(0, index))


def brighter(image: Image.Image, level: int) -> Image.Image:
    return image.point(lambda value: value + level)


def run(subject: Subjects, first: Album, second: Album, **others: object):
    seeds = list(range(len(first)))
    asked = {"names": NAMES, "seeds": seeds, "judge": None, "clip_model": None} | others
    return compared(subject(first), subject(second), **asked)


def test_likeness_is_that_of_the_pairs_and_the_page_begins_with_the_least_alike(
    subject: Subjects, tmp_path: Path
) -> None:
    images = noise(3, size=32, level=100)
    levels = [2, 20, 7]
    changed = [brighter(one, level) for one, level in zip(images, levels, strict=True)]
    captions = ["first & prompt", "second <prompt>", "third"]
    found = run(subject, Album(images, captions), Album(changed, captions))
    errors = [
        np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)
        for a, b in zip(images, changed, strict=True)
    ]
    expected = [10 * np.log10(255**2 / error) for error in errors]
    psnr = found.scores["PSNR between the two"]
    assert psnr.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert psnr.count == 3
    assert 0 < found.scores["SSIM between the two"].value < 1
    assert any("no adherence" in line for line in found.notes)
    assert found.files == (tmp_path / "compare.html",)
    page = (tmp_path / "compare.html").read_text("utf-8")
    order = [page.index(text) for text in ("second &lt;prompt&gt;<br>", "third<br>", "first &amp;")]
    assert order == sorted(order)
    assert "seed 1; PSNR" in page


def test_adherence_is_compared_attribute_by_attribute(
    subject: Subjects, judge_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B shows the colour in three pictures of four, A in one; nobody asked for the fourth's size.

    What is shown is taken from the judge's own words: the prompts ask for that or something else.
    """
    first, second = noise(4, size=32), noise(4, seed=1, size=32)
    monkeypatch.setattr(storybook, "JUDGE_FILE", judge_file)
    judge = Judge.load(judge_file)
    judge.threshold = 0.0
    monkeypatch.setattr(comparison.Judge, "load", lambda _: judge)
    seen = [judge.verdicts(images) for images in (first, second)]

    def fake(verdicts: list, colours: list[str]) -> list:
        return [
            type(one)(True, {**one.values, "colour": colour, "size": "small"}, one.probabilities)
            for one, colour in zip(verdicts, colours, strict=True)
        ]

    sides = [fake(seen[0], ["red", "blue", "blue", "blue"]), fake(seen[1], ["red"] * 3 + ["blue"])]
    monkeypatch.setattr(judge, "decide", lambda _: sides.pop(0))
    wanted = [{"colour": "red", "size": "small"}] * 3 + [{"colour": "red"}]
    found = run(subject, Known(first, wanted), Known(second, wanted)).scores
    assert (found["colour, A"].value, found["colour, B"].value) == (0.25, 0.75)
    difference = found["colour, B - A"]
    assert (difference.value, difference.count) == (0.5, 4)
    assert difference.low < 0.5 < difference.high
    assert found["size, B - A"].value == 0
    assert found["size, A"].count == 3
    assert found["everything right, B"].value == 0.75
    assert "setting, A" not in found


def test_a_judge_that_is_missing_or_named(
    subject: Subjects, judge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storybook, "JUDGE_FILE", tmp_path / "none.safetensors")
    album = Known(noise(2, size=32), [{"colour": "red"}] * 2)
    assert any("there is no judge" in line for line in run(subject, album, album).notes)
    found = run(subject, album, album, judge=judge_file)
    assert found.scores["colour, B - A"].value == 0
    assert found.scores["PSNR between the two"].value == 100
    assert len(found.settings["judge_sha256"]) == 64


def test_settings_say_what_each_side_drew_with(subject: Subjects) -> None:
    album = Album(noise(2, size=32))
    drawing = {
        "model": {"name": "one", "sha256": "a" * 64}, "dtype": "float32", "device": "cpu",
        "scheduler": "ddim", "steps": "several", "guidance": 0.0, "width": 32, "height": 24,
        "loras": [], "embeddings": [], "negative_prompt": "", "guidance_rescale": 0.0,
        "clip_skip": 0, "eta": 0.0, "guidance_interval": [0.0, 1.0],
    }  # fmt: skip
    other = drawing | {
        "model": {"name": "two", "sha256": "b" * 64},
        "loras": [{"name": "x", "scale": 0.5, "sha256": "c" * 64}],
        "negative_prompt": "night",
        "guidance_interval": [0.2, 1.0],
    }
    sides = [replace(subject(album), drawing=one) for one in (drawing, other)]
    found = compared(*sides, names=NAMES, seeds=[4, 9], judge=None, clip_model=None)
    assert found.settings == {
        "A": NAMES[0], "B": NAMES[1], "pairs": 2, "seeds": "2 from 4 to 9",
        "scheduler": "ddim", "steps": "several", "guidance": 0.0, "dtype": "float32",
        "device": "cpu", "size": "32x24",
        "A model": "one", "B model": "two", "A model_sha256": "a" * 64,
        "B model_sha256": "b" * 64, "A loras": "none", "B loras": "c" * 64 + ":0.5",
        "A negative_prompt": "none", "B negative_prompt": "night",
        "A guidance_interval": "none", "B guidance_interval": [0.2, 1.0],
    }  # fmt: skip
    assert f"B loras {'c' * 12}:0.5" in table({"compare": found})


def test_pictures_of_two_sizes_have_no_likeness(subject: Subjects, tmp_path: Path) -> None:
    found = run(subject, Album(noise(2, size=32)), Album(noise(2, size=48)))
    assert found.scores == {}
    assert any("different sizes" in line for line in found.notes)
    assert (tmp_path / "compare.html").exists()


def test_clip_scores_are_compared(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [np.array([20.0, 30.0, 10.0]), np.array([21.0, 33.0, 10.5])]
    monkeypatch.setattr(
        comparison, "clip_scores", lambda *_: (rows.pop(0), {"clip_sha256": "0" * 64})
    )
    album = Album(noise(3, size=32), ["a", "b", "c"])
    found = run(subject, album, album, clip_model=tmp_path)
    assert found.scores["CLIP score, A"].value == pytest.approx(20)
    assert found.scores["CLIP score, B - A"].value == pytest.approx(1.5)
    assert found.settings["clip_sha256"] == "0" * 64


# --- the page ---


def test_every_picture_of_the_page_is_embedded_and_decodes() -> None:
    images = noise(3, size=400)
    pairs = [
        Pair(
            prompt=f"p {k}",
            facts=("seed 1",),
            first=lambda k=k: images[k],
            second=lambda: images[0],
        )
        for k in range(3)
    ]
    page = comparison_page(NAMES, pairs, {})
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(found) == len(re.findall("<img", page)) == 6
    for data in found:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (320, 320)
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert not re.search(r"https?://|url\(|@import", page)


def test_a_page_of_many_shows_the_first_ones() -> None:
    image = Image.new("RGB", (8, 8))
    pair = Pair(prompt="x", facts=(), first=lambda: image, second=lambda: image)
    page = comparison_page(NAMES, [pair] * 203, {})
    assert page.count("<figure>") == 200
    assert "the first 200 of 203" in page


def test_prompts_are_text() -> None:
    image = Image.new("RGB", (8, 8))
    plain = Pair(prompt="x", facts=("x",), first=lambda: image, second=lambda: image)
    expected = comparison_page(("x", "x"), [plain], {})
    for prompt in HOSTILE_PROMPTS:
        pair = Pair(prompt=prompt, facts=(prompt,), first=lambda: image, second=lambda: image)
        page = comparison_page((prompt, prompt), [pair], {})
        assert re.findall("<[a-z/!]+", page) == re.findall("<[a-z/!]+", expected)
        page.encode()
