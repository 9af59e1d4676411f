"""Mixed precision: weights that nobody trains are cast once, and not again in every step."""

import torch
from torch import nn

__all__ = ["cast_frozen_"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cast_frozen_(network: nn.Module, mixed_precision: str) -> None:
    """Bring the frozen linear layers and convolutions of a network to the type they compute in.

    ``mixed_precision`` is Accelerate's; with "no" nothing changes. Autocast does the same to every
    weight of these layers whenever one is called, and keeps for a step only what it has made of
    trained ones, so results have the same bits, and the frozen weights take half the memory. The
    other layers compute in float32, and a DoRA adds to the weights of its layers before anything
    is cast: both stay as they are. Only for networks whose frozen weights nobody saves.
    """
    kind = _TYPES.get(mixed_precision)
    if kind is None:
        return
    added_to = {
        id(layer.base_layer)
        for layer in network.modules()
        if len(getattr(layer, "lora_magnitude_vector", ())) > 0
    }
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and id(layer) not in added_to:
            frozen = not any(parameter.requires_grad for parameter in layer.parameters())
            if frozen:
                layer.to(kind)
