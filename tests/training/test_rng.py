"""Randomness depends on (seed, stream, position) alone."""

import collections
import random

import pytest
import torch

from ldm_toolkit.training import rng


def test_generators_are_pure_functions():
    first = torch.randn(5, generator=rng.generator(1, "noise", 7))
    torch.manual_seed(123)
    torch.randn(3)
    assert torch.equal(first, torch.randn(5, generator=rng.generator(1, "noise", 7)))


def test_every_argument_counts():
    keys = [(1, "noise", 7), (2, "noise", 7), (1, "crop", 7), (1, "noise", 8), (17, "noise", 0)]
    draws = {tuple(torch.randn(3, generator=rng.generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert len({rng.uniform(*key) for key in keys}) == len(keys)


def test_uniform_is_uniform_and_below_one(monkeypatch):
    values = [rng.uniform(0, "x", position) for position in range(4000)]
    assert all(0 <= value < 1 for value in values)
    for tenth in range(10):
        share = sum(tenth <= 10 * value < tenth + 1 for value in values) / len(values)
        assert 0.08 < share < 0.12
    monkeypatch.setattr(rng, "_mix", lambda *parts: 2**63 - 1)  # rounds to 2**63 as a float
    assert rng.uniform(0, "x", 0) < 1


def test_every_epoch_is_another_permutation():
    index = rng.PermutationIndex(3, 11)
    epochs = [[index(11 * epoch + k) for k in range(11)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_does_not_depend_on_what_was_asked_before():
    expected = [rng.PermutationIndex(3, 11)(position) for position in range(44)]
    index, places = rng.PermutationIndex(3, 11), list(range(44))
    random.Random(0).shuffle(places)
    assert all(index(position) == expected[position] for position in places)
    assert expected != [rng.PermutationIndex(4, 11)(position) for position in range(44)]


@pytest.mark.parametrize(("first", "second"), [(3, 5), (5, 5), (1, 4)])
def test_two_sets_take_turns_each_with_its_own_epochs(first, second):
    index = rng.AlternatingIndex(3, first, second)
    drawn = [index(position) for position in range(8 * first * second)]
    sets = drawn[::2], drawn[1::2]
    for length, start, found in ((first, 0, sets[0]), (second, first, sets[1])):
        for begin in range(0, len(found), length):
            assert sorted(found[begin : begin + length]) == list(range(start, start + length))
    if first == second:  # the sets are shuffled independently of each other
        assert sets[0] != [place - first for place in sets[1]]
    assert [index(position) for position in (9, 2, 9)] == [drawn[9], drawn[2], drawn[9]]


BUCKETS = [(64, 64)] * 9 + [(128, 64)] * 4 + [(64, 128)] * 2 + [(64, 192)]
CASES = [
    (BUCKETS, 1), (BUCKETS, 3), (BUCKETS, 4), (BUCKETS, 8), (BUCKETS, 32),
    (["a"] * 8, 4), (["a"] * 7, 4), (["a"], 1),
]  # fmt: skip


@pytest.mark.parametrize(("buckets", "batch"), CASES)
def test_batches_hold_one_bucket_and_epochs_every_picture(buckets, batch):
    index = rng.BucketIndex(5, buckets, batch)
    assert len(index) % batch == 0
    for epoch in range(3):
        order = [index(epoch * len(index) + offset) for offset in range(len(index))]
        for start in range(0, len(order), batch):
            assert len({buckets[one] for one in order[start : start + batch]}) == 1
        shown = collections.Counter(order)
        assert set(shown) == set(range(len(buckets)))
        for bucket in set(buckets):
            counts = [shown[one] for one in shown if buckets[one] == bucket]
            assert max(counts) - min(counts) <= 1, "the tail repeats evenly"
            assert sum(counts) == -(-len(counts) // batch) * batch


def test_where_batches_fill_up_nothing_is_shown_twice():
    index = rng.BucketIndex(5, ["a"] * 8 + ["b"] * 4, 4)
    assert sorted(index(position) for position in range(12)) == list(range(12))


def test_bucket_order_is_a_function_of_seed_position_and_global_batch():
    """Two processes with batches of 2 show what one with 4 does."""
    expected = [rng.BucketIndex(3, BUCKETS, 4)(position) for position in range(60)]
    index, places = rng.BucketIndex(3, BUCKETS, 4), list(range(60))
    random.Random(0).shuffle(places)
    assert all(index(position) == expected[position] for position in places)
    assert expected != [rng.BucketIndex(4, BUCKETS, 4)(position) for position in range(60)]
    ranks = [[expected[(2 * step + rank) * 2 + k] for k in range(2)]
             for step in range(15) for rank in range(2)]  # fmt: skip
    assert [one for pair in ranks for one in pair] == expected
    assert len({BUCKETS[one] for one in expected[:4]}) == 1


def test_epochs_of_buckets_differ():
    index = rng.BucketIndex(3, BUCKETS, 4)
    epochs = {tuple(index(epoch * len(index) + k) for k in range(len(index))) for epoch in range(4)}
    assert len(epochs) == 4
    starts = {BUCKETS[index(epoch * len(index))] for epoch in range(20)}
    assert len(starts) > 1, "batches of buckets are mixed"
