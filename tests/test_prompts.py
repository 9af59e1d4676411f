"""Tokens and embeddings."""

from pathlib import Path

import pytest
import torch
from samples import HOSTILE_TEXTS
from transformers import CLIPTokenizer

from ldm_toolkit.errors import UserError
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.prompts import Conditioning, encode


def test_77_tokens_with_start_end_and_padding(pipe: LatentPipeline) -> None:
    ids = pipe.tokenize("a dog wearing hat")
    tokenizer = pipe.components.tokenizer
    assert len(ids) == 77
    assert ids[0] == tokenizer.bos_token_id
    assert set(ids[ids.index(tokenizer.eos_token_id) :]) == {tokenizer.eos_token_id}
    assert tokenizer.decode(ids[1:5]).split()[0] == "a"


def test_same_as_transformers_padding(pipe: LatentPipeline, tiny_model: Path) -> None:
    reference = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    for text in ("", "a dog", "A DOG, wearing: hats!", "ünïcödé 🐶"):
        expected = reference(text, padding="max_length", max_length=77).input_ids
        assert pipe.tokenize(text) == expected


def test_too_long_says_by_how_much(pipe: LatentPipeline) -> None:
    fits = "a " * 75
    assert len(pipe.tokenize(fits)) == 77
    with pytest.raises(UserError, match="78 tokens, 3 more than the 75 that fit"):
        pipe.tokenize("a " * 78)
    with pytest.raises(UserError, match="1 more") as caught:
        pipe.encode_prompt("a " * 76)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", [text for text in HOSTILE_TEXTS if len(text) < 20])
def test_any_text_tokenizes(pipe: LatentPipeline, text: str) -> None:
    assert len(pipe.tokenize(text)) == 77


def test_special_tokens_in_the_text_do_not_crash(pipe: LatentPipeline) -> None:
    assert len(pipe.tokenize("a <|endoftext|> dog <|startoftext|>")) == 77


def test_same_as_diffusers(pipe: LatentPipeline, tiny_model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(tiny_model)
    positive, negative = theirs.encode_prompt("a dog", "cpu", 1, True, negative_prompt="a cat")
    ours = encode(["a dog"], ["a cat"], pipe.components, guided=True)
    assert torch.equal(ours.positive, positive)
    assert ours.negative is not None
    assert torch.equal(ours.negative, negative)


def test_an_embedding_does_not_depend_on_its_neighbours(pipe: LatentPipeline) -> None:
    together = pipe.encode_prompt(["a dog", "a cat", "a red house in the snow"])
    assert torch.equal(together[1:2], pipe.encode_prompt("a cat"))


def test_the_negative_half_is_there_only_when_guided(pipe: LatentPipeline) -> None:
    conditioning = encode(["a"], [""], pipe.components, guided=False)
    assert conditioning.negative is None
    assert conditioning.batch(False) is conditioning.positive
    with pytest.raises(UserError, match="negative half"):
        conditioning.batch(True)
    halves = Conditioning(torch.ones(1, 2, 3), torch.zeros(1, 2, 3)).batch(True)
    assert halves[:, 0, 0].tolist() == [0, 1]
