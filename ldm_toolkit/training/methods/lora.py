"""``--method lora``: small matrices beside layers of a frozen UNet, and of its text encoder.

What a layer computes becomes W x + scale B A x, with rank rows in A and columns in B: Hu et al.
2021, section 4.1. ``--rslora``: Kalajdzievski 2023, eq. 5; ``--dora``: Liu et al. 2024, eq. 5.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ldm_toolkit.errors import UserError, suggestion
from ldm_toolkit.files import write_atomic
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.lora_output import (
    KOHYA_FILE,
    LORA_FILE,
    kohya_tensors,
    lora_bytes,
    lora_layers,
    lora_metadata,
    lora_tensors,
)
from ldm_toolkit.training.methods.unet_step import UNetMethod
from ldm_toolkit.training.rng import generator

__all__ = ["LoraUNet"]

_ADAPTER = "default"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_OTHERS = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")
_PRESETS = {"attention": _ATTENTION, "all": (*_ATTENTION, *_OTHERS, *_CONVOLUTIONS)}


class LoraUNet(UNetMethod):
    """A LoRA or DoRA of the UNet, and of the attention of an ``encoder`` where there is one.

    Raises UserError for targets that the UNet does not have.
    """

    adapter_file = LORA_FILE

    @classmethod
    def check(cls, config: UNetConfig, unet: Mapping[str, Any]) -> None:
        """Raise UserError for targets that the UNet does not have, and for another schedule."""
        if config.zero_terminal_snr:
            raise UserError(
                "--zero-terminal-snr changes the model's own schedule, which a LoRA cannot do; "
                "train with --method full"
            )
        with torch.device("meta"):
            network = UNet2DConditionModel.from_config(dict(unet))
        _targets(network, config.lora_targets)

    def __init__(
        self, unet: UNet2DConditionModel, config: UNetConfig, *, encoder: Any = None, **cached: Any
    ) -> None:
        _attach(unet, _targets(unet, config.lora_targets), config)
        if encoder is not None:
            layers = [name for name, _ in encoder.named_modules() if name.endswith(_ENCODER)]
            _attach(encoder, layers, config)
        super().__init__(unet, config, encoder=encoder, **cached)

    def save(self, folder: Path) -> None:
        """``folder/pytorch_lora_weights.safetensors``, of a plain LoRA also with kohya's keys."""
        tensors = lora_tensors(self.unet, self.encoder, _ADAPTER)
        told = lora_metadata(tensors, self._config, self.unet.config, self.module.kind)
        write_atomic(folder / LORA_FILE, lora_bytes(tensors, told))
        if self._config.dora:
            (folder / KOHYA_FILE).unlink(missing_ok=True)  # of a run before, without --dora
        else:
            del told["lora_adapter_metadata"]  # of peft's keys
            write_atomic(folder / KOHYA_FILE, lora_bytes(kohya_tensors(tensors), told))


def _attach(network: nn.Module, layers: list[str], config: UNetConfig) -> None:
    """Freeze a network and put the matrices beside it, which change nothing yet: B is 0."""
    from peft import LoraConfig, inject_adapter_in_model

    settings: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.alpha if config.alpha is not None else config.rank,
        "target_modules": layers,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
    }
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        inject_adapter_in_model(LoraConfig(**settings), network, _ADAPTER)
    for name, layer in lora_layers(network):  # as peft does, but each matrix on its own
        rng = generator(config.seed, f"lora {name}", 0)
        nn.init.kaiming_uniform_(layer.lora_A[_ADAPTER].weight, math.sqrt(5), generator=rng)


def _targets(unet: nn.Module, wanted: str) -> list[str]:
    """The names of the layers that ``--lora-targets`` means. Raises UserError."""
    layers = [name for name, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    found: list[str] = []
    for word in map(str.strip, wanted.split(",")):
        ends = tuple(f".{end}" for end in _PRESETS.get(word, (word,)))
        own = [name for name in layers if f".{name}".endswith(ends)]
        if not own:
            known = [*_PRESETS, *_PRESETS["all"], *layers]
            raise UserError(
                f"--lora-targets {word!r:.80}: the UNet has no linear layer or convolution of this "
                f"name; expected attention, all or the ends of names, such as to_q,ff.net.2"
                f"{suggestion(word, known)}"
            )
        found += own
    return list(dict.fromkeys(found))
