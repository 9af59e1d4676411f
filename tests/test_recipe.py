"""Options, recipes, JSON, the web UIs' text."""

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import HOSTILE_TEXTS, recipe

from ldm_toolkit import schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.infotext import _web_ui_sampler
from ldm_toolkit.recipe import (
    MAX_SEED,
    Execution,
    GenerateOptions,
    Inputs,
    ModelDefaults,
    Recipe,
    resolve,
)

DEFAULTS = ModelDefaults(
    name="tiny", width=64, height=96, scheduler="ddim", guidance_rescale=0.25, multiple=8
)
HOSTILE_PROMPTS = [
    "a dog\nNegative prompt: nothing\nSteps: 1, Sampler: evil, CFG scale: 1, Seed: 666",
    "Negative prompt: forged",
    "negative prompt: forged",
    "Steps: 1, Sampler: evil, CFG scale: 1, Seed: 666, Size: 1x1",
    "a dog\r\nSteps: 1, Seed: 666",
    "a dog\x0bSteps: 1\x0cSeed: 666",
    "a dog\u2028Negative prompt: x\u2029Seed: 666\x85Steps: 1",
    '", Seed: 666, "',
    "\\n\\nSteps: 1",
    "a\x00b",
    "steps:steps:Steps:NEGATIVE PROMPT:",
    "Steps\t: 3",
]


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """AUTOMATIC1111's parse_generation_parameters, shortened."""
    pair = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    if len(pair.findall(last)) < 3:
        lines.append(last)
        last = ""
    prompt, negative, done = "", "", False
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            done, line = True, line[16:].strip()
        if done:
            negative += line if not negative else "\n" + line
        else:
            prompt += line if not prompt else "\n" + line
    return prompt, negative, dict(pair.findall(last))


def execution(**changes: Any) -> Execution:
    known = recipe()
    names = [field.name for field in dataclasses.fields(Execution)]
    return Execution(**{name: getattr(known, name) for name in names} | changes)


