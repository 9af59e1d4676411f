"""Stopped anywhere and gone on with: no bit differs, in twelve cases and some more.

The axes are where the run stops, what is trained, and how its batches are added up. There are no
loader workers to vary: `Method.batch` is a function of positions, called in the process that
trains. Caches are always there; `test_kills.py` deletes and shares them between two parts of a run,
`test_two_processes.py` stops two processes.
"""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
from training_tools import (
    dreambooth_method,
    inversion_method,
    lora_method,
    unet_method,
    vae_method,
)

from ldm_toolkit.training import loop
from ldm_toolkit.training.signals import Interrupted

STEPS = 7
# Six pictures in batches of two: an epoch is three steps.
COMMON = {"steps": STEPS, "batch_size": 2, "warmup": 3, "lr": 1e-3, "ema": 0.9, "seed": 3}


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is saved."""


def kill() -> None:
    raise Killed


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


# The batch before which something happens, what, and the step that is gone on from. Batches count
# from 0; with three of them a step, batch 13 is the second one of the fifth step.
MOMENTS: dict[str, tuple[int, Any, int, dict[str, int]]] = {
    "after step 1": (0, stop, 1, {}),
    "in an epoch": (3, stop, 4, {}),
    "at the end of an epoch": (5, stop, 6, {}),
    "inside accumulation": (13, kill, 3, {"accumulate": 3, "checkpoint_every": 3}),
    "inside accumulation, by a signal": (13, stop, 5, {"accumulate": 3}),
    "killed before any checkpoint": (2, kill, 0, {}),
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"ema": 0.0},
    "full": {},
    "full computed twice": {"gradient_checkpointing": True},
    "dora computed twice": {"dora": True, "lora_targets": "all", "gradient_checkpointing": True},
    "dreambooth": {},
    "word": {"vectors": 2},
    "decoder": {"crops": 2},
    "vae": {"train": "all", "adversarial_weight": 0.5, "adversarial_start": 2},
}
TWELVE = [
    (moment, kind)
    for moment in list(MOMENTS)[:4]
    for kind in ("lora", "full", "full computed twice")
]
MORE = [
    ("inside accumulation, by a signal", "full"),
    ("killed before any checkpoint", "lora"),
    ("in an epoch", "dora computed twice"),
    ("inside accumulation", "dreambooth"),
    ("in an epoch", "word"),
    ("at the end of an epoch", "decoder"),
    ("inside accumulation", "vae"),
]


def made(kind: str, output: Path, model: Path, data: Path, options: dict[str, Any]) -> Any:
    output.mkdir(exist_ok=True)
    settings = COMMON | options | KINDS[kind]
    if kind == "word":
        return inversion_method(output, model, captions=[("a dog",)] * 6, **settings)
    if kind == "dreambooth":
        return dreambooth_method(output, **settings)
    if kind in ("decoder", "vae"):
        return vae_method(output, data, **settings)
    make = unet_method if kind.startswith("full") else lora_method
    return make(output, min_snr_gamma=5.0, caption_dropout=0.4, **settings)


def act_before(method: Any, number: int, act: Any) -> None:
    """Act when the method is asked for its n-th batch."""
    asked, real = iter(range(10_000)), method.batch

    def batch(positions: Any) -> Any:
        if next(asked) == number:
            act()
        return real(positions)

    method.batch = batch


def remains(output: Path) -> dict[str, bytes]:
    """Every file of the result and of the last checkpoint, and what was told of each step."""
    files = {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != "metrics.jsonl" and "checkpoints" not in path.parts
    }
    newest = output / "checkpoints" / f"step-{STEPS:08d}"
    files |= {path.name: path.read_bytes() for path in newest.iterdir()}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    told = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    return files | {"metrics.jsonl": json.dumps(told).encode()}


def names_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


@pytest.mark.parametrize(("moment", "kind"), TWELVE + MORE)
def test_no_bit_differs(
    moment: str,
    kind: str,
    accelerator: Any,
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    number, act, step, options = MOMENTS[moment]
    places = tiny_model, pictures

    def run(output: Path) -> tuple[Any, Any]:
        return made(kind, output, *places, options)

    method, settings = run(tmp_path / "whole")
    loop.train(method, settings, accelerator)
    expected = remains(tmp_path / "whole")
    assert {"weights.safetensors", "optimizer.safetensors", "state.json"} < expected.keys()
    assert ("ema.safetensors" in expected) == (settings.ema > 0)

    method, settings = run(tmp_path / "parts")
    act_before(method, number, act)
    with pytest.raises((Interrupted, Killed)):
        loop.train(method, settings, accelerator)
    assert names_of(tmp_path / "parts")[-1:] == ([f"step-{step:08d}"] if step else [])
    method, settings = run(tmp_path / "parts")
    with caplog.at_level(logging.INFO):
        loop.train(method, settings, accelerator)
    assert (f"resumed at step {step}" in caplog.text) == (step > 0)
    found = remains(tmp_path / "parts")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_the_twelve_are_twelve() -> None:
    assert len(TWELVE) == len(set(TWELVE)) == 12


@pytest.mark.parametrize("part", ["weights", "ema", "optimizer"])
def test_all_that_is_compared_is_needed(
    part: str, accelerator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: where one part of the state is lost, the comparison above finds it."""
    from ldm_toolkit.training import checkpoints

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        method, settings = unet_method(tmp_path / name, **COMMON)
        if name == "parts":
            act_before(method, 3, stop)
            with pytest.raises(Interrupted):
                loop.train(method, settings, accelerator)
            real = checkpoints._load

            def forgetful(path: Path, real: Any = real) -> Any:
                found = real(path)
                tensors = found.tensors[part]
                lost = next(key for key in tensors if not key.endswith(".step"))
                tensors[lost] = tensors[lost] * 1.001
                return found

            monkeypatch.setattr(checkpoints, "_load", forgetful)
            method, settings = unet_method(tmp_path / name, **COMMON)
        loop.train(method, settings, accelerator)
    whole, parts = (remains(tmp_path / name) for name in ("whole", "parts"))
    assert whole[f"{part}.safetensors"] != parts[f"{part}.safetensors"]
