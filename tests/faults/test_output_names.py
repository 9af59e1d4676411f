"""200 prompts as file names: every picture lies in the folder, whole, with its prompt exact."""

import os
import random
import re
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from samples import HOSTILE_TEXTS, recipe

from ldm_toolkit.cli.output import destination, steps_folder
from ldm_toolkit.images import read_recipe, save_image

FORMATS = ("png", "webp", "jpg")


def random_texts(count: int) -> list[str]:
    """Texts of any characters but half surrogates, with separators and dots among them."""
    chance = random.Random(2026)
    texts = []
    for _ in range(count):
        kinds = (
            lambda: chr(
                chance.choice([chance.randrange(0xD800), chance.randrange(0xE000, 1 << 20)])
            ),
            lambda: chance.choice("/\\.:~-_ \0\n%$*?|<>\"'"),
            lambda: chance.choice(["..", "../", "con", "\u202e", "\uff0f", "\u2215", "a\u0308"]),
            lambda: chr(chance.randrange(0x20, 0x7F)),
        )
        texts.append("".join(chance.choice(kinds)() for _ in range(chance.randint(1, 80))))
    return texts


NAMES = [*HOSTILE_TEXTS[:60], *random_texts(140)]


def test_the_table_is_as_long_as_promised() -> None:
    assert len(HOSTILE_TEXTS) >= 60
    assert len(set(NAMES)) == 200


@pytest.mark.parametrize("number", range(200))
def test_every_prompt_makes_a_harmless_name(number: int, tmp_path: Path) -> None:
    prompt, format = NAMES[number], FORMATS[number % 3]
    folder = tmp_path / "out"
    folder.mkdir()
    options = {"count": 1, "overwrite": False, "with_steps": False}
    paths = []
    for _ in range(2):
        place = destination(f"{folder}/", prompt, format=format, **options)
        path = place.path(7)
        save_image(Image.new("RGB", (1, 1)), path, recipe(prompt=prompt), overwrite=False)
        paths.append(path)
    assert [path.resolve() for path in paths] == paths, "no link, no way out"
    assert {path.parent for path in paths} == {folder}
    assert sorted(os.listdir(folder)) == sorted(path.name for path in paths)
    assert os.listdir(tmp_path) == ["out"]
    for path in (*paths, steps_folder(paths[0])):
        assert re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", path.name)
        assert len(path.name.encode()) <= 80
        assert path.stem.split(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
        assert path.name == unicodedata.normalize("NFC", path.name)
    assert all(path.suffix == f".{format}" for path in paths)
    assert {read_recipe(path).prompt for path in paths} == {prompt}
