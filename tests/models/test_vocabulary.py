"""Which words a small vocabulary knows; CLIP's published one: tests/test_tokens.py."""

import json

import pytest

from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.models.vocabulary import unknown_words

# As byte-level BPE writes them: the UTF-8 bytes of a word, each as a letter.
SMALL = {"a</w>", "dog</w>", "do", "s</w>", "hat</w>", "cafÃ©</w>", "x"}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a dog", "A DOG, (hat:1.3), [dog]"], []),
        (["a dog's hat, 4 dogs"], ["dogs"]),
        (["sks dog", "a sks", "robot_dog x"], ["sks", "robot", "x"]),  # a piece is no word
        (["café", "CAFÉ", "cafe"], ["cafe"]),
        (["狗 dog"], ["狗"]),
        (["", "!?", "<|endoftext|>"], ["endoftext"]),
        ([], []),
    ],
)
def test_words_of_a_small_vocabulary(texts: list[str], expected: list[str]) -> None:
    assert unknown_words(texts, SMALL) == expected


def test_a_large_vocabulary_lacks_nothing() -> None:
    large = SMALL | {f"{number}</w>" for number in range(20_000)}
    assert unknown_words(["sks"], large) == []


def test_the_bundled_model_knows_what_it_was_taught() -> None:
    file = bundled_models()["storybook"] / "tokenizer" / "vocab.json"
    vocabulary = json.loads(file.read_text())
    assert unknown_words(["A brown dog wearing a hat on the beach."], vocabulary) == []
    assert unknown_words(["a photo of sks dog", "a robot"], vocabulary) == ["sks", "robot"]
