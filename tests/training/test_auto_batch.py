"""A batch that does not fit is computed in parts: as few as possible, and the same training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import Line, dreambooth_method, line_config, metric, unet_method

from ldm_toolkit.errors import UserError
from ldm_toolkit.training import loop
from ldm_toolkit.training.auto_batch import fitted

FORMS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def narrow(method: Any, limit: int, error: BaseException = FORMS[1]) -> list[int]:
    """Let a method's module run out of memory above ``limit`` samples; what it was asked for."""
    asked = []

    def refuse(module: Any, inputs: Any, columns: Any) -> None:
        asked.append(len(next(iter(columns.values()))))
        if asked[-1] > limit:
            raise error

    method.module.register_forward_pre_hook(refuse, with_kwargs=True)
    return asked


def saved(output: Path) -> dict[str, Any]:
    return json.loads((output / "config.json").read_text())


@pytest.mark.parametrize(
    ("batch", "accumulate", "limit", "expected"),
    [
        (8, 1, 100, (8, 1)),
        (8, 1, 8, (8, 1)),
        (8, 1, 7, (4, 2)),
        (8, 3, 4, (4, 6)),
        (8, 1, 1, (1, 8)),
        (6, 2, 5, (3, 4)),
        (7, 1, 6, (1, 7)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_the_largest_part_that_fits(batch, accumulate, limit, expected, accelerator, tmp_path):
    method = Line()
    narrow(method, limit)
    options = {"batch_size": batch, "accumulate": accumulate, "auto_batch": True}
    found = fitted(method, line_config(tmp_path, **options), accelerator)
    assert (found.batch_size, found.accumulate) == expected
    assert (saved(tmp_path)["batch_size"], saved(tmp_path)["accumulate"]) == expected
    assert saved(tmp_path)["auto_batch"] is True


@pytest.mark.parametrize("error", FORMS, ids=lambda error: type(error).__name__)
def test_every_form_of_running_out_of_memory(error, accelerator, tmp_path, caplog):
    caplog.set_level("INFO", "ldm_toolkit")
    method = Line()
    asked = narrow(method, 2, error)
    found = fitted(method, line_config(tmp_path, batch_size=8, auto_batch=True), accelerator)
    assert (found.batch_size, found.accumulate) == (2, 4)
    assert asked == [8, 4, 2, 2]  # the second finds the gradients of the first
    assert "8 at once are too many" in caplog.text
    assert "--auto-batch: 2 at once, 4 times a step; a CPU shows only" in caplog.text


def test_other_errors_are_not_swallowed(accelerator, tmp_path):
    method = Line()
    narrow(method, 2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        fitted(method, line_config(tmp_path, batch_size=8, auto_batch=True), accelerator)


def test_what_fits_in_no_way_is_told(accelerator, tmp_path):
    method = Line()
    narrow(method, 0)
    with pytest.raises(UserError, match="--auto-batch: memory takes no batch at all; try --grad"):
        fitted(method, line_config(tmp_path, batch_size=4, auto_batch=True), accelerator)
    assert not (tmp_path / "config.json").exists()


def test_without_the_option_nothing_is_tried(accelerator, tmp_path):
    method = Line()
    asked = narrow(method, 0)
    config = line_config(tmp_path, batch_size=4)
    assert fitted(method, config, accelerator) is config
    assert asked == []
    assert not (tmp_path / "config.json").exists()


def test_half_of_each_part_are_pictures_of_the_class(accelerator, tmp_path):
    method, config = dreambooth_method(tmp_path, batch_size=12, auto_batch=True)
    asked = narrow(method, 3)
    assert fitted(method, config, accelerator).batch_size == 2
    assert asked == [12, 6, 4, 2, 2]
    narrow(method, 1)
    with pytest.raises(UserError, match="memory takes no batch at all"):
        fitted(method, dreambooth_method(tmp_path / "x", batch_size=4, auto_batch=True)[1],
               accelerator)  # fmt: skip


def test_room_is_kept_for_the_optimiser_and_the_average(accelerator, tmp_path, monkeypatch):
    method, config = unet_method(tmp_path, batch_size=2, auto_batch=True, ema=0.9)
    sizes, real = [], torch.empty

    def watched(*shape, **options):
        if options.get("dtype") is torch.uint8:
            sizes.append(shape[0])
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", watched)
    fitted(method, config, accelerator)
    assert sizes == [12 * sum(p.numel() for p in method.unet.parameters())]


def test_trying_leaves_no_trace_and_the_training_is_the_same(accelerator, tmp_path):
    """Bit for bit that of such parts without the option; within rounding that of the whole."""
    options = {"steps": 3, "warmup": 0, "lr": 1e-3, "lr_schedule": "constant"}
    results = {}
    for name, batch, accumulate in (("auto", 8, 1), ("parts", 2, 4), ("whole", 8, 1)):
        (tmp_path / name).mkdir()
        method, config = unet_method(
            tmp_path / name, batch_size=batch, accumulate=accumulate,
            auto_batch=name == "auto", **options,
        )  # fmt: skip
        state = torch.get_rng_state()
        if name == "auto":
            narrow(method, 3)
            config = fitted(method, config, accelerator)
            assert all(p.grad is None for p in method.module.parameters())
        assert torch.equal(torch.get_rng_state(), state)
        loop.train(method, config, accelerator)
        results[name] = method.unet.state_dict(), metric(tmp_path / name, "loss")
    (auto, losses), (parts, same), (_, near) = (results[n] for n in ("auto", "parts", "whole"))
    assert losses == same
    assert all(torch.equal(auto[name], parts[name]) for name in auto)
    assert losses == pytest.approx(near, rel=1e-4)


def test_a_run_that_goes_on_keeps_what_was_found(accelerator, tmp_path):
    options = {"batch_size": 8, "auto_batch": True, "lr_schedule": "constant"}

    def start(limit: int, **changes: Any) -> list[int]:
        method = Line()
        asked = narrow(method, limit)
        config = fitted(method, line_config(tmp_path, **(options | changes)), accelerator)
        tried = len(asked)
        loop.train(method, config, accelerator)
        return asked[:tried]

    assert start(2, steps=4) == [8, 4, 2, 2]
    assert start(100, steps=8) == []  # more memory now
    assert (saved(tmp_path)["batch_size"], saved(tmp_path)["accumulate"]) == (2, 4)
    assert metric(tmp_path, "step") == list(range(1, 9))
    with pytest.raises(UserError, match=r"--batch-size 2 \(now 16\)"):
        start(100, batch_size=16)
    assert start(100, resume=False, steps=1) == [8]


def test_the_command_says_what_it_does(trainer, tiny_model, pictures, tmp_path):
    line: list[Any] = ["finetune_unet", "--model", tiny_model, "--data", pictures, "--size", 64]
    line += ["--output", tmp_path, "--steps", 2, "--batch_size", 2, "--threads", 1, "--auto-batch"]
    line += ["--lr_schedule", "constant"]
    child = trainer.run(*line)
    assert child.wait() == 0, child.errors
    assert "--auto-batch: 2 at once, 1 times a step" in child.errors
    assert saved(tmp_path)["batch_size"] == 2
    child = trainer.run(*line, "--steps", 3)
    assert child.wait() == 0, child.errors
    assert "resumed at step 2" in child.errors
