"""Rows are computed once, a killed run goes on, other content has another place."""

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from training_tools import tiny_unet

from ldm_toolkit.models.components import module_hash
from ldm_toolkit.training import cache


class Counting:
    """Computes rows and remembers which."""

    def __init__(self, factor=1.0, fail_at=None):
        self.asked, self.factor, self.fail_at = [], factor, fail_at

    def __call__(self, indices):
        if self.fail_at in indices:
            raise KeyboardInterrupt
        self.asked += indices
        return torch.tensor([[float(i) * self.factor, 0.5] for i in indices])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(cache, "_SHARD", 10)


def rows_of(folder, compute, key="k", length=25):
    return cache.cached_rows(folder, key, length, compute, "latents")


def test_computed_once(tmp_path):
    compute = Counting()
    rows = rows_of(tmp_path, compute)
    assert rows.dtype == torch.float16
    assert rows[:, 0].tolist() == list(range(25))
    assert compute.asked == list(range(25))
    assert torch.equal(rows_of(tmp_path, compute), rows)
    assert len(compute.asked) == 25


def test_a_killed_run_goes_on_at_its_shard(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        rows_of(tmp_path, Counting(fail_at=17))
    compute = Counting()
    assert rows_of(tmp_path, compute)[:, 0].tolist() == list(range(25))
    assert compute.asked == list(range(10, 25))


def test_other_keys_have_other_rows(tmp_path):
    rows_of(tmp_path, Counting())
    assert rows_of(tmp_path, Counting(2.0), key="l")[3, 0] == 6.0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def shard(tmp_path):
    """The second of three shards, whole."""
    rows_of(tmp_path, Counting())
    return sorted(tmp_path.rglob("*.safetensors"))[1]


def check_made_anew(folder, shard, whole, caplog):
    """The shard alone is computed again, is what it was, and is said to be damaged in one line."""
    caplog.clear()
    compute = Counting()
    assert rows_of(folder, compute)[:, 0].tolist() == list(range(25))
    assert compute.asked == list(range(10, 20))
    assert shard.read_bytes() == whole
    (record,) = caplog.records
    assert f"cached shard {shard} is damaged" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1


@pytest.mark.parametrize("kept", [0, 7, 30, -1])
def test_a_shard_cut_short_is_computed_again(kept, shard, tmp_path, caplog):
    whole = shard.read_bytes()
    shard.write_bytes(whole[:kept])
    check_made_anew(tmp_path, shard, whole, caplog)


def test_a_flipped_bit_of_a_row_is_noticed(shard, tmp_path, caplog):
    """Wherever it is; no row is anything but what was computed."""
    whole = shard.read_bytes()
    rows = 10 * 2 * 2  # at the end of the file, bytes
    for place in range(len(whole) - rows, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        shard.write_bytes(damaged)
        check_made_anew(tmp_path, shard, whole, caplog)


def test_a_flipped_bit_of_the_header_does_no_harm(shard, tmp_path, caplog):
    whole = shard.read_bytes()
    for place in range(len(whole) - 10 * 2 * 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        shard.write_bytes(damaged)
        assert rows_of(tmp_path, Counting())[:, 0].tolist() == list(range(25)), place


def test_a_shard_without_a_hash_is_computed_again(shard, tmp_path, caplog):
    whole = shard.read_bytes()
    shard.write_bytes(safetensors_bytes({"rows": torch.zeros(10, 2, dtype=torch.float16)}))
    check_made_anew(tmp_path, shard, whole, caplog)


def test_the_hash_of_a_module_sees_every_weight():
    unet = tiny_unet()
    before = module_hash(unet)
    assert before == module_hash(tiny_unet())
    with torch.no_grad():
        unet.conv_out.bias[-1] += 1e-6
    assert module_hash(unet) != before
