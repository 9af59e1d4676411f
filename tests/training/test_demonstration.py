"""What the examples do without arguments: they teach the bundled model robots."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from ldm_toolkit.images import open_image
from ldm_toolkit.training import run

REPO = Path(__file__).parents[2]
ROBOTS = REPO / "assets" / "robots"
COMMANDS = {"finetune_unet": ("train_unet", "robot-lora"),
            "finetune_vae": ("train_vae", "robot-decoder")}  # fmt: skip


def captions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def draw_robots() -> dict:
    """The names of the script that drew the data set."""
    return runpy.run_path(str(REPO / "examples" / "demo" / "draw_robots.py"))


def test_the_data_set_is_what_the_script_draws(draw_robots):
    rows = captions(ROBOTS)
    drawn = list(draw_robots["robots"]())
    assert [{"file_name": name, "text": caption} for name, caption, _ in drawn] == rows
    for name, _, picture in drawn:
        kept = np.asarray(open_image(ROBOTS / name), dtype=int)
        assert np.abs(kept - np.asarray(picture, dtype=int)).max() == 0, name
    assert {path.name for path in ROBOTS.iterdir()} == {"metadata.jsonl", *(r[0] for r in drawn)}
    assert sum(path.stat().st_size for path in ROBOTS.iterdir()) < 600_000


def test_the_storybook_knows_no_robots(draw_robots):
    from ldm_toolkit.storybook.scenes import known_words

    said = {word for row in captions(ROBOTS) for word in row["text"].split()}
    assert said - known_words() == {"robot"}


@pytest.fixture
def demonstrate(monkeypatch, tmp_path, tiny_model, caplog):
    """Run an example without arguments, on a tiny model and in two steps; what it logged."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def start(script: str) -> str:
        name = COMMANDS[script][0]
        real = getattr(run, name)
        smaller = {
            "model": str(tiny_model),
            "size": 64,
            "steps": 2,
            "threads": 1,
            "sample_every": 2,
        }
        smaller |= {"crop": 32} if script == "finetune_vae" else {"lr": 0.1, "warmup": 0}

        def small(config, *more):
            real(dataclasses.replace(config, **smaller), *more)

        caplog.clear()
        path = REPO / "examples" / f"{script}.py"
        with monkeypatch.context() as patch:
            patch.setattr(run, name, small)
            patch.setattr(sys, "argv", [str(path)])
            AcceleratorState._reset_state(reset_partial_state=True)
            runpy.run_path(str(path), run_name="__main__")
            AcceleratorState._reset_state(reset_partial_state=True)
        return caplog.text

    return start


@pytest.mark.parametrize("script", COMMANDS)
def test_without_arguments_there_is_a_demonstration(script, demonstrate, capsys):
    told = demonstrate(script)
    output = Path(COMMANDS[script][1])
    assert capsys.readouterr().out == f"{output}\n"
    assert "No arguments: this is the demonstration" in told
    assert "--data FOLDER --output FOLDER" in told
    assert f"--data {ROBOTS}" in told
    assert str(output / "before_after.png") in told
    assert told.count("with a PSNR of") == (2 if script == "finetune_vae" else 0)
    steps = [open_image(output / "samples" / f"step-0000000{step}.png") for step in (0, 2)]
    both = np.asarray(open_image(output / "before_after.png"))
    width, height = steps[0].size
    assert both.shape == (2 * height, width, 3)
    assert np.array_equal(both[:height], np.asarray(steps[0]))
    assert np.array_equal(both[height:], np.asarray(steps[1]))
    assert not np.array_equal(both[:height], both[height:])
    kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    again = demonstrate(script)
    assert "resumed at step 2" in again
    assert f"all 2 steps are done already: for another run pass another --output than {output}" in (
        again
    )
    assert kept == {path: path.read_bytes() for path in kept}
    assert capsys.readouterr().out == f"{output}\n"


@pytest.mark.parametrize("script", COMMANDS)
def test_with_any_argument_the_rules_are_the_usual_ones(script, trainer):
    child = trainer.run(script, "--steps", 3)
    assert child.wait() == 2
    assert "demonstration" not in child.errors
    assert "data" in child.errors
    assert "output" in child.errors


def words_of(script: str) -> list[str]:
    """What the command takes for its arguments when it has none."""
    return list(runpy.run_path(str(REPO / "examples" / f"{script}.py"))["DEMONSTRATION"].words)


def losses(script: str, words: list[str], folder: Path) -> list[float]:
    """Run the command; the losses on held-out pictures with the averaged weights."""
    command = [sys.executable, str(REPO / "examples" / f"{script}.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "o" / "metrics.jsonl").read_text().splitlines()]
    return [row["validation"]["averaged"]["loss"] for row in rows if "validation" in row]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "factor"), [("finetune_unet", 0.75), ("finetune_vae", 0.98)])
def test_robots_are_learned(script, factor, draw_robots, tmp_path):
    """The loss on robots that were not in the training falls by a factor."""
    held = tmp_path / "held"
    held.mkdir()
    rows = []
    for name, caption, picture in draw_robots["robots"](range(20, 28)):
        picture.save(held / name, lossless=True)
        rows.append(json.dumps({"file_name": name, "text": caption}))
    (held / "metadata.jsonl").write_text("\n".join(rows))
    words = [*words_of(script), "--output", "o", "--validation-data", str(held)]
    still = ["--steps", "1", "--warmup", "0", "--lr", "1e-12", "--validate-every", "1"]
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    before = losses(script, [*words, *still, "--sample-every", "0"], untrained)[-1]
    after = losses(script, [*words, "--validate-every", "10000"], tmp_path)[-1]
    assert after < factor * before
    assert (tmp_path / "o" / "before_after.png").is_file()
