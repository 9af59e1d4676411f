"""A disk that will not do is told before the first step, not at the first save."""

from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from training_tools import Line, line_config, lora_method, steps_of, unet_method, vae_method

from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.training import loop, optimizers, space
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.loop_config import OPTIMIZERS
from ldm_toolkit.training.run_state import RunState


@pytest.fixture
def disk(monkeypatch):
    """Sets what the disk says it has free."""

    def say(free):
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    return say


def folder_bytes(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["unet", "lora", "vae"])
def test_the_estimate_is_what_a_checkpoint_takes(kind, ema, accelerator, pictures, tmp_path):
    options = {"steps": 1, "batch_size": 1, "warmup": 0, "ema": ema}
    if kind == "unet":
        method, settings = unet_method(tmp_path, **options)
    elif kind == "lora":
        method, settings = lora_method(tmp_path, lora_targets="all", **options)
    else:
        method, settings = vae_method(tmp_path, pictures, adversarial_weight=0.5, **options)
    estimate = space.checkpoint_bytes(method, settings)
    loop.train(method, settings, accelerator)
    found = folder_bytes(tmp_path / "checkpoints")
    names = 200 * 4 * sum(1 for _ in method.trainable().parameters())  # headers, at most
    assert estimate <= found <= estimate + names + 10_000


def test_there_is_an_estimate_for_every_optimiser():
    assert optimizers.STATE_BYTES.keys() == set(OPTIMIZERS)


def test_too_little_room_is_told_before_the_first_step(accelerator, disk, tmp_path):
    disk(100)
    with pytest.raises(CannotWrite, match=r"0\.0 MB free, .*3 checkpoints of .*--output") as caught:
        loop.train(Line(), line_config(tmp_path), accelerator)
    assert caught.value.exit_code == 74
    assert steps_of(tmp_path / "metrics.jsonl") == []
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("copied", [0, 1000])
def test_the_room_needed_is_that_of_the_checkpoints_and_the_result(copied, disk, tmp_path):
    method, settings = unet_method(tmp_path, keep=4)
    result = sum(tensor.nbytes for tensor in method.unet.state_dict().values())
    needed = 5 * space.checkpoint_bytes(method, settings) + result + copied
    disk(needed)
    space.check_space(method, settings, copied)
    disk(needed - 1)
    with pytest.raises(CannotWrite, match="5 checkpoints"):
        space.check_space(method, settings, copied)


def test_a_lora_needs_no_room_for_the_model(disk, tmp_path):
    method, settings = lora_method(tmp_path, rank=1)
    trained = sum(p.nbytes for p in method.trainable().parameters() if p.requires_grad)
    assert trained < sum(p.nbytes for p in method.unet.parameters()) / 4
    disk(3 * 4 * trained + 2 * trained)  # weights, average, two moments; two files
    space.check_space(method, settings)


def test_what_divided_weights_need_is_asked_of_the_whole_ones(accelerator, tmp_path):
    """The estimate does not depend on what `accelerate` has made of the method."""
    method, settings = unet_method(tmp_path)
    before = space.checkpoint_bytes(method, settings)
    RunState(method, settings, accelerator, {})
    assert space.checkpoint_bytes(method, settings) == before


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_nothing_is_copied_where_the_run_will_not_fit(
    kind, disk, monkeypatch, tiny_model, pictures, tmp_path
):
    """The model's other parts would fit, the checkpoints would not."""
    from ldm_toolkit.training import run
    from ldm_toolkit.training.folders import copied_bytes

    output = tmp_path / "o"
    common = {"model": str(tiny_model), "data": str(pictures), "output": str(output), "size": 64}
    config = UNetConfig(**common) if kind == "unet" else VAEConfig(**common, crop=32)
    copied = copied_bytes(tiny_model, output, {kind})
    assert copied == sum(
        folder_bytes(tiny_model / part)
        for part in {"tokenizer", "text_encoder", "vae", "unet", "scheduler"} - {kind}
    )
    disk(copied + 100)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(CannotWrite, match="3 checkpoints"):
            (run.train_unet if kind == "unet" else run.train_vae)(config)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    there = {path.name for path in output.iterdir()}
    assert there <= {"cache", "config.json", "quality.json"}


def test_the_checkpoints_of_a_run_that_goes_on_make_room(accelerator, disk, tmp_path):
    options = {"lr_schedule": "constant", "keep": 2}
    loop.train(Line(), line_config(tmp_path, steps=8, **options), accelerator)
    one = space.checkpoint_bytes(Line(), line_config(tmp_path, **options))
    there = folder_bytes(tmp_path / "checkpoints")
    needed = max(0, 3 * one - there) + space._result_bytes(Line())
    disk(needed)
    loop.train(Line(), line_config(tmp_path, steps=12, **options), accelerator)
    assert steps_of(tmp_path / "metrics.jsonl") == list(range(1, 13))


def test_a_place_that_cannot_be_asked_is_told(accelerator, monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(space.shutil, "disk_usage", refuse)
    with pytest.raises(CannotWrite, match="Permission denied"):
        loop.train(Line(), line_config(tmp_path), accelerator)
