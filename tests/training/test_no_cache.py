"""Without caches: the same samples and losses, nothing kept, the same bits after a kill."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_tools import metric, steps_of, wait_for

from ldm_toolkit.models.tokenizer import load_tokenizer
from ldm_toolkit.training import prepare
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.methods import method_class

COMMON = ["--size", 64, "--steps", 12, "--batch-size", 4, "--checkpoint-every", 3, "--warmup", 2,
          "--lr", "1e-3", "--threads", 1, "--seed", 5, "--caption-dropout", 0.2]  # fmt: skip
CASES = {
    "full": [],
    "lora": ["--method", "lora"],
    "dreambooth": ["--method", "dreambooth", "--class-prompt", "a dog", "--class-count", 2],
    "textual-inversion": ["--method", "textual-inversion", "--token", "<x>", "--lr", "0.1"],
    "buckets": ["--buckets", "--validate-every", 6, "--validation-count", 2],
}
RESULTS = {
    "lora": "pytorch_lora_weights.safetensors",
    "textual-inversion": "learned_embeds.safetensors",
}


def words(model: Path, data: Path, output: Path, case: str, *more: object) -> list:
    return ["--model", model, "--data", data, "--output", output, *COMMON, *CASES[case], *more]


def result(output: Path, case: str) -> dict[str, torch.Tensor]:
    name = RESULTS.get(case, "unet/diffusion_pytorch_model.safetensors")
    return load_file(output / name)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_the_cached_run(
    case, trainer, tiny_model, pictures, tmp_path
):
    kept, without = tmp_path / "kept", tmp_path / "without"
    for output, more in ((kept, []), (without, ["--no-cache"])):
        child = trainer.run("finetune_unet", *words(tiny_model, pictures, output, case, *more))
        assert child.wait() == 0, child.errors
    assert list(kept.rglob("cache/latents-*"))
    assert not [*without.rglob("latents-*"), *without.rglob("embeddings-*")]
    assert metric(without, "loss") == pytest.approx(metric(kept, "loss"), rel=1e-3)
    expected, found = result(kept, case), result(without, case)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-2, atol=2e-3)


def test_a_killed_run_goes_on_bit_for_bit(trainer, tiny_model, pictures, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = trainer.run("finetune_unet", *words(tiny_model, pictures, whole, "full", "--no-cache"))
    assert child.wait() == 0, child.errors
    again = words(tiny_model, pictures, killed, "full", "--no-cache")
    child = trainer.start("finetune_unet", *again)
    wait_for(lambda: max(steps_of(killed / "metrics.jsonl"), default=0) >= 5)
    assert child.kill(signal.SIGKILL) == -signal.SIGKILL
    child = trainer.run("finetune_unet", *again)
    assert child.wait() == 0, child.errors
    assert "resumed at step" in child.errors
    expected, found = result(whole, "full"), result(killed, "full")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_run_may_go_on_with_a_cache(trainer, tiny_model, pictures, tmp_path):
    first = words(tiny_model, pictures, tmp_path, "full", "--no-cache", "--steps", 3)
    assert trainer.run("finetune_unet", *first).wait() == 0
    child = trainer.run("finetune_unet", *words(tiny_model, pictures, tmp_path, "full"))
    assert child.wait() == 0, child.errors
    assert "resumed at step 3" in child.errors


def test_batches_are_encoded_together_and_in_order(accelerator, tiny_model, pictures, tmp_path):
    config = UNetConfig(data=str(pictures), output=str(tmp_path), size=64, caption_dropout=0.3)
    parts = {name: tiny_model / name for name in ("vae", "text_encoder", "tokenizer")}
    tokenizer = load_tokenizer(parts["tokenizer"])
    given = [
        prepare.unet_inputs(
            replace(config, no_cache=no_cache), method_class("full"), parts, tokenizer,
            accelerator, lambda folder: folder, None,
        ).given
        for no_cache in (False, True)
    ]  # fmt: skip
    kept, computed = given
    assert kept["caption_rows"] == computed["caption_rows"]
    for name in ("moments", "embeddings"):
        assert len(kept[name]) == len(computed[name])
        order = [3, 0, 5, 5, 1, 2, 4, 3, 0, 1]  # more than are encoded at a time
        rows = computed[name].at(order)
        assert rows.dtype == kept[name].dtype
        torch.testing.assert_close(rows, kept[name][order], rtol=2e-3, atol=2e-3)
        assert torch.equal(computed[name][3], computed[name].at([3])[0])


@pytest.mark.parametrize(("no_cache", "told"), [(False, True), (True, False)])
def test_the_report_tells_of_a_cache_that_will_be(no_cache, told, tiny_model, tmp_path):
    config = UNetConfig(data="none", output=str(tmp_path), size=64, no_cache=no_cache)
    tokenizer = load_tokenizer(tiny_model / "tokenizer")
    plan = prepare.unet_plan(config, tokenizer, tiny_model / "text_encoder", 1)
    assert (plan.text_width is not None) == told
