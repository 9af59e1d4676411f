"""A watched run is the pipeline's own run, and what was seen is what the UNet computed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor

from ldm_toolkit.errors import UserError
from ldm_toolkit.explain.attention import attention_maps, word_maps
from ldm_toolkit.explain.guidance import again
from ldm_toolkit.explain.observed import Observed, observe
from ldm_toolkit.explain.words import find_words
from ldm_toolkit.models.components import sharing_copy
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.theory.diffusion import predicted_sample

PROMPT = "a dog wearing hat"


def processors(pipe: LatentPipeline) -> list[int]:
    return [id(one) for one in pipe.components.unet.attn_processors.values()]


def hooks(network: torch.nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules()
    )


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "heun"])
def test_the_picture_has_the_bits_of_an_unwatched_one(
    pipe: LatentPipeline, scheduler: str, guidance: float
) -> None:
    options: dict[str, Any] = {
        "steps": 3, "guidance": guidance, "seed": 5, "scheduler": scheduler,
    }  # fmt: skip
    before, hooked = processors(pipe), hooks(pipe.components.unet)
    plain = pipe(PROMPT, **options)
    seen = observe(pipe, PROMPT, **options)
    assert torch.equal(plain.latents, seen.steps[-1].latents)
    assert plain.images[0].tobytes() == seen.image.tobytes()
    assert plain.recipes[0] == seen.recipe
    assert processors(pipe) == before
    assert hooks(pipe.components.unet) == hooked == 0


@pytest.mark.parametrize(
    "options",
    [
        {"speed": "balanced"},
        {"speed": "fast"},
        {"reuse_every": 2, "gate": 0.5, "attention_every": 2},
        {"gate": 0.0, "guidance_interval": (0, 0.5)},
    ],
    ids=str,
)
def test_a_run_that_reuses_has_the_bits_of_an_unwatched_one(
    pipe: LatentPipeline, options: dict[str, Any]
) -> None:
    options = options | {"steps": 5, "seed": 5, "scheduler": "ddim"}
    plain = pipe(PROMPT, **options)
    seen = observe(pipe, PROMPT, **options)
    assert torch.equal(plain.latents, seen.steps[-1].latents)
    assert plain.recipes[0] == seen.recipe
    assert seen.inputs.shape == (5, 4, 8, 8)
    assert torch.allclose(seen.attention.sum(0), torch.ones(8, 8), atol=1e-5)
    again_drawn = pipe(PROMPT, seed=5, **again(seen.recipe))
    assert torch.equal(plain.latents, again_drawn.latents)
    assert "does not count again" in attention_maps(pipe, seen).caption


def test_attention_of_another_kind_is_watched_too(pipe: LatentPipeline) -> None:
    unet = sharing_copy(pipe.components.unet)
    unet.set_attn_processor(AttnProcessor())
    other = LatentPipeline(dataclasses.replace(pipe.components, unet=unet))
    options: dict[str, Any] = {"steps": 2, "seed": 1, "scheduler": "ddim"}
    seen = observe(other, PROMPT, **options)
    assert torch.equal(seen.steps[-1].latents, other(PROMPT, **options).latents)
    expected = observe(pipe, PROMPT, **options).attention
    assert torch.allclose(seen.attention, expected, atol=1e-5)
    with pytest.raises(UserError, match="gate must be 1 with this model"):
        observe(other, PROMPT, gate=0.5, **options)


def test_the_default_scheduler_is_the_pipelines(tiny_model: Any) -> None:
    pipe = LatentPipeline.from_pretrained(
        tiny_model, device="cpu", dtype="float32", scheduler="unipc"
    )
    assert observe(pipe, "a dog", steps=2, seed=1).recipe.scheduler == "unipc"


def test_follow_sees_every_step_and_mistakes_are_those_of_a_call(pipe: LatentPipeline) -> None:
    passed = []

    def follow(run: Any) -> Iterator[Any]:
        for step in run:
            passed.append((step.index, run.total))
            yield step

    observe(pipe, "a dog", steps=3, seed=1, scheduler="ddim", follow=follow)
    assert passed == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(UserError, match="steps"):
        observe(pipe, "a dog", steps=0)


@pytest.mark.parametrize("prompt", [PROMPT, "", "word " * 100])
@pytest.mark.parametrize("name", ["pipe", "v_pipe"])
def test_shares_of_all_tokens_sum_to_one(
    name: str, prompt: str, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(name)
    seen = observe(pipe, prompt, steps=2, seed=1)
    tokens = len(pipe.tokenize(prompt))
    assert seen.attention.shape == (tokens, 8, 8)
    assert seen.attention.min() >= 0
    assert torch.allclose(seen.attention.sum(0), torch.ones(8, 8), atol=1e-5)
    maps = word_maps(pipe, seen)
    assert torch.allclose(torch.tensor(sum(maps.values())), torch.ones(8, 8), atol=1e-5)


@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 3, "gate": 0.0}], ids=str)
def test_attention_is_what_the_networks_layers_compute(
    pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Beside diffusers' own processor of old, which shows its scores; all of the first step."""
    seen = observe(pipe, PROMPT, guidance=1.0, seed=4, scheduler="ddim", **options)
    scores = []
    original = Attention.get_attention_scores

    def recording(self: Attention, query: Any, key: Any, mask: Any = None) -> torch.Tensor:
        found = original(self, query, key, mask)
        if key.shape[1] == 77:
            scores.append(found)
        return found

    unet = sharing_copy(pipe.components.unet)
    unet.set_attn_processor(AttnProcessor())
    monkeypatch.setattr(Attention, "get_attention_scores", recording)
    with torch.no_grad():
        unet(seen.inputs[:1], seen.steps[0].timestep, pipe.encode_prompt(PROMPT))
    sides = sorted({one.shape[1] for one in scores})
    assert len(scores) >= 2
    expected = torch.zeros(77, 8, 8)
    for one in scores:
        side = int(one.shape[1] ** 0.5)
        small = one.mean(0).T.reshape(1, 77, side, side)
        expected += torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear")[0]
    assert torch.allclose(seen.attention, expected / len(scores), atol=1e-5), sides


