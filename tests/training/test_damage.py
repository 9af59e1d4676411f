"""Ten flipped bits and ten truncations of checkpoint files: the one before is used, bit for bit.

The other hundred of the promised 120 faults are the kills of `test_kills.py`.
"""

import contextlib
import io
import json
import logging
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import Line as LineMethod
from training_tools import line_config, steps_of, tiny_unet, unet_method

from ldm_toolkit.errors import UserError
from ldm_toolkit.files import sha256_file
from ldm_toolkit.training import checkpoints, loop

FILES = ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json",
         "manifest.json"]  # fmt: skip
FAULTS = [(name, kind, number) for number in (1, 2) for kind in ("flip", "cut") for name in FILES]
STEPS = 9


def flip(path: Path, rng: random.Random) -> None:
    """Turn one bit over, wherever it lies: in numbers, names or lengths."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """Leave a part of the file, perhaps none."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def train(output: Path, steps: int, accelerator: Any) -> None:
    method, settings = unet_method(
        output, unet=tiny_unet(channels=(8, 16)), steps=steps, batch_size=1, warmup=0, ema=0.9,
        lr_schedule="constant", checkpoint_every=3, keep=2,
    )  # fmt: skip
    loop.train(method, settings, accelerator)


def files_of(folder: Path) -> dict[str, object]:
    """What is in a folder, but for the number of steps that the run was to have at the time."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "state.json" in found:
        found["state.json"] = json.loads((folder / "state.json").read_text()) | {"steps": None}
        del found["manifest.json"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def undisturbed(whole: Path, accelerator: Any) -> Path:
    """A run of nine steps, beside it what it was after six; never write into it."""
    if not (whole / "nine").exists():
        (whole / "six").mkdir()
        train(whole / "six", 6, accelerator)
        shutil.copytree(whole / "six", whole / "nine")
        train(whole / "nine", STEPS, accelerator)
    return whole


@pytest.mark.parametrize(("name", "kind", "number"), FAULTS)
def test_a_damaged_file_costs_one_checkpoint(
    name: str, kind: str, number: int, undisturbed: Path, accelerator: Any, tmp_path: Path, caplog
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed / "six", output)
    newest = output / "checkpoints" / "step-00000006"
    before = (newest / name).read_bytes()
    {"flip": flip, "cut": cut}[kind](newest / name, random.Random(f"{name} {kind} {number}"))
    assert (newest / name).read_bytes() != before
    with caplog.at_level(logging.INFO):
        train(output, STEPS, accelerator)
    assert "checkpoint step-00000006 is damaged" in caplog.text
    assert "resumed at step 3" in caplog.text
    for place in ("checkpoints/step-00000009", "checkpoints/step-00000006", "unet"):
        assert files_of(output / place) == files_of(undisturbed / "nine" / place), place
    assert steps_of(output / "metrics.jsonl") == list(range(1, STEPS + 1))


def test_there_are_ten_of_each() -> None:
    kinds = [kind for _, kind, _ in FAULTS]
    assert (kinds.count("flip"), kinds.count("cut")) == (10, 10)


def test_every_bit_of_a_small_checkpoint_counts(tmp_path: Path) -> None:
    """Not a sample: each byte of each file, one of its bits turned over."""
    tensors = {"weights": {"a": torch.arange(3.0)}}
    path = checkpoints.save(tmp_path, checkpoints.Checkpoint(1, tensors, {"seed": 3}))
    for file in path.iterdir():
        data = file.read_bytes()
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            file.write_bytes(changed)
            with pytest.raises(checkpoints._DAMAGE):
                checkpoints._load(path)
        file.write_bytes(data)
    assert checkpoints._load(path).step == 1


def test_where_none_is_whole_nothing_is_begun(accelerator: Any, tmp_path: Path) -> None:
    """The files may only be unreadable today; a new beginning would remove them in the end."""
    train_line(tmp_path, 8, accelerator)
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert len(folders) == 2
    for folder in folders:
        cut(folder / "weights.safetensors", random.Random(1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        train_line(tmp_path, 12, accelerator)
    told = str(caught.value)
    assert told.startswith(f"no checkpoint in {tmp_path / 'checkpoints'} is whole (step-00000008: ")
    assert "step-00000004: weights.safetensors does not match its manifest" in told
    assert told.endswith("--resume false to start again")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    train_line(tmp_path, 4, accelerator, resume=False)
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]


def train_line(output: Path, steps: int, accelerator: Any, **options: Any) -> None:
    settings = line_config(output, steps=steps, lr_schedule="constant", **options)
    loop.train(LineMethod(), settings, accelerator)


class Payload:
    """Pickles as a call that opens a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return open, (self.canary, "w")


@pytest.mark.parametrize("honest", [False, True])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_payload_in_a_checkpoint_does_not_run(
    name: str, dump: Any, honest: bool, tmp_path: Path, accelerator: Any
) -> None:
    """Also where the manifest says that this is what was written."""
    train_line(tmp_path / "run", 8, accelerator)
    canary = tmp_path / "canary"
    newest = tmp_path / "run" / "checkpoints" / "step-00000008"
    with open(newest / name, "wb") as file:
        dump(Payload(canary), file)
    if honest:
        manifest = json.loads((newest / "manifest.json").read_text())
        size, digest = (newest / name).stat().st_size, sha256_file(newest / name)
        manifest[name] = {"bytes": size, "sha256": digest}
        (newest / "manifest.json").write_text(json.dumps(manifest))
    found = checkpoints.latest(newest.parent)
    assert found is not None
    assert found.step == 4
    assert not canary.exists()
    with contextlib.suppress(Exception):
        torch.load(
            io.BytesIO((newest / name).read_bytes()), weights_only=False
        )  # the payload is one
    assert canary.exists()
