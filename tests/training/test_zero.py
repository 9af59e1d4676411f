"""Training under DeepSpeed, with a stand-in that steps where DeepSpeed does.

`test_several.py` has DeepSpeed itself, where it is installed.
"""

import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from training_tools import metric, unet_method

from ldm_toolkit.errors import NumericalError, UserError
from ldm_toolkit.training import begin, loop
from ldm_toolkit.training.config import LoopConfig, UNetConfig, VAEConfig
from ldm_toolkit.training.signals import Interrupted
from ldm_toolkit.training.zero import check_zero

FEW = {"steps": 5, "batch_size": 2, "warmup": 0, "lr": 1e-2, "ema": 0.9, "checkpoint_every": 2,
       "max_grad_norm": 0.05, "lr_schedule": "constant"}  # fmt: skip


class UnderDeepSpeed(Accelerator):
    """Accelerate under DeepSpeed, whose backward() clips and steps; on one process."""

    distributed_type: Any = DistributedType.DEEPSPEED
    deepspeed_plugin: Any = None

    def prepare(self, module: Any, optimizer: Any) -> Any:
        self.real, self.norm = optimizer, None
        nothing = SimpleNamespace(
            optimizer=optimizer, param_groups=optimizer.param_groups,
            step=lambda: None, zero_grad=lambda set_to_none=None: None,
        )  # fmt: skip
        return module, nothing

    def backward(self, loss: Any) -> None:
        loss.backward()
        parameters = [p for group in self.real.param_groups for p in group["params"]]
        most = self.deepspeed_plugin.deepspeed_config["gradient_clipping"]
        self.norm = float(torch.nn.utils.clip_grad_norm_(parameters, most))
        self.real.step()
        self.real.zero_grad()

    def clip_grad_norm_(self, *_: Any) -> Any:
        return self.norm


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def fresh() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def under(accelerator: Accelerator, stage: int = 2) -> Accelerator:
    accelerator.__class__ = UnderDeepSpeed
    accelerator.deepspeed_plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"bf16": 1})
    return accelerator


def method_in(folder, **options):
    folder.mkdir(exist_ok=True)
    return unet_method(folder, **(FEW | options))


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the run ---


def test_it_trains_what_is_trained_without(tmp_path):
    method, config = method_in(tmp_path / "plain")
    loop.train(method, config, fresh())
    plain = method.unet.state_dict()
    method, config = method_in(tmp_path / "zero")
    loop.train(method, config, under(fresh()))
    assert all(torch.equal(value, plain[n]) for n, value in method.unet.state_dict().items())
    for name in ("loss", "grad_norm", "lr"):
        assert metric(tmp_path / "zero", name) == metric(tmp_path / "plain", name)


def test_checkpoints_hold_weights_and_no_optimiser(tmp_path):
    method, config = method_in(tmp_path)
    loop.train(method, config, under(fresh()))
    assert files(tmp_path / "checkpoints") == {"step-00000004", "step-00000005"}
    for folder in (tmp_path / "checkpoints").iterdir():
        assert files(folder) == {
            "weights.safetensors", "ema.safetensors", "state.json", "manifest.json"
        }  # fmt: skip
    found = load_file(tmp_path / "checkpoints" / "step-00000005" / "weights.safetensors")
    expected = method.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("precision", "told"), [("no", (False, "float32")), ("bf16", (True, "bfloat16"))]
)
def test_options_count_and_not_deepspeeds_file(precision, told, tmp_path):
    method, config = method_in(tmp_path, steps=1, mixed_precision=precision)
    accelerator = under(fresh())
    loop.train(method, config, accelerator)
    found = accelerator.deepspeed_plugin.deepspeed_config
    autocast = found.pop("torch_autocast")
    assert (autocast["enabled"], autocast["dtype"]) == told
    assert found == {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.05, "bf16": {"enabled": False}, "fp16": {"enabled": False},
    }  # fmt: skip


