"""Options that only some of the methods of training a UNet know. Level 1: no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

__all__ = [
    "PRIOR_METHODS",
    "WORD_METHODS",
    "EncoderOptions",
    "LoraOptions",
    "PriorOptions",
    "WordOptions",
]

_LORA = ("lora", "dreambooth-lora")
PRIOR_METHODS = ("dreambooth", "dreambooth-lora")
"""Methods whose batches are half pictures of a class."""

WORD_METHODS = ("textual-inversion",)
"""Methods that teach a word."""

_ENCODER_METHODS = ("full", "lora", "dreambooth", "dreambooth-lora")
_MOST_VECTORS = 64
_MOST_ALPHA = 65504  # the largest number of float16, in which LoRAs are exchanged
# Names that embedding files give to other things.
_RESERVED = ("emb_params", "string_to_param", "__metadata__")


def _strange(options: Any, kind: type, method: str, owners: Sequence[str]) -> list[str]:
    """A line where ``method`` is given options of ``kind``, which only ``owners`` know."""
    given = [f.name for f in fields(kind) if getattr(options, f.name) != f.default]
    if not given or method in owners:
        return []
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    names = " and ".join(f"--method {owner}" for owner in owners)
    return [f"only {names} {'know' if len(owners) > 1 else 'knows'} {flags}"]


@dataclass(kw_only=True)
class LoraOptions:
    """The shape of a LoRA.

    Attributes:
        rank: Rank of a LoRA, the width of the matrices beside each layer.
        alpha: A LoRA is added alpha / rank times; by default rank, which is once.
        dora: Train the length of each output's weights too, as DoRA does.
        rslora: Add the LoRA alpha / sqrt(rank) times, as rank-stabilised LoRA does.
        lora_targets: Layers that get a LoRA, separated by commas: attention, all (projections,
            feed-forward layers and convolutions too), or ends of their names such as to_q,ff.net.2.
    """

    rank: int = 16
    alpha: float | None = None
    dora: bool = False
    rslora: bool = False
    lora_targets: str = "attention"

    def lora_problems(self, method: str) -> list[str]:
        """What is wrong with the LoRA's options, one line each."""
        found = _strange(self, LoraOptions, method, _LORA)
        if not 1 <= self.rank <= 4096:
            found.append("--rank must be from 1 to 4096")
        if self.alpha is not None and not 0 < self.alpha <= _MOST_ALPHA:
            found.append(f"--alpha must be positive and at most {_MOST_ALPHA}")
        if not all(word.strip() for word in self.lora_targets.split(",")):
            found.append("--lora-targets must be names separated by commas, such as to_q,to_v")
        return found


@dataclass(kw_only=True)
class EncoderOptions:
    """The text encoder beside the UNet.

    Attributes:
        train_text_encoder: Train the text encoder as well: all its weights, or with a LoRA one
            beside its attention's projections. It then runs in every step; nothing of the captions
            is cached.
        text_encoder_lr: Learning rate of the text encoder at its peak, which the schedule of lr
            scales; by default lr itself.
    """

    train_text_encoder: bool = False
    text_encoder_lr: float | None = None

    def encoder_problems(self, method: str, optimizer: str) -> list[str]:
        """What is wrong with the text encoder's options, one line each."""
        found = _strange(self, EncoderOptions, method, _ENCODER_METHODS)
        if self.text_encoder_lr is None:
            return found
        if not 0 < self.text_encoder_lr < float("inf"):
            found.append("--text-encoder-lr must be positive")
        if not self.train_text_encoder:
            found.append("--text-encoder-lr belongs to --train-text-encoder: pass it too")
        if optimizer == "prodigy":
            found.append(
                "--optimizer prodigy finds one learning rate for all: leave --text-encoder-lr out"
            )
        return found


@dataclass(kw_only=True)
class WordOptions:
    """The new word of a textual inversion.

    Attributes:
        token: New word that textual-inversion teaches, which prompts will call the subject by,
            such as <my-cat>; the tokenizer must not know it.
        vectors: Vectors that the new word stands for, each as long as a token of a prompt.
        initial: Words whose vectors the new one starts from; where they have more tokens than it
            has vectors, these are means of neighbours, where they have fewer, they are repeated. By
            default it starts from random vectors like those of the model's words.
    """

    token: str | None = None
    vectors: int = 1
    initial: str | None = None

    def word_problems(self, method: str, sample_prompts: Sequence[str]) -> list[str]:
        """What is wrong with the word's options, one line each; prompts only where they are drawn.

        The tokenizer has its say later.
        """
        found = _strange(self, WordOptions, method, WORD_METHODS)
        if method in WORD_METHODS and not self.token:
            found.append(f"--method {method} needs --token, a new word such as <my-cat>")
        if self.token in _RESERVED:
            found.append(
                f"--token {self.token} means something else in embedding files: choose another word"
            )
        if not 1 <= self.vectors <= _MOST_VECTORS:
            found.append(f"--vectors must be from 1 to {_MOST_VECTORS}")
        if self.initial is not None and not self.initial.strip():
            found.append("--initial must be words, such as cat")
        if self.token and sample_prompts and not any(self.token in one for one in sample_prompts):
            found.append(
                f"--sample-prompts without {self.token} show nothing of the training: add one with "
                "it, or pass --sample-every 0"
            )
        return found


@dataclass(kw_only=True)
class PriorOptions:
    """The subject of DreamBooth and the class that keeps its own look.

    Attributes:
        instance_prompt: Caption of all pictures of the subject, with a rare word for it, such as a
            photo of sks dog; by default each picture has its own, as elsewhere.
        class_prompt: Caption of the pictures of the subject's class, such as a photo of a dog.
        class_data: Folder of pictures of the class; one that is missing or empty is filled with
            pictures that the model draws from the class prompt. By default OUTPUT/class.
        class_count: Pictures of the class that the model draws; someone's own are all used.
        prior_weight: Weight of the loss on the pictures of the class.
    """

    instance_prompt: str | None = None
    class_prompt: str | None = None
    class_data: str | None = None
    class_count: int = 100
    prior_weight: float = 1.0

    def prior_problems(self, method: str, batch_size: int) -> list[str]:
        """What is wrong with the options of prior preservation, one line each."""
        found = _strange(self, PriorOptions, method, PRIOR_METHODS)
        for name in ("instance_prompt", "class_prompt"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                found.append(f"--{name.replace('_', '-')} must be words, such as a photo of a dog")
        if method in PRIOR_METHODS and self.class_prompt is None:
            found.append(f"--method {method} needs --class-prompt, such as a photo of a dog")
        if method in PRIOR_METHODS and batch_size % 2:
            found.append("--batch-size must be even: half of each batch are pictures of the class")
        if self.class_count < 1:
            found.append("--class-count must be at least 1")
        if not 0 <= self.prior_weight < float("inf"):
            found.append("--prior-weight must not be negative")
        return found