@pytest.mark.parametrize("name", ["pipe", "v_pipe"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpm2_a", "dpm++_2m"])
def test_inputs_are_what_the_network_saw(
    name: str, scheduler: str, request: pytest.FixtureRequest
) -> None:
    """With the network's answer to them they give the step's predicted x_0."""
    pipe = request.getfixturevalue(name)
    seen = observe(pipe, PROMPT, steps=3, guidance=1.0, seed=2, scheduler=scheduler)
    kind = pipe.components.scheduler_config["prediction_type"]
    embeddings = pipe.encode_prompt(PROMPT)
    for place, step in enumerate(seen.steps):
        x_t = seen.inputs[place : place + 1]
        answer = pipe.predict_noise(x_t, step.timestep, embeddings)
        x_0 = predicted_sample(kind, answer, x_t, seen.alpha_bar(place))
        error = (x_0 - step.denoised).abs().max() / step.denoised.abs().max()
        assert error < 1e-3, place


def test_the_first_input_is_the_seeds_noise(pipe: LatentPipeline, observed: Observed) -> None:
    assert torch.equal(observed.inputs[:1], pipe.initial_noise(3, 64, 64))


def test_a_picture_that_is_no_square(pipe: LatentPipeline) -> None:
    seen = observe(pipe, "a dog", steps=1, seed=1, width=96, height=64)
    assert seen.attention.shape == (77, 8, 12)
    assert torch.allclose(seen.attention.sum(0), torch.ones(8, 12), atol=1e-5)


@pytest.mark.parametrize(
    "prompt", [PROMPT, "  A  Red CAR ", "", "(a dog:1.3) in [snow]", "unbelievable " * 60]
)
def test_words_are_spelled_by_the_prompts_tokens(pipe: LatentPipeline, prompt: str) -> None:
    words = find_words(pipe, prompt)
    ids = pipe.tokenize(prompt)
    assert [one for word in words for one in word.ids] == [
        ids[place] for word in words for place in word.places
    ]
    places = [place for word in words for place in word.places]
    assert places == sorted(set(places))
    plain = "".join(letter for letter in prompt.lower() if letter.isalpha())
    assert "".join("".join(word.text.split()) for word in words) == plain


def test_words_of_two_chunks(pipe: LatentPipeline) -> None:
    words = find_words(pipe, "dog " * 80)
    assert [word.text for word in words] == ["dog"] * 80
    assert any(place >= 77 for word in words for place in word.places)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_shown_evaluations_span_the_run(pipe: LatentPipeline, steps: int) -> None:
    seen = observe(pipe, "a dog", steps=steps, seed=1, guidance=1.0, scheduler="ddim")
    assert seen.shown[0] == 0
    assert seen.shown[-1] == steps - 1
    assert len(seen.shown) == min(steps, 7) == len(seen.previews)
