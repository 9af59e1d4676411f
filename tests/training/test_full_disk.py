"""A disk that is full or not ours: one line, exit code 74 or 2, and nothing half written."""

import os
from pathlib import Path
from typing import Any

import pytest
from training_tools import steps_of

from ldm_toolkit.training import checkpoints

STEPS, EVERY = 4, 2
COMMON = ["--size", 64, "--steps", STEPS, "--batch_size", 2, "--checkpoint_every", EVERY,
          "--warmup", 0, "--lr", "1e-3", "--threads", 1]  # fmt: skip
NAME = "finetune_unet.py: error: "


def command(model: Path, data: Path, output: Path) -> list:
    return ["finetune_unet", "--model", model, "--data", data, "--output", output, *COMMON]


def told(child: Any, code: int) -> str:
    """The one line that a run ended with."""
    assert child.wait() == code, child.errors
    assert "Traceback" not in child.errors
    lines = child.errors.splitlines()
    assert [line for line in lines if NAME in line] == lines[-1:]
    assert not child.out.read_text()
    return lines[-1].partition(NAME)[2]


def check_whole(output: Path) -> int:
    """Nothing is there by halves; the step of the newest checkpoint."""
    folder = output / "checkpoints"
    hidden = [path for path in output.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    assert hidden == []
    found = checkpoints.latest(folder)
    steps = [int(path.name[5:]) for path in folder.glob("step-*")]
    assert (found.step if found is not None else 0) == max(steps, default=0)
    weights = output / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.exists() == (output / "unet" / "config.json").exists()
    return max(steps, default=0)


def result(output: Path) -> dict[str, bytes]:
    places = [output / "unet", output / "checkpoints" / f"step-{STEPS:08d}"]
    return {path.name: path.read_bytes() for place in places for path in place.iterdir()}


@pytest.fixture(scope="module")
def whole(trainer, tiny_model, pictures, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole") / "run"
    child = trainer.run(*command(tiny_model, pictures, output))
    assert child.wait() == 0, child.errors
    return result(output)


@pytest.mark.parametrize(
    ("limit", "place"),
    [
        (4_000, "cache/latents"),
        (12_000, "cache/embeddings"),
        (50_000, "text_encoder"),
        (350_000, "checkpoints/step-00000002"),
        (900_000, "checkpoints/step-00000002"),
    ],
)
def test_no_room_for_a_file(limit, place, trainer, tiny_model, pictures, tmp_path):
    """Files may have so many bytes, as where a disk fills up or a quota ends."""
    child = trainer.run(*command(tiny_model, pictures, tmp_path), limit=limit)
    line = told(child, 74)
    assert line.startswith(f"cannot write {tmp_path / place}")
    assert check_whole(tmp_path) == 0


def test_no_room_for_the_result(trainer, tiny_model, pictures, tmp_path, whole):
    """The weights do not fit, which a checkpoint in several files does."""
    weights = len(whole["diffusion_pytorch_model.safetensors"])
    assert len(whole["optimizer.safetensors"]) > weights
    words = command(tiny_model, pictures, tmp_path)
    assert trainer.run(*words).wait() == 0
    before = (tmp_path / "unet" / "config.json").read_bytes()
    line = told(trainer.run(*words, limit=weights - 1), 74)
    assert line.startswith(f"cannot write {tmp_path / 'unet'}: ")
    assert check_whole(tmp_path) == STEPS
    assert (tmp_path / "unet" / "config.json").read_bytes() == before
    assert result(tmp_path) == whole


def fill_up(number: int, trainer: Any, words: list, output: Path) -> bool:
    """A run that may make so many files and folders; whether it could not end."""
    output.mkdir()
    child = trainer.run(*words, full=[str(output), number])
    if child.wait() == 0:
        return False
    line = told(child, 74)
    assert line.startswith("cannot write "), line
    assert "No space left on device" in line
    newest = check_whole(output)
    last = max(steps_of(output / "metrics.jsonl"), default=0)
    assert newest >= max(0, (last - 1) // EVERY * EVERY)
    return True


@pytest.mark.parametrize("number", [0, 3, 9, 20, 31, 34])
def test_a_disk_that_fills_up(number, trainer, tiny_model, pictures, tmp_path):
    output = tmp_path / "run"
    assert fill_up(number, trainer, command(tiny_model, pictures, output), output)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_file(trainer, tiny_model, pictures, tmp_path, whole):
    """And the same command ends with the same bits when there is room again."""
    for number in range(200):
        output = tmp_path / str(number)
        words = command(tiny_model, pictures, output)
        if not fill_up(number, trainer, words, output):
            break
        child = trainer.run(*words)
        assert child.wait() == 0, child.errors
        assert result(output) == whole
        assert steps_of(output / "metrics.jsonl") == list(range(1, STEPS + 1))
    assert 30 < number < 199


def in_the_way(place: str, kind: str, output: Path) -> None:
    output.mkdir(exist_ok=True)
    path = output / place
    path.mkdir() if kind == "folder" else path.write_text("x")


@pytest.mark.parametrize(
    ("place", "kind", "code", "steps"),
    [
        ("", "file", 2, 0),
        ("config.json", "folder", 74, 0),
        ("cache", "file", 74, 0),
        ("vae", "file", 74, 0),
        ("model_index.json", "folder", 74, 0),
        ("metrics.jsonl", "folder", 74, 0),
        ("checkpoints", "file", 74, 0),
        ("unet", "file", 74, STEPS),  # found at the end, where a checkpoint has all of it
    ],
)
def test_what_is_in_the_way(place, kind, code, steps, trainer, tiny_model, pictures, tmp_path):
    output = tmp_path / "run"
    if place:
        in_the_way(place, kind, output)
    else:
        output.write_text("x")
    line = told(trainer.run(*command(tiny_model, pictures, output)), code)
    assert str(output / place) in line
    assert len(steps_of(output / "metrics.jsonl")) == steps


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission(trainer, tiny_model, pictures, tmp_path):
    output = tmp_path / "run"
    output.mkdir(mode=0o500)
    line = told(trainer.run(*command(tiny_model, pictures, output)), 74)
    assert "Permission denied" in line
