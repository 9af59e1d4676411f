"""Deep features serve the next steps: when, for whom, and in every kind of run."""

import dataclasses

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm_toolkit import schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath.halves import Halves
from ldm_toolkit.fastpath.reuse import Reuse
from ldm_toolkit.models.components import sharing_copy
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.replay import options_of
from ldm_toolkit.speed import PRESETS

PROMPT = "a dog wearing a hat"


@pytest.fixture
def counted(monkeypatch):
    """("whole" or "shallow", batch size) of every evaluation of a cut UNet."""
    seen = []
    for name in ("whole", "shallow"):
        own = getattr(Halves, name)

        def counting(self, x, *rest, own=own, name=name):
            seen.append((name, len(x)))
            return own(self, x, *rest)

        monkeypatch.setattr(Halves, name, counting)
    return seen


@pytest.mark.parametrize(
    ("every", "power", "total", "wholes"),
    [
        (1, 1.0, 5, [0, 1, 2, 3, 4]),
        (2, 1.0, 5, [0, 2, 4]),
        (3, 1.0, 10, [0, 3, 6, 9]),
        (5, 1.0, 3, [0]),
        (5, 2.0, 20, [0, 1, 5, 11]),
        (5, 0.5, 20, [0, 10, 14, 17]),
    ],
)
def test_which_evaluations_are_whole(every, power, total, wholes):
    reuse = Reuse(every, power=power)
    assert [k for k in range(total) if reuse.whole_at(k, total)] == wholes


