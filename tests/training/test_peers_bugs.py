"""Bugs of published training scripts, each with the tests that ours does not have it.

The scripts are diffusers' (``examples/`` at 58eb52c080), the last rows other trainers'. Tests that
were missing elsewhere stand below.
"""

import copy
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from training_tools import (
    Line,
    line_config,
    metric,
    steps_of,
    unet_method,
    vae_method,
)

from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.models.tokenizer import load_tokenizer
from ldm_toolkit.training import checkpoints, loop, prepare
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.methods.full import FullUNet
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.step import _add_gradients, _batches

HERE = Path(__file__).parent

# Script and bug -> tests, as file::function.
BUGS = {
    # train_autoencoderkl.py
    "the discriminator is not restored at a resume": ["test_resume_table::test_no_bit_differs"],
    "weights, discriminator and average are cast to half precision": [
        "test_peers_bugs::test_all_that_is_trained_is_float32_under_bf16",
    ],
    "encode and decode go past DDP, whose gradients are then not reduced": [
        "test_two_processes::test_gradients_are_the_mean_over_processes",
        "test_loop::test_two_processes_equal_one_with_all_in_a_batch",
    ],
    "generator and discriminator learn from alternate batches": [
        "test_effects::test_every_trained_tensor_moves_and_nothing_else_does",
        "test_methods::test_the_critics_and_the_decoders_gradients_do_not_mix",
    ],
    # train_text_to_image.py
    "a resume starts the epoch again": [
        "test_resume_table::test_no_bit_differs",
        "test_kills::test_six_kills_change_no_bit",
    ],
    "all processes draw the same noise": [
        "test_two_processes::test_no_process_repeats_anothers_noise",
        "test_peers_bugs::test_processes_have_the_positions_among_them",
    ],
    "processes but the first save no state; saving hangs": [
        "test_two_processes::test_two_processes_go_on_bit_for_bit",
    ],
    "old checkpoints go before the new one is there": [
        "test_peers_bugs::test_old_checkpoints_stay_until_the_new_one_is_there",
        "test_peers_bugs::test_a_save_that_fails_costs_no_checkpoint",
    ],
    "a truncated checkpoint is the latest": [
        "test_damage::test_a_damaged_file_costs_one_checkpoint",
        "test_kills::test_a_hundred_kills_change_no_bit",
    ],
    "a step that was skipped is counted and averaged": [
        "test_loop::test_a_bad_step_changes_nothing",
        "test_peers_bugs::test_a_bad_step_is_neither_counted_nor_averaged",
        "test_peers_bugs::test_a_step_that_the_scaler_skips_is_neither_counted_nor_averaged",
    ],
    "NaN is not looked for": [
        "test_loop::test_three_bad_steps_stop_the_run_and_keep_the_checkpoints",
        "test_two_processes::test_a_bad_loss_of_one_process_skips_the_step_of_both",
    ],
    "min-SNR divides 0 by 0, or leaves the last step without a gradient": [
        "test_objectives::test_losses_and_gradients",
        "test_methods::test_the_last_step_of_a_zero_terminal_schedule_learns",
    ],
    "captions are not dropped, or the same ones in every epoch": [
        "test_methods::test_captions_are_dropped_at_the_configured_rate",
        "test_methods::test_dropout_and_captions_are_drawn_anew_each_epoch",
    ],
    "captions are cut at 77 tokens without a word": [
        "test_commands::test_the_data_can_be_checked_alone",
    ],
    "the short accumulation at an epoch's end is divided by the full count": [
        "test_peers_bugs::test_a_step_across_an_epochs_end_is_the_mean_of_its_samples",
        "test_accumulation::test_loss_and_gradients_are_those_of_the_large_batch",
    ],
    "the loss of a step is not that of all its batches": ["test_accumulation::test_logs_are_means"],
    "validating uses up the training's randomness": [
        "test_validation::test_measuring_changes_no_bit_of_the_training",
        "test_loop::test_sample_pictures_come_with_averaged_weights",
    ],
    # train_text_to_image_lora.py
    "clipping gets an iterator that was read before, and clips nothing": [
        "test_effects::test_clipping_clips",
        "test_effects::test_the_optimiser_has_exactly_what_is_trained",
    ],
    "weights and moments of a LoRA are bfloat16 under bf16": [
        "test_lora::test_adapter_and_moments_are_float32_under_bf16",
    ],
    # train_dreambooth.py
    "min-SNR weighs the subject by the timestep of its class": [
        "test_objectives::test_an_instance_is_not_weighted_by_the_timestep_of_its_prior",
        "test_dreambooth::test_the_loss_is_that_of_the_subject_and_weighted_that_of_the_class",
    ],
    "class pictures of several processes are the same ones": [
        "test_prior::test_pictures_are_drawn_once_each_of_its_seed",
    ],
    "the strength of offset noise cannot be set": [
        "test_methods::test_offset_noise_has_the_configured_deviation",
    ],
    # textual_inversion.py
    "every process writes the result into one file": [
        "test_two_processes::test_two_processes_go_on_bit_for_bit",
    ],
    "the optimiser holds the whole table of words": [
        "test_textual_inversion::test_checkpoints_hold_the_vectors_alone",
        "test_textual_inversion::test_all_else_stays_as_it_was_bit_for_bit",
    ],
    "pictures are squeezed into squares": ["test_data::test_pictures_are_cropped_in_the_middle"],
    # train_text_to_image_sdxl.py, once
    "the average never moves": [
        "test_effects::test_the_average_moves_behind_the_weights",
        "test_effects::test_the_average_is_that_of_the_weights_of_all_steps",
    ],
    # other trainers
    "frozen parts move, trained ones get no gradient": [
        "test_effects::test_every_trained_tensor_moves_and_nothing_else_does",
        "test_effects::test_every_trained_tensor_gets_a_gradient",
        "test_effects::test_weight_decay_leaves_frozen_parts_alone",
        "test_textual_inversion::test_the_vectors_alone_get_a_gradient",
    ],
    "caches do not follow an edited picture, a caption, the resolution": [
        "test_peers_bugs::test_caches_follow_what_they_are_of",
        "test_commands::test_caches_are_shared_and_follow_the_content",
    ],
    "a new learning rate is ignored at a resume": [
        "test_resume_exactly::test_other_options_are_refused",
    ],
    "a resume counts steps again": ["test_kills::test_six_kills_change_no_bit"],
    "a run of NaN ends with a broken file": [
        "test_loop::test_three_bad_steps_stop_the_run_and_keep_the_checkpoints",
    ],
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_table_names_tests_that_are_there(bug: str) -> None:
    for name in BUGS[bug]:
        file, _, function = name.partition("::")
        assert f"\ndef {function}(" in (HERE / f"{file}.py").read_text(), name


# --- precision ---


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_all_that_is_trained_is_float32_under_bf16(kind, bf16, pictures, tmp_path):
    options = {"steps": 2, "batch_size": 2, "ema": 0.9, "mixed_precision": "bf16"}
    if kind == "unet":
        method, settings = unet_method(tmp_path, **options)
    else:
        method, settings = vae_method(
            tmp_path, pictures, train="all", adversarial_weight=0.5, **options
        )
    seen = set()
    convolution = next(m for m in method.module.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, given, made: seen.add(made.dtype))
    loop.train(method, settings, bf16)
    assert seen == {torch.bfloat16}  # it is what computes
    assert {parameter.dtype for parameter in method.trainable().parameters()} == {torch.float32}
    files = list((tmp_path / "checkpoints").rglob("*.safetensors"))
    assert sorted(file.stem for file in files) == ["ema", "optimizer", "weights"]
    files += (tmp_path / kind).rglob("*.safetensors")
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}, file.name


