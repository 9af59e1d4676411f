"""The files of a trained LoRA: peft's keys and kohya's, with a header that all loaders know.

Equal LoRAs are equal bytes: no date, and the header in a fixed order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from ldm_toolkit.files import sha256_bytes
from ldm_toolkit.training.config import UNetConfig

__all__ = [
    "KOHYA_FILE",
    "LORA_FILE",
    "kohya_tensors",
    "lora_bytes",
    "lora_layers",
    "lora_metadata",
    "lora_tensors",
]

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""

KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
"""The same LoRA by the names that the web UIs know."""


def lora_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """Name and peft layer of everything in a network that has a LoRA."""
    from peft.tuners.lora import LoraLayer

    return [
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, LoraLayer)
    ]


def lora_tensors(unet: nn.Module, encoder: nn.Module | None, adapter: str) -> dict[str, Tensor]:
    """The tensors of an adapter by the names that diffusers gives them, in float32.

    Those of a text encoder have ``text_model`` in their names, which transformers 5 left out and
    every loader takes, and ``weight`` in those of magnitudes, without which transformers does not
    find them. The scale is multiplied into the second matrix, so that the file's alpha is
    its rank: loaders that read no header, or none of rank-stabilised scales, add the same as those
    that do.
    """
    tensors: dict[str, Tensor] = {}
    layers = [(f"unet.{name}", layer) for name, layer in lora_layers(unet)]
    if encoder is not None:
        layers += [
            (f"text_encoder.text_model.{name.removeprefix('text_model.')}", layer)
            for name, layer in lora_layers(encoder)
        ]
    for name, layer in layers:
        tensors[f"{name}.lora_A.weight"] = layer.lora_A[adapter].weight
        scaled = layer.lora_B[adapter].weight * layer.scaling[adapter]
        tensors[f"{name}.lora_B.weight"] = scaled
        if adapter in layer.lora_magnitude_vector:
            key = f"{name}.lora_magnitude_vector"
            key += ".weight" if name.startswith("text_encoder.") else ""
            tensors[key] = layer.lora_magnitude_vector[adapter].weight
    return {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}


def kohya_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain LoRA's tensors by kohya's names, with an alpha each.

    Not for a DoRA: diffusers' converter has no name for its magnitudes, and the web UIs do not
    compute with kohya's ``dora_scale`` what peft does (ComfyUI divides by the length of the weights
    without the LoRA, AUTOMATIC1111 counts lengths along the other axis).
    """
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    return {name: value.float() for name, value in convert_state_dict_to_kohya(tensors).items()}


def lora_metadata(
    tensors: Mapping[str, Tensor], config: UNetConfig, unet: Mapping[str, Any], prediction: str
) -> dict[str, str]:
    """What the header says of a LoRA beside a UNet with the configuration ``unet``.

    peft's LoraConfig as diffusers writes it, with the settings that every version of peft knows;
    ModelSpec 1.0.1; the few of kohya's keys that are true of it.
    """
    ends = ".lora_A.weight"
    adapted = [name.removesuffix(ends) for name in tensors if name.endswith(ends)]
    settings: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.rank,
        "use_dora": config.dora,
        "use_rslora": False,  # the scale is in the weights
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
    }
    second, v = bool(unet.get("use_linear_projection")), prediction == "v_prediction"
    kind = ("stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512") if second else None
    own = [name.removeprefix("unet.") for name in adapted if name.startswith("unet.")]
    # By the ends of their names: not every version of transformers begins them with text_model.
    own_ends = {name.rpartition(".")[2] for name in adapted if name.startswith("text_encoder.")}
    targets = {"unet": sorted(own)} | ({"text_encoder": sorted(own_ends)} if own_ends else {})
    named = {
        f"{part}.{name}": value
        for part, layers in targets.items()
        for name, value in {**settings, "target_modules": layers}.items()
    }
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(named, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{kind or 'stable-diffusion-v1'}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"LoRA for {Path(config.model).name or config.model}",
        "modelspec.resolution": f"{config.size}x{config.size}",
        "modelspec.prediction_type": "v" if v else prediction,
        "ss_base_model_version": ("sd_v2" if second else "sd_v1") + ("_v" if v else ""),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.rank),
        "ss_seed": str(config.seed),
        "ss_steps": str(config.steps),
    }


def lora_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the header also gets the hash of all that follows it.

    safetensors itself writes metadata in an order that changes from call to call.
    """
    plain = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(plain[:8], "little")
    data = plain[start:]
    told = {**metadata, "modelspec.hash_sha256": f"0x{sha256_bytes(data)}"}
    header = {"__metadata__": dict(sorted(told.items())), **json.loads(plain[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data stay aligned
    return len(text).to_bytes(8, "little") + text + data
