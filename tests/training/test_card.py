"""The model card: what it says, what it must not say, and whose file it leaves alone."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from ldm_toolkit.training import card
from ldm_toolkit.training.card import Result, write_card
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.curve import draw_curve, read_metrics
from ldm_toolkit.training.lora_output import KOHYA_FILE

RESULT = Result(20, "f" * 64)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The folder of a run that is over."""
    folder = tmp_path / "secret-user" / "my-model"
    folder.mkdir(parents=True)
    lines = [{"step": n, "loss": 2.0 - n / 10} for n in range(1, 11)]
    lines[-1]["validation"] = {"pictures": 5, "raw": {"loss": 0.75, "margin": 0.125}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def unet(output: Path, **options) -> UNetConfig:
    settings = {"data": str(output.parent / "my-data"), "steps": 10} | options
    return UNetConfig(output=str(output), **settings)


def options_of(text: str) -> dict:
    fence, block = re.search(r"^(```+)yaml\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL).groups()
    assert fence not in block
    return yaml.safe_load(block)


def test_what_it_says_of_a_whole_model(output):
    (output / "samples").mkdir()
    for step in (5, 7, 10):
        (output / "samples" / f"step-{step:08d}.png").write_bytes(b"")
    write_card(unet(output, sample_prompts=["a cat's\n```hat"]), RESULT)
    text = (output / "README.md").read_text()
    made = ModelCard(text).data.to_dict()
    assert made == {  # no base_model: storybook is no name on the hub
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "text-to-image"],
    }
    assert text.startswith("---\n")
    assert "# my-model\n\nAll weights of the UNet, trained from `storybook`, the model that" in text
    assert " comes with ldm_toolkit, in 10 steps" in text
    assert "20 pictures" in text
    assert "f" * 64 in text
    assert "first tenth of the steps: 1.9; of the last: 1." in text
    assert "5 held-out pictures at the end: 0.75 ± 0.12" in text
    assert "![step 5](samples/step-00000005.png)" in text
    assert "![step 10](samples/step-00000010.png)" in text
    assert "step-00000007" not in text
    command = text.partition("```bash\n")[2].partition("\n```")[0]
    assert shlex.split(command) == ["ldm-gen", "a cat's ```hat", "--model", "my-model"]
    assert "from left to right: `a cat's '''hat`\n" in text
    assert options_of(text) == vars(unet(output)) | {
        "output": "my-model", "data": "my-data", "sample_prompts": ["a cat's\n```hat"],
    }  # fmt: skip
    with Image.open(output / "loss.png") as picture:
        assert picture.size == (640, 320)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 3
    assert not list(output.glob(".*"))


def test_no_place_of_this_machine(output):
    home = str(output.parent)
    write_card(
        unet(output, model=f"{home}/base", vae=f"{home}/base/vae", text_encoder="~/me/text",
             cache="../me/cache", validation_data=f"{home}/held", validate_every=1),
        RESULT,
    )  # fmt: skip
    text = (output / "README.md").read_text()
    assert "secret-user" not in text
    assert "me/" not in text
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "trained from `base` in 10 steps" in text
    found = options_of(text)
    names = ("model", "vae", "text_encoder", "cache", "validation_data")
    assert [found[name] for name in names] == ["base", "vae", "text", "cache", "held"]


def test_a_model_of_the_hub_keeps_its_name(output):
    snapshot = output.parent / "hub" / "models--some-body--a-model" / "snapshots" / ("a" * 40)
    write_card(unet(output, model=str(snapshot), method="lora"), Result(2, "0", "a.safetensors"))
    text = (output / "README.md").read_text()
    assert ModelCard(text).data.base_model == "some-body/a-model"
    assert "trained from `some-body/a-model` in 10 steps" in text
    assert "--model some-body/a-model --lora" in text


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (RESULT, "The folder is a model in the diffusers layout"),
        (Result(2, "0", "a.safetensors"), "`a.safetensors` is what was trained"),
        (Result(2, "0", whole=False), "`vae/` is what was trained"),
    ],
)
def test_what_to_publish_of_the_folder(result, told, output):
    for name in ("checkpoints", "cache", "samples", "unet"):
        (output / name).mkdir()
    write_card(unet(output), result)
    part = (output / "README.md").read_text().partition("## Files\n")[2].partition("\n## ")[0]
    assert told in part
    assert "training needs `checkpoints/` and `cache/`: do not publish them" in part
    words = shlex.split(part.partition("```bash\n")[2].partition("\n```")[0])
    assert words[:5] == ["hf", "upload", "YOUR-NAME/my-model", "my-model", "."]
    left_out = [after for word, after in pairwise(words) if word == "--exclude"]
    paths = ["README.md", "unet/config.json", "checkpoints/step-00000001/state.json", "cache/a/b"]
    kept = filter_repo_objects(paths, ignore_patterns=left_out)
    assert list(kept) == paths[:2]