def test_no_evaluation_is_lost_to_rounding():
    for every in range(2, 11):
        for total in range(1, 201):
            found = [k for k in range(total) if Reuse(every).whole_at(k, total)]
            assert found == list(range(0, total, every))
        for total in range(1, 61):
            found = {k for k in range(total) if Reuse(every, power=2.0).whole_at(k, total)}
            assert found == {k**2 // total for k in range(0, total, every)}


def test_the_count_is_what_the_pattern_says(pipe, counted):
    result = pipe(PROMPT, steps=7, seed=1, scheduler="ddim", reuse_every=3)
    assert [name for name, _ in counted] == [
        "whole", "shallow", "shallow", "whole", "shallow", "shallow", "whole",
    ]  # fmt: skip
    recipe = result.recipes[0]
    assert (recipe.reuse_every, recipe.reuse_depth, recipe.reuse_power) == (3, 1, 1.0)


def test_one_is_exact(pipe, counted):
    plain = pipe(PROMPT, steps=3, seed=1)
    same = pipe(PROMPT, steps=3, seed=1, reuse_every=1, reuse_depth=2)
    assert torch.equal(plain.latents, same.latents)
    assert not counted
    near = pipe(PROMPT, steps=3, seed=1, reuse_every=2)
    assert not torch.equal(plain.latents, near.latents)


def test_more_depth_is_nearer(pipe):
    exact = pipe(PROMPT, steps=12, seed=1, scheduler="ddim").latents
    off = [
        float((pipe(PROMPT, steps=12, seed=1, scheduler="ddim", reuse_every=3,
                    reuse_depth=depth).latents - exact).norm())
        for depth in (1, 3)
    ]  # fmt: skip
    assert off[1] < off[0]


def test_the_end_of_guidance_keeps_the_positive_half(pipe, counted):
    pipe(PROMPT, steps=6, seed=1, scheduler="ddim", reuse_every=6, guidance_interval=(0, 0.5))
    assert counted == [("whole", 2), *[("shallow", 2)] * 2, *[("shallow", 1)] * 3]


def test_guidance_that_begins_later_computes_anew(pipe, counted):
    pipe(PROMPT, steps=6, seed=1, scheduler="ddim", reuse_every=6, guidance_interval=(0.5, 1))
    wholes = [("whole", 1), ("shallow", 1), ("shallow", 1), ("whole", 2)]
    assert counted == [*wholes, ("shallow", 2), ("shallow", 2)]


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_presets_fill_what_was_not_asked(pipe, speed):
    preset = PRESETS[speed]
    recipe = pipe.stream(PROMPT, steps=4, seed=1, speed=speed).recipes[0]
    assert recipe.reuse_every == preset.reuse_every > 1
    assert recipe.guidance_interval == preset.guidance_interval
    own = pipe.stream(PROMPT, steps=4, speed=speed, guidance_interval=(0, 1), reuse_every=2)
    assert (own.recipes[0].reuse_every, own.recipes[0].guidance_interval) == (2, (0, 1))
    assert own.recipes[0].reuse_depth == preset.reuse_depth


def test_a_recipe_gives_the_same_picture_whatever_presets_become(pipe, monkeypatch):
    made = pipe(PROMPT, steps=5, seed=3, speed="fast")
    asked = options_of(made.recipes[0])
    names = [f.name for f in dataclasses.fields(asked) if f.name != "prompt"]
    assert asked.speed == "fast"
    monkeypatch.setitem(PRESETS, "fast", PRESETS["exact"])
    again = pipe(PROMPT, **{name: getattr(asked, name) for name in names})
    assert torch.equal(made.latents, again.latents)


def test_rows_have_the_same_bits_in_any_company(pipe):
    options = {"steps": 5, "speed": "fast", "batch_size": 3}
    together = pipe([PROMPT, "a cat", "a red house"], seed=[4, 5, 6], **options)
    alone = pipe("a cat", seed=5, **options)
    assert torch.equal(together.latents[1], alone.latents[0])


def test_two_runs_at_once_keep_what_is_theirs(pipe):
    kinds = [{"reuse_every": 3}, {"reuse_every": 2, "reuse_depth": 2}, {}]
    alone = [pipe(PROMPT, steps=6, seed=k, **kind).latents for k, kind in enumerate(kinds)]
    runs = [pipe.stream(PROMPT, steps=6, seed=k, **kind) for k, kind in enumerate(kinds)]
    for _ in range(runs[0].total):
        for run in runs:
            next(run)
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(run.result.latents, expected)


@pytest.mark.parametrize("name", sorted(schedulers.names()))
def test_every_scheduler(pipe, name):
    assert torch.isfinite(pipe(PROMPT, steps=4, seed=1, scheduler=name, speed="fast").latents).all()


def test_a_picture_drawn_over(pipe, counted):
    image = Image.new("RGB", (64, 64), "red")
    pipe(PROMPT, steps=4, seed=1, scheduler="ddim", image=image, strength=0.5, reuse_every=2)
    assert [name for name, _ in counted] == ["whole", "shallow"]


@pytest.mark.parametrize("channels", [4, 9])
def test_a_masked_picture(model_factory, counted, monkeypatch, channels):
    """Of an ordinary model and of one that sees mask and picture; shallow as whole is exact."""
    model = model_factory(in_channels=channels)
    pipe = LatentPipeline.from_pretrained(model, device="cpu", dtype="float32")
    options = {
        "steps": 6, "seed": 1, "scheduler": "ddim", "strength": 0.7,
        "image": Image.linear_gradient("L").resize((64, 64)).convert("RGB"),
        "mask": Image.linear_gradient("L").rotate(90).resize((64, 64)),
    }  # fmt: skip
    exact = pipe(PROMPT, **options).latents
    near = pipe(PROMPT, **options, reuse_every=3).latents
    assert [name for name, _ in counted] == ["whole", "shallow", "shallow", "whole"]
    assert torch.isfinite(near).all()
    assert not torch.equal(near, exact)

    def all_of_it(self, x, timestep, text, deep, state):
        return self.whole(x, timestep, text, state)[0]

    monkeypatch.setattr(Halves, "shallow", all_of_it)
    assert torch.equal(pipe(PROMPT, **options, reuse_every=3).latents, exact)


def test_a_lora_reaches_both_halves_and_leaves_them(pipe, tmp_path):
    """As with the LoRA's product added to the weights."""
    options = {"steps": 5, "seed": 1, "scheduler": "ddim", "reuse_every": 2}
    merged = sharing_copy(pipe.components.unet)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layers in ("up_blocks.1.attentions.1", "mid_block.attentions.0"):
        name = f"{layers}.transformer_blocks.0.attn2.to_v"
        layer = merged.get_submodule(name)
        down = torch.randn(2, layer.in_features, generator=generator)
        up = torch.randn(layer.out_features, 2, generator=generator)
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        layer.weight = torch.nn.Parameter(layer.weight + up @ down)
    save_file(tensors, tmp_path / "both.safetensors")
    ours = LatentPipeline(pipe.components)
    before = ours(PROMPT, **options).latents
    ours.load_lora(tmp_path / "both.safetensors")
    found = ours(PROMPT, **options).latents
    theirs = LatentPipeline(dataclasses.replace(pipe.components, unet=merged))
    assert torch.allclose(found, theirs(PROMPT, **options).latents, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)
    ours.unload_loras()
    assert torch.equal(ours(PROMPT, **options).latents, before)


@pytest.mark.slow
def test_both_halves_are_compiled(tiny_model, pipe, caplog):
    """With inductor's freezing, each once."""
    options = {"steps": 5, "seed": 1, "scheduler": "ddim", "reuse_every": 2}
    compiled = LatentPipeline.from_pretrained(
        tiny_model, device="cpu", dtype="float32", compile=True
    )
    with caplog.at_level("INFO", "ldm_toolkit"):
        *_, last = compiled.stream(PROMPT, **options)  # its picture would compile the VAE
        again = list(compiled.stream(PROMPT, **options))[-1]
    assert caplog.text.count("compiled in") == 2
    assert (last.latents - pipe(PROMPT, **options).latents).abs().max() <= 1e-4
    assert torch.equal(again.latents, last.latents)


def test_too_deep_is_told_before_the_first_step(pipe):
    with pytest.raises(UserError, match=r"reuse_depth must be from 1 to 3 .* not 4"):
        pipe.stream(PROMPT, reuse_every=2, reuse_depth=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speed": "fsat"}, "did you mean 'fast'"),
        ({"reuse_every": 0}, "reuse_every must be"),
        ({"reuse_depth": 1.5}, "reuse_depth must be"),
        ({"reuse_power": 0}, "reuse_power must be positive"),
        ({"reuse_power": float("nan")}, "reuse_power must be"),
    ],
)
def test_wrong_options(pipe, options, said):
    with pytest.raises(UserError, match=said):
        pipe.stream(PROMPT, **options)
