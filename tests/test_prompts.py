"""Tokens and embeddings."""

import copy
import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import BRACKETED_PROMPTS, HOSTILE_TEXTS
from transformers import CLIPTokenizer

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.components import Components
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.prompts import Conditioning, Remembered, encode, encode_prompt

PLAIN = 'a+ dog- "with" .and, {hat}: a.swap, +++ --- 1.3'


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


@pytest.mark.parametrize("text", [text for text in HOSTILE_TEXTS if len(text) < 20])
def test_any_text_tokenizes(pipe: LatentPipeline, text: str) -> None:
    assert len(pipe.tokenize(text)) == 77


def test_special_tokens_in_the_text_do_not_crash(pipe: LatentPipeline) -> None:
    assert len(pipe.tokenize("a <|endoftext|> dog <|startoftext|>")) == 77


def test_same_as_diffusers(pipe: LatentPipeline, tiny_model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(tiny_model)
    # diffusers 0.42 looks for the norm where transformers had it before 5.x.
    theirs.text_encoder.__dict__.setdefault("text_model", theirs.text_encoder)
    for text, other in (("a dog", "a cat"), (PLAIN, ""), ("a " * 75, "b")):
        for skip in (0, 1, 2):
            positive, negative = theirs.encode_prompt(
                text, "cpu", 1, True, negative_prompt=other, clip_skip=skip or None
            )
            ours = encode([text], [other], pipe.components, guided=True, clip_skip=skip)
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


# --- long prompts ---


def by_hand(ids: list[int], components: Components) -> torch.Tensor:
    """Windows of 75 tokens between start and end, encoded one by one, one after the other."""
    tokenizer = components.tokenizer
    parts = []
    for first in range(0, max(len(ids), 1), 75):
        window = [tokenizer.bos_token_id, *ids[first : first + 75]]
        window += [tokenizer.eos_token_id] * (77 - len(window))
        with torch.no_grad():
            parts.append(components.text_encoder(torch.tensor([window])).last_hidden_state)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("words", "chunks"), [(75, 1), (76, 2), (150, 2), (151, 3)])
def test_long_prompts_are_encoded_in_windows(pipe: LatentPipeline, words: int, chunks: int) -> None:
    text = " ".join("abc"[k * k % 3] for k in range(words))
    ids = pipe.components.tokenizer(text, verbose=False).input_ids[1:-1]
    assert len(ids) == words
    embedding = encode_prompt(text, pipe.components)
    assert embedding.shape == (1, 77 * chunks, 32)
    assert torch.equal(embedding, by_hand(ids, pipe.components))


def test_prompts_of_one_two_and_three_chunks_side_by_side(pipe: LatentPipeline) -> None:
    texts = ["a dog", "a " * 80, "b (a:1.2) " + "a " * 150, ""]
    negatives = ["", "night", "a " * 76, ""]
    together = encode(texts, negatives, pipe.components, guided=True)
    assert together.negative is not None
    assert together.positive.shape == together.negative.shape == (4, 231, 32)
    empty = encode_prompt("", pipe.components)
    for half, words in ((together.positive, texts), (together.negative, negatives)):
        for row, text in zip(half, words, strict=True):
            alone = encode_prompt(text, pipe.components)[0]
            assert torch.equal(row[: len(alone)], alone)
            padding = row[len(alone) :].reshape(-1, 77, 32)
            assert all(torch.equal(chunk, empty[0]) for chunk in padding)
    short = encode(["a dog"], ["a " * 80], pipe.components, guided=False)
    assert short.positive.shape == (1, 77, 32)


def test_padding_is_that_of_compel(pipe: LatentPipeline, compel: Any) -> None:
    parts = [encode_prompt(text, pipe.components) for text in ("a dog", "a " * 80)]
    expected = compel.pad_conditioning_tensors_to_same_length(list(parts))
    ours = encode(["a dog", "a " * 80], [], pipe.components, guided=False).positive
    torch.testing.assert_close(ours, torch.cat(expected))


# --- weights ---


@pytest.fixture(scope="module")
def compel(pipe: LatentPipeline) -> Any:
    """compel with its own syntax, windows and nothing copied between them."""
    from compel import Compel
    from compel.embeddings_provider import SplitLongTextMode

    return Compel(
        pipe.components.tokenizer,
        pipe.components.text_encoder,
        truncate_long_prompts=False,
        split_long_text_mode=SplitLongTextMode.BRUTAL,
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("a (red:1.3) cat", "a (red)1.3 cat"),
        ("a (red cat:0.6) with (a hat:1.4)", "a (red cat)0.6 with (a hat)1.4"),
        ("(a dog:0) cat (hat:0.25)", "(a dog)0 cat (hat)0.25"),
        ("(a dog:1.3)", "(a dog)1.3"),
        (r"a \(red\) (cat:1.2)", r"a \(red\) (cat)1.2"),
        ("a " * 90 + "(red cat:1.5)", "a " * 90 + "(red cat)1.5"),
        ("a " * 90 + "(red cat:0.5)", "a " * 90 + "(red cat)0.5"),
    ],
)
def test_weights_are_those_of_compel(
    ours: str, theirs: str, pipe: LatentPipeline, compel: Any
) -> None:
    expected = compel(theirs)
    weighted = encode_prompt(ours, pipe.components)
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-5)
    words = ours.translate(str.maketrans("", "", "()\\:.0123456789"))
    plain = encode_prompt(words, pipe.components)
    assert (weighted - plain).abs().max() > 1e-3


