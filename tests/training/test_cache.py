"""Rows are computed once, a killed run goes on, other content has another place."""

import pytest
import torch
from training_tools import tiny_unet

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


def test_a_damaged_shard_is_computed_again(tmp_path, caplog):
    rows = rows_of(tmp_path, Counting())
    shard = sorted(tmp_path.rglob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:30])
    compute = Counting()
    assert torch.equal(rows_of(tmp_path, compute), rows)
    assert compute.asked == list(range(10, 20))
    assert "damaged" in caplog.text


def test_the_hash_of_a_module_sees_every_weight():
    unet = tiny_unet()
    before = cache.module_hash(unet)
    assert before == cache.module_hash(tiny_unet())
    with torch.no_grad():
        unet.conv_out.bias[-1] += 1e-6
    assert cache.module_hash(unet) != before
