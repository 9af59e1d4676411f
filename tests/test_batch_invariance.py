"""A picture's bytes depend on the size of its batch, and on neither its place nor its neighbours.

64 pictures whose prompts have one, two and three chunks, in batches of as many chunks each, as a
job groups them.
"""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.run import Result
from ldm_toolkit.tokens import chunk_prompt

Batch = list[tuple[str, int]]  # prompts and seeds

SIZES = (2, 4, 8)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "small", "big")
THINGS = ("dog", "cat", "bird", "house", "tree", "car", "boat", "hat")


def pictures() -> dict[int, Batch]:
    """What is drawn by the chunks of its prompt: 32 pictures of one, 16 of two, 16 of three."""
    groups: dict[int, Batch] = {1: [], 2: [], 3: []}
    for number, (colour, thing) in enumerate(itertools.product(COLOURS, THINGS)):
        chunks = (1, 1, 2, 3)[number % 4]
        filling = " a" * 75 * (chunks - 1)  # a token each
        groups[chunks].append((f"a {colour} {thing}{filling}", 11 * number))
    return groups


def batches(size: int, turn: int, chance: random.Random) -> list[Batch]:
    """All pictures in batches and those shuffled; in ``size`` turns each is once at every place.

    A place takes every ``size``-th picture, in an order of its own: so neighbours change too.
    """
    found: list[Batch] = []
    for group in pictures().values():
        columns = [group[(place + turn) % size :: size] for place in range(size)]
        for column in columns:
            chance.shuffle(column)
        found += [list(batch) for batch in zip(*columns, strict=True)]
    chance.shuffle(found)
    return found


def load(model: Path, dtype: str) -> LatentPipeline:
    return LatentPipeline.from_pretrained(model, device="cpu", dtype=dtype)


def draw(pipe: LatentPipeline, batch: Batch) -> Result:
    """Noise in the steps too, which has to be each picture's own."""
    prompts, seeds = zip(*batch, strict=True)
    options = {"steps": 2, "scheduler": "euler_a", "batch_size": len(batch)}
    return pipe(list(prompts), seed=list(seeds), **options)


def hashes(pipe: LatentPipeline, order: list[Batch], size: int) -> dict[int, str | None]:
    """SHA-256 of every picture's pixels by its seed, both out of the recipes."""
    recipes = [recipe for batch in order for recipe in draw(pipe, batch).recipes]
    assert {recipe.batch_size for recipe in recipes} == {size}
    return {recipe.seed: recipe.pixels_sha256 for recipe in recipes}


def test_the_prompts_have_one_two_and_three_chunks(pipe: LatentPipeline) -> None:
    for chunks, group in pictures().items():
        for prompt, _ in group:
            assert len(chunk_prompt(prompt, pipe.components.tokenizer)) == chunks
    assert [len(group) for group in pictures().values()] == [32, 16, 16]


@pytest.mark.parametrize("size", SIZES)
def test_the_turns_bring_each_picture_to_every_place(size: int) -> None:
    chance = random.Random(size)
    orders = [batches(size, turn, chance) for turn in range(size)]
    seen = {
        (seed, place)
        for order in orders
        for batch in order
        for place, (_, seed) in enumerate(batch)
    }
    assert len(seen) == 64 * size
    first, second = ({frozenset(batch) for batch in order} for order in orders[:2])
    assert len(first & second) < len(first) / 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_same_bytes_at_every_place_beside_any_neighbours_after_a_restart(
    tiny_model: Path, dtype: str, size: int
) -> None:
    chance = random.Random(size)
    pipe = load(tiny_model, dtype)
    expected = hashes(pipe, batches(size, 0, chance), size)
    assert len(expected) == len(set(expected.values())) == 64
    for turn in range(1, size):
        if turn == size - 1:
            pipe = load(tiny_model, dtype)  # after a restart nothing is remembered
        found = hashes(pipe, batches(size, turn, chance), size)
        assert [seed for seed in expected if found[seed] != expected[seed]] == [], f"turn {turn}"


def test_across_batch_sizes_a_pixel_is_off_by_one_level_at_most(pipe: LatentPipeline) -> None:
    levels: dict[int, list[np.ndarray]] = {}
    for size in (1, *SIZES):
        for batch in batches(size, 0, random.Random(size)):
            result = draw(pipe, batch)
            for recipe, image in zip(result.recipes, result.images, strict=True):
                levels.setdefault(recipe.seed, []).append(np.asarray(image))
    assert {len(found) for found in levels.values()} == {4}
    off = {seed: int(np.ptp(np.stack(found), axis=0).max()) for seed, found in levels.items()}
    assert max(off.values()) <= 1, off


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_of_one_two_and_three_chunks_side_by_side(tiny_model: Path, dtype: str) -> None:
    """A long prompt in a list must not change the pictures of the short ones beside it."""
    pipe = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    prompts = ["a dog", "a cat " * 60, "a bird", "a house " * 90, "a car"]
    options: dict[str, Any] = {"steps": 2, "guidance": 3.0, "scheduler": "euler_a"}
    together = pipe(prompts, seed=[5, 6, 7, 8, 9], **options)
    for index, prompt in enumerate(prompts):
        alone = pipe(prompt, seed=5 + index, batch_size=5, **options)
        assert alone.recipes[0] == together.recipes[index]
    unguided = pipe(prompts, seed=[5, 6, 7, 8, 9], **(options | {"guidance": 1.0}))
    assert torch.isfinite(unguided.latents).all()