def test_prompts_without_weights_do_not_meet_compel(
    pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compel.embeddings_provider", None)
    for text in ("a dog", PLAIN, r"a \(dog\)", "(a dog:1.0)", "a " * 200):
        encode_prompt(text, pipe.components)
    with pytest.raises(ImportError):
        encode_prompt("(a dog)", pipe.components)


def test_characters_special_to_compel_mean_themselves_beside_weights(pipe: LatentPipeline) -> None:
    """A weight far away in the next chunk must not change how these are read."""
    tokenizer = pipe.components.tokenizer
    for text in (PLAIN, '"a","b".blend', "dog++ cat--", "a.swap b", "withLora x,1"):
        size = len(tokenizer(text).input_ids) - 2
        filled = text + " a" * (75 - size)
        both = encode_prompt(f"{filled} (hat:1.4)", pipe.components)
        assert torch.equal(both[:, :77], encode_prompt(filled, pipe.components))
        assert both.shape[1] == 154


def test_weight_one_is_no_weight_and_less_comes_closer_to_its_absence(pipe: LatentPipeline) -> None:
    def of(weight: float) -> torch.Tensor:
        return encode_prompt(f"a (red:{weight}) cat", pipe.components)

    plain = encode_prompt("a red cat", pipe.components)
    assert torch.equal(of(1.0), plain)
    distances = [float((of(weight) - plain).norm()) for weight in (0.9, 0.5, 0.1, 0)]
    assert distances == sorted(distances)


def test_chunks_are_weighted_apart(pipe: LatentPipeline) -> None:
    second = "(red:0.3) cat (hat:1.3)"
    both = encode_prompt("(a:0.5) " + "a " * 74 + second, pipe.components)
    first = encode_prompt("(a:0.5) " + "a " * 74, pipe.components)
    assert torch.equal(both[:, :77], first)
    assert torch.equal(both[:, 77:], encode_prompt(second, pipe.components))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, pipe: LatentPipeline) -> None:
    parts = {name: getattr(pipe.components, name) for name in ("unet", "text_encoder")}
    halves = {n: copy.deepcopy(part).to(getattr(torch, dtype)) for n, part in parts.items()}
    components = dataclasses.replace(pipe.components, **halves)
    for text in ("a dog", "a (red:1.3) [cat]", "a " * 80 + "(hat:0.4)"):
        for skip in (0, 1):
            half = encode_prompt(text, components, clip_skip=skip)
            assert half.dtype == components.dtype == getattr(torch, dtype)
            exact = encode_prompt(text, pipe.components, clip_skip=skip)
            torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.1)


# --- clip skip ---


def test_clip_skip_of_weighted_prompts(pipe: LatentPipeline) -> None:
    """compel's own name for one skipped layer."""
    from compel import Compel, ReturnedEmbeddingsType

    components = pipe.components
    theirs = Compel(
        components.tokenizer,
        _Nested(components.text_encoder),
        truncate_long_prompts=False,
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NORMALIZED,
    )
    ours = encode_prompt("a (red:1.3) (cat:0.5)", components, clip_skip=1)
    torch.testing.assert_close(ours, theirs("a (red)1.3 (cat)0.5"), rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours, encode_prompt("a (red:1.3) (cat:0.5)", components))


class _Nested:
    """A text encoder with its norm where compel looks for it."""

    def __init__(self, network: Any) -> None:
        self.text_model = network
        self.device, self.dtype = network.device, network.dtype

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.text_model(*arguments, **options)


@pytest.mark.parametrize("skip", [3, -1, 1.0, True, "1", None])
def test_clip_skip_out_of_range(skip: object, pipe: LatentPipeline) -> None:
    with pytest.raises(UserError, match="clip_skip must be a whole number from 0 to 2") as caught:
        encode(["a"], [""], pipe.components, guided=True, clip_skip=skip)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- anything ---


def test_hostile_prompts_are_encoded_or_refused_in_one_line(pipe: LatentPipeline) -> None:
    for prompt in BRACKETED_PROMPTS:
        try:
            embedding = encode_prompt(prompt, pipe.components)
        except UserError as error:
            refused = str(error)
            assert "\n" not in refused, prompt[:80]
        else:
            assert embedding.shape[1] % 77 == 0
            assert bool(torch.isfinite(embedding).all()), prompt[:80]


def test_what_was_not_used_for_longest_is_forgotten() -> None:
    remembered = Remembered(most=2)
    one, two, three = torch.zeros(3, 1)
    remembered.put(0, "one", one)
    remembered.put(0, "two", two)
    assert remembered.get(0, "one") is one
    remembered.put(0, "three", three)
    assert remembered.get(0, "one") is one
    assert remembered.get(0, "two") is None
    assert remembered.get(1, "three") is None


def test_threads_share_what_is_remembered() -> None:
    remembered, embedding = Remembered(most=2), torch.zeros(1)
    usual = sys.getswitchinterval()

    def use(start: int) -> None:
        for number in range(start, start + 40_000):
            remembered.put(0, str(number % 5), embedding)
            assert remembered.get(0, str(number % 3)) in (None, embedding)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, range(4)))
    finally:
        sys.setswitchinterval(usual)
