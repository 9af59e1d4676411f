"""The examples that teach: the walk-through draws the pipeline's picture, the map names what is."""

import importlib
import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm_toolkit.explain import page
from ldm_toolkit.images import open_image
from ldm_toolkit.models import identity
from ldm_toolkit.pipeline import LatentPipeline

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PACKAGE = Path(identity.__file__).parent.parent
WALKTHROUGH = EXAMPLES / "walkthrough.py"
README = (EXAMPLES / "README.md").read_text("utf-8")
CONCEPTS = (
    "autoencoder", "ELBO", "GAN loss", "forward process", "bound", "sampling",
    "latent diffusion", "guidance",
)  # fmt: skip


def walk(picture_folder: Path, pipe: LatentPipeline) -> tuple[Image.Image, Image.Image]:
    """The picture that the script leaves, and the pipeline's for the same values."""
    found = runpy.run_path(str(WALKTHROUGH))
    options = {name: found[name] for name in ("steps", "guidance", "seed")}
    expected = pipe(found["prompt"], scheduler="ddim", **options).images[0]
    return open_image(picture_folder / "walkthrough.png"), expected


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_walkthrough_ends_with_the_pipelines_picture(
    prediction: str,
    model_factory: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_factory(prediction_type=prediction), folder)
    config = folder / "scheduler" / "scheduler_config.json"
    # As Stable Diffusion's say; without the word DDIM would cut x_0 off at -1 and 1.
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_sample": False}))
    monkeypatch.setattr(identity, "bundled_models", lambda: {"storybook": folder})
    monkeypatch.chdir(tmp_path)
    drawn, expected = walk(tmp_path, LatentPipeline.from_pretrained(folder))
    assert drawn.tobytes() == expected.tobytes()
    told = capsys.readouterr().out
    assert "as encode_prompt gives them: True" in told
    assert "walkthrough.png is the pipeline's picture" in told
    difference = re.search(r"scheduler differ by ([\d.e+-]+)", told)
    assert difference is not None
    assert float(difference[1]) < 1e-4


@pytest.mark.slow
def test_the_walkthrough_with_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn, expected = walk(tmp_path, LatentPipeline.from_pretrained("storybook"))
    assert drawn.tobytes() == expected.tobytes()


def test_the_walkthrough_is_a_notebook() -> None:
    text = WALKTHROUGH.read_text("utf-8")
    cells = re.findall(r"^# %%(?: \[markdown\])?$", text, re.MULTILINE)
    assert len(cells) >= 15
    for name in ("tokenize", "encode_prompt", "predict_noise", "decode_latents", "make_scheduler"):
        assert f"pipe.{name}" in text
        assert callable(getattr(LatentPipeline, name))


def names_with_links() -> list[tuple[str, str]]:
    return re.findall(r"\[`(ldm_toolkit\.[\w.]+)`\]\(([^)]+)\)", README)


@pytest.mark.parametrize(("name", "link"), sorted(set(names_with_links())))
def test_every_function_of_the_map_is_where_it_says(name: str, link: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert callable(found)
    file = Path(importlib.import_module(module).__file__)
    assert (EXAMPLES / link).is_file()
    assert link == f"../ldm_toolkit/{file.relative_to(PACKAGE).as_posix()}"
    assert found.__module__ == module


def test_the_map_has_every_concept_with_a_function_and_a_picture() -> None:
    rows = {
        cells[0].strip(): cells[1:]
        for line in README.splitlines()
        if line.startswith("| ")
        for cells in [line.strip("|").split("|")]
    }
    assert set(CONCEPTS) <= set(rows)
    del rows["concept"], rows["---"]
    pictures = set()
    for concept, functions, drawn in map(_row, rows.items()):
        assert functions, concept
        assert drawn, concept
        pictures |= set(drawn)
    assert len(pictures) == page.COUNT


def _row(item: tuple[str, list[str]]) -> tuple[str, list[str], list[str]]:
    """A concept, the functions of its second cell, the pictures of its third."""
    concept, (functions, drawn) = item
    return (
        concept,
        re.findall(r"`(ldm_toolkit[\w.]+)`", functions),
        re.findall(r"`([a-z-]+)`", drawn),
    )


def test_the_maps_pictures_are_those_of_the_page() -> None:
    named = {name for name, _ in names_with_links() if name.startswith("ldm_toolkit.explain.")}
    drawn = {name.rpartition(".")[2] for name in named} - {"observe"}
    makers = set()
    for maker in page._MAKERS:
        makers |= set(maker.__code__.co_names)
    assert drawn <= makers


def test_links_of_the_map_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 20
    assert [name for name in targets if not (EXAMPLES / name).exists()] == []
