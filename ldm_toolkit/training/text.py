"""A CLIP-format tokenizer and text encoder, trained on the storybook captions alone.

The text encoder learns to tell, from the end-of-text token and from the padding behind it, what a
caption says of each attribute. Frozen afterwards, its embeddings can be cached for the UNet.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_toolkit.errors import ModelError
from ldm_toolkit.storybook import scenes
from ldm_toolkit.training.config import TextEncoderConfig
from ldm_toolkit.training.folders import save_network
from ldm_toolkit.training.methods.unet_step import checkpoint_layers
from ldm_toolkit.training.rng import generator

__all__ = ["AttributeText", "start_from", "train_tokenizer"]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_LENGTH = 77
_UNSAID = "(unsaid)"


def train_tokenizer(captions: Iterable[str], limit: int = 2048) -> CLIPTokenizer:
    """Byte-pair merges of ``captions`` in CLIP's format; any text tokenizes.

    Radford et al. 2021, section 2.4. The vocabulary holds each byte alone and at the end of a
    word, the merges, and the two special tokens, as CLIP's own file orders them.
    """
    reference = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=limit - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(pair) for pair in pairs][: limit - 2 - len(words)]
    kept = set(words)
    merges: Any = [tuple(pair) for pair in pairs if "".join(pair) in kept]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, _START, _END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_LENGTH)


@torch.no_grad()
def start_from(
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    trained: CLIPTextModel,
    trained_tokenizer: CLIPTokenizer,
) -> int:
    """Copy the weights of ``trained`` into ``encoder``, embeddings by the token's own letters.

    Tokens that only the new tokenizer has keep their fresh embeddings. Returns how many tokens both
    know. Raises ModelError where the shapes differ.
    """
    weights = trained.state_dict()
    embedding: Any = encoder.get_input_embeddings().weight
    table = next(name for name, value in encoder.named_parameters() if value is embedding)
    before = weights.pop(table)
    mismatched = [
        name
        for name, value in encoder.state_dict().items()
        if name != table and (name not in weights or weights[name].shape != value.shape)
    ]
    if mismatched or before.shape[1] != embedding.shape[1]:
        raise ModelError(
            f"the text encoder to start from has another shape, see {(mismatched or [table])[0]}: "
            "pass a model with the shape of --from-config"
        )
    encoder.load_state_dict(weights, strict=False)
    known = trained_tokenizer.get_vocab()
    pairs = [(row, known[token]) for token, row in tokenizer.get_vocab().items() if token in known]
    rows, places = torch.tensor(pairs).unbind(1)
    embedding[rows] = before[places]
    return len(pairs)


class _TextStep(nn.Module):
    def __init__(self, encoder: CLIPTextModel, classes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in classes)

    def forward(self, tokens: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        hidden = self.encoder(tokens).last_hidden_state  # (B, T, D)
        picked = hidden[torch.arange(len(tokens))[:, None], places]  # (B, P, D)
        losses = [
            nn.functional.cross_entropy(
                head(picked).flatten(0, 1).float(), labels[:, None, i].expand_as(places).flatten()
            )
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).sum()


class AttributeText:
    """Trains the text encoder to know what a caption says of each attribute of its scene.

    The end-of-text token and three places of the padding behind it are asked.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, config: TextEncoderConfig, settings: CLIPTextConfig
    ) -> None:
        self.tokenizer, self._config = tokenizer, config
        self._values = {
            "subject": [_UNSAID, *scenes.SUBJECTS],
            "colour": [_UNSAID, *scenes.COLOURS],
            "accessory": [_UNSAID, *scenes.ACCESSORIES],
            "setting": [_UNSAID, *scenes.SETTINGS],
            "weather": [_UNSAID, *scenes.WEATHERS],
            "size": [_UNSAID, *scenes.SIZES],
            "place": [_UNSAID, *scenes.PLACES],
            "accessory_colour": [_UNSAID, *scenes.ACCESSORY_RGB],
        }
        self.encoder = CLIPTextModel(settings)
        self.module = _TextStep(self.encoder, [len(v) for v in self._values.values()])

    def trainable(self) -> nn.Module:
        """The text encoder with its attribute heads."""
        return self.module

    def rates(self) -> Mapping[str, float]:
        """None: there is one rate for all."""
        return {}

    def names(self, positions: Sequence[int]) -> list[str]:
        """None: scenes are drawn."""
        return []

    def checkpoint_gradients(self) -> None:
        """From now on compute the layers twice instead of keeping what they computed."""
        checkpoint_layers(self.encoder)

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Tokens (B, 77), the places asked (B, 4) and labels (B, attributes)."""
        texts, labels, places = [], [], []
        for position in positions:
            scene = scenes.sample_scene(self._config.seed, position)
            caption = scenes.caption(scene, self._config.seed)
            texts.append(caption.text)
            labels.append(
                [
                    values.index(getattr(scene, name)) if name in caption.mentions else 0
                    for name, values in self._values.items()
                ]
            )
        tokens = torch.tensor(
            self.tokenizer(texts, padding="max_length", truncation=True, max_length=_LENGTH)[
                "input_ids"
            ]
        )
        for position, row in zip(positions, tokens, strict=True):
            end = int((row == self.tokenizer.eos_token_id).int().argmax())
            rng = generator(self._config.seed, "places", position)
            behind = torch.randint(end, _LENGTH, (3,), generator=rng).tolist()
            places.append([end, *behind])
        return {"tokens": tokens, "places": torch.tensor(places), "labels": torch.tensor(labels)}

    def loss(self, outputs: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """The summed cross-entropy that the module computed."""
        return outputs, {}

    def save(self, folder: Path) -> None:
        """``folder/text_encoder`` and ``folder/tokenizer``."""
        save_network(self.encoder, folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        write_vocabulary(self.tokenizer, folder / "tokenizer")


def write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json, for readers of the older format."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
