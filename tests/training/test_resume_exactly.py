"""Stopped by a signal or with other options: what the same command does then."""

import shlex
import signal
from pathlib import Path

import pytest
from training_tools import steps_of, wait_for

STEPS = 30
COMMON = ["--size", 64, "--steps", STEPS, "--batch_size", 2, "--checkpoint_every", 3,
          "--warmup", 4, "--lr", "1e-3", "--threads", 1, "--seed", 5]  # fmt: skip


def command(model: Path, data: Path, output: Path) -> list:
    return ["finetune_unet", "--model", model, "--data", data, "--output", output, *COMMON]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    number, code, trainer, tiny_model, pictures, tmp_path
):
    words = command(tiny_model, pictures, tmp_path)
    words[words.index("--checkpoint_every") + 1] = 1000
    child = trainer.start(*words)
    metrics = tmp_path / "metrics.jsonl"
    wait_for(lambda: max(steps_of(metrics), default=0) >= 2)
    assert child.kill(number) == code
    done = max(steps_of(metrics))
    assert done < STEPS
    assert "the same command goes on from" in child.errors
    assert shlex.join([str(word) for word in words[1:]]) in child.errors
    assert "Traceback" not in child.errors
    assert (tmp_path / "checkpoints" / f"step-{done:08d}" / "manifest.json").is_file()
    if number == signal.SIGTERM:
        child = trainer.run(*words)
        assert child.wait() == 0
        assert f"resumed at step {done}" in child.errors


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--lr", "2e-3"], "--lr 0.001 (now 0.002)"),
        (["--seed", 6], "--seed 5 (now 6)"),
        (["--batch_size", 3], "--batch-size 2 (now 3)"),
        (["--caption_dropout", 0.5], "--caption-dropout 0.1 (now 0.5)"),
        (["--data", "other"], "--data (its content has changed)"),
    ],
)
def test_other_options_are_refused(change, told, half_run, trainer, pictures):
    if change[1] == "other":
        other = half_run[1].parent / "other_pictures"
        if not other.exists():
            other.mkdir()
            for path in list(pictures.iterdir())[:-2]:
                (other / path.name).write_bytes(path.read_bytes())
            names = {path.stem for path in other.iterdir()}
            for stem in names:
                if not all((other / f"{stem}{end}").exists() for end in (".png", ".txt")):
                    next(other.glob(f"{stem}.*")).unlink()
        change = ["--data", other]
    child = trainer.run(*half_run[0], *change)
    assert child.wait() == 2
    assert told in child.errors
    assert "--resume false to start again" in child.errors


def test_what_does_not_change_the_course_may_change(half_run, trainer, pictures, tmp_path):
    """Also the place of the data: its content counts."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in pictures.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    changes = ["--steps", 7, "--checkpoint_every", 2, "--keep", 3, "--threads", 1]
    child = trainer.run(*half_run[0], *changes, "--data", moved)
    assert child.wait() == 0, child.errors
    assert "resumed at step 6" in child.errors
    assert steps_of(half_run[1] / "metrics.jsonl") == list(range(1, 8))


def test_starting_again_leaves_nothing_of_the_first_run(half_run, trainer):
    """The old, later checkpoints must not win over the new ones."""
    child = trainer.run(*half_run[0], "--resume", "false", "--steps", 3, "--seed", 9)
    assert child.wait() == 0, child.errors
    names = [path.name for path in (half_run[1] / "checkpoints").iterdir()]
    assert names == ["step-00000003"]
    assert steps_of(half_run[1] / "metrics.jsonl") == [1, 2, 3]


@pytest.fixture(scope="module")
def half_run(trainer, tiny_model, pictures, tmp_path_factory) -> tuple[list, Path]:
    """The words of a command and its output after six steps."""
    output = tmp_path_factory.mktemp("half") / "run"
    words = command(tiny_model, pictures, output)
    words += ["--steps", 6, "--lr_schedule", "constant"]
    assert trainer.run(*words).wait() == 0
    return words, output