def test_a_loss_that_is_no_number_ends_the_run_at_once(tmp_path):
    """The weights have changed by it: there is no step to skip, and nothing is saved any more."""
    method, config = method_in(tmp_path)
    loss = method.loss
    method.loss = lambda outputs, step: loss(outputs * (float("nan") if step == 3 else 1.0), step)
    with pytest.raises(NumericalError, match=r"step 3, positions 6 to 7.*those before are in"):
        loop.train(method, config, under(fresh()))
    assert files(tmp_path / "checkpoints") == {"step-00000002"}
    for file in (tmp_path / "checkpoints").rglob("*.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(file).values())


def test_a_stopped_run_leaves_a_model_to_start_anew_from(tmp_path, monkeypatch):
    method, config = method_in(tmp_path)
    batch, seen = method.batch, []

    def kill_in_the_third(positions):
        seen.append(positions)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(positions)

    monkeypatch.setattr(method, "batch", kill_in_the_third)
    with pytest.raises(Interrupted, match="starts anew from the weights") as caught:
        loop.train(method, config, under(fresh()))
    assert caught.value.words == ("--model", str(tmp_path), "--output", f"{tmp_path}-2")
    left = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    averages = load_file(tmp_path / "checkpoints" / "step-00000003" / "ema.safetensors")
    for index, (name, _) in enumerate(method.unet.named_parameters()):
        assert torch.equal(left[name], averages[str(index)]), name


# --- going on ---


@pytest.mark.parametrize("then", ["zero", "plain"])
@pytest.mark.parametrize("first", ["zero", "plain"])
def test_a_run_goes_on_without_it_only(first, then, tmp_path):
    method, config = method_in(tmp_path, steps=2)
    loop.train(method, config, under(fresh()) if first == "zero" else fresh())
    method, config = method_in(tmp_path)
    accelerator = under(fresh()) if then == "zero" else fresh()
    if (first, then) == ("plain", "plain"):
        loop.train(method, config, accelerator)
        assert len(metric(tmp_path, "loss")) == 5
        return
    told = rf"optimiser's state is not restored exactly; .* step 2 with --model {tmp_path} and"
    with pytest.raises(UserError, match=told):
        loop.train(method, config, accelerator)
    method, config = method_in(tmp_path, resume=False)
    accelerator = under(fresh()) if then == "zero" else fresh()
    loop.train(method, config, accelerator)
    state = json.loads((tmp_path / "checkpoints" / "step-00000005" / "state.json").read_text())
    assert state["step"] == 5


# --- before the run ---


@pytest.mark.parametrize(
    ("options", "stage", "told"),
    [
        ({}, 2, None),
        ({"method": "dreambooth", "class_prompt": "a dog"}, 1, None),
        ({"mixed_precision": "bf16"}, 2, None),
        ({}, 3, ["zero_stage must be at most 2"]),
        ({"method": "lora"}, 2, ["only whole UNets"]),
        ({"accumulate": 2}, 2, ["leave --accumulate"]),
        ({"auto_batch": True}, 2, ["--auto-batch"]),
        ({"mixed_precision": "fp16"}, 2, ["--mixed-precision fp16: pass bf16"]),
        ({"compile": True, "optimizer": "prodigy", "lr": 1.0}, 2, ["--compile", "pass adamw"]),
    ],
)
def test_what_deepspeed_cannot_do(options, stage, told):
    config = UNetConfig(output="o", data="d", **options)
    accelerator = under(fresh(), stage)
    if told is None:
        check_zero(config, accelerator)
        return
    with pytest.raises(UserError, match=r"^DeepSpeed: ") as caught:
        check_zero(config, accelerator)
    assert all(one in str(caught.value) for one in told)


def test_the_autoencoder_is_trained_without():
    with pytest.raises(UserError, match="only whole UNets"):
        check_zero(VAEConfig(output="o", data="d"), under(fresh()))


def test_deepspeed_that_lacks_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("accelerate.accelerator.is_deepspeed_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(UserError, match=r"DeepSpeed is not installed.*ddp\.yaml") as caught:
            begin.begin(LoopConfig(output=str(tmp_path / "o"), threads=1))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(str(caught.value).splitlines()) == 1
