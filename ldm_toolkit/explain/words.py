"""The words of a prompt and their places among the tokens of its embedding."""

from dataclasses import dataclass

from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.tokens import chunk_prompt

__all__ = ["Word", "find_words"]


@dataclass(frozen=True)
class Word:
    """A word, the token ids that spell it and their places among the embedding's rows."""

    text: str
    ids: tuple[int, ...]
    places: tuple[int, ...]


def find_words(pipeline: LatentPipeline, prompt: str) -> list[Word]:
    """A prompt's words in the order of their tokens; start, end and padding are none."""
    tokenizer = pipeline.components.tokenizer
    whole = set(tokenizer.added_tokens_encoder.values())  # words of textual inversions
    words: list[Word] = []
    spelled: list[tuple[int, int]] = []  # id and place of the tokens of the word that is open
    begin = 0
    for chunk in chunk_prompt(prompt, tokenizer):
        for offset in range(1, len(chunk.weights) + 1):
            token = chunk.ids[offset]
            spelled.append((token, begin + offset))
            if token in whole or tokenizer.convert_ids_to_tokens(token).endswith("</w>"):
                words.append(_word(tokenizer.decode([one for one, _ in spelled]), spelled))
                spelled = []
        begin += len(chunk.ids)
    if spelled:
        words.append(_word(tokenizer.decode([one for one, _ in spelled]), spelled))
    return words


def _word(text: str, spelled: list[tuple[int, int]]) -> Word:
    ids, places = zip(*spelled, strict=True)
    return Word(text.strip(), ids, places)
