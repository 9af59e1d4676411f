"""A small decoder for previews, in the format of diffusers' AutoencoderTiny. Level 1: no torch."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.headers import check_safetensors
from ldm_toolkit.models.places import read_json, refuse_code, regular_file
from ldm_toolkit.values import is_number

__all__ = ["check_preview_vae", "enlargement"]

_CLASS = "AutoencoderTiny"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_MAX_LEVELS, _MAX_WIDTH, _MAX_BLOCKS = 8, 8192, 16
_CHANNELS = {"in_channels": 3, "out_channels": 3, "latent_channels": 4}
_UPSAMPLING = ("nearest", "nearest-exact", "bilinear", "bicubic")


def check_preview_vae(place: Path) -> tuple[dict[str, Any], Path]:
    """Check a folder as diffusers saves it, or its ``.safetensors`` alone; configuration and file.

    A file without its configuration beside it has the class's own, which is TAESD's. Raises
    ModelError.
    """
    try:
        config, weights = _found(place)
        if config.get("_class_name", _CLASS) != _CLASS:
            named = config["_class_name"]
            raise ModelError(f"{place} is {named!r:.80}, not an {_CLASS}")
        _check_config(config)
        check_safetensors(weights)
    except ModelError as error:
        raise ModelError(f"preview_vae: {error}") from error
    return config, weights


def enlargement(config: Mapping[str, Any]) -> int:
    """Pixels that a position of the latents becomes in each direction."""
    return 2 ** (len(config.get("decoder_block_out_channels", [64] * 4)) - 1)


def _found(place: Path) -> tuple[dict[str, Any], Path]:
    """The configuration and the file of the weights. Raises ModelError."""
    if place.is_dir():
        refuse_code(place)
        config = read_json(place, "config.json")
        if "_class_name" not in config:
            raise ModelError(f"{place / 'config.json'} does not say that it is an {_CLASS}")
        return config, regular_file(place, _WEIGHTS)
    if place.suffix.lower() != ".safetensors" or not os.path.isfile(place):
        raise ModelError(f"{place!s:.200} is neither a folder nor a .safetensors file")
    described = os.path.lexists(place.parent / "config.json")
    return read_json(place.parent, "config.json") if described else {}, place


def _check_config(config: Mapping[str, Any]) -> None:
    """Shapes of Stable Diffusion's latents and pictures, within bounds. Raises ModelError."""
    for name, value in _CHANNELS.items():
        if config.get(name, value) != value:
            raise ModelError(f"{name} must be {value}, not {config[name]!r:.80}")
    for half in ("encoder", "decoder"):
        widths = config.get(f"{half}_block_out_channels", [64] * 4)
        blocks = config.get(f"num_{half}_blocks", [1, 3, 3, 3])
        plain = _whole_numbers(widths, _MAX_WIDTH) and _whole_numbers(blocks, _MAX_BLOCKS)
        if not plain or len(widths) != len(blocks):
            raise ModelError(
                f"{half}_block_out_channels and num_{half}_blocks must be as many widths and "
                f"numbers of blocks, at most {_MAX_LEVELS}"
            )
    if config.get("upsampling_scaling_factor", 2) != 2:
        raise ModelError("upsampling_scaling_factor must be 2")
    if config.get("upsample_fn", "nearest") not in _UPSAMPLING:
        raise ModelError(f"upsample_fn must be one of {', '.join(_UPSAMPLING)}")
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor", 0.0)
    if not (is_number(scale) and scale > 0 and is_number(shift)) or math.isinf(1 / scale):
        raise ModelError("scaling_factor and shift_factor must be numbers, the first above 0")


def _whole_numbers(values: object, most: int) -> bool:
    """Whether it is a list of some whole numbers from 1 to ``most``."""
    return (
        isinstance(values, list)
        and 1 <= len(values) <= _MAX_LEVELS
        and all(type(one) is int and 1 <= one <= most for one in values)
    )
