"""``--method textual-inversion``: vectors of a new word for a model that stays as it is.

The text encoder reads the word's tokens as vectors of its own, and those alone are trained: Gal et
al. 2022 (An Image is Worth One Word), section 3.2, eq. 2.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ldm_toolkit.errors import UserError
from ldm_toolkit.files import write_atomic
from ldm_toolkit.models.tokenizer import with_word
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.methods.unet_step import UNetMethod
from ldm_toolkit.training.rng import generator

__all__ = ["EMBEDDING_FILE", "TextualInversion"]

logger = logging.getLogger(__name__)
EMBEDDING_FILE = "learned_embeds.safetensors"
"""The name that diffusers looks for in a folder."""

_LENGTH = 77
# Captions of pictures whose own do not name the word. Their grammar fits names and common nouns.
_TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a close-up of {}",
    "a depiction of {}",
    "a view of {}",
    "{}",
)


class TextualInversion(UNetMethod):
    """The vectors of a new word. Raises UserError for a word that the tokenizer knows.

    ``captions[i]`` are those of picture i; where none of them names the word, it gets templates.
    """

    adapter_file = EMBEDDING_FILE
    encodes_text = True
    makes_captions = True

    @classmethod
    def check(cls, config: UNetConfig, unet: Mapping[str, Any]) -> None:
        """Raise UserError for another schedule."""
        if config.zero_terminal_snr:
            raise UserError(
                "--zero-terminal-snr changes the model's own schedule, which a word cannot do; "
                "train with --method full"
            )

    @classmethod
    def check_words(cls, config: UNetConfig, tokenizer: Any) -> None:
        """Raise UserError for a word that the tokenizer knows or that prompts cannot hold."""
        _new_word(config, tokenizer)

    def __init__(
        self,
        unet: UNet2DConditionModel,
        config: UNetConfig,
        *,
        tokenizer: Any,
        encoder: Any,
        captions: Sequence[Sequence[str]],
        **cached: Any,
    ) -> None:
        word = _new_word(config, tokenizer)
        tokens, rows = _caption_tokens(captions, word)
        unet.requires_grad_(False)
        encoder.requires_grad_(False)
        table = encoder.get_input_embeddings()
        initial: list[int] = []
        if config.initial is not None:
            initial = tokenizer(config.initial, verbose=False).input_ids[1:-1]
        start = _start(table.weight.detach(), initial, config.vectors, config.seed)
        self._words, self._token = _Words(table, word.ids, start), word.text
        encoder.set_input_embeddings(self._words)
        super().__init__(
            unet, config, embeddings=tokens, caption_rows=rows, encoder=encoder, **cached
        )

    def save(self, folder: Path) -> None:
        """``folder/learned_embeds.safetensors``: one tensor, (N, D), by the word's name."""
        vectors = self._words.rows.detach().float().cpu().contiguous()
        data = safetensors_bytes({self._token: vectors}, metadata={"format": "pt"})
        write_atomic(folder / EMBEDDING_FILE, data)


class _Words(nn.Module):
    """A frozen table of words, with learned vectors for tokens ``ids``: (B, T) -> (B, T, D).

    The learned ones are no rows of the table, so no gradient, moment or decay ever has the size of
    the table, and none of its rows can change.
    """

    ids: Tensor

    def __init__(self, table: nn.Embedding, ids: Sequence[int], start: Tensor) -> None:
        super().__init__()
        self.table, self.rows = table, nn.Parameter(start.float().clone())
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = tokens[..., None] == self.ids  # (B, T, N)
        learned = places.any(dim=-1)
        known = self.table(tokens.masked_fill(learned, 0))
        # Not an index, whose gradient several threads of a CPU add up in no fixed order.
        rows = nn.functional.embedding(places.int().argmax(dim=-1), self.rows)
        return torch.where(learned[..., None], rows.to(known.dtype), known)


@dataclass(frozen=True)
class _Word:
    """A new word, the tokenizer that was taught it, and the tokens that it stands for."""

    text: str
    tokenizer: Any
    ids: tuple[int, ...]

    def tokens(self, caption: str) -> list[int]:
        """A caption's tokens without start and end; as in prompts the word is all of its own."""
        plain = self.tokenizer(caption, verbose=False).input_ids[1:-1]
        first, *_ = self.ids
        return [one for token in plain for one in (self.ids if token == first else (token,))]

    def named_in(self, caption: str) -> bool:
        """Whether a caption names the word where the text encoder still reads all of it."""
        return self.ids[-1] in self.tokens(caption)[: _LENGTH - 2]

    def row(self, caption: str) -> list[int]:
        """What the text encoder reads of a caption: start, tokens, end and padding."""
        found = self.tokens(caption)[: _LENGTH - 2]
        padding = [self.tokenizer.pad_token_id] * (_LENGTH - 2 - len(found))
        return [self.tokenizer.bos_token_id, *found, self.tokenizer.eos_token_id, *padding]

    def templates(self) -> list[str]:
        """Captions that name the word and have room for all of it; the word alone has."""
        return [
            text for text in (one.format(self.text) for one in _TEMPLATES) if self.named_in(text)
        ]


def _new_word(config: UNetConfig, tokenizer: Any) -> _Word:
    """The word of ``--token``. Raises UserError for one that cannot be new."""
    text = config.token or ""
    if f"{text.lower()}</w>" in tokenizer.get_vocab():  # as it stands at the end of a word
        raise UserError(
            f"--token {text!r:.120}: the tokenizer knows this word already; choose one that means "
            f"nothing yet, such as <{text:.40}>"
        )
    try:
        taught, names = with_word(tokenizer, text, config.vectors)
    except UserError as error:
        raise UserError(f"--token {text!r:.120}: {error}") from error
    return _Word(text, taught, tuple(taught.convert_tokens_to_ids(names)))


def _start(table: Tensor, initial: Sequence[int], count: int, seed: int) -> Tensor:
    """The vectors that a word of ``count`` starts from, (N, D).

    Those of the initial tokens: of as many, each; of more, the means of ``count`` even groups of
    neighbours; of fewer, each again and again in turn. Without any, draws from a normal
    distribution with the mean and deviation of the table in each dimension.
    """
    if not initial:
        streams = (generator(seed, "new word", number) for number in range(count))
        draws = torch.stack([torch.randn(table.shape[1], generator=rng) for rng in streams])
        return table.mean(dim=0) + table.std(dim=0) * draws
    vectors = table[list(initial)]
    if len(vectors) < count:
        return vectors[torch.arange(count) % len(vectors)]
    return torch.stack([group.mean(dim=0) for group in vectors.tensor_split(count)])


def _caption_tokens(
    captions: Sequence[Sequence[str]], word: _Word
) -> tuple[Tensor, list[list[int]]]:
    """Token ids of all different captions, (M, 77), row 0 the empty one, and rows of each picture.

    A picture's captions are those of its own that name the word, else the templates.
    """
    rows = {"": 0}
    templates = word.templates()
    found, without = [], 0
    for own in captions:
        naming = [caption for caption in own if word.named_in(caption)]
        without += not naming
        found.append([rows.setdefault(text, len(rows)) for text in naming or templates])
    if without:
        logger.info(
            "%d of %d pictures have no caption with %s among its first %d tokens; theirs are now "
            "%r and the like", without, len(found), word.text, _LENGTH - 2, templates[0],
        )  # fmt: skip
    return torch.tensor([word.row(caption) for caption in rows]), found