class TestOptions:
    def test_every_field_has_its_help(self) -> None:
        assert all(field.metadata["help"] for field in dataclasses.fields(GenerateOptions))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"steps": 0}, {"steps": -1}, {"steps": 1001}, {"steps": 2.0}, {"steps": True},
            {"steps": "5"}, {"steps": None}, {"guidance": -0.1}, {"guidance": float("nan")},
            {"guidance": float("inf")}, {"guidance": 1001}, {"guidance": 10**400},
            {"guidance": "7"}, {"guidance": None}, {"guidance": False}, {"seed": -1},
            {"seed": 2**63}, {"seed": 1.0}, {"seed": True}, {"width": 0}, {"width": 8193},
            {"width": 64.0}, {"height": -8}, {"height": "64"}, {"scheduler": 5},
            {"guidance_rescale": 1.1}, {"guidance_rescale": -0.1}, {"prompt": None},
            {"prompt": b"a"}, {"prompt": "\ud800"}, {"negative_prompt": 5},
            {"negative_prompt": None}, {"prompt": ["a"]}, {"guidance_interval": (0.5, 0.4)},
            {"guidance_interval": (-0.1, 1)}, {"guidance_interval": (0, 1.1)},
            {"guidance_interval": 0.5}, {"guidance_interval": (0.1,)},
            {"guidance_interval": (float("nan"), 1)}, {"clip_skip": -1}, {"clip_skip": 1.0},
            {"eta": -0.1}, {"eta": 1.1}, {"eta": None}, {"strength": 1.1}, {"strength": -0.1},
            {"strength": "1"},
        ],
        ids=repr,
    )  # fmt: skip
    def test_wrong_values_name_the_option(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(UserError) as caught:
            GenerateOptions(**{"prompt": "a", **wrong})
        assert next(iter(wrong)) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300

    def test_all_at_once(self) -> None:
        with pytest.raises(UserError) as caught:
            GenerateOptions(prompt="a", steps=0, guidance=-1, seed=-1, width=0)
        assert str(caught.value).count(";") == 3

    @pytest.mark.parametrize(
        "right",
        [{"seed": 0}, {"seed": MAX_SEED}, {"guidance": 0}, {"guidance_rescale": 0}, {"prompt": ""}],
        ids=repr,
    )
    def test_edges(self, right: dict[str, Any]) -> None:
        GenerateOptions(**{"prompt": "a", **right})

    def test_unknown_and_positional(self) -> None:
        with pytest.raises(TypeError):
            GenerateOptions("a")  # type: ignore[misc]
        with pytest.raises(TypeError):
            GenerateOptions(prompt="a", stpes=5)  # type: ignore[call-arg]


class TestResolve:
    def test_gaps_are_filled_from_the_model(self) -> None:
        found = resolve(GenerateOptions(prompt="a"), DEFAULTS, execution())
        assert (found.width, found.height) == (64, 96)
        assert (found.scheduler, found.guidance_rescale) == ("ddim", 0.25)
        assert 0 <= found.seed < 2**32

    def test_zeros_are_values(self) -> None:
        options = GenerateOptions(prompt="a", seed=0, guidance=0, guidance_rescale=0)
        found = resolve(options, DEFAULTS, execution())
        assert (found.seed, found.guidance, found.guidance_rescale) == (0, 0.0, 0.0)

    def test_sizes(self) -> None:
        options = GenerateOptions(prompt="a", width=65, height=100)
        with pytest.raises(UserError) as caught:
            resolve(options, DEFAULTS, execution())
        assert "nearest is 64" in str(caught.value)
        assert "height must be a multiple of 8, not 100" in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "inputs", "expected"),
        [
            ({}, {"image_sha256": "a" * 64}, 0.75),
            ({}, {"image_sha256": "a" * 64, "mask_sha256": "b" * 64}, 1.0),
            ({"strength": 0.5}, {"image_sha256": "a" * 64}, 0.5),
            ({"strength": 0.5}, {"image_sha256": "a" * 64, "mask_sha256": "b" * 64}, 0.5),
            ({}, {}, None),
        ],
    )
    def test_strength(self, options: dict, inputs: dict, expected: float | None) -> None:
        found = resolve(
            GenerateOptions(prompt="a", **options), DEFAULTS, execution(), Inputs(**inputs)
        )
        assert found.strength == expected
        assert found.image_sha256 == inputs.get("image_sha256")
        assert found.mask_sha256 == inputs.get("mask_sha256")

    @pytest.mark.parametrize(
        ("options", "inputs", "told"),
        [
            ({"strength": 0.5}, {}, "strength needs an image"),
            ({}, {"mask_sha256": "b" * 64}, "a mask needs the image"),
            ({"strength": 0.0}, {"image_sha256": "a" * 64}, "strength 0 leaves none of 50 steps"),
            ({"strength": 0.1, "steps": 9}, {"image_sha256": "a" * 64}, "leaves none of 9 steps"),
        ],
    )
    def test_strength_with_nothing_to_act_on(self, options: dict, inputs: dict, told: str) -> None:
        with pytest.raises(UserError, match=told):
            resolve(GenerateOptions(prompt="a", **options), DEFAULTS, execution(), Inputs(**inputs))

    @pytest.mark.parametrize(
        ("size", "expected"), [((100, 67), (96, 64)), ((64, 64), (64, 64)), ((3, 9), (8, 8))]
    )
    def test_the_images_size_counts_before_the_models(
        self, size: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        inputs = Inputs(image_sha256="a" * 64, size=size)
        found = resolve(GenerateOptions(prompt="a"), DEFAULTS, execution(), inputs)
        assert (found.width, found.height) == expected
        asked = resolve(GenerateOptions(prompt="a", width=72), DEFAULTS, execution(), inputs)
        assert (asked.width, asked.height) == (72, expected[1])

    def test_random_seeds_differ(self) -> None:
        seeds = {resolve(GenerateOptions(prompt="a"), DEFAULTS, execution()).seed for _ in range(9)}
        assert len(seeds) == 9


class TestJson:
    @pytest.mark.parametrize("prompt", [*HOSTILE_PROMPTS, *HOSTILE_TEXTS, ""])
    def test_round_trip(self, prompt: str) -> None:
        original = recipe(prompt=prompt, negative_prompt=prompt[::-1], pixels_sha256="a" * 64)
        text = original.to_json()
        assert "\n" not in text
        assert Recipe.from_json(text) == original

    @settings(max_examples=60, deadline=None)
    @given(st.text(), st.integers(0, MAX_SEED), st.floats(0, 1000, allow_nan=False))
    def test_round_trip_of_anything(self, prompt: str, seed: int, guidance: float) -> None:
        original = recipe(prompt=prompt, seed=seed, guidance=guidance)
        assert Recipe.from_json(original.to_json()) == original

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": "42"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.5}, {"steps": 0},
            {"steps": True}, {"prompt": None}, {"prompt": ["a"]}, {"guidance": "7"},
            {"guidance": -1}, {"guidance_rescale": 2}, {"width": 0}, {"width": 10**9},
            {"model": "storybook"}, {"model": {"name": 5}}, {"versions": []},
            {"scheduler_config": 5}, {"pixels_sha256": "x"}, {"pixels_sha256": 5}, {"threads": 0},
            {"dtype": 32}, {"schema": True}, {"batch_size": 0}, {"guidance_interval": [1]},
            {"guidance_interval": [0.5, 0.1]}, {"clip_skip": "2"}, {"eta": 2}, {"strength": 5},
            {"image_sha256": "../../etc/passwd"}, {"mask_sha256": 5}, {"latents_sha256": "A" * 64},
        ],
        ids=repr,
    )  # fmt: skip
    def test_wrong_types(self, change: dict[str, Any]) -> None:
        data = json.loads(recipe().to_json()) | change
        with pytest.raises(UserError) as caught:
            Recipe.from_json(json.dumps(data))
        assert next(iter(change)) in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "null", "5", "{", '"a"', "{}", '{"schema": 2}', "[" * 100_000, "NaN", "\ud800",
         '{"schema": 1}', "9" * 5000, "x" * (1 << 20) + "x"],
        ids=lambda text: text[:12],
    )  # fmt: skip
    def test_no_recipes(self, text: str) -> None:
        with pytest.raises(UserError) as caught:
            Recipe.from_json(text)
        assert len(str(caught.value)) < 400

    def test_nan_is_refused(self) -> None:
        text = recipe().to_json().replace('"guidance": 7.5', '"guidance": NaN')
        with pytest.raises(UserError, match="NaN"):
            Recipe.from_json(text)

    @pytest.mark.parametrize("value", ["1e999", "[" * 40 + "]" * 40, '{"a":' * 40 + "1" + "}" * 40])
    def test_what_could_not_be_written_is_not_read(self, value: str) -> None:
        text = recipe().to_json().replace('"scaled_linear"', value)
        with pytest.raises(UserError):
            Recipe.from_json(text)

    def test_a_name_that_occurs_twice(self) -> None:
        text = recipe().to_json()
        for again in ('"seed": 1', '"model": {"name": "a", "name": "b"}'):
            with pytest.raises(UserError, match="a name occurs twice"):
                Recipe.from_json(text[:-1] + f", {again}}}")

    def test_unknown_and_missing_keys(self) -> None:
        data = json.loads(recipe().to_json())
        with pytest.raises(UserError, match=r"unknown field 'stepz'.*did you mean 'steps'"):
            Recipe.from_json(json.dumps(data | {"stepz": 3}))
        del data["seed"]
        with pytest.raises(UserError, match="lacks seed"):
            Recipe.from_json(json.dumps(data))

    def test_a_recipe_from_before_the_newer_fields_is_read(self) -> None:
        data = json.loads(recipe().to_json())
        for name in ("guidance_interval", "clip_skip", "eta", "strength", "image_sha256"):
            del data[name]
        assert Recipe.from_json(json.dumps(data)) == recipe()

    def test_a_newer_schema_says_so(self) -> None:
        data = json.loads(recipe().to_json()) | {"schema": 2, "new": 1}
        with pytest.raises(UserError, match="newer ldm_toolkit"):
            Recipe.from_json(json.dumps(data))


