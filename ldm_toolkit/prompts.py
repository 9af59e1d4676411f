"""From words to embeddings: tokenize, check the length, encode."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.components import Components

__all__ = ["Conditioning", "encode", "encode_prompt", "tokenize"]


@dataclass(frozen=True)
class Conditioning:
    """Text embeddings of B pictures, (B, T, D); ``negative`` only where guidance needs it."""

    positive: torch.Tensor
    negative: torch.Tensor | None = None

    def mix(self, weight: float) -> "Conditioning":
        """Of two pictures' embeddings the one between: weight 0 is the first, 1 the second."""
        positive = torch.lerp(self.positive[:1], self.positive[1:], weight)
        if self.negative is None:
            return Conditioning(positive)
        return Conditioning(positive, torch.lerp(self.negative[:1], self.negative[1:], weight))

    def batch(self, guided: bool) -> torch.Tensor:
        """What the UNet gets: (2B, T, D) with the negative half first, or (B, T, D)."""
        if not guided:
            return self.positive
        if self.negative is None:
            raise UserError("guidance needs a negative half; encode the prompts with guided=True")
        return torch.cat([self.negative, self.positive])


def tokenize(prompt: str, tokenizer: Any) -> list[int]:
    """A prompt's token ids, padded to the model's length (77) with start and end.

    Raises UserError for a prompt that is longer: words are never cut off in silence.
    """
    length = int(tokenizer.model_max_length)
    ids = list(tokenizer(prompt, verbose=False).input_ids)
    if len(ids) > length:
        raise UserError(
            f"the prompt has {len(ids) - 2} tokens, {len(ids) - length} more than the "
            f"{length - 2} that fit; shorten it: {prompt!r:.60}"
        )
    return ids + [tokenizer.pad_token_id] * (length - len(ids))


@torch.no_grad()
def encode_prompt(prompt: str, components: Components) -> torch.Tensor:
    """The text encoder's last hidden states of one prompt, (1, T, D), in the model's dtype."""
    ids = torch.tensor([tokenize(prompt, components.tokenizer)], device=components.device)
    return components.text_encoder(ids).last_hidden_state


def encode(
    prompts: Sequence[str], negatives: Sequence[str], components: Components, *, guided: bool
) -> Conditioning:
    """Embeddings of the prompts of B pictures and, when guided, of their negative prompts.

    One prompt at a time, so that its embedding has the same bits in every batch; equal prompts are
    encoded once.
    """
    wanted = dict.fromkeys([*prompts, *(negatives if guided else ())])
    known = {prompt: encode_prompt(prompt, components) for prompt in wanted}
    positive = torch.cat([known[prompt] for prompt in prompts])
    negative = torch.cat([known[prompt] for prompt in negatives]) if guided else None
    return Conditioning(positive, negative)
