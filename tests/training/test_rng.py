"""Randomness depends on (seed, stream, position) alone."""

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
