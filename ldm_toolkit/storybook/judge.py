"""A small classifier that says what a storybook picture shows, or that it shows none of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ldm_toolkit import storybook
from ldm_toolkit.errors import ModelError
from ldm_toolkit.files import write_atomic
from ldm_toolkit.storybook import scenes

__all__ = [
    "ATTRIBUTES",
    "SIDE",
    "Judge",
    "JudgeNet",
    "Verdict",
    "asked",
    "labels",
    "prepare",
]

SIDE = 192
"""Pixels of a side of what the network sees."""

NONE = "none"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": tuple(scenes.SUBJECTS),
    "colour": tuple(scenes.COLOURS),
    "accessory": (NONE, *scenes.ACCESSORIES),
    "accessory_colour": (NONE, *scenes.ACCESSORY_RGB),
    "setting": tuple(scenes.SETTINGS),
    "weather": (NONE, *scenes.WEATHERS),
    "size": tuple(scenes.SIZES),
    "place": tuple(scenes.PLACES),
}
"""What is judged and the values it may have."""


def labels(scene: scenes.Scene) -> dict[str, str]:
    """What a picture of the scene shows, one value an attribute."""
    found = {name: getattr(scene, name) for name in ATTRIBUTES}
    return {name: NONE if value is None else value for name, value in found.items()}


def asked(scene: scenes.Scene, mentions: frozenset[str]) -> dict[str, str]:
    """What a caption asked for: the attributes that it names, with their values."""
    return {name: value for name, value in labels(scene).items() if name in mentions}


def prepare(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size as (B, 3, SIDE, SIDE) in [-1, 1]."""
    small = [one.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for one in images]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in small]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


class _Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.GroupNorm(8, after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.GroupNorm(8, after),
        )
        straight = before == after and stride == 1
        self.shortcut = nn.Identity() if straight else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.shortcut(x) + self.body(x))


class _Inverted(nn.Module):
    """A depthwise convolution between two pointwise ones (Liu et al. 2022)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(before, after, stride, stride) if stride > 1 else nn.Identity()
        self.body = nn.Sequential(
            nn.Conv2d(after, after, 5, 1, 2, groups=after),
            nn.GroupNorm(1, after),
            nn.Conv2d(after, 3 * after, 1),
            nn.GELU(),
            nn.Conv2d(3 * after, after, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        shrunk = self.shrink(x)
        return shrunk + self.body(shrunk)


_BLOCKS: dict[str, type[_Residual] | type[_Inverted]] = {
    "residual": _Residual,
    "inverted": _Inverted,
}


class JudgeNet(nn.Module):
    """From pictures to logits of every attribute's values and of being a storybook picture.

    Coordinates are two more input channels, because a mean over the picture forgets places.
    """

    def __init__(self, kind: str = "residual", widths: Sequence[int] = (24, 48, 96, 160)) -> None:
        super().__init__()
        self.config = {"kind": kind, "widths": list(widths)}
        block = _BLOCKS[kind]
        first, *others = widths
        layers: list[nn.Module] = [nn.Conv2d(5, first, 5, 2, 2), nn.GroupNorm(8, first), nn.SiLU()]
        before = first
        for after in others:
            layers += [block(before, after, 2), block(after, after, 1)]
            before = after
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * before, len(values)) for name, values in ATTRIBUTES.items()}
        )
        self.valid = nn.Linear(2 * before, 1)

    def features(self, pixels: Tensor) -> Tensor:
        """Mean and maximum over the picture: (B, 3, SIDE, SIDE) to (B, F)."""
        places = torch.linspace(-1, 1, pixels.shape[-1], device=pixels.device, dtype=pixels.dtype)
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        grid = torch.stack([rows, columns]).expand(len(pixels), -1, -1, -1)
        found = self.body(torch.cat([pixels, grid], 1))
        return torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits: (B, values) for each attribute and (B,) for ``valid``."""
        return self.decide(self.features(pixels))

    def decide(self, features: Tensor) -> dict[str, Tensor]:
        """The logits of features (B, F)."""
        logits = {name: head(features) for name, head in self.heads.items()}
        return logits | {"valid": self.valid(features)[:, 0]}


@dataclass(frozen=True)
class Verdict:
    """What a picture shows: a value an attribute, and its probability; whether it shows any.

    ``valid`` is False for "none of these": noise, a blank, two subjects melted into one.
    """

    valid: bool
    values: Mapping[str, str]
    probabilities: Mapping[str, float]

    def agrees(self, asked_for: Mapping[str, str]) -> dict[str, bool]:
        """For each attribute asked for, whether the picture shows it; nothing of an invalid one."""
        return {
            name: self.valid and self.values[name] == value for name, value in asked_for.items()
        }


class Judge:
    """A trained network with its threshold."""

    def __init__(self, net: JudgeNet, threshold: float = 0.5) -> None:
        self.net, self.threshold = net.eval(), threshold

    @classmethod
    def load(cls, path: Path | None = None) -> "Judge":
        """The judge in the package, or that of a file. Raises ModelError."""
        file = path if path is not None else storybook.JUDGE_FILE
        if not file.is_file():
            raise ModelError(f"{file} is not there: expected a judge's .safetensors file")
        try:
            with safe_open(file, "pt") as opened:
                settings: dict[str, Any] = json.loads((opened.metadata() or {})["judge"])
                tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
            if settings["attributes"] != _attributes():
                raise ModelError(f"{file} judges another edition of the storybook world")
            net = JudgeNet(settings["kind"], settings["widths"])
            net.load_state_dict(tensors)
        except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"{file} holds no judge: {str(error).splitlines()[0]}") from error
        return cls(net, settings["threshold"])

    def save(self, path: Path) -> None:
        """One safetensors file of half-precision weights, whole or as before."""
        settings = {**self.net.config, "threshold": self.threshold, "attributes": _attributes()}
        halves = {name: value.half() for name, value in self.net.state_dict().items()}
        write_atomic(path, save(halves, metadata={"judge": json.dumps(settings)}))

    def verdicts(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[Verdict]:
        """What each picture shows."""
        return self.decide(self.features(images, batch_size))

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """(N, F): what the network knows of each picture before it decides."""
        starts = range(0, len(images), batch_size)
        return torch.cat([self.net.features(prepare(images[k : k + batch_size])) for k in starts])

    @torch.inference_mode()
    def decide(self, features: Tensor) -> list[Verdict]:
        """What pictures of these features (N, F) show."""
        logits = self.net.decide(features)
        valid = logits.pop("valid").sigmoid() >= self.threshold
        best = {name: one.softmax(1).max(1) for name, one in logits.items()}
        found = []
        for row in range(len(valid)):
            values = {n: ATTRIBUTES[n][int(b.indices[row])] for n, b in best.items()}
            sure = {n: float(b.values[row]) for n, b in best.items()}
            found.append(Verdict(bool(valid[row]), values, sure))
        return found

    @torch.inference_mode()
    def log_probabilities(
        self, features: Tensor, asked_for: Sequence[Mapping[str, str]]
    ) -> list[float]:
        """How sure it is that pictures (N, F) are valid and show all that is asked: ln p of each.

        Attributes count as independent, as the network's heads are.
        """
        logits = self.net.decide(features)
        sure = nn.functional.logsigmoid(logits.pop("valid")).tolist()
        for row, wanted in enumerate(asked_for):
            for name, value in wanted.items():
                place = ATTRIBUTES[name].index(value)
                sure[row] += float(logits[name][row].log_softmax(0)[place])
        return sure


def _attributes() -> dict[str, list[str]]:
    return {name: list(values) for name, values in ATTRIBUTES.items()}
