"""A model's tokenizer on its own, and the words that textual inversions teach it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.models.tokenizer import load_tokenizer, model_tokenizer, read_word, with_word
from ldm_toolkit.tokens import show_tokens


def write(file: Path, **shapes: tuple[int, ...]) -> Path:
    """A safetensors file of zeros."""
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, file)
    return file


def ids(tokenizer: Any) -> list[int]:
    found: list[int] = tokenizer("a dog wearing a hat").input_ids
    return found


def test_of_folders(tiny_model: Path, tmp_path: Path) -> None:
    expected = ids(load_tokenizer(tiny_model / "tokenizer"))
    assert ids(model_tokenizer(tiny_model)) == expected
    assert ids(model_tokenizer("storybook", tokenizer=tiny_model / "tokenizer")) == expected
    assert ids(model_tokenizer("storybook", tokenizer=str(tiny_model))) == expected
    assert ids(model_tokenizer("storybook")) != expected
    shutil.copytree(tiny_model / "tokenizer", tmp_path / "mine" / "tokenizer")
    assert ids(model_tokenizer(tmp_path / "mine")) == expected
    (tmp_path / "mine" / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer/merges\.txt"):
        model_tokenizer(tmp_path / "mine")
    with pytest.raises(ModelError, match="neither a folder nor a bundled model"):
        model_tokenizer("storyboook")


@pytest.mark.parametrize(
    ("shapes", "token", "expected"),
    [
        ({"<cat>": (32,)}, None, ("<cat>", 1)),
        ({"<cat>": (3, 32)}, None, ("<cat>", 3)),
        ({"emb_params": (2, 768)}, None, ("my style", 2)),
        ({"emb_params": (1, 768)}, "<s>", ("<s>", 1)),
    ],
)
def test_the_word_of_a_file(
    shapes: dict[str, tuple[int, ...]], token: str | None, expected: tuple, tmp_path: Path
) -> None:
    assert read_word(write(tmp_path / "my style.safetensors", **shapes), token) == expected


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"clip_l": (768,), "clip_g": (1280,)}, r"holds 2 tensors \(clip_"),
        ({"x": ()}, r"shape is \(\), not \(D\) or \(n, D\)"),
        ({"x": (0, 32)}, "of another model"),
        ({"x": (2, 0)}, "of another model"),
        ({"x": (1, 2, 32)}, "of another model"),
        ({"x": (1001, 1)}, "n from 1 to 1000"),
    ],
)
def test_files_that_hold_no_word(
    shapes: dict[str, tuple[int, ...]], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=told):
        read_word(write(tmp_path / "e.safetensors", **shapes))


def test_a_word_is_taught_to_a_copy() -> None:
    plain = model_tokenizer("storybook")
    taught, words = with_word(plain, "<cat>", 3)
    assert words == ["<cat>", "<cat>_1", "<cat>_2"]
    shown = [row.text for row in show_tokens("a <cat>", taught)]
    assert shown == ["<|startoftext|>", "a</w>", *words, "<|endoftext|>"]
    assert "<cat>" not in [row.text for row in show_tokens("a <cat>", plain)]
    for word, vectors in (("<cat>", 1), ("<cat>_7", 1), ("two words", 1), ("", 1), ("a</w>", 1)):
        with pytest.raises(UserError, match=r"the embedding's word must be|already"):
            with_word(taught, word, vectors)
