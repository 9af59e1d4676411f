"""The web UIs' prompt syntax, chunks, and what is shown of them."""

import contextlib
import copy
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from samples import BRACKETED_PROMPTS
from transformers import CLIPTokenizer

from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.models.tokenizer import published_tokenizer
from ldm_toolkit.models.vocabulary import find_published
from ldm_toolkit.tokens import TokenRow, chunk_prompt, parse_weights, show_tokens, tokenize

pytest_plugins = ["command"]


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    return CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")


# The examples of AUTOMATIC1111's documentation first, then its tests and ours.
@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("unopened) and ] brackets", [("unopened) and ] brackets", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(a : 1.5 )", [("a ", 1.5)]),
        ("(a:.5)(b:2.)(c:+3)", [("a", 0.5), ("b", 2), ("c", 3)]),
        ("(a:0)", [("a", 0)]),
        ("(dog:1.0)s", [("dogs", 1)]),
        ("a:1.3) b: 2", [("a:1.3) b: 2", 1)]),
        ("(a:nan)(b:1e9)(c:1.2.3)", [("a:nanb:1e9c:1.2.3", 1.1)]),
        ("(:1.3)", []),
        ("()[]", []),
        ("", []),
        (r"\\(a\\)", [("\\", 1), ("a\\", 1.1)]),
        (r"C:\x \\host\ \\\(", [(r"C:\x \\host\ \(", 1)]),
        ("(a\n:1.3)", [("a\n", 1.3)]),
        (
            'a+ b- "c".and() ("x","y").blend(1,1)',
            [('a+ b- "c".and ', 1), ('"x","y"', 1.1), (".blend", 1), ("1,1", 1.1)],
        ),
    ],
)
def test_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("(a:1000000000)", "weight of 'a' is 1e\\+09; weights go from 0 to 100"),
        ("(a:-1)", "negative prompt"),
        ("((a:1000):0.01) ((b:60):60)", "weight of 'b' is 3600"),
        ("(" * 60 + "a", "weight of 'a'"),
        ("(" * 65 + "a" + ")" * 65, "more than 64 deep"),
        ("(a:" + "9" * 5000 + ")", "is inf"),
    ],
)
def test_weights_that_make_no_picture(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_weights(prompt)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["\\", "(a", "[a(", ":9", ": ", ")", "\\(", "(a:9" + " " * 99])
def test_long_prompts_take_no_longer_than_their_length(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(UserError):
        parse_weights(text * (60_000 // len(text)))
    assert time.process_time() - started < 20


def test_hostile_prompts_are_fifty() -> None:
    assert len(set(BRACKETED_PROMPTS)) >= 50


@pytest.mark.parametrize("prompt", BRACKETED_PROMPTS, ids=range(len(BRACKETED_PROMPTS)))
def test_any_prompt_has_tokens_or_one_line(prompt: str, tokenizer: Any) -> None:
    try:
        ids = tokenize(prompt, tokenizer)
    except UserError as error:
        lines = str(error).splitlines()
    else:
        lines = []
        assert len(ids) % 77 == 0
        assert ids[0] == tokenizer.bos_token_id
    assert len(lines) <= 1


def test_77_tokens_as_transformers_pads_them(tokenizer: Any) -> None:
    for text in (
        "",
        "a dog",
        "A DOG, wearing: hats!",
        "ünïcödé 🐶",
        'a+ b- "c".and',
        "a <|endoftext|> b",
    ):
        expected = tokenizer(text, padding="max_length", max_length=77).input_ids
        assert tokenize(text, tokenizer) == expected


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_hold_75_tokens_and_lose_none(words: int, chunks: int, tokenizer: Any) -> None:
    text = " ".join(["dog", "cat", "hat"][k % 3] for k in range(words))
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenize(text, tokenizer)
    expected = tokenizer(text, verbose=False).input_ids[1:-1]
    size = len(expected) // max(words, 1)  # tokens a word in this tiny vocabulary
    assert size in (0, 1), "the fixture's words must be one token each"
    assert len(ids) == 77 * chunks
    inner = []
    for number in range(chunks):
        chunk = ids[77 * number : 77 * (number + 1)]
        assert chunk[0] == start
        part = expected[75 * number : 75 * (number + 1)]
        assert chunk[1 + len(part) :] == [end] * (76 - len(part))
        inner += chunk[1 : 1 + len(part)]
    assert inner == expected


def test_weights_belong_to_tokens(tokenizer: Any) -> None:
    (chunk,) = chunk_prompt("a (red cat:1.5) hat", tokenizer)
    plain = tokenizer("a red cat hat").input_ids
    assert list(chunk.ids[: len(plain)]) == plain
    red = len(tokenizer("red cat").input_ids) - 2
    after = len(plain) - 2 - 1 - red
    assert list(chunk.weights) == [1.0] + [1.5] * red + [1.0] * after
    assert [len(ids) for ids, _ in chunk.runs()] == [1, red, after]
    assert [weight for _, weight in chunk.runs()] == [1, 1.5, 1]
    assert chunk.weighted
    assert not chunk_prompt("a (red:1.0) cat", tokenizer)[0].weighted


def test_weights_cross_chunks(tokenizer: Any) -> None:
    first, second = chunk_prompt("a " * 74 + "(a a a:2)", tokenizer)
    assert first.weights == (1.0,) * 74 + (2.0,)
    assert second.weights == (2.0, 2.0)


def test_tokens_are_shown_from_start_to_end(tokenizer: Any) -> None:
    rows = show_tokens("a (dog:1.3)", tokenizer)
    ids = tokenizer("a dog").input_ids
    assert [row.id for row in rows] == ids
    assert rows[0] == TokenRow("<|startoftext|>", tokenizer.bos_token_id, 1.0)
    assert rows[1] == TokenRow("a</w>", ids[1], 1.0)
    assert rows[-1] == TokenRow("<|endoftext|>", tokenizer.eos_token_id, 1.0)
    assert {row.weight for row in rows[2:-1]} == {1.3}
    assert len(show_tokens("a " * 80, tokenizer)) == 80 + 4


def test_a_word_of_several_vectors_is_several_tokens(tokenizer: Any) -> None:
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(["<cat>", "<cat>_1", "<cat>_2", "<one>"])
    first = extended.convert_tokens_to_ids("<cat>")
    a = tokenizer("a").input_ids[1]
    ids = tokenize("a <cat> a (<one>:1.2)", extended)
    assert ids[1:7] == [a, first, first + 1, first + 2, a, first + 3]
    assert tokenize("a <cat>", tokenizer) != tokenize("a <cat>", extended)


def test_show_tokens_on_the_command_line(
    ldm_gen: Callable[..., Any], workdir: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm_toolkit.pipeline import LatentPipeline

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(LatentPipeline, "from_pretrained", refuse)
    done = ldm_gen("a (dog:1.25)", "--show-tokens")
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [int(row[0]) for row in rows] == tokenizer("a dog").input_ids
    assert [row[2] for row in rows] == ["1", "1", *["1.25"] * (len(rows) - 3), "1"]
    assert list(workdir.iterdir()) == []


def test_show_tokens_with_another_tokenizer_and_learned_words(
    ldm_gen: Callable[..., Any], workdir: Path, tokenizer: Any, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, workdir / "model")
    shutil.move(workdir / "model" / "tokenizer", workdir / "words")
    save_file({"<cat>": torch.zeros(2, 32)}, workdir / "e.safetensors")
    words = ("a <cat> (style:1.5)", "--show-tokens", "--tokenizer", "words")
    words = (*words, "--embedding", "e.safetensors", "--embedding", "e.safetensors:style")
    done = ldm_gen(*words, model=workdir / "model")
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    first = len(tokenizer)
    a = tokenizer("a").input_ids[1]
    learned = [first, first + 1, first + 2, first + 3]
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert [int(row[0]) for row in rows] == [start, a, *learned, end]
    texts = [row[1] for row in rows[2:-1]]
    assert texts == ["<cat>", "<cat>_1", "style", "style_1"]
    assert [row[2] for row in rows[2:-1]] == ["1", "1", "1.5", "1.5"]


def test_words_that_cannot_be_shown(ldm_gen: Callable[..., Any], workdir: Path) -> None:
    save_file({"a": torch.zeros(32), "b": torch.zeros(32)}, workdir / "two.safetensors")
    save_file({"x": torch.zeros(32)}, workdir / "one.safetensors")
    for given, told in (
        (["two.safetensors"], "holds 2 tensors (a, b)"),
        (["one.safetensors:(x)"], "the embedding's word must be short"),
        (["one.safetensors", "one.safetensors"], "knows 'x' already"),
    ):
        options = [word for one in given for word in ("--embedding", one)]
        done = ldm_gen("a", "--show-tokens", *options)
        assert done.code == 2
        assert told in done.err
        assert done.out == ""


def test_wrong_weights_are_found_before_anything_is_loaded(ldm_gen: Callable[..., Any]) -> None:
    for words in (["(a:-1)"], ["a", "--negative", "(a:1000)"], ["(a:-1)", "--show-tokens"]):
        done = ldm_gen(*words)
        assert done.code == 2
        assert "weights go from 0 to 100" in done.err
        assert len(done.err.splitlines()) == 1


def test_clips_published_vocabulary() -> None:
    """The ids that every Stable Diffusion 1.x model reads; skipped where nobody has the file."""
    try:
        path = find_published()
    except ModelError:
        pytest.skip("open_clip_torch is not installed; it holds CLIP's published vocabulary")
    ids = tokenize("a dog wearing hat", published_tokenizer(path))
    assert ids == [49406, 320, 1929, 3309, 3801, *[49407] * 72]
    assert len(ids) == 77