def test_a_data_set_of_the_hub_keeps_its_name(output):
    write_card(unet(output, data="owner/name"), RESULT)
    assert options_of((output / "README.md").read_text())["data"] == "owner/name"


WORD = {"method": "textual-inversion", "token": "<x>"}
SUBJECT = {"method": "dreambooth-lora", "class_prompt": "a dog", "instance_prompt": "a sks dog"}


@pytest.mark.parametrize(
    ("options", "file", "command", "tags", "told"),
    [
        ({"method": "lora"}, "a.safetensors", ["a dog wearing hat", "--lora"], ["lora"], "A LoRA"),
        (WORD, "w.safetensors", ["a photo of <x>", "--embedding"], ["textual_inversion"], "`<x>`"),
        (SUBJECT, "a.safetensors", ["a sks dog", "--lora"], ["dreambooth", "lora"], "A LoRA of"),
    ],
)
def test_what_lies_beside_a_model(options, file, command, tags, told, output):
    write_card(unet(output, **options), Result(2, "0", file))
    text = (output / "README.md").read_text()
    found = shlex.split(text.partition("```bash\n")[2].partition("\n```")[0])
    prompt, option = command
    assert found == ["ldm-gen", prompt, "--model", "storybook", option, f"my-model/{file}"]
    data = ModelCard(text).data
    assert data.tags == ["stable-diffusion", "text-to-image", *tags]
    assert data.to_dict().get("instance_prompt") == options.get("instance_prompt")
    assert told in text.partition("## Use")[0]
    assert KOHYA_FILE not in text
    (output / KOHYA_FILE).write_bytes(b"")
    write_card(unet(output, **options), Result(2, "0", file))
    assert f"The web UIs read `{KOHYA_FILE}`" in (output / "README.md").read_text()


def test_an_autoencoder_from_nothing_is_no_pipeline(output):
    config = VAEConfig(data="d", output=str(output), from_config="c", train="all", size=512)
    write_card(config, Result(2, "0", whole=False))
    text = (output / "README.md").read_text()
    assert ModelCard(text).data.to_dict() == {
        "library_name": "diffusers", "tags": ["stable-diffusion"]
    }  # fmt: skip
    assert "The autoencoder, trained from fresh weights" in text
    assert "AutoencoderKL.from_pretrained('my-model', subfolder=\"vae\")" in text
    assert "ldm-gen" not in text


def test_a_method_without_a_row_of_its_own(output, monkeypatch):
    monkeypatch.delitem(card._KINDS, "full")
    write_card(unet(output), RESULT)
    assert "What the method full trains" in (output / "README.md").read_text()


def test_only_a_card_of_ours_is_replaced(output, caplog):
    caplog.set_level("INFO")
    place = output / "README.md"
    place.write_bytes(b"# mine \xff\n")
    write_card(unet(output), RESULT)
    assert place.read_bytes() == b"# mine \xff\n"
    assert not (output / "loss.png").exists()
    assert "stays as it is" in caplog.text
    place.unlink()
    write_card(unet(output), RESULT)
    first = place.read_text()
    write_card(unet(output), Result(21, "e" * 64))
    assert "21 pictures" in place.read_text()
    place.write_text("\n".join(line for line in first.splitlines() if "<!--" not in line))
    kept = place.read_text()
    write_card(unet(output), RESULT)
    assert place.read_text() == kept


def test_equal_runs_have_equal_cards(output):
    found = []
    for _ in range(2):
        write_card(unet(output), RESULT)
        found.append([(output / name).read_bytes() for name in ("README.md", "loss.png")])
        (output / "README.md").unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("text", ["", '{"step": 1, "lo', '{"step": 1, "loss": NaN}\n[]\n7\n'])
def test_runs_without_losses_have_a_card_without_a_curve(text, output):
    (output / "metrics.jsonl").write_text(text)
    write_card(unet(output), RESULT)
    assert "loss.png" not in (output / "README.md").read_text()
    assert not (output / "loss.png").exists()


def test_lines_that_say_nothing_are_left_out(tmp_path):
    good = {"step": 2, "loss": 0.5}
    (tmp_path / "m").write_text(f'{{"step": 1, "loss": NaN}}\n{json.dumps(good)}\n{{"step": 3, ')
    assert read_metrics(tmp_path / "m") == [good]
    assert read_metrics(tmp_path / "none") == []


def test_a_curve_goes_down_where_the_losses_do():
    """Where the dark line is in its first and last column."""
    picture = draw_curve(range(1, 101), [1.0 - n / 100 for n in range(100)])
    dark = [
        (x, y) for x in range(60, 610) for y in range(25, 295) if picture.getpixel((x, y))[0] < 100
    ]
    assert min(dark)[1] < 60
    assert max(dark)[1] > 260


@pytest.mark.parametrize("losses", [[0.5], [0.5, 0.5], [1.0] * 99 + [1e9]])
def test_curves_of_few_equal_or_wild_losses(losses):
    assert draw_curve(range(1, len(losses) + 1), losses).size == (640, 320)
