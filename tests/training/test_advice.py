"""What is no mistake but seldom meant is told once, in one line, before the first step."""

import json
import shutil

import pytest
from training_tools import steps_of
from transformers import CLIPTokenizer

from ldm_toolkit import given
from ldm_toolkit.training.advice import warn_of_size, warn_of_words
from ldm_toolkit.training.config import UNetConfig


def config(**options):
    return UNetConfig(**({"data": "d", "output": "o", "size": 64} | options))


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy that is said to have been trained at 192 pixels."""
    given.warn_if_small.cache_clear()
    folder = tmp_path / "my-model"
    shutil.copytree(tiny_model, folder)
    about = {"name": "its own name", "defaults": {"width": 192, "height": 192}}
    (folder / "ldm_toolkit.json").write_text(json.dumps(about))
    return folder


def test_pictures_far_smaller_than_the_model_s(model, caplog):
    warn_of_size(config(size=192), model, model / "vae")
    warn_of_size(config(size=128), model, model / "vae")
    assert caplog.messages == []
    warn_of_size(config(size=64), model, model / "vae")
    told = "its own name was trained at 192x192; at 64x64 it draws poorly"
    assert caplog.messages == [told]
    fresh = config(from_config=str(model), vae="v", text_encoder="t")
    warn_of_size(fresh, model, model / "vae")
    assert caplog.messages == [told]


def test_the_size_is_the_unet_s_where_nothing_else_is_said(model, caplog):
    (model / "ldm_toolkit.json").unlink()
    settings = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps(settings | {"sample_size": 64}))
    warn_of_size(config(), model, model / "vae")
    assert caplog.messages == ["my-model was trained at 512x512; at 64x64 it draws poorly"]


def test_a_model_of_strange_defaults_is_not_judged(model, caplog):
    (model / "ldm_toolkit.json").write_text('{"defaults": {"width": 3}}')
    warn_of_size(config(), model, model / "vae")
    assert caplog.messages == []


def test_words_that_the_text_encoder_never_read(tiny_model, caplog):
    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_model / "tokenizer"))
    entries = [entry[:-4] for entry in tokenizer.get_vocab() if entry.endswith("</w>")]
    known = [entry for entry in entries if entry.isascii() and entry.isalpha()]
    assert len(known) > 30
    warn_of_words([" ".join(known).upper(), "7, (a:1.3)"], tokenizer)
    assert caplog.messages == []
    warn_of_words(["a Sks dog", "a robot, sks"], tokenizer)
    (told,) = caplog.messages
    assert "the text encoder never saw" in told
    assert "'sks'" in told
    assert "'robot'" in told
    assert "--train-text-encoder" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--validate-every", 1, "--validation-count", 2], True),
        (["--method", "lora"], True),
        (["--train-text-encoder"], False),
        (["--method", "textual-inversion", "--token", "<x>"], False),
    ],
)
def test_a_run_says_it_before_its_first_step(words, told, trainer, tiny_model, pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "0.txt").write_text("a photo of sks dog")
    child = trainer.run("finetune_unet", "--model", tiny_model, "--data", data, "--output",
                        tmp_path / "o", "--size", 64, "--steps", 1, "--batch_size", 2,
                        "--threads", 1, *words)  # fmt: skip
    assert child.wait() == 0, child.errors
    lines = [line for line in child.errors.splitlines() if "the text encoder never saw" in line]
    assert len(lines) == told
    assert steps_of(tmp_path / "o" / "metrics.jsonl") == [1]
