"""Model folders that a training completes: name, defaults, and nothing of this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.load import load_components
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.folders import (
    complete_model,
    copied_bytes,
    load_network,
    result_name,
    shown_options,
    write_config,
)
from ldm_toolkit.training.inputs import model_folder, usual_latents

CARD = {
    "name": "storybook",
    "revision": "3",
    "defaults": {"scheduler": "euler", "guidance_rescale": 0.25, "width": 72, "height": 56},
}


@pytest.fixture
def base(model_factory, tmp_path: Path) -> Path:
    """A model whose defaults are other than those of its configurations."""
    folder = tmp_path / "base"
    complete_model(model_factory(), folder, set())
    (folder / "ldm_toolkit.json").write_text(json.dumps(CARD))
    return folder


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ldm_toolkit.json").read_text())


def test_a_result_has_its_bases_defaults_under_its_own_name(base, tmp_path):
    output = tmp_path / "my-model"
    complete_model(base, output, set())
    assert about(output) == {"name": "my-model", "defaults": CARD["defaults"]}
    output.rename(tmp_path / "moved")
    components = load_components(tmp_path / "moved")
    assert (components.identity.name, components.identity.revision) == ("my-model", "")
    found = components.defaults
    assert (found.name, found.width, found.height) == ("my-model", 72, 56)
    assert (found.scheduler, found.guidance_rescale) == ("euler", 0.25)
    result = LatentPipeline(components)("a dog", steps=1, seed=1)
    assert result.images[0].size == (72, 56)
    assert isinstance(result.images[0], Image.Image)
    assert result.recipes[0].model["name"] == "my-model"


def test_another_scheduler_is_not_overruled_by_the_bases_default(base, tmp_path):
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    changed = config | {"_class_name": "DDIMScheduler"}
    complete_model(base, tmp_path / "m", set(), scheduler_config=changed)
    defaults = {name: value for name, value in CARD["defaults"].items() if name != "scheduler"}
    assert about(tmp_path / "m") == {"name": "m", "defaults": defaults}
    assert load_components(tmp_path / "m").defaults.scheduler == "ddim"


@pytest.mark.parametrize(
    ("told", "latents"), [({"latents": "mean"}, "mean"), ({}, "sample"), ({"latents": 3}, "sample")]
)
def test_a_result_knows_what_its_base_was_trained_on(told, latents, base, tmp_path):
    (base / "ldm_toolkit.json").write_text(json.dumps(CARD | told))
    complete_model(base, tmp_path / "m", set())
    assert usual_latents(tmp_path / "m") == latents
    (base / "ldm_toolkit.json").unlink()
    assert usual_latents(base) == "sample"
    assert usual_latents(model_folder("storybook")) == "mean"


@pytest.mark.parametrize("card", [None, "{}", '{"defaults": 5}'])
def test_a_base_without_defaults(card, base, tmp_path):
    (base / "ldm_toolkit.json").unlink()
    if card is not None:
        (base / "ldm_toolkit.json").write_text(card)
    complete_model(base, tmp_path / "m", set())
    assert about(tmp_path / "m") == {"name": "m"}
    assert load_components(tmp_path / "m").defaults.width == 64


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("my-model", "my-model"),
        ("storybook", "storybook-finetuned"),
        ("a\nb", "ab"),
        ("x" * 200, "x" * 80),
    ],
)
def test_names(folder, name, tmp_path):
    assert result_name(tmp_path / folder) == name


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert result_name(Path(".")) == "here"


def test_saved_configurations_name_no_folder(base, tmp_path):
    unet = load_network(UNet2DConditionModel, base / "unet")
    unet.save_pretrained(tmp_path / "unet")
    assert str(tmp_path) not in (tmp_path / "unet" / "config.json").read_text()


def test_what_will_be_copied_is_known_before(tiny_model, tmp_path):
    parts = {"vae": tiny_model / "vae", "text_encoder": tmp_path / "text_encoder"}
    with pytest.raises(ModelError, match="text_encoder is missing"):
        copied_bytes(tiny_model, tmp_path, {"unet"}, parts)
    output = tmp_path / "o"
    before = copied_bytes(tiny_model, output, {"unet"})
    complete_model(tiny_model, output, {"unet"})
    copied = [path for path in output.glob("*/*") if path.is_file()]
    assert before == sum(path.stat().st_size for path in copied) > 1000
    assert copied_bytes(tiny_model, output, {"unet"}) == 0
    (output / "vae" / "config.json").write_bytes(b"")
    found = sum(path.stat().st_size for path in (tiny_model / "vae").iterdir())
    assert copied_bytes(tiny_model, output, {"unet"}) == found


def test_the_options_of_a_result_name_no_folder_of_this_machine(tmp_path, monkeypatch):
    here = tmp_path / "secret-user" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    config = UNetConfig(
        data=str(here / "pictures" / "dogs"), output=str(tmp_path / "secret-user" / "out"),
        model=f"{tmp_path}/models/base", cache="some/cache", vae="../vae", validate_every=1,
        validation_data=str(here), sample_prompts=["/absolute nonsense"],
    )  # fmt: skip
    shown = shown_options(config)
    assert {name for name, value in vars(config).items() if shown[name] != value} == {
        "data", "output", "model", "validation_data",
    }  # fmt: skip
    assert (shown["data"], shown["output"], shown["model"]) == ("pictures/dogs", "out", "base")
    assert shown["validation_data"] == "."
    assert (shown["cache"], shown["vae"], shown["class_data"]) == ("some/cache", "../vae", None)
    Path(config.output).mkdir()
    write_config(config)
    assert json.loads(Path(config.output, "config.json").read_text()) == shown


def test_equal_parts_are_not_copied_again(tiny_model, tmp_path):
    """A resumed run leaves them alone; a changed one is put right."""
    complete_model(tiny_model, tmp_path, {"unet"})
    files = {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.parent != tmp_path}
    damaged = tmp_path / "vae" / "config.json"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole + b" ")
    complete_model(tiny_model, tmp_path, {"unet"})
    assert damaged.read_bytes() == whole
    for path, number in files.items():
        if path.is_file() and path.parent.name != "vae":
            assert path.stat().st_ino == number, path
