"""A prompt as weighted tokens in chunks that fit the text encoder. Level 1: no torch.

The syntax is the web UIs': ``(words)`` weighs 1.1, ``[words]`` 1/1.1, ``(words:1.3)`` 1.3, brackets
multiply, ``\\(`` is a bracket that means itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ldm_toolkit.errors import UserError

__all__ = ["Chunk", "TokenRow", "chunk_prompt", "parse_weights", "show_tokens", "tokenize"]

MAX_WEIGHT = 100.0
_MAX_DEPTH = 64
_STEP = 1.1
_LEXEMES = re.compile(
    r"(?P<escapes>\\+)(?P<bracket>[()\[\]])"
    r"|(?P<weight>:\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*\))"
    r"|(?P<mark>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|\\+|:)"
)
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class Chunk:
    """What the text encoder sees at once: start, at most 75 tokens, end, padding; and weights.

    ``ids`` has the model's length (77); ``weights`` has one number a token between start and end.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        """Whether any token weighs other than 1."""
        return any(weight != 1 for weight in self.weights)

    def runs(self) -> Iterator[tuple[list[int], float]]:
        """Neighbouring tokens of equal weight, start and end left away."""
        run: list[int] = []
        for position, weight in enumerate(self.weights):
            if run and weight != self.weights[position - 1]:
                yield run, self.weights[position - 1]
                run = []
            run.append(self.ids[1 + position])
        if run:
            yield run, self.weights[-1]


@dataclass(frozen=True)
class TokenRow:
    """A token as people see it: the vocabulary's text, its id, its weight."""

    text: str
    id: int
    weight: float


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """A prompt's parts with their weights, neighbours of equal weight joined.

    As AUTOMATIC1111's parser reads it: a closing bracket without an opening one means itself, an
    opening one that is never closed reaches to the end, what is no number after a colon is text.
    Other backslashes than those before brackets mean themselves. Raises UserError for weights
    below 0 or above 100 and for brackets that nest more than 64 deep.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    for kind, value in _lexemes(prompt):
        if kind == "mark" and value in opened:
            opened[value].append(len(texts))
            if len(opened[value]) > _MAX_DEPTH:
                raise UserError(
                    f"the prompt's brackets nest more than {_MAX_DEPTH} deep; write (words:1.3) "
                    r"for a weight, \( for a bracket that means itself"
                )
        elif kind == "mark" and opened[_OPENING[value]]:
            weigh(_OPENING[value], _STEP if value == ")" else 1 / _STEP)
        elif kind == "weight" and opened["("]:
            weigh("(", float(value[1:-1]))
        else:
            texts.append(value)
            weights.append(1.0)
    for bracket, factor in (("(", _STEP), ("[", 1 / _STEP)):
        while opened[bracket]:
            weigh(bracket, factor)
    return _joined(texts, weights)


def _lexemes(prompt: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of brackets, weights and text, with the escapes before brackets resolved."""
    for found in _LEXEMES.finditer(prompt):
        kind = found.lastgroup or ""
        if kind != "bracket":
            yield kind, found[0]
            continue
        literal, escaped = divmod(len(found["escapes"]), 2)
        if literal:
            yield "text", "\\" * literal
        yield "text" if escaped else "mark", found["bracket"]


def _joined(texts: list[str], weights: list[float]) -> list[tuple[str, float]]:
    """Neighbours of equal weight as one part; weights in range. Raises UserError."""
    parts: list[tuple[list[str], float]] = []
    for text, weight in zip(texts, weights, strict=True):
        if not 0 <= weight <= MAX_WEIGHT:
            raise UserError(
                f"the weight of {text.strip()!r:.60} is {weight:.4g}; weights go from 0 to "
                f"{MAX_WEIGHT:g}, and what must not be there belongs into the negative prompt"
            )
        if parts and parts[-1][1] == weight:
            parts[-1][0].append(text)
        else:
            parts.append(([text], weight))
    return [("".join(words), weight) for words, weight in parts]


def chunk_prompt(prompt: str, tokenizer: Any) -> list[Chunk]:
    """A prompt's tokens in chunks of the model's length, at least one; nothing is cut off.

    ``tokenizer`` is transformers' CLIPTokenizer. Raises UserError as `parse_weights` does.
    """
    concepts = _concepts(tokenizer)
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parse_weights(prompt):
        plain = tokenizer(text, verbose=False).input_ids[1:-1]
        found = [one for token in plain for one in concepts.get(token, (token,))]
        ids += found
        weights += [weight] * len(found)
    size = int(tokenizer.model_max_length) - 2
    chunks = []
    for start in range(0, max(len(ids), 1), size):
        part = ids[start : start + size]
        padding = [tokenizer.pad_token_id] * (size - len(part))
        whole = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding]
        chunks.append(Chunk(tuple(whole), tuple(weights[start : start + size])))
    return chunks


def _concepts(tokenizer: Any) -> dict[int, tuple[int, ...]]:
    """Textual inversions of several vectors: id of ``<cat>`` -> ids of it, ``<cat>_1``, ..."""
    added = tokenizer.added_tokens_encoder
    concepts = {}
    for token, first in added.items():
        ids = [first]
        while f"{token}_{len(ids)}" in added:
            ids.append(added[f"{token}_{len(ids)}"])
        if len(ids) > 1:
            concepts[first] = tuple(ids)
    return concepts


def tokenize(prompt: str, tokenizer: Any) -> list[int]:
    """A prompt's token ids with start, end and padding: 77 a chunk, chunk after chunk.

    Raises UserError as `parse_weights` does.
    """
    return [token for chunk in chunk_prompt(prompt, tokenizer) for token in chunk.ids]


def show_tokens(prompt: str, tokenizer: Any) -> list[TokenRow]:
    """What the text encoder reads, a row a token, every chunk from its start to its end.

    Raises UserError as `parse_weights` does.
    """
    rows = []
    for chunk in chunk_prompt(prompt, tokenizer):
        ids = list(chunk.ids[: len(chunk.weights) + 2])
        texts = tokenizer.convert_ids_to_tokens(ids)
        numbers = (1.0, *chunk.weights, 1.0)
        rows += [TokenRow(*row) for row in zip(texts, ids, numbers, strict=True)]
    return rows
