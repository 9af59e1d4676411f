"""LoRA files: what they hold for this model's modules, every tensor accounted for.

diffusers' own conversion brings the diffusers, peft and kohya formats together; what a peer would
leave out in silence is an error here.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_toolkit.errors import ModelError, listed
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.headers import check_safetensors

__all__ = ["LoraLayer", "checked_file", "finite", "read_lora", "read_tensors"]

_NETWORKS = ("unet", "text_encoder")
_WEIGHT = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)"
)
_FIELDS = {"lora_A.weight": "down", "lora_B.weight": "up"}
_INSIDE_LORA = re.compile(r"(?:^|\.)(?:base_layer|lora_\w+)(?:\.|$)")
# What a peft header can ask for beyond a LoRA, and starts that change the weights below it.
_BEYOND = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
_STARTS = re.compile(r"corda|loftq|lora_ga|olora|pissa", re.IGNORECASE)


@dataclass
class LoraLayer:
    """One module's LoRA: what is added to its weight is scale * alpha / rank * up @ down.

    With a ``magnitude`` each output's weights are then brought to that length (DoRA, Liu et al.
    2024, eq. 5).
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: float | None = None
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of ``down``; 0 where it has none."""
        return int(self.down.shape[0]) if self.down is not None and self.down.ndim else 0


_Layers = dict[str, dict[str, LoraLayer]]  # network -> module -> layer


def checked_file(path: str | Path, what: str) -> Path:
    """A safetensors file whose header keeps its promises. Raises ModelError."""
    try:
        file = Path(path)
        found = file.is_file()
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path!r:.200} is not a path: {error}") from error
    if not found:
        raise ModelError(f"no {what} file {str(path)!r:.200}; it must be a .safetensors file")
    if file.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{file.name} is not a .safetensors file; other {what} formats can run code when they "
            "are read, convert it to safetensors"
        )
    check_safetensors(file)
    return file


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checked file, on the CPU. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"cannot read {file.name}: {' '.join(str(error).split())}") from error


def read_lora(file: Path, components: Components) -> _Layers:
    """The layers of a LoRA file, each of which has its place in the model.

    diffusers' own conversion brings the formats together. Raises ModelError with the keys that
    have no place and the shapes that do not fit.
    """
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    tensors = read_tensors(file)
    if not tensors:
        raise ModelError(f"{file.name} holds no tensors")
    whole = [
        key
        for key, tensor in tensors.items()
        if not (tensor.is_floating_point() or key.endswith(".alpha"))
    ]
    if whole:
        raise ModelError(
            f"{file.name} was not loaded: {len(whole)} tensors hold whole numbers "
            f"({listed(whole)}), where a LoRA has floating-point ones; take a file that is not "
            "quantised"
        )
    try:
        converted, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors))
    except (ValueError, KeyError, RuntimeError, AttributeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{file.name} is no LoRA that can be used: {reason:.500}") from error
    # The conversion renames, it does not copy: a tensor's identity leads back to its key.
    keys = {id(tensor): key for key, tensor in tensors.items()}
    layers = _sorted_layers(converted, components)
    used: set[str] = set()
    wrong: list[str] = []
    for part, modules in layers.items():
        for module, layer in modules.items():
            expected = _expected_shapes(getattr(components, part), module)
            if expected is not None:
                held = (layer.down, layer.up, layer.magnitude)
                own = {keys[id(tensor)]: tensor for tensor in held if tensor is not None}
                used |= own.keys()
                wrong += _shape_problems(own, layer, *expected)
    settings = _adapter_settings(file)
    used |= _set_alphas(layers, tensors, keys, settings, file)
    _refuse(file, [key for key in tensors if key not in used], wrong)
    for part, modules in layers.items():
        _check_kind(file, part, modules, settings)
    return layers


def _sorted_layers(converted: Mapping[str, torch.Tensor], components: Components) -> _Layers:
    """Layers by network and module out of what diffusers' conversion gives."""
    from diffusers.utils.state_dict_utils import (
        StateDictType,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    nested = hasattr(components.text_encoder, "text_model")  # transformers 5 flattened it
    layers: _Layers = {part: {} for part in _NETWORKS}
    for part in _NETWORKS:
        own = {
            key.removeprefix(f"{part}."): tensor
            for key, tensor in converted.items()
            if key.startswith(f"{part}.")
        }
        if part == "unet":
            own = convert_unet_state_dict_to_peft(own)
        else:  # the old names; files with the new ones pass through unchanged
            own = convert_state_dict_to_peft(own, original_type=StateDictType.DIFFUSERS_OLD)
        for key, tensor in own.items():
            found = _WEIGHT.fullmatch(key)
            if not found:
                continue
            module = found["module"]
            if part == "text_encoder":
                bare = module.removeprefix("text_model.")
                module = f"text_model.{bare}" if nested else bare
            layer = layers[part].setdefault(module, LoraLayer())
            setattr(layer, _FIELDS.get(found["kind"], "magnitude"), tensor)
    return layers


def _expected_shapes(network: Any, module: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Of a module that can have a LoRA: shape of ``down`` without its rank and of the weight."""
    if _INSIDE_LORA.search(module):
        return None
    try:
        layer = network.get_submodule(module)
    except AttributeError:
        return None
    layer = getattr(layer, "base_layer", layer)
    if isinstance(layer, torch.nn.Linear):
        return (layer.in_features,), (layer.out_features,)
    if isinstance(layer, torch.nn.Conv2d) and layer.groups == 1:
        return (layer.in_channels, *layer.kernel_size), (layer.out_channels, 1, 1)
    return None


def _shape_problems(
    own: Mapping[str, torch.Tensor],
    layer: LoraLayer,
    inner: tuple[int, ...],
    outer: tuple[int, ...],
) -> list[str]:
    """What is wrong with a layer's parts, a line each with the key in the file."""
    if layer.down is None or layer.up is None:
        return [f"{key} without its other half" for key in own]
    rank = layer.rank
    lengths = (1, *outer) if len(outer) > 1 else outer
    expected = (rank, *inner), (outer[0], rank, *outer[1:]), lengths
    return [
        f"{key} {tuple(tensor.shape)}, not {shape}"
        for (key, tensor), shape in zip(own.items(), expected, strict=False)  # DoRA alone has three
        if tuple(tensor.shape) != shape or not rank
    ]


def _set_alphas(
    layers: _Layers,
    tensors: Mapping[str, torch.Tensor],
    keys: Mapping[int, str],
    settings: Mapping[str, Any],
    file: Path,
) -> set[str]:
    """Settle every layer's alpha: kohya's tensor, peft's header, else the rank. Returns its keys.

    The header is only read for these numbers; nothing else in it reaches a library.
    """
    used = set()
    for part, modules in layers.items():
        for module, layer in modules.items():
            if layer.down is None:
                continue  # refused in a moment
            key = keys[id(layer.down)].removesuffix(".lora_down.weight") + ".alpha"
            if key in tensors:
                used.add(key)
                layer.alpha = finite(tensors[key].item())
            else:
                layer.alpha = _stated_alpha(settings, part, module, layer.rank)
            if layer.alpha is None:
                raise ModelError(f"{file.name}: alpha of {module} must be a finite number")
    return used


def _adapter_settings(file: Path) -> dict[str, Any]:
    """What peft's LoraConfig was, as diffusers writes it into the header. Raises ModelError."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file.name}: the adapter's settings are not JSON") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{file.name}: the adapter's settings must be a JSON object")
    return settings


def _stated_alpha(settings: Mapping[str, Any], part: str, module: str, rank: int) -> float | None:
    """The alpha that a peft header states for a module, as a plain LoRA's; the rank if none."""
    alpha: object = settings.get(f"{part}.lora_alpha", rank)
    pattern = settings.get(f"{part}.alpha_pattern")
    bare = module.removeprefix("text_model.")
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        name = key.removeprefix("^").removeprefix("text_model.")
        if bare == name or (not key.startswith("^") and bare.endswith(f".{name}")):
            alpha = value
            break
    number = finite(alpha)
    if number is not None and settings.get(f"{part}.use_rslora") is True:
        return number * math.sqrt(rank)
    return number


def _check_kind(
    file: Path, part: str, modules: Mapping[str, LoraLayer], settings: Mapping[str, Any]
) -> None:
    """Refuse what is beyond LoRA and DoRA, and DoRA in pieces. Raises ModelError."""
    beyond = [name for name in _BEYOND if settings.get(f"{part}.{name}")]
    start = settings.get(f"{part}.init_lora_weights")
    if isinstance(start, str) and _STARTS.match(start):
        beyond.append(f"init_lora_weights {start!r:.80}")
    if beyond:
        raise ModelError(
            f"{file.name}: its header asks for {', '.join(beyond)}, which is more than LoRA and "
            "DoRA; save it as a plain LoRA"
        )
    without = [name for name, layer in modules.items() if layer.magnitude is None]
    dora = len(without) < len(modules) or settings.get(f"{part}.use_dora") is True
    if without and dora:
        raise ModelError(
            f"{file.name} is a DoRA that lacks {len(without)} of its magnitudes ({listed(without)})"
        )


def _refuse(file: Path, unused: list[str], wrong: list[str]) -> None:
    """Raise ModelError when anything of a LoRA file has no place."""
    problems = []
    if unused:
        problems.append(f"{len(unused)} keys have no place in this model ({listed(unused)})")
    if wrong:
        problems.append(f"{len(wrong)} tensors do not fit ({listed(wrong)})")
    if problems:
        raise ModelError(
            f"{file.name} was not loaded: {'; '.join(problems)}; it is of another model, or of a "
            "kind other than LoRA"
        )


def finite(value: object) -> float | None:
    """A finite number as a float, nothing for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
