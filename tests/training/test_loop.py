"""When things happen: schedule, averaging, clipping, bad steps; and that training trains."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_tools import Line, metric, unet_method, vae_method
from training_tools import line_config as config

from ldm_toolkit.errors import NumericalError, UserError
from ldm_toolkit.training import loop


def checkpoints_of(output):
    return sorted(path.name for path in (output / "checkpoints").iterdir())


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_learning_rate(shape, tmp_path):
    settings = config(tmp_path, steps=104, warmup=4, lr=1.0, lr_schedule=shape)
    rates = [loop.learning_rate(settings, step) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    expected = {
        "constant": [1.0] * 100,
        "linear": [1 - i / 100 for i in range(100)],
        "cosine": [math.cos(math.pi * i / 200) ** 2 for i in range(100)],
    }
    assert rates[4:] == pytest.approx(expected[shape])
    assert loop.learning_rate(config(tmp_path, warmup=0, lr=1.0), 0) == 1.0


def test_the_rate_in_force_is_the_one_reported(accelerator, tmp_path):
    settings = config(tmp_path)
    loop.train(Line(), settings, accelerator)
    expected = [loop.learning_rate(settings, step) for step in range(12)]
    assert metric(tmp_path, "lr") == pytest.approx(expected)
    assert metric(tmp_path, "step") == list(range(1, 13))


def test_positions_run_through_without_a_gap(accelerator, tmp_path):
    method = Line()
    loop.train(method, config(tmp_path, batch_size=3), accelerator)
    assert [p for batch in method.seen for p in batch] == list(range(36))


def test_the_average_trails_the_weights_and_is_what_is_saved(accelerator, tmp_path):
    method = Line()
    start = method.module.weight.detach().clone()
    loop.train(method, config(tmp_path, ema=0.9), accelerator)
    newest = tmp_path / "checkpoints" / "step-00000012"
    weights = load_file(newest / "weights.safetensors")["weight"]
    shadow = load_file(newest / "ema.safetensors")["0"]
    saved = torch.load(tmp_path / "line.pt")["weight"]
    assert torch.equal(saved, shadow)
    assert torch.equal(method.module.weight.detach(), weights)  # put back after the save
    assert (start - shadow).abs().sum() > 0.01
    assert (start - shadow).abs().sum() < (start - weights).abs().sum()


def test_without_an_average_the_weights_are_saved(accelerator, tmp_path):
    method = Line()
    loop.train(method, config(tmp_path, ema=0.0), accelerator)
    assert torch.equal(torch.load(tmp_path / "line.pt")["weight"], method.module.weight)
    assert not list(tmp_path.rglob("ema.safetensors"))


def test_gradients_are_shortened(accelerator, tmp_path, monkeypatch):
    """A gradient a million times longer makes the same step; its true length is reported."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, **_: torch.optim.SGD(p, lr=lr))
    weights = []
    for name, scale in (("a", 1e3), ("b", 1e9)):
        method = Line(scale=scale)
        loop.train(method, config(tmp_path / name, steps=4), accelerator)
        weights.append(method.module.weight.detach())
        assert min(metric(tmp_path / name, "grad_norm")) > scale
    assert torch.allclose(weights[0], weights[1], rtol=1e-4)


def test_a_bad_step_is_skipped_and_told(accelerator, tmp_path, caplog):
    method = Line(bad={4, 5})
    loop.train(method, config(tmp_path), accelerator)
    assert caplog.text.count("skipped: loss nan") == 2
    assert "step 4, positions 8 to 9 (1.png, 2.png) skipped" in caplog.text
    assert all(torch.isfinite(p).all() for p in method.module.parameters())
    assert len(metric(tmp_path, "step")) == 12


def test_a_bad_step_changes_nothing(accelerator, tmp_path):
    method = Line(bad={11})
    loop.train(method, config(tmp_path, checkpoint_every=11, keep=3), accelerator)
    folders = [tmp_path / "checkpoints" / name for name in checkpoints_of(tmp_path)]
    for name in ("weights", "ema", "optimizer"):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in folders)
        assert all(torch.equal(before[key], after[key]) for key in before), name


@pytest.mark.parametrize("bad", [{5, 6, 7, 8}, {8, 9, 10, 11}])
def test_three_bad_steps_stop_the_run_and_keep_the_checkpoints(bad, accelerator, tmp_path):
    with pytest.raises(NumericalError, match=r"3 steps in a row.*--lr"):
        loop.train(Line(bad=bad), config(tmp_path), accelerator)
    found = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    assert found
    assert all(torch.isfinite(t).all() for tensors in found for t in tensors.values())
    assert not (tmp_path / "line.pt").exists()


def test_bad_steps_in_a_row_are_counted_across_a_resume(accelerator, tmp_path):
    settings = config(tmp_path, steps=8, lr_schedule="constant")
    loop.train(Line(bad={6, 7}), settings, accelerator)
    with pytest.raises(NumericalError):
        loop.train(Line(bad={8}), config(tmp_path, lr_schedule="constant"), accelerator)


def test_checkpoints_at_their_steps_and_at_the_end(accelerator, tmp_path):
    loop.train(Line(), config(tmp_path, steps=10, keep=5), accelerator)
    assert checkpoints_of(tmp_path) == ["step-00000004", "step-00000008", "step-00000010"]


