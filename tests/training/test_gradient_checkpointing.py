"""Blocks computed twice give the same loss and the same gradients, to the last bit."""

import functools

import pytest
import torch
from training_tools import (
    encoder_method,
    inversion_method,
    lora_method,
    metric,
    unet_method,
    vae_method,
)
from transformers import CLIPTextConfig

from ldm_toolkit.training import loop
from ldm_toolkit.training.config import TextEncoderConfig
from ldm_toolkit.training.methods.lora import LoraUNet
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.step import _add_gradients, _batches
from ldm_toolkit.training.text import AttributeText, train_tokenizer


def method_of(kind, output, pictures, model, **options):
    if kind in BOTH:
        make, more = BOTH[kind]
        return make(output, model, **more, **options)
    if kind == "unet":
        return unet_method(output, **options)
    if kind == "lora":
        return lora_method(output, dora=True, **options)
    if kind == "decoder":
        return vae_method(output, pictures, **options)
    if kind == "vae":
        return vae_method(output, pictures, train="all", adversarial_weight=0.5, **options)
    words = ["a dog wearing hat", "a cat", "a red bird in the snow"]
    tokenizer = train_tokenizer(words, limit=600)
    settings = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, intermediate_size=32,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = TextEncoderConfig(from_config="", output=str(output), **options)
    torch.manual_seed(0)
    return AttributeText(tokenizer, config, settings), config


BOTH = {
    "unet and text encoder": (encoder_method, {}),
    "loras of both": (encoder_method, {"kind": LoraUNet, "method": "lora", "dora": True}),
    "textual inversion": (inversion_method, {"vectors": 2}),
}
KINDS = ["unet", "lora", "decoder", "vae", "text", *BOTH]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_equal(
    kind, accelerator, pictures, tiny_model, tmp_path, monkeypatch
):
    recomputed, layers, checkpoint = [], [], torch.utils.checkpoint.checkpoint

    def counting(function, *arguments, **options):
        recomputed.append(options["use_reentrant"])
        if isinstance(function, functools.partial):  # transformers' way to name the layer
            layers.append(type(function.args[0]).__name__)
        return checkpoint(function, *arguments, **options)

    # transformers took the name when it was imported
    for place in ("torch.utils.checkpoint.checkpoint", "transformers.modeling_utils.checkpoint"):
        monkeypatch.setattr(place, counting)
    found = []
    for twice in (False, True):
        options = {"batch_size": 2, "gradient_checkpointing": twice}
        method, settings = method_of(kind, tmp_path, pictures, tiny_model, **options)
        run = RunState(method, settings, accelerator, {})
        loss, logs = _add_gradients(run, _batches(run))
        assert bool(recomputed) == twice
        encoder = getattr(method, "encoder", None)
        count = encoder.config.num_hidden_layers if twice and encoder is not None else 0
        assert layers.count("CLIPEncoderLayer") == count
        gradients = {
            name: None if parameter.grad is None else parameter.grad
            for name, parameter in method.trainable().named_parameters()
        }
        found.append((loss, logs, gradients))
    assert not any(recomputed)  # the reentrant kind would leave frozen inputs without gradients
    (loss, logs, gradients), (other_loss, other_logs, others) = found
    assert (loss, logs) == (other_loss, other_logs)
    assert any(gradient is not None for gradient in gradients.values())
    for name, gradient in gradients.items():
        if gradient is None:
            assert others[name] is None, name
        else:
            assert torch.equal(gradient, others[name]), name


def test_a_run_may_go_on_with_it(accelerator, tmp_path):
    """It changes no number, so it may be switched on in the middle."""
    results = []
    for name, parts in (("plain", [(6, False)]), ("later", [(3, False), (6, True)])):
        (tmp_path / name).mkdir()
        for steps, twice in parts:
            method, settings = unet_method(
                tmp_path / name, steps=steps, batch_size=2, warmup=0, lr_schedule="constant",
                gradient_checkpointing=twice,
            )  # fmt: skip
            loop.train(method, settings, accelerator)
        results.append(method.unet.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert metric(tmp_path / "later", "loss") == metric(tmp_path / "plain", "loss")
