"""Model folders of a training: what it starts from and what it leaves."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ldm_toolkit.errors import CannotWrite, ModelError
from ldm_toolkit.files import staged_directory, write_atomic
from ldm_toolkit.training.inputs import network_config

__all__ = ["complete_model", "load_network", "save_network", "write_json"]

_PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


def load_network(kind: Any, folder: Path) -> Any:
    """A component with its weights in float32, from this folder alone. Raises ModelError."""
    network_config(folder)
    options = {"torch_dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    try:
        return kind.from_pretrained(str(folder), **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error


def save_network(network: Any, folder: Path) -> None:
    """Write a component as diffusers does, into a folder that is whole or as before.

    Raises CannotWrite.
    """
    try:
        with staged_directory(folder) as staging:
            network.save_pretrained(staging)
    except SafetensorError as error:  # what safetensors raises on a full disk
        raise CannotWrite(f"cannot write {folder}: {error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or as before. Raises CannotWrite."""
    write_atomic(path, json.dumps(dict(value), indent=2).encode())


def complete_model(
    base: Path,
    output: Path,
    without: set[str],
    parts: Mapping[str, Path] | None = None,
    *,
    scheduler_config: Mapping[str, Any] | None = None,
) -> None:
    """Complete ``output`` to a model folder with the parts that were not trained.

    They come from ``base``, or from where ``parts`` says; ``scheduler_config`` replaces the
    scheduler's where training changed it. Raises ModelError, CannotWrite.
    """
    origins = {name: base / name for name in _PARTS if name not in without}
    origins |= {name: path for name, path in (parts or {}).items() if name not in without}
    for name, origin in origins.items():
        if not origin.is_dir():
            raise ModelError(f"{origin} is missing; expected a model in the diffusers layout")
        if origin.resolve() != (output / name).resolve():
            _copy(origin, output / name)
    if scheduler_config is not None:
        write_json(output / "scheduler" / "scheduler_config.json", scheduler_config)
    scheduler = network_config(output / "scheduler", "scheduler_config.json")["_class_name"]
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(output / "model_index.json", index)


def _copy(origin: Path, target: Path) -> None:
    try:
        shutil.copytree(origin, target, dirs_exist_ok=True)
    except OSError as error:
        # Of shutil a list of what went wrong with each file, of the system one thing.
        several = isinstance(error, shutil.Error)
        reason = error.args[0][0][2] if several else error.strerror or error
        raise CannotWrite(f"cannot write {target}: {reason}") from error
