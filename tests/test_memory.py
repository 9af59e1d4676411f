"""Out of memory: the same pictures from smaller batches, sliced attention, the VAE in tiles."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from ldm_toolkit.errors import UserError, is_out_of_memory
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
    assert "out of memory; again in batches of" in caplog.text
    assert "and more" not in caplog.text


@pytest.mark.parametrize("kind", ["euler_a", "pndm", "from a picture", "inpainting"])
def test_memory_that_runs_out_on_the_way(
    kind: str, own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run begins anew, so that a replay of its recipe has the same bits, and says nothing."""
    grey = Image.new("RGB", (64, 64), "grey")
    options = OPTIONS | {"steps": 4} | ({"scheduler": kind} if " " not in kind else {})
    if kind in ("from a picture", "inpainting"):
        options |= {"image": grey, "scheduler": "euler_a"}
    if kind == "inpainting":
        options["mask"] = Image.linear_gradient("L").resize((64, 64))
    alone = [
        own_pipe(prompt, **(options | {"seed": 7 + index}), batch_size=2)
        for index, prompt in enumerate(PROMPTS)
    ]
    rows = short_of_memory(own_pipe, monkeypatch, 4, from_call=2)
    run = own_pipe.stream(PROMPTS, **options)
    assert [step.index for step in run] == list(range(run.total))
    assert rows[:3] == [10, 10, 10]  # two evaluations with all five, both halves; then no more
    assert set(rows[3:]) == {6, 4}
    assert hashes(run.result) == [one for result in alone for one in hashes(result)]
    assert run.result.recipes == [recipe for result in alone for recipe in result.recipes]


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in steps of 1/255."""
    first, second = (torch.tensor(list(image.tobytes())) for image in (one, other))
    return int((first - second).abs().max())


def is_sliced(unet: Any) -> bool:
    """Whether the attention of a UNet is computed in slices."""
    kinds = {type(one.inner).__name__ for one in unet.attn_processors.values()}
    assert kinds in ({"SlicedAttnProcessor"}, {"AttnProcessor2_0"})
    return kinds == {"SlicedAttnProcessor"}


def only_sliced(monkeypatch: pytest.MonkeyPatch, *, from_call: int = 0) -> list[bool]:
    """Any UNet has memory only for sliced attention from a call on; returns what each call did."""
    calls: list[bool] = []
    forward = UNet2DConditionModel.forward

    def limited(self: Any, *rest: Any, **named: Any) -> Any:
        calls.append(is_sliced(self))
        if len(calls) > from_call and not calls[-1]:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you")
        return forward(self, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", limited)
    return calls


@pytest.mark.parametrize("from_call", [0, 1, 2])
def test_attention_is_sliced_when_one_picture_is_too_much(
    from_call: int,
    own_pipe: LatentPipeline,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = own_pipe(PROMPTS[0], **OPTIONS)
    asked: dict[str, Any] = {"device": "cpu", "dtype": "float32", "attention": "sliced"}
    expected = LatentPipeline.from_pretrained(tiny_model, **asked)(PROMPTS[0], **OPTIONS)
    calls = only_sliced(monkeypatch, from_call=from_call)
    found = own_pipe(PROMPTS[0], **OPTIONS)
    assert calls == [False] * (from_call + 1) + [True] * 4  # pndm: n + 1
    assert found.recipes == expected.recipes
    assert found.recipes[0].attention == "sliced"
    assert found.recipes[0].batch_size == 1
    assert "sliced attention" in caplog.text
    assert largest_difference(found.images[0], plain.images[0]) <= 1
    again = own_pipe(PROMPTS[0], **OPTIONS)  # from now on
    assert calls == [False] * (from_call + 1) + [True] * 8
    assert again.recipes == expected.recipes


def test_a_run_that_slices_leaves_the_others_as_they_are(
    own_pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = own_pipe(PROMPTS[0], **OPTIONS)
    first = own_pipe.stream(PROMPTS[0], **OPTIONS)
    next(first)
    with monkeypatch.context() as short:
        only_sliced(short)
        second = own_pipe(PROMPTS[1], **OPTIONS)
    assert second.recipes[0].attention == own_pipe.components.attention == "sliced"
    with monkeypatch.context() as watched:
        calls = only_sliced(watched, from_call=99)
        assert len(list(first)) == 3
    assert calls == [False] * 3
    assert first.result.recipes == expected.recipes


def test_a_run_keeps_the_networks_that_it_began_with(
    own_pipe: LatentPipeline, tmp_path: Path
) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    draw = torch.Generator().manual_seed(0)
    halves = {"A": (2, 32), "B": (32, 2)}
    save_file(
        {
            f"{name}.lora_{half}.weight": torch.randn(shape, generator=draw)
            for half, shape in halves.items()
        },
        tmp_path / "any.safetensors",
    )
    expected = own_pipe(PROMPTS[0], **OPTIONS)
    run = own_pipe.stream(PROMPTS[0], **OPTIONS)
    next(run)
    own_pipe.load_lora(tmp_path / "any.safetensors")
    for _ in run:
        pass
    assert run.result.recipes == expected.recipes
    assert own_pipe(PROMPTS[0], **OPTIONS).recipes[0].pixels_sha256 not in hashes(expected)


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


def test_tiles_as_they_are_asked_for(pipe: LatentPipeline) -> None:
    whole = pipe("a dog", seed=0, steps=1, width=128, height=128)
    tiled = pipe("a dog", seed=0, steps=1, width=128, height=128, vae_tiling=True)
    assert (whole.recipes[0].vae_tiling, tiled.recipes[0].vae_tiling) == (False, True)
    assert torch.equal(whole.latents, tiled.latents)
    assert hashes(whole) != hashes(tiled)
    large = pipe.stream("a dog", seed=0, width=1536, height=1544, vae_tiling=False)
    assert large.recipes[0].vae_tiling is False
    with pytest.raises(UserError, match="vae_tiling must be true or false"):
        pipe.stream("a dog", vae_tiling=1)  # type: ignore[arg-type]


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
