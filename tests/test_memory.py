"""Out of memory: the same pictures from smaller batches, sliced attention, the VAE in tiles."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm_toolkit.errors import is_out_of_memory
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.latents import decode_latents
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import TILED_FROM, Recipe
from ldm_toolkit.run import Result

PROMPTS = ["a dog", "a red cat with glasses", "a blue house", "a small bird", "a car at night"]
OPTIONS: dict[str, Any] = {"steps": 3, "seed": 7, "guidance": 4.0}


@pytest.fixture
def own_pipe(tiny_model: Path) -> LatentPipeline:
    """A pipeline that a test may change."""
    return LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32")


def short_of_memory(
    pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch, most: int, *, from_call: int = 0
) -> list[int]:
    """The UNet has memory for ``most`` rows from a call on; returns the rows of each call."""
    rows: list[int] = []
    unet = pipe.components.unet
    forward = unet.forward

    def limited(sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        rows.append(len(sample))
        if len(sample) > most and len(rows) > from_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        return forward(sample, *rest, **named)

    monkeypatch.setattr(unet, "forward", limited)
    return rows


def hashes(result: Result) -> list[str]:
    return [pixels_sha256(image) for image in result.images]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("most", "batch"), [(6, 3), (4, 2), (2, 1)])
def test_a_smaller_batch_has_the_bits_of_that_batch_size(
    own_pipe: LatentPipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    guidance: float,
    most: int,
    batch: int,
) -> None:
    options = OPTIONS | {"guidance": guidance}
    alone = [
        own_pipe(prompt, **(options | {"seed": 7 + index}), batch_size=batch)
        for index, prompt in enumerate(PROMPTS)
    ]
    short_of_memory(own_pipe, monkeypatch, most if guidance > 1 else most // 2)
    together = own_pipe(PROMPTS, **options)
    assert hashes(together) == [one for result in alone for one in hashes(result)]
    assert [recipe.batch_size for recipe in together.recipes] == [batch] * len(PROMPTS)
    assert together.recipes == [recipe for result in alone for recipe in result.recipes]
    assert "out of memory; going on with a batch of" in caplog.text
    assert "and more" not in caplog.text


def test_memory_that_runs_out_on_the_way(
    own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = own_pipe(PROMPTS, **OPTIONS)
    short_of_memory(own_pipe, monkeypatch, 4, from_call=1)
    found = own_pipe(PROMPTS, **OPTIONS)
    assert [recipe.batch_size for recipe in found.recipes] == [2] * len(PROMPTS)
    for one, other in zip(found.images, expected.images, strict=True):
        assert largest_difference(one, other) <= 1


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in steps of 1/255."""
    first, second = (torch.tensor(list(image.tobytes())) for image in (one, other))
    return int((first - second).abs().max())


def test_attention_is_sliced_when_one_picture_is_too_much(
    own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = own_pipe(PROMPTS[0], **OPTIONS)
    forward = own_pipe.components.unet.forward

    def limited(sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if own_pipe.components.attention != "sliced":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you")
        return forward(sample, *rest, **named)

    monkeypatch.setattr(own_pipe.components.unet, "forward", limited)
    found = own_pipe(PROMPTS[0], **OPTIONS)
    assert found.recipes[0].attention == "sliced"
    assert found.recipes[0].batch_size == 1
    assert "sliced attention" in caplog.text
    assert largest_difference(found.images[0], expected.images[0]) <= 1
    again = own_pipe(PROMPTS[0], **OPTIONS)  # from now on
    assert again.recipes[0].attention == "sliced"
    assert hashes(again) == hashes(found)


def test_nothing_helps(own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = short_of_memory(own_pipe, monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        own_pipe(PROMPTS[:3], **OPTIONS)
    assert rows == [6, 4, 2, 2]  # three, two, one, one with sliced attention


def test_other_errors_pass(own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(own_pipe.components.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        own_pipe(PROMPTS[0], **OPTIONS)


def test_the_vae_goes_over_to_tiles(
    own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = own_pipe.components.vae.decoder
    forward = decoder.forward

    def limited(latents: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if latents.shape[-1] > 8:
            raise MemoryError
        return forward(latents, *rest, **named)

    monkeypatch.setattr(decoder, "forward", limited)
    with caplog.at_level(logging.WARNING):
        result = own_pipe(PROMPTS[0], **OPTIONS, width=128, height=128)
    assert result.recipes[0].vae_tiling is True
    assert "the VAE in tiles" in caplog.text
    tiled = decode_latents(result.latents, own_pipe.components, tiled=True)
    assert tiled.shape == (1, 3, 128, 128)
    assert own_pipe.components.vae.use_tiling is False


def test_tiles_equal_those_of_diffusers(pipe: LatentPipeline) -> None:
    latents = torch.randn(2, 4, 20, 12, generator=torch.Generator().manual_seed(0))
    ours = decode_latents(latents, pipe.components, tiled=True)
    vae = pipe.components.vae
    with torch.no_grad():
        theirs = vae.tiled_decode(latents / vae.config.scaling_factor).sample
    assert (ours - theirs).abs().max() <= 1e-5
    whole = decode_latents(latents, pipe.components)
    assert not torch.equal(ours, whole)


def test_large_pictures_are_tiled(pipe: LatentPipeline) -> None:
    side = 1536
    assert side * side == TILED_FROM
    small = pipe.stream("a dog", seed=0, steps=1, width=side, height=side).recipes[0]
    large = pipe.stream("a dog", seed=0, steps=1, width=side, height=side + 8).recipes[0]
    assert (small.vae_tiling, large.vae_tiling) == (False, True)
    assert small.vae_slicing
    assert Recipe.from_json(large.to_json()) == large


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("not enough memory: you tried to allocate"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