# --- steps that are skipped ---


def state_after(output: Path, step: int) -> tuple[dict, dict]:
    folder = output / "checkpoints" / f"step-{step:08d}"
    moments = load_file(folder / "optimizer.safetensors")
    counts = {name: float(value) for name, value in moments.items() if name.endswith(".step")}
    return json.loads((folder / "state.json").read_text()), counts


def test_a_bad_step_is_neither_counted_nor_averaged(accelerator, tmp_path):
    """By AdamW and the average, whose corrections depend on their counts; the data goes on."""
    method = Line(bad={2})
    loop.train(method, line_config(tmp_path, steps=4, checkpoint_every=1, keep=4), accelerator)
    found = [state_after(tmp_path, step) for step in range(1, 5)]
    assert [state["ema_step"] for state, _ in found] == [1, 2, 2, 3]
    assert [set(counts.values()) for _, counts in found] == [{1.0}, {2.0}, {2.0}, {3.0}]
    assert [state["bad_steps"] for state, _ in found] == [0, 0, 1, 0]
    assert [p for batch in method.seen for p in batch] == list(range(8))


def test_a_step_that_the_scaler_skips_is_neither_counted_nor_averaged(
    accelerator, monkeypatch, tmp_path
):
    """As with fp16, whose first scale is too large: the scaler lowers it and the step is lost."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=1000)
    accelerator.scaler, accelerator.native_amp = scaler, True
    monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", "fp16")
    method = Line()
    settings = line_config(tmp_path, steps=8, checkpoint_every=1, keep=8, warmup=0)
    loop.train(method, settings, accelerator)
    norms = torch.tensor(metric(tmp_path, "grad_norm"))
    finite = [bool(one) for one in torch.isfinite(norms)]
    assert 0 < sum(finite) < 8
    found = [state_after(tmp_path, step) for step in range(1, 9)]
    counted = [sum(finite[:step]) for step in range(1, 9)]
    assert [state["ema_step"] for state, _ in found] == counted
    assert [max(counts.values(), default=0) for _, counts in found] == counted
    assert found[-1][0]["scaler"]["scale"] == 2.0 ** (18 - finite.count(False))


# --- accumulation ---


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (2, 2), (1, 4)])
def test_a_step_across_an_epochs_end_is_the_mean_of_its_samples(
    batch, accumulate, accelerator, tmp_path
):
    """Of five pictures the second step of four samples has one of an epoch and three of the next;
    each counts for a quarter, by gradients that are computed of each alone.
    """
    method, settings = unet_method(tmp_path, pictures=5, batch_size=batch, accumulate=accumulate)
    alone = copy.deepcopy(method)
    run = RunState(method, settings, accelerator, {})
    run.step = 1
    loss, _ = _add_gradients(run, _batches(run))
    losses = []
    for position in range(4, 8):
        one, _ = alone.loss(alone.module(**alone.batch([position])), 1)
        (one / 4).backward()
        losses.append(float(one.detach()))
    assert len({alone._index(position) for position in range(4, 8)}) >= 3
    assert loss == pytest.approx(sum(losses) / 4, rel=1e-5)
    expected = torch.cat([p.grad.flatten() for p in alone.unet.parameters()])
    found = torch.cat([p.grad.flatten() for p in run.parameters])
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_processes_have_the_positions_among_them(ranks, accumulate):
    """Every position once, those of a step together."""
    config = SimpleNamespace(batch_size=4, accumulate=accumulate)
    for step in range(5):
        seen = []
        for rank in range(ranks):
            process = SimpleNamespace(num_processes=ranks, process_index=rank)
            batches = _batches(SimpleNamespace(config=config, accelerator=process, step=step))
            assert [len(batch) for batch in batches] == [4] * accumulate
            seen += [position for batch in batches for position in batch]
        size = 4 * accumulate * ranks
        assert seen == list(range(step * size, (step + 1) * size))


# --- checkpoints ---


def test_old_checkpoints_stay_until_the_new_one_is_there(accelerator, monkeypatch, tmp_path):
    seen, real = [], checkpoints.prune

    def prune(folder: Path, keep: int, newest: int) -> None:
        found = checkpoints.latest(folder)
        assert found is not None
        seen.append((found.step, sorted(int(path.name[5:]) for path in folder.iterdir())))
        real(folder, keep, newest)

    monkeypatch.setattr(checkpoints, "prune", prune)
    loop.train(Line(), line_config(tmp_path, checkpoint_every=3), accelerator)
    assert seen == [(3, [3]), (6, [3, 6]), (9, [3, 6, 9]), (12, [6, 9, 12])]


def test_a_save_that_fails_costs_no_checkpoint(accelerator, monkeypatch, tmp_path):
    """And the same command goes on from the last one when there is room again."""
    real = checkpoints.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-00000009" in str(path) and "optimizer" in path.name:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    settings = line_config(tmp_path, checkpoint_every=3)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", full)
        with pytest.raises(CannotWrite, match="step-00000009: No space left"):
            loop.train(Line(), settings, accelerator)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000006"]
    loop.train(Line(), settings, accelerator)
    assert steps_of(tmp_path / "metrics.jsonl") == list(range(1, 13))


# --- caches ---


class Data:
    """Pictures, their captions and what else rows of the caches depend on."""

    def __init__(self, folder: Path, pictures: Path, model: Path) -> None:
        self.folder = folder / "data"
        shutil.copytree(pictures, self.folder)
        for file in self.folder.glob("*.png"):  # without compression: other pixels, equal length
            Image.open(file).copy().save(file, compress_level=0)
        self.vae, self.text, self.size = model / "vae", model, 64

    def given(self, cache: Path, accelerator: Any) -> dict[str, Any]:
        """What a method would get, with the caches of a folder."""
        config = UNetConfig(data=str(self.folder), output="o", cache=str(cache), size=self.size)
        parts = {"vae": self.vae, "text_encoder": self.text / "text_encoder"}
        tokenizer = load_tokenizer(self.text / "tokenizer")
        found = prepare.unet_inputs(config, FullUNet, parts, tokenizer, accelerator, Path, None)
        return {**found.given, "hashes": found.hashes}


def edited(data: Data, other: Path) -> None:
    """Another picture in a file of the same name, length and time."""
    file = data.folder / "0.png"
    before = file.stat()
    with Image.open(file) as picture:
        ImageOps.mirror(picture).save(file, compress_level=0)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def recaptioned(data: Data, other: Path) -> None:
    file = data.folder / "0.txt"
    before = file.stat()
    file.write_text(file.read_text().replace("dog", "cat"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def exchanged(data: Data, other: Path) -> None:
    """Two files that change their names."""
    first, second, aside = (data.folder / name for name in ("0.png", "1.png", "x"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def larger(data: Data, other: Path) -> None:
    data.size = 72


def other_vae(data: Data, other: Path) -> None:
    data.vae = other / "vae"


def other_text_encoder(data: Data, other: Path) -> None:
    data.text = other


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (edited, {"moments"}),
        (exchanged, {"moments"}),
        (larger, {"moments"}),
        (other_vae, {"moments"}),
        (recaptioned, {"embeddings"}),
        (other_text_encoder, {"embeddings"}),
    ],
)
def test_caches_follow_what_they_are_of(
    change, changed, accelerator, tiny_model, model_factory, pictures, tmp_path
):
    """With the caches of before the change the rows are those of a new, empty cache."""
    data = Data(tmp_path, pictures, tiny_model)
    before = data.given(tmp_path / "cache", accelerator)
    change(data, model_factory(seed=1))
    after = data.given(tmp_path / "cache", accelerator)
    fresh = data.given(tmp_path / "empty", accelerator)
    for name in ("moments", "embeddings"):
        assert torch.equal(after[name], fresh[name]), name
        assert torch.equal(after[name], before[name]) == (name not in changed), name
    assert after["caption_rows"] == fresh["caption_rows"]
    assert after["hashes"] == fresh["hashes"] != before["hashes"]  # a resume is refused


def test_the_caches_of_another_size_stay_for_the_next_run(
    accelerator, tiny_model, pictures, tmp_path
):
    data = Data(tmp_path, pictures, tiny_model)
    before = data.given(tmp_path / "cache", accelerator)
    data.size = 72
    assert data.given(tmp_path / "cache", accelerator)["moments"].shape[-1] == 9
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    data.size = 64
    again = data.given(tmp_path / "cache", accelerator)
    assert torch.equal(again["moments"], before["moments"])
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == files