def test_sample_pictures_come_with_averaged_weights(accelerator, tmp_path):
    method, seen = Line(), []
    settings = config(tmp_path, sample_every=5, ema=0.9)

    def sample(step):
        seen.append((step, method.module.weight.detach().clone()))

    loop.train(method, settings, accelerator, sample=sample)
    plain = Line()
    loop.train(plain, config(tmp_path / "plain", ema=0.9), accelerator)
    assert [step for step, _ in seen] == [0, 5, 10, 12]
    assert torch.equal(seen[0][1], Line().module.weight)  # before anything was learned
    assert torch.equal(method.module.weight, plain.module.weight)  # looking changes nothing


def test_another_network_is_refused(accelerator, tmp_path):
    loop.train(Line(), config(tmp_path), accelerator)
    method = Line()
    method.module = nn.Linear(2, 2)
    with pytest.raises(UserError, match="belongs to another network"):
        loop.train(method, config(tmp_path), accelerator)


def test_threads_come_from_the_option_or_the_usable_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    usable = len(os.sched_getaffinity(0))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert loop.set_threads(0) == usable
    assert loop.set_threads(3) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loop.set_threads(0) == max(1, usable // 2)


def test_a_tiny_unet_learns_a_handful_of_pictures(accelerator, tmp_path):
    """The loss of the last 30 of 200 steps is below half of that of the first 30."""
    method, settings = unet_method(
        tmp_path, pictures=2, steps=200, batch_size=8, lr=4e-3, warmup=10, checkpoint_every=200,
        caption_dropout=0.0, prediction="v_prediction",
    )  # fmt: skip
    loop.train(method, settings, accelerator)
    losses = metric(tmp_path, "loss")
    assert sum(losses[-30:]) < 0.5 * sum(losses[:30])


def test_a_tiny_vae_learns_a_handful_of_pictures(accelerator, pictures, tmp_path):
    """L1 and gradient loss fall below 0.75 of the beginning within 120 steps."""
    method, settings = vae_method(
        tmp_path, pictures, train="all", steps=120, lr=4e-3, warmup=5, checkpoint_every=120
    )
    loop.train(method, settings, accelerator)
    losses = metric(tmp_path, "loss")
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])


def test_training_the_decoder_leaves_the_encoder_alone(accelerator, pictures, tmp_path):
    method, settings = vae_method(tmp_path, pictures, steps=5, weight_decay=0.5, lr=1e-2)
    before = {name: value.clone() for name, value in method.vae.state_dict().items()}
    loop.train(method, settings, accelerator)
    after = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    frozen = [n for n in before if n.startswith(("encoder.", "quant_conv."))]
    assert frozen
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name in frozen), name


def test_checkpoints_hold_what_is_trained_and_belong_to_its_model(accelerator, pictures, tmp_path):
    def train(steps, encoder=0.0):
        method, settings = vae_method(tmp_path, pictures, steps=steps, lr_schedule="constant")
        with torch.no_grad():
            method.vae.encoder.conv_in.bias += encoder
        loop.train(method, settings, accelerator)

    train(2)
    names = load_file(tmp_path / "checkpoints" / "step-00000002" / "weights.safetensors").keys()
    assert names
    assert not [name for name in names if name.startswith(("vae.encoder", "vae.quant_conv"))]
    train(3)
    assert metric(tmp_path, "step") == [1, 2, 3]
    with pytest.raises(UserError, match=r"--model \(its content has changed\)"):
        train(4, encoder=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("name", "part", "extra"),
    [
        ("finetune_unet", "unet", []),
        ("finetune_vae", "vae", ["--crop", 32, "--crops", 1, "--perceptual", "encoder"]),
    ],
)
def test_two_processes_equal_one_with_all_in_a_batch(
    name, part, extra, accumulate, tiny_model, pictures, tmp_path
):
    script = Path(__file__).parents[2] / "examples" / f"{name}.py"
    common = ["--model", tiny_model, "--data", pictures, "--size", 64, "--steps", 6, "--lr", "1e-3",
              "--warmup", 1, "--threads", 1, "--validate-every", 3, "--validation-count", 2,
              *extra]  # fmt: skip
    runs = {
        "one": [sys.executable, script, *common, "--batch_size", 4 * accumulate],
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2,
                "--master_port", 29531, script, *common, "--batch_size", 2,
                "--accumulate", accumulate],
    }  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(script.parents[1]), "ACCELERATE_USE_CPU": "true"}
    for run, words in runs.items():
        words = [*map(str, words), "--output", str(tmp_path / run)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.splitlines() == [str(tmp_path / run)]
    file = Path(part, "diffusion_pytorch_model.safetensors")
    one, two = (load_file(tmp_path / run / file) for run in runs)
    # Adam moves a weight whose gradient is rounding alone as far as any other: a few may differ.
    far = sum(int(((value - two[key]).abs() > 2e-4).sum()) for key, value in one.items())
    assert far <= 1e-5 * sum(value.numel() for value in one.values())
    losses = [metric(tmp_path / run, "loss") for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    norms = [metric(tmp_path / run, "grad_norm") for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in runs]
    measured = [json.loads(own[2])["validation"] for own in lines]
    for weights in ("raw", "averaged"):
        losses = [own[weights]["loss"] for own in measured]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert [json.loads(line)["step"] for line in lines[1]] == list(range(1, 7))
    if part == "vae":  # each process looks at its share of the pictures
        found = [json.loads((tmp_path / run / "quality.json").read_text()) for run in runs]
        assert found[0]["before"] == found[1]["before"]
        psnr = [own["after"]["psnr"]["mean"] for own in found]
        assert psnr[0] == pytest.approx(psnr[1], abs=0.01)