class TestParametersText:
    def test_plain(self) -> None:
        made = recipe(negative_prompt="blurry", scheduler="dpm++_2m_karras", guidance_rescale=0.5)
        assert made.parameters_text() == (
            "a dog wearing hat\nNegative prompt: blurry\nSteps: 50, Sampler: DPM++ 2M, "
            "Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 64x64, Model hash: 0000000000, "
            "Model: storybook, CFG Rescale phi: 0.5, Version: ldm_toolkit 0.1.0"
        )

    @pytest.mark.parametrize("prompt", HOSTILE_PROMPTS)
    @pytest.mark.parametrize("place", ["prompt", "negative_prompt"])
    def test_hostile_prompts_forge_no_field(self, prompt: str, place: str) -> None:
        fields: dict[str, Any] = {"prompt": "good words", "negative_prompt": "bad words"}
        text = recipe(**(fields | {place: prompt})).parameters_text()
        positive, negative, pairs = parse_parameters(text)
        assert len(text.splitlines()) == 3
        assert pairs["Seed"] == "42"
        assert pairs["Steps"] == "50"
        assert pairs["Sampler"] == "DDIM"
        if place == "prompt":
            assert negative == "bad words"
        else:
            assert positive == "good words"
        # CivitAI and others search for the field names anywhere in the text.
        assert text.count("Negative prompt:") == 1
        assert text.count("Steps:") == 1

    def test_a_picture_drawn_over(self) -> None:
        pairs = parse_parameters(recipe(strength=0.6, clip_skip=1, eta=0.5).parameters_text())[2]
        assert (pairs["Denoising strength"], pairs["Clip skip"], pairs["Eta"]) == (
            "0.6",
            "2",
            "0.5",
        )

    def test_hostile_model_name(self) -> None:
        model = {"name": 'x, Seed: 666, "y', "revision": "", "sha256": "0" * 64}
        pairs = parse_parameters(recipe(model=model).parameters_text())[2]
        assert pairs["Seed"] == "42"
        assert json.loads(pairs["Model"]) == model["name"]

    @pytest.mark.parametrize("name", schedulers.names())
    def test_the_names_written_are_the_names_read(self, name: str) -> None:
        sampler, schedule = _web_ui_sampler(name)
        assert schedulers.resolve_name(f"{sampler} {schedule}") == name

    def test_a_scheduler_of_another_package_keeps_its_name(self) -> None:
        assert _web_ui_sampler("mine_karras") == ("mine_karras", "")
