"""Frozen weights that are cast once: half the memory, and the bits of every number stay."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from training_tools import (
    encoder_method,
    inversion_method,
    lora_method,
    metric,
    tiny_unet,
    unet_method,
    vae_method,
)

from ldm_toolkit.training import loop, run_state
from ldm_toolkit.training.methods.lora import LoraUNet
from ldm_toolkit.training.precision import cast_frozen_
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.validation import UNetHeldOut, Validation

FEW = {"steps": 2, "batch_size": 1, "warmup": 0, "lr": 1e-2, "ema": 0.9, "checkpoint_every": 1,
       "lr_schedule": "constant", "mixed_precision": "bf16"}  # fmt: skip
KINDS = ["lora", "dora", "loras of both", "textual inversion", "full"]


def method_of(kind: str, output: Any, model: Any, **options: Any) -> Any:
    options["unet"] = tiny_unet(channels=(8, 16))
    if kind == "textual inversion":
        return inversion_method(output, model, **options)
    if kind == "loras of both":
        return encoder_method(output, model, kind=LoraUNet, method="lora", **options)
    if kind == "full":
        return unet_method(output, **options)
    return lora_method(output, dora=kind == "dora", lora_targets="all", **options)


def held_out(method: Any) -> UNetHeldOut:
    """A picture that the method trains on, taken for a held-out one."""
    given = {"moments": method._moments[:1], "embeddings": method._embeddings}
    rows = method._rows[:1]
    return UNetHeldOut(method, caption_rows=rows, scaling_factor=0.5, batch_size=10, **given)


def layers(method: Any, kinds: Any) -> list[nn.Module]:
    return [layer for layer in method.module.modules() if isinstance(layer, kinds)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_a_run_changes(kind, bf16, tiny_model, tmp_path, monkeypatch):
    """Losses, norms, held-out losses, checkpoints, results; also of a run in two parts."""
    real = run_state.cast_frozen_
    for name, cast, parts in (
        ("plain", lambda *_: None, [2]),
        ("cast", real, [2]),
        ("parts", real, [1, 2]),
    ):
        monkeypatch.setattr(run_state, "cast_frozen_", cast)
        output = tmp_path / name
        output.mkdir()
        for steps in parts:
            method, settings = method_of(kind, output, tiny_model, **(FEW | {"steps": steps}))
            validation = Validation(held_out(method), 2)
            loop.train(method, settings, bf16, validation=validation)
        dtypes = {p.dtype for layer in layers(method, (nn.Linear, nn.Conv2d))
                  for p in layer.parameters() if not p.requires_grad}  # fmt: skip
        if kind == "full":
            assert not dtypes
        else:
            assert (torch.bfloat16 in dtypes) == (name != "plain")
    for name in ("cast", "parts"):
        for column in ("loss", "grad_norm"):
            assert metric(tmp_path / name, column) == metric(tmp_path / "plain", column)
        files = list((tmp_path / name).rglob("*.safetensors"))
        assert len(files) > 2
        for path in files:
            plain = tmp_path / "plain" / path.relative_to(tmp_path / name)
            assert path.read_bytes() == plain.read_bytes(), path
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "cast")
    ]
    measured = [[one["validation"] for one in own if "validation" in one] for own in lines]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 1
    # What a run is part of is told by the weights of the model, not by what they are cast to.
    states = [
        json.loads((tmp_path / name / "checkpoints/step-00000002/state.json").read_text())
        for name in ("plain", "cast")
    ]
    assert states[0] == states[1]


def test_what_is_trained_and_what_computes_in_float32_stay(bf16, tmp_path):
    method, settings = lora_method(tmp_path, lora_targets="all", mixed_precision="bf16")
    RunState(method, settings, bf16, {})
    for name, parameter in method.module.named_parameters():
        norm = ".norm" in name or "conv_norm_out" in name
        expected = torch.float32 if parameter.requires_grad or norm else torch.bfloat16
        assert parameter.dtype == expected, name


def test_the_layers_of_a_dora_stay(bf16, tmp_path):
    method, settings = lora_method(tmp_path, dora=True, mixed_precision="bf16")
    RunState(method, settings, bf16, {})
    for name, parameter in method.module.named_parameters():
        if ".base_layer." in name:
            assert parameter.dtype == torch.float32, name


def test_a_network_that_is_saved_whole_stays(bf16, pictures, tmp_path):
    """The frozen encoder of an autoencoder is part of the result."""
    method, settings = vae_method(tmp_path, pictures, mixed_precision="bf16")
    RunState(method, settings, bf16, {})
    assert any(not parameter.requires_grad for parameter in method.module.parameters())
    assert {parameter.dtype for parameter in method.module.parameters()} == {torch.float32}


def test_without_mixed_precision_nothing_is_cast(accelerator, tmp_path):
    method, settings = lora_method(tmp_path)
    RunState(method, settings, accelerator, {})
    assert {parameter.dtype for parameter in method.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)], ids=["bf16", "fp16"]
)
def test_gradients_have_the_bits_of_autocast(name, kind, tmp_path):
    """Both types; fp16 is for GPUs, and autocast's rules are the same on a CPU."""
    found = []
    for cast in (False, True):
        method, _ = lora_method(tmp_path, lora_targets="all")
        for layer in method.module.modules():  # so that every matrix gets a gradient
            for one in getattr(layer, "lora_B", {}).values():
                nn.init.constant_(one.weight, 0.01)
        if cast:
            cast_frozen_(method.module, name)
        inputs = method.batch(range(2))
        with torch.autocast("cpu", kind):
            loss = method.module(**inputs)
        loss.backward()
        found.append([loss, *(p.grad for p in method.module.parameters() if p.requires_grad)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(bool(torch.isfinite(one).all()) for one in found[0])
