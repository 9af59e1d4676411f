"""Killed at any moment and started again by the same command: the same bits as without a kill.

After each kill the newest checkpoint is whole, and none that was published is lost. With the
damaged files of `test_damage.py` these are the promised 120 faults: 100 kills marked slow, in parts
of ten, three of each inside a save and one inside caching; twelve more by default.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from training_tools import steps_of, wait_for

from ldm_toolkit.training import checkpoints

FEW, MANY, EVERY = 30, 60, 3  # steps
COMMON = ["--size", 64, "--batch_size", 2, "--checkpoint_every", EVERY, "--warmup", 4,
          "--lr", "1e-3", "--threads", 1, "--seed", 5]  # fmt: skip
CASES: dict[str, tuple[str, list]] = {
    "finetune_unet": ("unet", []),
    "finetune_vae": (
        "vae",
        ["--crop", 32, "--crops", 2, "--train", "all", "--adversarial_weight", 0.5],
    ),
}
SAVING = "ldm_toolkit.training.checkpoints"
# Places inside a save: with files of a checkpoint written, without a manifest, under its temporary
# name. Six files are written in two saves, of which the second follows the first's end.
IN_A_SAVE = [[SAVING, "save_file", n] for n in range(1, 7)] + [["os", "rename", n] for n in (1, 2)]
AFTER_A_SAVE = [[SAVING, "prune", n] for n in (1, 2)] + [["shutil", "rmtree", n] for n in (1, 2)]
# One after the other in a new folder: before the first shard, before it has its name, before the
# second one.
IN_CACHING = [
    ["ldm_toolkit.training.cache", "save", 1],
    ["os", "replace", 2],
    ["ldm_toolkit.training.cache", "save", 2],
]


def command(script: str, model: Path, data: Path, output: Path, steps: int = FEW) -> list:
    words = ["--model", model, "--data", data, "--output", output, "--steps", steps, *COMMON]
    return [script, *words, *CASES[script][1]]


def remains(output: Path, part: str, steps: int = FEW) -> dict[str, Any]:
    """The trained weights, the newest checkpoint, and what was told of each step."""
    newest = output / "checkpoints" / f"step-{steps:08d}"
    weights = output / part / "diffusion_pytorch_model.safetensors"
    files = [*newest.iterdir(), weights]
    found: dict[str, Any] = {path.name: path.read_bytes() for path in files}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    found["metrics"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return found


@pytest.fixture(scope="module")
def undisturbed(trainer, tiny_model, pictures, tmp_path_factory):
    """What a script leaves that nobody kills, made once."""
    made: dict[tuple[str, int], dict] = {}

    def of(script: str, steps: int = FEW) -> dict:
        if (script, steps) not in made:
            output = tmp_path_factory.mktemp("whole") / "run"
            child = trainer.run(*command(script, tiny_model, pictures, output, steps))
            assert child.wait() == 0, child.errors
            made[script, steps] = remains(output, CASES[script][0], steps)
        return made[script, steps]

    return of


def published(output: Path) -> int:
    """The last step whose checkpoint was there for certain, by the line of the step after it."""
    last = max(steps_of(output / "metrics.jsonl"), default=0)
    return max(0, (last - 1) // EVERY * EVERY)


def check_newest(output: Path, before: int) -> int:
    """The newest checkpoint is whole and no older than what was published; its step."""
    folder = output / "checkpoints"
    names = [int(path.name[5:]) for path in folder.glob("step-*")]
    found = checkpoints.latest(folder)
    step = found.step if found is not None else 0
    assert step == max(names, default=0)
    assert step >= max(before, published(output))
    return step


def at_a_moment(trainer: Any, words: Sequence, output: Path, rng: random.Random) -> Any:
    """Start, and kill from outside some steps and milliseconds later."""
    metrics = output / "metrics.jsonl"
    target = max(steps_of(metrics), default=0) // EVERY * EVERY + rng.randrange(2, 5)
    child = trainer.start(*words)
    wait_for(lambda: max(steps_of(metrics), default=0) >= target)
    time.sleep(rng.random() * 0.03)
    child.kill(signal.SIGKILL)
    return child


def kill_and_go_on(
    kinds: Sequence[str], seed: str, trainer: Any, words: Sequence, output: Path
) -> None:
    """Kill a run as often as there are ``kinds``; then let it end."""
    rng, newest, inside = random.Random(seed), 0, 0
    caching = iter(IN_CACHING)
    for kind in kinds:
        if kind == "moment":
            child = at_a_moment(trainer, words, output, rng)
        else:
            places = {"save": IN_A_SAVE, "after": AFTER_A_SAVE}
            die = next(caching) if kind == "caching" else rng.choice(places[kind])
            child = trainer.run(*words, die=die)
        assert child.wait() == -signal.SIGKILL, (kind, child.errors)
        if kind == "save":
            inside += len(list((output / "checkpoints").glob(".step-*.tmp")))
        if kind == "caching":
            assert not steps_of(output / "metrics.jsonl")
        newest = check_newest(output, newest)
    assert inside == list(kinds).count("save")
    child = trainer.run(*words)
    assert child.wait() == 0, child.errors
    assert newest > 0
    assert f"resumed at step {newest}" in child.errors


def compare(output: Path, part: str, expected: dict[str, Any]) -> None:
    found = remains(output, part, len(expected["metrics"]))
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not list((output / "checkpoints").glob(".*"))
    assert len(list((output / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("script", list(CASES))
def test_six_kills_change_no_bit(script, undisturbed, trainer, tiny_model, pictures, tmp_path):
    words = command(script, tiny_model, pictures, tmp_path)
    first = "caching" if script == "finetune_unet" else "moment"
    kinds = [first, "save", "moment", "save", "moment", "after"]
    kill_and_go_on(kinds, f"kills of {script}", trainer, words, tmp_path)
    compare(tmp_path, CASES[script][0], undisturbed(script))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_kills_change_no_bit(part, undisturbed, trainer, tiny_model, pictures, tmp_path):
    script = "finetune_vae" if part % 3 == 2 else "finetune_unet"  # the autoencoder has no cache
    kinds = ["save"] * 3 + ["after"] + ["moment"] * 4
    random.Random(f"order of {part}").shuffle(kinds)
    kinds = (["caching"] * 2 if script == "finetune_unet" else ["moment"] * 2) + kinds
    words = command(script, tiny_model, pictures, tmp_path, MANY)
    kill_and_go_on(kinds, f"long kills, part {part}", trainer, words, tmp_path)
    compare(tmp_path, CASES[script][0], undisturbed(script, MANY))


def test_every_kill_inside_caching(trainer, tiny_model, pictures, tmp_path):
    """Each is later than the one before, and what is then cached are the very same rows."""

    def cached(output: Path) -> dict[str, bytes]:
        files = (output / "cache").rglob("0*.safetensors")
        return {str(path.relative_to(output)): path.read_bytes() for path in files}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = trainer.run(*command("finetune_unet", tiny_model, pictures, whole, 2))
    assert child.wait() == 0, child.errors
    words = command("finetune_unet", tiny_model, pictures, killed, 2)
    counts = []
    for die in IN_CACHING:
        assert trainer.run(*words, die=die).wait() == -signal.SIGKILL
        counts.append(len(cached(killed)))
    assert counts == [0, 0, 1]
    child = trainer.run(*words)
    assert child.wait() == 0, child.errors
    assert cached(killed) == cached(whole)
    assert len(cached(whole)) == 2


@pytest.mark.parametrize("caches", ["gone", "of another run"])
def test_a_run_goes_on_without_its_caches_or_with_others(
    caches, undisturbed, trainer, tiny_model, pictures, tmp_path
):
    """They are computed again, or were there before; the bits stay."""
    words = command("finetune_unet", tiny_model, pictures, tmp_path / "run")
    assert trainer.run(*words, die=AFTER_A_SAVE[1]).wait() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "run" / "cache")
    if caches == "of another run":
        shared = ["--cache", tmp_path / "cache"]
        other = [*words, *shared, "--output", tmp_path / "other", "--steps", 1]
        assert trainer.run(*other).wait() == 0
        words = [*words, *shared]
    child = trainer.run(*words)
    assert child.wait() == 0, child.errors
    assert "resumed at step 6" in child.errors
    assert remains(tmp_path / "run", "unet") == undisturbed("finetune_unet")
