"""Two processes over gloo: gradients are means, draws are different ones, resuming is exact.

`test_loop.py` compares two processes with one that has all samples in a batch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_tools import steps_of
from two_ranks import KINDS, STEPS

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tiny_model, pictures, tmp_path_factory) -> Path:
    """What both processes left, ``answers.json`` among it."""
    output = tmp_path_factory.mktemp("two")
    (output / "bad").mkdir()
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
             "--master_port", "29533", HERE / "two_ranks.py", output, tiny_model,
             pictures]  # fmt: skip
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [str(word) for word in words], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def answers(folder) -> list[dict]:
    """Those of each process."""
    found = json.loads((folder / "answers.json").read_text())
    assert [answer["processes"] for answer in found] == [2, 2]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_mean_over_processes(kind, answers):
    """Also those of a step of two batches; what goes past the wrapped module would be its own."""
    for answer in answers:
        found = answer[f"mean {kind}"]
        assert found["off"] < 1e-5
        assert found["ranks apart"] > 1e-2
        assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-5)
    assert answers[0][f"mean {kind}"]["gradient"] == answers[1][f"mean {kind}"]["gradient"]


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_no_process_repeats_anothers_noise(kind, answers):
    drawn = [answer[f"draws {kind}"] for answer in answers]
    assert [len(own) for own in drawn] == [2 * STEPS] * 2
    assert len({*drawn[0], *drawn[1]}) == 4 * STEPS


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_two_processes_go_on_bit_for_bit(kind, answers, folder):
    """After a signal to one of them, which stops both after the same step."""
    first, second = (answer[f"resume {kind}"] for answer in answers)
    assert first["codes"] == second["codes"] == [143]
    assert (first["saves"], second["saves"]) == (2, 0)  # the first process alone writes
    assert first["weights"] == second["weights"]
    whole, parts = (folder / "resume" / kind / name for name in ("whole", "parts"))
    names = sorted(path.name for path in (parts / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]
    newest = f"checkpoints/step-{STEPS:08d}"
    place = "vae" if kind == "vae" else "unet"
    for path in [*(whole / newest).iterdir(), *(whole / place).iterdir()]:
        assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes(), path
    assert steps_of(parts / "metrics.jsonl") == list(range(1, STEPS + 1))
    lines = [
        [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        for output in (whole, parts)
    ]
    assert [one["loss"] for one in lines[0]] == [one["loss"] for one in lines[1]]


def test_a_bad_loss_of_one_process_skips_the_step_of_both(answers, folder):
    assert answers[0]["bad"] == answers[1]["bad"]
    found = [
        load_file(folder / "bad" / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
        for step in (3, 4)
    ]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
