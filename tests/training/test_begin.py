"""What a training command finds out before anything that takes long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState

from ldm_toolkit.errors import UserError
from ldm_toolkit.training import begin, optimizers
from ldm_toolkit.training.config import LoopConfig, UNetConfig, VAEConfig

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
NAMES = [*LAUNCHED, "WORLD_SIZE"]
TOLD = "one process trains alone"


@pytest.mark.parametrize(
    ("environment", "processes", "told"),
    [
        (LAUNCHED, 1, True),
        ({}, 1, False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, False),  # --num_processes 1
        ({"MASTER_ADDR": "127.0.0.1"}, 1, False),  # not by accelerate
        (LAUNCHED | {"WORLD_SIZE": "1"}, 1, False),
        (LAUNCHED | {"WORLD_SIZE": "2"}, 2, False),
        (LAUNCHED, 2, False),  # by mpirun
    ],
)
def test_one_process_where_several_were_meant(environment, processes, told, monkeypatch, caplog):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    begin._warn_if_alone(SimpleNamespace(num_processes=processes))
    assert (TOLD in caplog.text) == told


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "told"), [(1, False), (2, True)])
def test_accelerate_launch_leaves_these_signs(processes, told, tmp_path):
    """The real launcher on this machine; with several GPUs it starts several processes."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, logging\n"
        "from types import SimpleNamespace\n"
        "from ldm_toolkit.training import begin\n"
        "logging.basicConfig()\n"
        "number = int(os.environ.get('WORLD_SIZE', 1))\n"
        "begin._warn_if_alone(SimpleNamespace(num_processes=number))\n"
    )
    words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes",
             str(processes), script]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in NAMES}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (TOLD in done.stderr) == told


def test_the_optimiser_is_tried_before_the_run(monkeypatch, tmp_path):
    def refuse(config, device):
        raise UserError(f"not on {device}")

    monkeypatch.setattr(optimizers, "check", refuse)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(UserError, match="not on"):
            begin.begin(LoopConfig(output=str(tmp_path), threads=1))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not (tmp_path / "config.json").exists()


def test_the_configuration_is_written(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        begin.begin(LoopConfig(output=str(tmp_path / "new"), threads=1, lr=3e-4))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["lr"] == 3e-4


@pytest.mark.parametrize(
    ("options", "version", "told"),
    [
        ({}, 2, None),
        ({"method": "lora"}, 2, None),
        ({}, 1, ["fsdp_version must be 2"]),
        ({"compile": True, "optimizer": "prodigy", "lr": 1.0}, 2, ["--compile", "pass adamw"]),
        ({"validate_every": 5, "validation_count": 2}, 2, ["--validate-every 0"]),
        ({"method": "textual-inversion", "token": "<x>"}, 2, ["only the UNet and LoRAs"]),
    ],
)
def test_what_divided_weights_cannot_do(options, version, told):
    config = UNetConfig(output="o", data="d", **options)
    accelerator = SimpleNamespace(is_fsdp2=version == 2)
    if told is None:
        begin._check_divided(config, accelerator)
        return
    with pytest.raises(UserError, match=r"^FSDP: ") as caught:
        begin._check_divided(config, accelerator)
    assert all(one in str(caught.value) for one in told)


def test_the_autoencoder_is_not_divided():
    config = VAEConfig(output="o", data="d")
    with pytest.raises(UserError, match="only the UNet and LoRAs"):
        begin._check_divided(config, SimpleNamespace(is_fsdp2=True))
