"""A finished picture made again: what to ask for, and whether the same came out.

Level 1: no torch. A recipe out of a stranger's file is data: it names a model and a scheduler to
compare and to look up, and nothing in it is a path that is opened or code that is imported.
"""

import dataclasses
import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from ldm_toolkit import schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.images import (
    is_lossy,
    is_untouched,
    open_image,
    pixels_sha256,
    read_recipe,
)
from ldm_toolkit.recipe import GenerateOptions, Recipe

__all__ = ["Comparison", "Original", "compare", "options_of", "read_original"]

# Fields that change a picture's last bits only, the likeliest first. Every other one comes before
# them: the model first, then what was asked, so that a field that a later version adds is named.
_LAST_BITS = (
    "device",
    "dtype",
    "cpu_capability",
    "threads",
    "batch_size",
    "memory_format",
    "attention",
    "compile",
    "backend",
    "vae_slicing",
    "vae_tiling",
    "versions",
)
_NO_REASON = ("schema", "pixels_sha256", "encoded_sha256")
# What a file is called, beside its hash.
_LABELS = ("name", "revision")
_ABSENT = object()


@dataclass(frozen=True)
class Original:
    """A finished picture as its file holds it: pixels in RGB, recipe.

    ``lossy``: the format changed the pixels, and only the recipe's hash tells what they were.
    ``edited``: the pixels are not those that the recipe was written with.
    """

    picture: Image.Image
    recipe: Recipe
    lossy: bool
    edited: bool = False


@dataclass(frozen=True)
class Comparison:
    """Whether a picture made again is the same; the differences are in steps of 1/255.

    ``reasons`` name what differs between the recipes, most likely first; empty when identical.
    """

    identical: bool
    max_difference: int
    mean_difference: float
    reasons: tuple[str, ...]


def read_original(path: str | Path) -> Original:
    """A picture of ours with its recipe. Raises InputError, and UserError for a foreign recipe."""
    recipe, lossy = read_recipe(path), is_lossy(path)
    made = recipe.encoded_sha256 if lossy else recipe.pixels_sha256
    edited = made is not None and not is_untouched(path, recipe)
    return Original(open_image(path), recipe, lossy, edited)


def options_of(recipe: Recipe) -> GenerateOptions:
    """What to ask for to get a recipe's picture again: every option that the recipe records.

    Raises UserError for what this version cannot be asked for, and for a scheduler that is not
    listed: a picture cannot name code to run.
    """
    if recipe.scheduler not in schedulers.names():
        raise UserError(
            f"the picture's scheduler {recipe.scheduler!r:.80} is not among those that "
            "--list-schedulers shows; install the package that has it"
        )
    recorded = {field.name for field in dataclasses.fields(recipe)}
    names = [f.name for f in dataclasses.fields(GenerateOptions) if f.name in recorded]
    return GenerateOptions(**{name: getattr(recipe, name) for name in names})


def compare(original: Original, picture: Image.Image, recipe: Recipe) -> Comparison:
    """Compare a picture made again, and the recipe it was made by, with the original.

    Pixels decide. Those of a JPEG are lossy: there the hash in its recipe decides, which is that
    of the picture before encoding.
    """
    old, new = original.picture.convert("RGB"), picture.convert("RGB")
    made = original.recipe.pixels_sha256
    if original.lossy and made is not None:
        identical = not original.edited and pixels_sha256(new) == made and old.size == new.size
    else:
        identical = old.size == new.size and old.tobytes() == new.tobytes()
    if identical:
        return Comparison(True, 0, 0.0, ())
    largest, mean = _pixel_differences(old, new)
    return Comparison(False, largest, mean, tuple(_reasons(original, recipe)))


def _pixel_differences(old: Image.Image, new: Image.Image) -> tuple[int, float]:
    """The largest and the mean difference over all pixels and channels, 0 to 255."""
    if old.size != new.size:
        return 255, 255.0
    difference = ImageChops.difference(old, new)
    largest = max(high for _, high in difference.getextrema())  # type: ignore[misc]
    total = sum(place % 256 * count for place, count in enumerate(difference.histogram()))
    return int(largest), total / (3 * old.width * old.height)


def _reasons(original: Original, recipe: Recipe) -> Iterator[str]:
    """Why the pictures can differ, most likely first."""
    if original.edited:
        yield "the file's pixels are not those of its recipe: it was edited or saved again"
    changes = list(_recipe_changes(original.recipe, recipe))
    yield from changes
    if not changes and not original.edited:
        yield "the recipes agree; this machine may compute differently from run to run"
    if original.lossy:
        yield "the file is a JPEG, whose own loss is part of the difference"


def _recipe_changes(before: Recipe, after: Recipe) -> Iterator[str]:
    """Every field that differs and matters, in the order in which they matter."""

    def rank(name: str) -> int:
        if name == "model":
            return 0
        return 2 + _LAST_BITS.index(name) if name in _LAST_BITS else 1

    then, now = json.loads(before.to_json()), json.loads(after.to_json())
    names = [f.name for f in dataclasses.fields(before) if f.name not in _NO_REASON]
    for name in sorted(names, key=rank):
        yield from _changes(name, then[name], now[name])


def _changes(name: str, before: object, after: object) -> Iterator[str]:
    """The parts of one field that differ, hashes first."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        same_file = "sha256" in before and before["sha256"] == after.get("sha256")
        keys = [*before, *(key for key in after if key not in before)]
        for key in sorted(keys, key=lambda key: key != "sha256"):
            if not (same_file and key in _LABELS):
                values = before.get(key, _ABSENT), after.get(key, _ABSENT)
                yield from _changes(f"{name} {key}", *values)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, values in enumerate(zip(before, after, strict=True)):
            yield from _changes(f"{name} {index + 1}", *values)
    else:
        yield f"{name:.80} was {_shown(before)}, is {_shown(after)}"


def _shown(value: object) -> str:
    return "not there" if value is _ABSENT else reprlib.repr(value)
