"""What a replay asks for, and what it says when another picture came out."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from samples import mirror, recipe

from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.images import open_image, pixels_sha256, save_image
from ldm_toolkit.recipe import GenerateOptions, Recipe
from ldm_toolkit.replay import Comparison, Original, compare, options_of, read_original


def picture(value: int = 100) -> Image.Image:
    return Image.new("RGB", (8, 4), (value, 0, 255))


def original(lossy: bool = False, **changes: Any) -> Original:
    made = recipe(**({"pixels_sha256": pixels_sha256(picture())} | changes))
    return Original(picture(), made, lossy)


def reasons(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    return compare(original(**before), picture(101), recipe(**after)).reasons


# --- pixels ---


def test_the_same() -> None:
    assert compare(original(), picture(), recipe()) == Comparison(True, 0, 0.0, ())


def test_the_same_from_another_machine_needs_no_reason() -> None:
    assert compare(original(), picture(), recipe(device="cuda", threads=9)).reasons == ()


@pytest.mark.parametrize(
    ("place", "value", "largest", "mean"),
    [((0, 0), (101, 0, 255), 1, 1 / 96), ((7, 3), (0, 255, 0), 255, (100 + 255 + 255) / 96)],
)
def test_how_far_off(place: Any, value: Any, largest: int, mean: float) -> None:
    new = picture()
    new.putpixel(place, value)
    found = compare(original(), new, recipe())
    assert (found.identical, found.max_difference) == (False, largest)
    assert found.mean_difference == pytest.approx(mean)
    assert found.reasons == (
        "the recipes agree; this machine may compute differently from run to run",
    )


def test_another_size() -> None:
    new = Image.new("RGB", (16, 4))
    found = compare(original(width=8), new, recipe(width=16))
    assert (found.identical, found.max_difference, found.mean_difference) == (False, 255, 255.0)
    assert found.reasons == ("width was 8, is 16",)


def test_an_edited_file_is_the_first_reason() -> None:
    edited = Original(picture(99), original().recipe, lossy=False, edited=True)
    found = compare(edited, picture(), recipe(threads=2))
    assert (found.identical, found.max_difference) == (False, 1)
    assert "edited or saved again" in found.reasons[0]
    assert found.reasons[1] == "threads was 1, is 2"


def test_without_a_hash_the_pixels_decide() -> None:
    assert compare(original(pixels_sha256=None), picture(), recipe()).identical
    assert compare(original(lossy=True, pixels_sha256=None), picture(), recipe()).identical
    assert not compare(original(pixels_sha256=None), picture(101), recipe()).identical


def test_of_a_jpeg_the_hash_decides(tmp_path: Path) -> None:
    noisy = Image.effect_noise((32, 32), 100).convert("RGB")
    save_image(noisy, tmp_path / "a.jpg", recipe(), overwrite=False)
    found = read_original(tmp_path / "a.jpg")
    assert found.lossy
    assert found.picture.tobytes() != noisy.tobytes()
    assert compare(found, noisy, recipe()).identical
    # What the file shows is not what was made.
    other = compare(found, open_image(tmp_path / "a.jpg"), recipe())
    assert not other.identical
    assert other.reasons[-1] == "the file is a JPEG, whose own loss is part of the difference"


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_whether_a_file_was_edited(format: str, tmp_path: Path) -> None:
    noisy = Image.effect_noise((32, 32), 100).convert("RGB")
    path = tmp_path / f"a.{format}"
    save_image(noisy, path, recipe(), overwrite=False)
    assert not read_original(path).edited
    mirror(path)
    found = read_original(path)
    assert found.edited
    compared = compare(found, noisy, recipe())
    assert not compared.identical
    assert "edited or saved again" in compared.reasons[0]


# --- reasons ---

HASHES = {"a": "a" * 64, "b": "b" * 64}
CHANGED: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "night",
    "seed": 43,
    "steps": 49,
    "guidance": 7.0,
    "guidance_rescale": 0.5,
    "scheduler": "euler",
    "scheduler_config": {"beta_schedule": "linear"},
    "width": 128,
    "height": 128,
    "model": {"name": "storybook", "revision": "1", "sha256": "1" * 64},
    "dtype": "bfloat16",
    "device": "cuda",
    "cpu_capability": "AVX512",
    "threads": 2,
    "memory_format": "channels_last",
    "batch_size": 4,
    "attention": "xformers",
    "versions": {"ldm_toolkit": "0.1.0", "torch": "2.14"},
    "guidance_interval": (0.2, 1.0),
    "clip_skip": 1,
    "eta": 0.5,
    "strength": 0.5,
    "image_sha256": "1" * 64,
    "mask_sha256": "1" * 64,
    "latents_sha256": "1" * 64,
    "loras": [{"name": "a", "scale": 1.0, "sha256": "1" * 64}],
    "embeddings": [{"token": "a", "sha256": "1" * 64}],
}


def test_the_table_has_every_field_that_matters() -> None:
    fields = dataclasses.fields(Recipe)
    missing = dataclasses.MISSING
    required = {f.name for f in fields if f.default is missing and f.default_factory is missing}
    assert required <= set(CHANGED)


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_field_is_the_reason(name: str) -> None:
    found = reasons({}, {name: CHANGED[name]})
    assert len(found) == 1
    assert found[0].startswith(name)
    assert " was " in found[0]
    assert reasons({name: CHANGED[name]}, {name: CHANGED[name]})[0].startswith("the recipes agree")


def test_the_likeliest_comes_first() -> None:
    found = reasons({}, CHANGED)
    assert len(found) == len(CHANGED)
    assert [line.split(" ")[0] for line in found][:2] == ["model", "prompt"]
    assert [line.split(" ")[0] for line in found][-8:] == [
        "device", "dtype", "cpu_capability", "threads", "batch_size", "memory_format", "attention",
        "versions",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"name": "a", "sha256": "1"}, {"name": "b", "sha256": "1"}, []),
        ({"name": "a", "revision": "1", "sha256": "1"}, {"name": "a", "sha256": "1"}, []),
        (
            {"name": "a", "sha256": "1"},
            {"name": "b", "sha256": "2"},
            ["model sha256 was '1', is '2'", "model name was 'a', is 'b'"],
        ),
        ({}, {"sha256": "2"}, ["model sha256 was not there, is '2'"]),
        ({"sha256": "1"}, {}, ["model sha256 was '1', is not there"]),
    ],
)
def test_a_model_is_its_weights(before: Any, after: Any, found: list[str]) -> None:
    lines = reasons({"model": before}, {"model": after})
    assert [line for line in lines if not line.startswith("the recipes agree")] == found


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterRecipe(Recipe):
    """A recipe with fields that this version does not have."""

    loras: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    image_sha256: str | None = None


def test_fields_of_a_later_version_are_named_without_a_change() -> None:
    known = dataclasses.asdict(recipe())
    lora = {"name": "hat", "sha256": HASHES["a"], "scale": 1.0}
    before = LaterRecipe(**known | {"loras": [lora], "image_sha256": HASHES["a"]})
    after = LaterRecipe(
        **known
        | {"loras": [lora | {"name": "x", "scale": 0.5}], "image_sha256": HASHES["b"]}
        | {"device": "cuda"}
    )
    found = compare(Original(picture(), before, False), picture(101), after).reasons
    assert found[0].startswith("image_sha256 was 'aaaa")
    assert found[1] == "loras 1 scale was 1.0, is 0.5"
    assert found[2] == "device was 'cpu', is 'cuda'"
    none = dataclasses.replace(before, loras=[])
    found = compare(Original(picture(), before, False), picture(101), none).reasons
    assert found[0].startswith("loras was [{")
    assert found[0].endswith("is []")


def test_a_tuple_of_this_process_is_the_list_of_the_file() -> None:
    found = reasons({"scheduler_config": {"a": [1, 2]}}, {"scheduler_config": {"a": (1, 2)}})
    assert found[0].startswith("the recipes agree")


def test_reasons_out_of_a_strangers_file_are_short() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = {"a": deep}
    wild = {"x" * 9000: "y" * 9000, "deep": deep, "many": list(range(9000))}
    found = reasons({"scheduler_config": wild}, {"scheduler_config": {"deep": {"a": 1}}})
    assert all(len(line) < 300 for line in found)


# --- options ---


def test_options_are_those_of_the_recipe() -> None:
    made = recipe(**{name: CHANGED[name] for name in ("prompt", "negative_prompt", "seed")})
    found = options_of(made)
    assert (found.prompt, found.negative_prompt, found.seed) == ("a cat", "night", 43)
    for field in dataclasses.fields(GenerateOptions):
        if hasattr(made, field.name):
            assert getattr(found, field.name) == getattr(made, field.name)
    assert None not in (found.width, found.height, found.scheduler, found.guidance_rescale)


@pytest.mark.parametrize(
    "name", ["os:system", "evil.module:Class", "", "../x", "/etc/passwd", "Euler", "nonsense"]
)
def test_a_recipe_names_no_code(name: str) -> None:
    with pytest.raises(UserError, match="--list-schedulers"):
        options_of(recipe(scheduler=name))


def test_what_cannot_be_asked_for_is_said() -> None:
    with pytest.raises(UserError, match="seed"):
        options_of(recipe(seed=2**64 - 1))


def test_pictures_without_a_recipe(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no recipe"):
        read_original(tmp_path / "a.png")
