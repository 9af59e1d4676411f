"""From words to embeddings: chunk by chunk through the text encoder, weights through compel."""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.components import Components
from ldm_toolkit.tokens import Chunk, chunk_prompt, tokenize

__all__ = ["Conditioning", "Remembered", "encode", "encode_prompt", "tokenize"]


@dataclass(frozen=True)
class Conditioning:
    """Text embeddings of B pictures, (B, T, D); ``negative`` only where guidance needs it.

    ``lengths``: the tokens of T that each picture would have if it were alone.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None = None
    lengths: tuple[int, ...] = ()

    def mix(self, weight: float) -> "Conditioning":
        """Of two pictures' embeddings the one between: weight 0 is the first, 1 the second."""
        positive = torch.lerp(self.positive[:1], self.positive[1:], weight)
        lengths = (positive.shape[1],)
        if self.negative is None:
            return Conditioning(positive, None, lengths)
        negative = torch.lerp(self.negative[:1], self.negative[1:], weight)
        return Conditioning(positive, negative, lengths)

    def part(self, rows: list[int]) -> "Conditioning":
        """That of some of the pictures, as long as the longest of them."""
        lengths = tuple(self.lengths[row] for row in rows)
        negative = self.negative[rows, : max(lengths)] if self.negative is not None else None
        return Conditioning(self.positive[rows, : max(lengths)], negative, lengths)

    def batch(self, guided: bool) -> torch.Tensor:
        """What the UNet gets: (2B, T, D) with the negative half first, or (B, T, D)."""
        if not guided:
            return self.positive
        if self.negative is None:
            raise UserError("guidance needs a negative half; encode the prompts with guided=True")
        return torch.cat([self.negative, self.positive])


