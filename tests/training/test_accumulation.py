"""Several batches a step are one large batch: in loss, gradients, clipping and positions."""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from training_tools import Line, metric, unet_method, vae_method
from training_tools import line_config as config

from ldm_toolkit.training import loop
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.step import _add_gradients, _batches


def gradients(method, settings, accelerator) -> tuple[float, torch.Tensor]:
    """The loss of the first step's samples and all its gradients in a row."""
    run = RunState(method, settings, accelerator, {})
    loss, _ = _add_gradients(run, _batches(run))
    return loss, torch.cat([parameter.grad.flatten() for parameter in run.parameters])


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_loss_and_gradients_are_those_of_the_large_batch(kind, accelerator, pictures, tmp_path):
    found = []
    for batch, accumulate in ((6, 1), (2, 3), (1, 6)):
        options = {"batch_size": batch, "accumulate": accumulate}
        if kind == "unet":
            made = unet_method(tmp_path, min_snr_gamma=5.0, **options)
        else:
            made = vae_method(tmp_path, pictures, train="all", **options)
        found.append(gradients(*made, accelerator))
    (loss, expected), *others = found
    assert expected.norm() > 0
    for other, gradient in others:
        assert other == pytest.approx(loss, rel=1e-5)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-4


def test_clipping_acts_on_the_sum(accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, **_: torch.optim.SGD(p, lr=lr))
    weights, norms = [], []
    for name, batch, accumulate in (("one", 6, 1), ("three", 2, 3)):
        method = Line(scale=1e3)
        settings = config(tmp_path / name, steps=4, batch_size=batch, accumulate=accumulate)
        loop.train(method, settings, accelerator)
        weights.append(method.module.weight.detach())
        norms.append(metric(tmp_path / name, "grad_norm"))
    assert min(norms[0]) > settings.max_grad_norm
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert torch.allclose(*weights, rtol=1e-5)


def test_positions_run_through_without_a_gap(accelerator, tmp_path):
    method = Line()
    loop.train(method, config(tmp_path, steps=5, batch_size=2, accumulate=3), accelerator)
    assert all(len(batch) == 2 for batch in method.seen)
    assert [p for batch in method.seen for p in batch] == list(range(30))
    assert metric(tmp_path, "step") == list(range(1, 6))


def test_logs_are_means(accelerator, pictures, tmp_path):
    losses = {}
    for name, batch, accumulate in (("one", 4, 1), ("two", 2, 2)):
        options = {"batch_size": batch, "accumulate": accumulate, "steps": 1, "train": "all"}
        method, settings = vae_method(tmp_path / name, pictures, **options)
        (tmp_path / name).mkdir()
        loop.train(method, settings, accelerator)
        losses[name] = [metric(tmp_path / name, column)[0] for column in ("loss", "kl")]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_exchange_gradients_once_a_step(accumulate, accelerator, tmp_path, monkeypatch):
    silent = []

    @contextlib.contextmanager
    def no_sync(module):
        silent.append(len(method.seen))
        yield

    monkeypatch.setattr(accelerator, "no_sync", no_sync)
    method = Line()
    loop.train(method, config(tmp_path, steps=2, accumulate=accumulate), accelerator)
    assert silent == [n for n in range(2 * accumulate) if n % accumulate < accumulate - 1]


def test_what_accelerate_was_told_does_not_divide_the_loss(tmp_path, monkeypatch):
    """`accelerate launch --gradient_accumulation_steps 4` sets this."""
    norms = []
    for count in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", count)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        assert accelerator.gradient_accumulation_steps == int(count)
        loop.train(Line(), config(tmp_path / count, steps=2), accelerator)
        norms.append(metric(tmp_path / count, "grad_norm"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert norms[0] == norms[1]


def test_a_bad_batch_skips_the_whole_step(accelerator, tmp_path, caplog):
    loop.train(Line(bad={4}), config(tmp_path, batch_size=2, accumulate=3), accelerator)
    assert (
        "step 4, positions 24 to 29 (3.png, 4.png, 5.png, 6.png, 0.png, 1.png) skipped"
        in caplog.text
    )


def test_a_resumed_run_is_the_same_bit_for_bit(accelerator, tmp_path):
    options = {"batch_size": 2, "accumulate": 3, "lr_schedule": "constant", "lr": 1e-3}
    results = []
    for name, stops in (("whole", [6]), ("parts", [1, 4, 6])):
        (tmp_path / name).mkdir()
        for steps in stops:
            method, settings = unet_method(tmp_path / name, steps=steps, warmup=0, **options)
            loop.train(method, settings, accelerator)
        results.append(method.unet.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert metric(tmp_path / "parts", "loss") == metric(tmp_path / "whole", "loss")
