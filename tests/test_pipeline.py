"""LatentPipeline: the seed rule, streams, results, the parts."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_toolkit import schedulers
from ldm_toolkit.errors import LdmToolkitError, NumericalError, UserError
from ldm_toolkit.given import warn_if_small
from ldm_toolkit.guidance import combine
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.models.load import load_components
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import MAX_SEED, Recipe
from ldm_toolkit.run import Run

PROMPT = "a dog wearing a hat"
NOISY = ["ddpm", "euler_a", "dpm2_a", "dpm++_2m_sde", "dpm++_sde", "lcm"]


def drain(run: Run) -> torch.Tensor:
    return list(run)[-1].latents


def unet_batches(pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every UNet call from now on."""
    seen: list[int] = []
    forward = type(pipe.components.unet).forward

    def counting(self: Any, sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(len(sample))
        return forward(self, sample, *rest, **named)

    monkeypatch.setattr(type(pipe.components.unet), "forward", counting)
    return seen


class TestSeedRule:
    @pytest.mark.parametrize("name", ["ddim", *NOISY])
    def test_image_k_of_seed_s_is_image_0_of_seed_s_plus_k(
        self, pipe: LatentPipeline, name: str
    ) -> None:
        options: dict[str, Any] = {"steps": 4, "scheduler": name, "images_per_prompt": 3}
        whole = drain(pipe.stream(PROMPT, seed=5, **options))
        for k in range(3):
            assert torch.equal(whole[k], drain(pipe.stream(PROMPT, seed=5 + k, **options))[0])

    @pytest.mark.parametrize("name", NOISY)
    def test_step_noise_does_not_depend_on_the_batch(self, pipe: LatentPipeline, name: str) -> None:
        options: dict[str, Any] = {"steps": 4, "scheduler": name, "guidance": 2.0}
        together = drain(pipe.stream(PROMPT, seed=8, images_per_prompt=3, **options))
        for k in range(3):
            alone = drain(pipe.stream(PROMPT, seed=8 + k, **options))
            assert (together[k] - alone[0]).abs().max() < 1e-3 * together[k].abs().max()

    def test_two_prompts_times_two_images(self, pipe: LatentPipeline) -> None:
        result = pipe([PROMPT, "a cat"], images_per_prompt=2, seed=40, steps=2)
        assert [recipe.prompt for recipe in result.recipes] == [PROMPT, PROMPT, "a cat", "a cat"]
        assert [recipe.seed for recipe in result.recipes] == [40, 41, 42, 43]
        assert len(result.images) == 4
        assert result.latents.shape == (4, 4, 8, 8)
        other = pipe(["a cat"] * 4, seed=40, steps=2)
        assert torch.equal(other.latents[2:], result.latents[2:])
        assert not torch.equal(other.latents[0], result.latents[0])

    def test_random_seed_is_in_the_recipe(self, pipe: LatentPipeline) -> None:
        first = pipe(PROMPT, steps=1)
        assert 0 <= first.recipes[0].seed < 2**32
        again = pipe(PROMPT, steps=1, seed=first.recipes[0].seed)
        assert torch.equal(first.latents, again.latents)
        assert pipe(PROMPT, steps=1).recipes[0].seed != first.recipes[0].seed

    def test_last_seed(self, pipe: LatentPipeline) -> None:
        assert pipe(PROMPT, steps=1, seed=MAX_SEED).recipes[0].seed == MAX_SEED
        with pytest.raises(UserError, match="seed must be at most"):
            pipe.stream(PROMPT, seed=MAX_SEED, images_per_prompt=2)


class TestRun:
    def test_steps_and_total(self, pipe: LatentPipeline) -> None:
        for name, total in (("ddim", 5), ("pndm", 6), ("heun", 9), ("dpm2", 9), ("dpm2_a", 9)):
            run = pipe.stream(PROMPT, steps=5, scheduler=name, seed=0)
            assert run.total == total
            steps = list(run)
            assert [step.index for step in steps] == list(range(total))
            assert all(step.total == total for step in steps)
            assert all(step.latents.dtype == torch.float32 for step in steps)
            assert all(step.denoised.shape == (1, 4, 8, 8) for step in steps)

    def test_recipes_are_known_before_the_first_step(self, pipe: LatentPipeline) -> None:
        run = pipe.stream(PROMPT, steps=2, seed=1)
        assert run.recipes[0].seed == 1
        assert run.recipes[0].pixels_sha256 is None

    def test_result_before_the_end_is_an_error(self, pipe: LatentPipeline) -> None:
        run = pipe.stream(PROMPT, steps=2, seed=1, scheduler="ddim")
        for _ in range(2):
            with pytest.raises(LdmToolkitError, match="before its end"):
                _ = run.result
            next(run)
        assert next(run, None) is None
        assert run.result is run.result
        assert run.result.recipes[0].pixels_sha256 == pixels_sha256(run.result.images[0])

    def test_call_is_a_loop_over_the_stream(self, pipe: LatentPipeline) -> None:
        result = pipe(PROMPT, steps=3, seed=7)
        run = pipe.stream(PROMPT, steps=3, seed=7)
        assert torch.equal(drain(run), result.latents)
        assert run.result.recipes == result.recipes

    def test_previews(self, pipe: LatentPipeline) -> None:
        step = next(pipe.stream(PROMPT, steps=2, seed=1, images_per_prompt=2))
        assert [image.size for image in step.previews()] == [(64, 64)] * 2
        assert step.preview().tobytes() == step.previews()[0].tobytes()

    def test_the_last_step_decoded_is_the_picture(self, pipe: LatentPipeline) -> None:
        run = pipe.stream(PROMPT, steps=3, seed=1, scheduler="euler")
        last = list(run)[-1]
        difference = np.asarray(last.decoded(), int) - np.asarray(run.result.images[0], int)
        assert np.abs(difference).max() <= 1

    def test_steps_are_frozen(self, pipe: LatentPipeline) -> None:
        step = next(pipe.stream(PROMPT, steps=1, seed=1))
        with pytest.raises(dataclasses.FrozenInstanceError):
            step.index = 3  # type: ignore[misc]

    @pytest.mark.parametrize("name", ["dpm++_2m", "lms", "pndm", "heun", "ddpm"])
    def test_two_streams_at_once(self, pipe: LatentPipeline, name: str) -> None:
        """Interleaved runs of one pipeline give what they give one after the other."""
        first: dict[str, Any] = {"steps": 5, "seed": 1, "scheduler": name, "guidance": 3.0}
        second: dict[str, Any] = {"steps": 4, "seed": 2, "scheduler": "heun", "guidance": 1.0}
        expected = drain(pipe.stream(PROMPT, **first)), drain(pipe.stream("a cat", **second))
        one, two = pipe.stream(PROMPT, **first), pipe.stream("a cat", **second)
        for _ in itertools.zip_longest(one, two):
            pass
        assert torch.equal(one.result.latents, expected[0])
        assert torch.equal(two.result.latents, expected[1])

    def test_generator_of_the_caller_is_not_touched(self, pipe: LatentPipeline) -> None:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        pipe(PROMPT, steps=2, seed=1, scheduler="euler_a")
        assert torch.equal(before, torch.get_rng_state())

    def test_grad_mode_of_the_caller_is_not_touched(self, pipe: LatentPipeline) -> None:
        for step in pipe.stream(PROMPT, steps=2, seed=1):
            assert torch.is_grad_enabled()
            assert not step.latents.requires_grad


class TestGuidance:
    def test_one_batched_call_or_one_half(
        self, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = unet_batches(pipe, monkeypatch)
        pipe(PROMPT, steps=2, seed=1, guidance=7.5, images_per_prompt=3)
        assert seen == [6] * 3  # pndm: n + 1
        seen.clear()
        pipe(PROMPT, steps=2, seed=1, guidance=1.0, images_per_prompt=3)
        assert seen == [3] * 3

    def test_repeated_prompts_are_encoded_once(
        self, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipe = LatentPipeline(pipe.components)  # one that remembers nothing yet
        calls = []
        encoder = type(pipe.components.text_encoder)
        forward = encoder.forward

        def counting(self: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
            calls.append(tuple(ids.shape))
            return forward(self, ids, *rest, **named)

        monkeypatch.setattr(encoder, "forward", counting)
        pipe([PROMPT, "a cat", PROMPT], images_per_prompt=2, steps=1)
        assert calls == [(1, 77)] * 3  # two prompts and the empty negative one
        pipe(["a cat", "a bird"], steps=1)
        assert calls == [(1, 77)] * 4  # the last call's are remembered
        pipe("a cat", steps=1, clip_skip=1)
        assert calls == [(1, 77)] * 5

    def test_negative_prompt_and_guidance_zero(self, pipe: LatentPipeline) -> None:
        options: dict[str, Any] = {"steps": 2, "seed": 1, "scheduler": "ddim"}
        negative = drain(pipe.stream(PROMPT, negative_prompt="a cat", guidance=0, **options))
        alone = drain(pipe.stream("a cat", guidance=1, **options))
        assert (negative - alone).abs().max() < 1e-4


class TestGuidanceInterval:
    @pytest.mark.parametrize(
        ("interval", "batches"),
        [
            ((0.0, 1.0), [2, 2, 2, 2, 2]),
            ((0.2, 0.6), [1, 2, 2, 1, 1]),
            ((0.5, 1.0), [1, 1, 1, 2, 2]),
            ((0.0, 0.0), [1, 1, 1, 1, 1]),
            ((0.4, 0.4), [1, 1, 1, 1, 1]),
        ],
    )
    def test_half_open_in_fractions_of_the_steps(
        self,
        pipe: LatentPipeline,
        monkeypatch: pytest.MonkeyPatch,
        interval: tuple[float, float],
        batches: list[int],
    ) -> None:
        seen = unet_batches(pipe, monkeypatch)
        result = pipe(PROMPT, steps=5, seed=1, scheduler="ddim", guidance_interval=interval)
        assert seen == batches
        assert result.recipes[0].guidance_interval == interval

    def test_both_evaluations_of_a_step_are_alike(
        self, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = unet_batches(pipe, monkeypatch)
        pipe(PROMPT, steps=4, seed=1, scheduler="heun", guidance_interval=(0.25, 0.75))
        assert seen == [1, 1, 2, 2, 2, 2, 1]

    def test_of_the_executed_steps(
        self, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Image-to-image leaves steps out; the fractions are of those that are left."""
        seen = unet_batches(pipe, monkeypatch)
        image = Image.new("RGB", (64, 64), "red")
        options: dict[str, Any] = {"image": image, "strength": 0.5, "scheduler": "ddim"}
        pipe(PROMPT, steps=8, seed=1, guidance_interval=(0.0, 0.5), **options)
        assert seen == [2, 2, 1, 1]

    def test_outside_of_it_the_prompt_stands_alone(self, pipe: LatentPipeline) -> None:
        options: dict[str, Any] = {"steps": 3, "seed": 1, "scheduler": "ddim"}
        never = pipe(PROMPT, guidance_interval=(0.0, 0.0), **options).latents
        assert torch.equal(never, pipe(PROMPT, guidance=1.0, **options).latents)


class TestBatch:
    @pytest.mark.parametrize("dtype", ["float32", "bf16"])
    @pytest.mark.parametrize("name", ["ddim", "euler_a"])
    def test_bits_depend_neither_on_the_place_nor_on_the_neighbours(
        self, tiny_model: Path, name: str, dtype: str
    ) -> None:
        pipe = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype=dtype)
        options: dict[str, Any] = {"steps": 3, "scheduler": name, "batch_size": 4}
        alone = pipe(PROMPT, seed=7, **options)
        assert alone.latents.shape[0] == len(alone.images) == 1
        for place in range(4):
            prompts, seeds = ["a cat"] * 4, [100, 200, 300, 400]
            prompts[place], seeds[place] = PROMPT, 7
            full = pipe(prompts, seed=seeds, **options)
            assert torch.equal(full.latents[place], alone.latents[0])
            assert full.images[place].tobytes() == alone.images[0].tobytes()
            assert full.recipes[place] == alone.recipes[0]

    def test_steps_show_the_asked_pictures_only(self, pipe: LatentPipeline) -> None:
        for step in pipe.stream(PROMPT, steps=2, seed=1, images_per_prompt=2, batch_size=3):
            assert step.latents.shape[0] == step.denoised.shape[0] == len(step.previews()) == 2

    @pytest.mark.parametrize("wrong", [0, 1, True, 2.0, "4"])
    def test_wrong_sizes(self, pipe: LatentPipeline, wrong: Any) -> None:
        with pytest.raises(UserError, match="batch_size must be a whole number from 2"):
            pipe.stream(PROMPT, images_per_prompt=2, batch_size=wrong)


class TestSeedList:
    def test_each_picture_has_its_own(self, pipe: LatentPipeline) -> None:
        result = pipe(PROMPT, images_per_prompt=3, seed=[9, 0, 9], steps=2)
        assert [recipe.seed for recipe in result.recipes] == [9, 0, 9]
        assert torch.equal(result.latents[0], result.latents[2])
        assert not torch.equal(result.latents[0], result.latents[1])

    @pytest.mark.parametrize("wrong", [[], [1], [1, 2, 3], [1, -1], [1, None], [1, True]])
    def test_wrong_lists(self, pipe: LatentPipeline, wrong: list) -> None:
        with pytest.raises(UserError, match="a list of seeds needs 2"):
            pipe.stream(PROMPT, images_per_prompt=2, seed=wrong)


class TestInterpolate:
    @pytest.mark.parametrize("name", ["ddim", "euler_a"])
    def test_the_ends_are_the_pictures_of_a_call(self, pipe: LatentPipeline, name: str) -> None:
        options: dict[str, Any] = {"steps": 3, "scheduler": name, "guidance": 3.0}
        frames = list(pipe.interpolate([PROMPT, "a cat"], [3, 9], 3, **options))
        first, last = pipe(PROMPT, seed=3, **options), pipe("a cat", seed=9, **options)
        assert frames[0].tobytes() == first.images[0].tobytes()
        if name == "ddim":  # a stochastic scheduler's noise is that of the seed on the left
            difference = np.asarray(frames[-1], int) - np.asarray(last.images[0], int)
            assert np.abs(difference).max() <= 1
        assert frames[1].tobytes() not in (frames[0].tobytes(), frames[2].tobytes())

    def test_points_on_the_way_are_met(self, pipe: LatentPipeline) -> None:
        options: dict[str, Any] = {"steps": 2, "scheduler": "ddim"}
        frames = list(pipe.interpolate(PROMPT, [1, 2, 3], 5, **options))
        assert len(frames) == 5
        for seed, frame in zip((1, 2), (frames[0], frames[2]), strict=True):
            alone = pipe(PROMPT, seed=seed, **options).images[0]
            difference = np.asarray(frame, int) - np.asarray(alone, int)
            assert np.abs(difference).max() <= 1

    def test_nothing_is_drawn_before_it_is_asked_for(
        self, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = unet_batches(pipe, monkeypatch)
        frames = pipe.interpolate(PROMPT, [1, 2], 9, steps=1, scheduler="ddim")
        assert seen == []
        next(frames)
        assert seen == [2]

    @pytest.mark.parametrize(
        ("prompts", "seeds", "frames"),
        [
            (PROMPT, 1, 5),
            (PROMPT, [1], 5),
            ([PROMPT, "b"], [1, 2, 3], 5),
            (PROMPT, [1, 2], 1),
            (PROMPT, [1, 2], 2.5),
            (PROMPT, [1, -2], 5),
        ],
    )
    def test_wrong_use(self, pipe: LatentPipeline, prompts: Any, seeds: Any, frames: Any) -> None:
        with pytest.raises(UserError):
            list(pipe.interpolate(prompts, seeds, frames, steps=1))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"image": Image.new("RGB", (64, 64)), "batch_size": 2}, "no 'image'; interpolate"),
            ({"batch_size": 2}, "interpolate takes no 'batch_size'"),
            ({"strength": 0.5}, "interpolate takes no 'strength'"),
            ({"stepz": 3}, "interpolate takes no 'stepz'; did you mean 'steps'?"),
            ({"seed": 3}, "interpolate takes no 'seed'; did you mean 'seeds'?"),
            ({"steps": 0, "guidance": -1}, "steps must be a whole number from 1 to 1000, not 0; g"),
        ],
    )
    def test_wrong_options_are_told_at_once(
        self, pipe: LatentPipeline, options: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(UserError, match=re.escape(told)):
            pipe.interpolate(PROMPT, [1, 2], 3, **options)


class TestSizes:
    def test_a_size_far_below_the_model_s_own_is_said_once(
        self, pipe: LatentPipeline, caplog: pytest.LogCaptureFixture
    ) -> None:
        warn_if_small.cache_clear()
        for width in (64, 40, 32, 32):
            pipe("a", steps=1, width=width)
        own = f"{pipe.identity.name} was trained at 64x64; at"
        assert caplog.messages == [f"{own} 32x64 it draws poorly"]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"width": 65}, "width must be a multiple of 8, not 65; the nearest is 64"),
            ({"height": 70}, "height must be a multiple of 8, not 70; the nearest is 72"),
            ({"width": 3}, "the nearest is 8"),
            ({"steps": 0}, "steps must be a whole number from 1"),
            ({"steps": 1001}, "steps must be a whole number from 1 to 1000"),
            ({"steps": 51, "scheduler": "lcm"}, "steps must be at most 50 with lcm"),
            ({"scheduler": "eulr"}, "did you mean 'euler'"),
            ({"guidance": float("nan")}, "guidance must be a number"),
            ({"guidance_rescale": 1.5}, "guidance_rescale must be a number from 0 to 1"),
            ({"seed": -1}, "seed must be"),
            ({"guidance_interval": (0.6, 0.2)}, "guidance_interval must be"),
            ({"clip_skip": -1}, "clip_skip must be"),
            ({"eta": 0.5, "scheduler": "euler"}, "euler knows no eta"),
            ({"strength": 0.5}, "strength needs an image"),
            ({"mask": Image.new("L", (64, 64))}, "a mask needs the image"),
            ({"images_per_prompt": 0}, "images_per_prompt must be"),
            ({"images_per_prompt": True}, "images_per_prompt must be"),
        ],
    )
    def test_wrong_options(self, pipe: LatentPipeline, options: dict, words: str) -> None:
        with pytest.raises(UserError, match=words):
            pipe.stream(PROMPT, **options)

    @pytest.mark.parametrize("prompt", [[], 5, [PROMPT, 5], None, {"a": 1}])
    def test_wrong_prompts(self, pipe: LatentPipeline, prompt: Any) -> None:
        with pytest.raises(UserError, match="prompt"):
            pipe.stream(prompt)

    def test_all_problems_at_once(self, pipe: LatentPipeline) -> None:
        with pytest.raises(UserError) as caught:
            pipe.stream(PROMPT, steps=-1, guidance="x", seed=1.5)  # type: ignore[arg-type]
        assert all(word in str(caught.value) for word in ("steps", "guidance", "seed"))

    def test_sizes(self, pipe: LatentPipeline) -> None:
        result = pipe(PROMPT, steps=1, width=40, height=72)
        assert result.images[0].size == (40, 72)
        assert result.latents.shape == (1, 4, 9, 5)
        assert (result.recipes[0].width, result.recipes[0].height) == (40, 72)

    def test_scheduler_by_web_ui_name(self, pipe: LatentPipeline) -> None:
        run = pipe.stream(PROMPT, scheduler="DPM++ 2M Karras", steps=1)
        assert run.recipes[0].scheduler == "dpm++_2m_karras"
        assert run.recipes[0].scheduler_config["use_karras_sigmas"] is True

    def test_default_scheduler(self, tiny_model: Path) -> None:
        pipe = LatentPipeline.from_pretrained(
            tiny_model, device="cpu", dtype="float32", scheduler="Euler a"
        )
        assert pipe.stream(PROMPT, steps=1).recipes[0].scheduler == "euler_a"
        with pytest.raises(UserError, match="no scheduler"):
            LatentPipeline.from_pretrained(tiny_model, scheduler="nope")

    def test_recipe_makes_the_picture_again(self, pipe: LatentPipeline) -> None:
        result = pipe(PROMPT, steps=2, negative_prompt="a cat", guidance_rescale=0.5)
        recipe = Recipe.from_json(result.recipes[0].to_json())
        again = pipe(
            recipe.prompt,
            negative_prompt=recipe.negative_prompt,
            steps=recipe.steps,
            guidance=recipe.guidance,
            guidance_rescale=recipe.guidance_rescale,
            seed=recipe.seed,
            width=recipe.width,
            height=recipe.height,
            scheduler=recipe.scheduler,
        )
        assert again.recipes[0] == recipe

    @pytest.mark.parametrize("name", schedulers.names())
    def test_recipes_of_every_scheduler_are_json(self, pipe: LatentPipeline, name: str) -> None:
        recipe = pipe.stream(PROMPT, scheduler=name, steps=1, seed=1).recipes[0]
        assert Recipe.from_json(recipe.to_json()) == recipe

    def test_recipe_knows_the_machine(self, pipe: LatentPipeline) -> None:
        recipe = pipe.stream(PROMPT, steps=1).recipes[0]
        assert recipe.threads == torch.get_num_threads()
        assert recipe.dtype == "float32"
        assert recipe.memory_format == "contiguous"
        assert recipe.model == pipe.identity.as_dict()
        assert recipe.versions["torch"] == torch.__version__


class TestParts:
    def test_shapes(self, wide_model: Path) -> None:
        pipe = LatentPipeline.from_pretrained(wide_model, device="cpu", dtype="float32")
        assert pipe.encode_prompt(PROMPT).shape == (1, 77, 768)
        assert pipe.encode_prompt([PROMPT, "a cat"]).shape == (2, 77, 768)
        images = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
        latents = pipe.pil_to_latents(images)
        assert latents.shape == (2, 4, 6, 8)
        assert pipe.decode_latents(latents).shape == (2, 3, 48, 64)
        assert [image.size for image in pipe.latents_to_pil(latents)] == [(64, 48)] * 2
        noise = pipe.predict_noise(latents, 500, pipe.encode_prompt([PROMPT] * 2))
        assert noise.shape == latents.shape

    def test_the_teaching_loop_gives_the_same_latents(self, pipe: LatentPipeline) -> None:
        """Tokenize, embed, noise from a seed, UNet, guidance, scheduler step: by hand."""
        expected = pipe(PROMPT, steps=6, seed=9, scheduler="lms", guidance=4.0).latents
        embeddings = torch.cat([pipe.encode_prompt(""), pipe.encode_prompt(PROMPT)])
        scheduler = pipe.make_scheduler("lms")
        scheduler.set_timesteps(6)
        latents = pipe.initial_noise(9, 64, 64) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            negative, positive = pipe.predict_noise(model_input, t, embeddings).chunk(2)
            latents = scheduler.step(combine(negative, positive, 4.0), t, latents).prev_sample
        assert torch.equal(latents, expected)

    def test_add_noise(self, pipe: LatentPipeline) -> None:
        latents, noise = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
        noisy = pipe.add_noise(latents, noise, torch.tensor([0, 999]))
        alphas = schedulers.create("ddim", pipe.components.scheduler_config).alphas_cumprod
        assert torch.allclose(noisy[:, 0, 0, 0], alphas[[0, 999]] ** 0.5)

    def test_pictures_do_not_depend_on_neighbours(self, pipe: LatentPipeline) -> None:
        latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        together = pipe.decode_latents(latents)
        for index in range(3):
            assert torch.equal(together[index], pipe.decode_latents(latents[index : index + 1])[0])


class TestDtypes:
    def test_bfloat16_runs(self, tiny_model: Path) -> None:
        pipe = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="bf16")
        assert pipe.components.memory_format == "channels_last"
        run = pipe.stream(PROMPT, steps=3, seed=1, images_per_prompt=2)
        assert all(step.latents.dtype == torch.float32 for step in run)
        recipe = run.result.recipes[0]
        assert (recipe.dtype, recipe.memory_format) == ("bfloat16", "channels_last")
        again = pipe(PROMPT, steps=3, seed=1, images_per_prompt=2)
        assert torch.equal(again.latents, run.result.latents)

    def test_bfloat16_follows_float32(self, pipe: LatentPipeline, tiny_model: Path) -> None:
        half = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="bf16")
        options: dict[str, Any] = {"steps": 4, "seed": 1, "guidance": 2.0, "scheduler": "ddim"}
        expected = pipe(PROMPT, **options).latents
        difference = (half(PROMPT, **options).latents - expected).abs().mean()
        assert difference < 0.03 * expected.abs().mean()

    def test_nan_is_an_error_with_the_step(
        self, model_factory: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = model_factory()
        pipe = LatentPipeline(load_components(folder, device="cpu", dtype="float32"))
        with torch.no_grad():
            pipe.components.unet.conv_out.bias[0] = torch.nan
        with pytest.raises(NumericalError, match=r"step 1 of 3 in float32.*weights"):
            pipe(PROMPT, steps=3, scheduler="ddim")

    def test_a_failed_run_has_no_result(self, tiny_model: Path) -> None:
        pipe = LatentPipeline(load_components(tiny_model, device="cpu", dtype="bf16"))
        run = pipe.stream(PROMPT, steps=3, scheduler="ddim")
        next(run)
        with torch.no_grad():
            pipe.components.unet.conv_out.bias[0] = torch.inf
        with pytest.raises(NumericalError, match=r"step 2 of 3 in bfloat16.*dtype float32"):
            next(run)
        assert next(run, None) is None
        with pytest.raises(LdmToolkitError, match="before its end"):
            _ = run.result

    def test_a_vae_that_overflows_is_asked_again_in_float32(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        wide = LatentPipeline(load_components(tiny_model, device="cpu", dtype="float32"))
        half = LatentPipeline(load_components(tiny_model, device="cpu", dtype="bf16"))
        latents = half.initial_noise(1, 64, 64)
        decoder = type(half.components.vae.decoder)
        forward = decoder.forward

        def overflowing(self: Any, *arguments: Any, **named: Any) -> torch.Tensor:
            made = forward(self, *arguments, **named)
            return made * torch.inf if made.dtype == torch.bfloat16 else made

        monkeypatch.setattr(decoder, "forward", overflowing)
        found, expected = half.decode_latents(latents), wide.decode_latents(latents)
        assert (found - expected).abs().max() < 0.05  # its weights were rounded to bfloat16
        assert "decoding in float32" in caplog.text
        assert half.components.dtype == torch.bfloat16

    def test_nan_of_the_vae_is_an_error(self, tiny_model: Path) -> None:
        pipe = LatentPipeline(load_components(tiny_model, device="cpu", dtype="float32"))
        with torch.no_grad():
            pipe.components.vae.decoder.conv_out.bias[0] = torch.inf
        with pytest.raises(NumericalError, match=r"VAE.*float32"):
            pipe(PROMPT, steps=1)