class _Encoder:
    """The text encoder without its last ``clip_skip`` layers, as compel wants to call it."""

    def __init__(self, components: Components, clip_skip: int) -> None:
        network = components.text_encoder
        layers = int(network.config.num_hidden_layers)
        if type(clip_skip) is not int or not 0 <= clip_skip <= layers:
            raise UserError(
                f"clip_skip must be a whole number from 0 to {layers}, the layers of this model's "
                f"text encoder, not {clip_skip!r:.80}"
            )
        self.device = components.device
        self.dtype = network.dtype
        self._network = network
        self._skip = clip_skip

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Ids and mask, (1, T) -> hidden states after the final layer norm, (1, T, D)."""
        if self._skip == 0:
            return self._network(ids, attention_mask=mask).last_hidden_state
        output = self._network(ids, attention_mask=mask, output_hidden_states=True)
        # transformers 5 flattened CLIPTextModel on its way: the norm was in .text_model before.
        norm = getattr(self._network, "text_model", self._network).final_layer_norm
        return norm(output.hidden_states[-(self._skip + 1)])

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None, **_: object
    ) -> SimpleNamespace:
        """`hidden`; a mask that masks nothing is left away, as for prompts without weights."""
        if mask is not None and bool(mask.all()):
            mask = None
        return SimpleNamespace(last_hidden_state=self.hidden(ids, mask))


class Remembered:
    """The embeddings of one model's last prompts, so that a job encodes its negative prompt once.

    ``most`` bounds the memory: 15 MB for prompts of one chunk in bfloat16. Several threads may use
    it at once: each call below is one that they cannot interrupt.
    """

    def __init__(self, most: int = 128) -> None:
        self._most = most
        self._embeddings: OrderedDict[tuple[int, str], torch.Tensor] = OrderedDict()

    def get(self, clip_skip: int, prompt: str) -> torch.Tensor | None:
        """The embedding of a prompt, if it was one of the last."""
        found = self._embeddings.get((clip_skip, prompt))
        if found is not None:
            with contextlib.suppress(KeyError):  # another thread's prompt may have replaced it
                self._embeddings.move_to_end((clip_skip, prompt))
        return found

    def put(self, clip_skip: int, prompt: str, embedding: torch.Tensor) -> None:
        """Remember an embedding, and forget the one that was not used for longest."""
        self._embeddings[clip_skip, prompt] = embedding
        if len(self._embeddings) > self._most:
            self._embeddings.popitem(last=False)


class _PromptEncoder:
    """Encodes prompts, each once; compel is imported when the first weight is met."""

    def __init__(
        self, components: Components, clip_skip: int, remembered: Remembered | None = None
    ) -> None:
        self._tokenizer = components.tokenizer
        self._encoder = _Encoder(components, clip_skip)
        self._skip = clip_skip
        self._remembered = remembered if remembered is not None else Remembered()

    def __call__(self, prompt: str) -> torch.Tensor:
        """A prompt of n chunks -> (1, 77 n, D) in the model's dtype."""
        known = self._remembered.get(self._skip, prompt)
        if known is not None:
            return known
        chunks = chunk_prompt(prompt, self._tokenizer)
        embedding = torch.cat([self._chunk(chunk) for chunk in chunks], dim=1)
        self._remembered.put(self._skip, prompt, embedding)
        return embedding

    def padded(self, embedding: torch.Tensor, length: int) -> torch.Tensor:
        """An embedding with the empty prompt's behind it, up to ``length`` tokens."""
        missing = length - embedding.shape[1]
        if not missing:
            return embedding
        empty = self("")
        return torch.cat([embedding, *[empty] * (missing // empty.shape[1])], dim=1)

    def _chunk(self, chunk: Chunk) -> torch.Tensor:
        if not chunk.weighted:
            return self._encoder.hidden(torch.tensor([chunk.ids], device=self._encoder.device))
        runs, weights = zip(*chunk.runs(), strict=True)
        return self._weighted.get_embeddings_for_weighted_prompt_fragments(
            text_batch=[list(runs)],
            fragment_weights_batch=[list(weights)],
            device=self._encoder.device,
        )

    @functools.cached_property
    def _weighted(self) -> Any:
        """compel's weighting, one chunk at a time.

        Its own text syntax is passed by: fragments are the ids that our parser found, so that no
        character of a prompt means anything to compel.
        """
        from compel.embeddings_provider import EmbeddingsProvider

        class FromIds(EmbeddingsProvider):
            def get_token_ids(self, texts: list[list[int]], *_: object, **__: object) -> Any:
                return [list(ids) for ids in texts]

        return FromIds(self._tokenizer, self._encoder, truncate=False)


@torch.no_grad()
def encode_prompt(prompt: str, components: Components, *, clip_skip: int = 0) -> torch.Tensor:
    """The text encoder's hidden states of one prompt of n chunks, (1, 77 n, D), in its dtype.

    ``clip_skip`` leaves out the encoder's last layers; the final norm stays. A weight moves a
    token's embedding away from (or, below 1, towards) that of the empty prompt, as compel does.
    Raises UserError.
    """
    return _PromptEncoder(components, clip_skip)(prompt)


@torch.no_grad()
def encode(
    prompts: Sequence[str],
    negatives: Sequence[str],
    components: Components,
    *,
    guided: bool,
    clip_skip: int = 0,
    remembered: Remembered | None = None,
) -> Conditioning:
    """Embeddings of the prompts of B pictures and, when guided, of their negative prompts.

    One prompt at a time, so that its embedding has the same bits in every batch; equal prompts are
    encoded once, and not at all when ``remembered`` from earlier. The empty prompt fills those up
    that have fewer chunks than the longest. ``clip_skip`` concerns the positive half only, as in
    diffusers. Raises UserError.
    """
    remembered = remembered if remembered is not None else Remembered()
    encoder = _PromptEncoder(components, clip_skip, remembered)
    plain = _PromptEncoder(components, 0, remembered) if clip_skip else encoder
    positive = [encoder(prompt) for prompt in prompts]
    negative = [plain(prompt) for prompt in negatives] if guided else []
    halves = (positive, negative) if guided else (positive,)
    own = tuple(max(one.shape[1] for one in row) for row in zip(*halves, strict=True))
    length = max(own)
    return Conditioning(
        torch.cat([encoder.padded(embedding, length) for embedding in positive]),
        torch.cat([plain.padded(embedding, length) for embedding in negative]) if guided else None,
        own,
    )
