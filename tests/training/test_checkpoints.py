"""Checkpoints are whole or not there, and a damaged one is passed over."""

import json
import os

import pytest
import torch
from safetensors import SafetensorError

from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.training import checkpoints
from ldm_toolkit.training.checkpoints import Checkpoint


def checkpoint(step: int) -> Checkpoint:
    tensors = {
        "weights": {"a": torch.full((40,), float(step)), "b": torch.eye(3)[:, 1]},
        "optimizer": {"0.step": torch.tensor(float(step))},
    }
    return Checkpoint(step, tensors, {"seed": 3, "ema_step": step})


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "checkpoints"
    for step in (3, 6, 9):
        checkpoints.save(home, checkpoint(step))
    return home


def test_a_round_trip_keeps_every_bit(folder):
    found = checkpoints.latest(folder)
    assert found is not None
    assert (found.step, found.state) == (9, {"seed": 3, "ema_step": 9})
    assert found.tensors.keys() == {"weights", "optimizer"}
    for group, tensors in checkpoint(9).tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[group][name], tensor)


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert checkpoints.latest(tmp_path / "none") is None
    assert checkpoints.latest(tmp_path) is None


def test_no_pickles(folder):
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
    }  # fmt: skip


def flip(path):
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def truncate(path):
    os.truncate(path / "optimizer.safetensors", 20)


def emptied(path):
    os.truncate(path / "manifest.json", 0)


def wrong_manifest(path):
    (path / "manifest.json").write_text('["weights.safetensors"]')


def wrong_entry(path):
    (path / "manifest.json").write_text('{"weights.safetensors": 3}')


def changed_state(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "ema_step": 8}))


DAMAGE = {
    "a flipped bit": flip,
    "truncated": truncate,
    "a file gone": lambda path: (path / "weights.safetensors").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "an empty manifest": emptied,
    "a manifest of another shape": wrong_manifest,
    "a manifest without sizes": wrong_entry,
    "a changed state": changed_state,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_is_passed_over(damage, folder, caplog):
    damage(folder / "step-00000009")
    found = checkpoints.latest(folder)
    assert found is not None
    assert found.step == 6
    assert "step-00000009 is damaged" in caplog.text


def test_leftovers_of_a_kill_are_no_checkpoints(folder):
    (folder / "step-00000009").rename(folder / ".step-00000012.ab12.tmp")
    found = checkpoints.latest(folder)
    assert found is not None
    assert found.step == 6
    checkpoints.prune(folder, 2, newest=6)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000006"]


def test_prune_keeps_the_newest(folder):
    checkpoints.prune(folder, 2, newest=9)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000009"]


def test_prune_never_prefers_a_later_one_to_what_was_just_saved(folder):
    """Step 9 is damaged or of an earlier run: counting it would push out the good ones."""
    checkpoints.save(folder, checkpoint(7))
    checkpoints.prune(folder, 2, newest=7)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000007"]


def test_a_failed_save_leaves_the_others_and_no_trace(folder, monkeypatch):
    def full(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(CannotWrite, match="No space left"):
        checkpoints.save(folder, checkpoint(12))
    assert sorted(folder.rglob("*")) == before


def test_saving_a_step_again_replaces_it(folder):
    flip(folder / "step-00000009")
    checkpoints.save(folder, checkpoint(9))
    found = checkpoints.latest(folder)
    assert found is not None
    assert found.step == 9


def half_frozen(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    module[0].requires_grad_(False)
    return module


def test_what_is_frozen_is_left_out():
    tensors = checkpoints.named_state(half_frozen())
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert tensors.keys() == {"1.weight", "1.bias"} | buffers
    module = half_frozen(1)
    before = module[0].weight.clone()
    tensors["1.weight"] = torch.arange(4.0)
    checkpoints.restore_state(module, tensors)
    assert torch.equal(module[1].weight, torch.arange(4.0))
    assert torch.equal(module[0].weight, before)


def test_what_was_stored_of_frozen_parts_comes_back():
    """Checkpoints of earlier versions hold them."""
    module = half_frozen(1)
    checkpoints.restore_state(module, half_frozen().state_dict())
    assert torch.equal(module[0].weight, half_frozen()[0].weight)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("1.bias"), "1.bias is missing"),
        (lambda t: [t.pop("1.bias"), t.pop("1.weight")], "1.weight and 1 more is missing"),
        (lambda t: t.update(other=torch.ones(1)), "other has no place"),
        (lambda t: t.update({"1.bias": torch.ones(5)}), "size mismatch for 1.bias"),
    ],
)
def test_the_state_of_another_network_is_refused(change, told):
    tensors = checkpoints.named_state(half_frozen())
    change(tensors)
    with pytest.raises(ValueError, match=told) as caught:
        checkpoints.restore_state(half_frozen(), tensors)
    assert "\n" not in str(caught.value)


def test_the_hash_of_what_is_frozen():
    assert checkpoints.frozen_hash(torch.nn.Linear(2, 2)) is None
    first = checkpoints.frozen_hash(half_frozen())
    assert first is not None
    assert len(first) == 64
    module = half_frozen()
    torch.nn.init.zeros_(module[1].weight)
    assert checkpoints.frozen_hash(module) == first
    torch.nn.init.zeros_(module[0].bias)
    assert checkpoints.frozen_hash(module) != first


def train(parameters, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p**2).sum() for p in parameters).backward()
        optimizer.step()


def test_an_optimiser_goes_on_as_if_nothing_had_happened():
    def fresh():
        parameters = [torch.nn.Parameter(torch.arange(4.0)), torch.nn.Parameter(torch.ones(2, 2))]
        return parameters, torch.optim.AdamW(parameters, lr=0.1, fused=True)

    whole, optimizer = fresh()
    train(whole, optimizer, 5)
    first, optimizer = fresh()
    train(first, optimizer, 3)
    tensors = checkpoints.optimizer_tensors(optimizer)
    assert set(tensors) == {f"{i}.{n}" for i in (0, 1) for n in ("step", "exp_avg", "exp_avg_sq")}
    second, optimizer = fresh()
    with torch.no_grad():
        for ours, theirs in zip(second, first, strict=True):
            ours.copy_(theirs)
    checkpoints.restore_optimizer(optimizer, {k: v.clone() for k, v in tensors.items()})
    train(second, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(second, whole, strict=True))
