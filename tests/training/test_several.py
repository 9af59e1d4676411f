"""Several processes: two over gloo against one, whole or divided weights, and the launch files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_tools import metric, unet_method

from ldm_toolkit.training import loop
from ldm_toolkit.training.lora_output import LORA_FILE

REPO = Path(__file__).parents[2]
CONFIGS = sorted((REPO / "examples" / "configs").glob("*.yaml"))
OPTIONS = {"batch_size": 2, "warmup": 0, "lr": 0.01, "ema": 0.9, "checkpoint_every": 2,
           "sample_every": 2, "weight_decay": 0.1}  # fmt: skip
UNET = "unet/diffusion_pytorch_model.safetensors"


def start(kind: str, output: Path, **options: object) -> subprocess.CompletedProcess:
    """Train with two processes, to the end or not."""
    output.mkdir(exist_ok=True)
    places = [REPO, REPO / "tests", REPO / "tests" / "training", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, places))
    told = [f"{name}={json.dumps(value)}" for name, value in (OPTIONS | options).items()]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
             str(Path(__file__).with_name("several.py")), kind, str(output), *told]  # fmt: skip
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def two(kind: str, output: Path, **options: object) -> dict:
    """Train with two processes; what the script saw."""
    done = start(kind, output, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((output / "seen.json").read_text())


def close(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(kind, accelerator, tmp_path):
    """With twice the batch; a run in two parts is the same run, and so are its files."""
    (tmp_path / "one").mkdir()
    method, config = unet_method(tmp_path / "one", **(OPTIONS | {"batch_size": 4, "steps": 4}))
    loop.train(method, config, accelerator)
    seen = two(kind, tmp_path / "two", steps=4)
    assert seen["drawn"] == [0, 2, 4]
    assert (seen["divided"] > 0) == (kind == "fsdp")
    one, found = metric(tmp_path / "one", "loss"), metric(tmp_path / "two", "loss")
    assert found == pytest.approx(one, rel=1e-4)
    norms = [metric(tmp_path / name, "grad_norm") for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    last = "checkpoints/step-00000004"
    for name in (UNET, f"{last}/weights.safetensors", f"{last}/ema.safetensors"):
        # AdamW's first steps have the size of the rate wherever a gradient is rounding
        close(tmp_path / "one" / name, tmp_path / "two" / name, 2e-3)
    configs = [(tmp_path / name / "unet" / "config.json").read_text() for name in ("one", "two")]
    assert configs[0] == configs[1]
    two(kind, tmp_path / "parts", steps=2, lr_schedule="constant")
    two(kind, tmp_path / "parts", steps=4, lr_schedule="constant")
    two(kind, tmp_path / "whole", steps=4, lr_schedule="constant")
    files = [f"{last}/{name}.safetensors" for name in ("weights", "ema", "optimizer")]
    for name in [UNET, *files]:
        close(tmp_path / "parts" / name, tmp_path / "whole" / name, 0)
    assert metric(tmp_path / "parts", "loss") == metric(tmp_path / "whole", "loss")


@pytest.mark.slow
def test_a_lora_beside_divided_weights(tmp_path):
    assert two("fsdp", tmp_path / "fsdp", steps=3, method="lora")["divided"] > 0
    two("ddp", tmp_path / "ddp", steps=3, method="lora")
    close(tmp_path / "fsdp" / LORA_FILE, tmp_path / "ddp" / LORA_FILE, 1e-4)
    losses = [metric(tmp_path / name, "loss") for name in ("fsdp", "ddp")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_zero_trains_the_same_and_does_not_go_on(accelerator, tmp_path):
    """DeepSpeed itself, stage 2, where it is installed; its checkpoints lack the optimiser."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    (tmp_path / "one").mkdir()
    options = OPTIONS | {"max_grad_norm": 0.05, "lr_schedule": "constant"}
    method, config = unet_method(tmp_path / "one", **(options | {"batch_size": 4, "steps": 4}))
    loop.train(method, config, accelerator)
    two("zero", tmp_path / "two", **(options | {"steps": 4}))
    for name in ("loss", "grad_norm"):
        one, found = metric(tmp_path / "one", name), metric(tmp_path / "two", name)
        assert found == pytest.approx(one, rel=1e-3), name
    last = "checkpoints/step-00000004"
    names = {path.name for path in (tmp_path / "two" / last).iterdir()}
    assert names == {"weights.safetensors", "ema.safetensors", "state.json", "manifest.json"}
    for name in (UNET, f"{last}/weights.safetensors", f"{last}/ema.safetensors"):
        close(tmp_path / "one" / name, tmp_path / "two" / name, 2e-3)
    two("zero", tmp_path / "half", **(options | {"steps": 4, "mixed_precision": "bf16"}))
    found = metric(tmp_path / "half", "loss")
    assert found == pytest.approx(metric(tmp_path / "one", "loss"), rel=0.05)
    assert found != metric(tmp_path / "two", "loss")
    done = start("zero", tmp_path / "two", **(options | {"steps": 6}))
    assert done.returncode != 0
    assert f"start anew from the weights of step 4 with --model {tmp_path / 'two'}" in done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_files(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.distributed_type in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    assert config.num_processes % config.num_machines == 0
    if path.stem == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
    if path.stem == "deepspeed":
        assert config.deepspeed_config["zero_stage"] == 2
    told = (path.parent / "README.md").read_text()
    assert f"--config_file examples/configs/{path.name} examples/finetune_unet.py" in told or (
        path.name in told
    )


def test_there_are_launch_files():
    assert len(CONFIGS) == 4
