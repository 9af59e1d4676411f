"""Model folders of a training: what it starts from and what it leaves."""

import filecmp
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError

from ldm_toolkit.errors import CannotWrite, ModelError
from ldm_toolkit.files import staged_directory, write_atomic
from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.models.places import CARD, read_card
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.inputs import network_config

__all__ = [
    "complete_model",
    "copied_bytes",
    "load_network",
    "result_name",
    "save_network",
    "shown_options",
    "write_config",
    "write_json",
]

# Options that name a folder or a file.
_PLACES = frozenset(
    {"output", "data", "validation_data", "class_data", "cache"}
    | {"model", "from_config", "vae", "text_encoder"}
)
_PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


def load_network(kind: Any, folder: Path) -> Any:
    """A component with its weights in float32, from this folder alone. Raises ModelError."""
    network_config(folder)
    options = {"torch_dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    try:
        network = kind.from_pretrained(str(folder), **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if isinstance(network, ConfigMixin):  # a result's configuration names no folder of this machine
        network.register_to_config(_name_or_path="")
    return network


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


def write_config(config: LoopConfig) -> None:
    """Write OUTPUT/config.json: the options, as they were resolved. Raises CannotWrite."""
    write_json(Path(config.output) / "config.json", shown_options(config))


def shown_options(config: LoopConfig) -> dict[str, Any]:
    """The options, which go with a result to others: no folder above the current one is named."""
    options = dict(vars(config))
    here = Path.cwd()
    for name in _PLACES & options.keys():
        path = Path(options[name] or "")
        if path.is_absolute():
            inside = path.is_relative_to(here)
            options[name] = str(path.relative_to(here)) if inside else path.name
    return options


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
    scheduler's where training changed it. ``ldm_toolkit.json`` has the base's defaults under a name
    of its own. Raises ModelError, CannotWrite.
    """
    for name, origin in _origins(base, output, without, parts).items():
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
    write_json(output / CARD, _about(base, output, scheduler_config is not None))


def copied_bytes(
    base: Path, output: Path, without: set[str], parts: Mapping[str, Path] | None = None
) -> int:
    """What `complete_model` will copy. Raises ModelError."""
    copied = [
        origin
        for name, origin in _origins(base, output, without, parts).items()
        if not _equal(origin, output / name)
    ]
    return sum(file.stat().st_size for origin in copied for file in _files(origin))


def _origins(
    base: Path, output: Path, without: set[str], parts: Mapping[str, Path] | None
) -> dict[str, Path]:
    """Where the parts that were not trained come from. Raises ModelError."""
    every = {name: base / name for name in _PARTS} | dict(parts or {})
    origins = {name: origin for name, origin in every.items() if name not in without}
    for origin in origins.values():
        if not origin.is_dir():
            raise ModelError(f"{origin} is missing; expected a model in the diffusers layout")
    return {
        name: origin
        for name, origin in origins.items()
        if origin.resolve() != (output / name).resolve()
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _about(base: Path, output: Path, other_scheduler: bool) -> dict[str, Any]:
    """Name and defaults of a trained model, as `models.load` reads them. Raises ModelError."""
    about: dict[str, Any] = {"name": result_name(output)}
    card = read_card(base)
    defaults = card.get("defaults")
    about |= {"latents": card["latents"]} if "latents" in card else {}
    if isinstance(defaults, dict):
        left_out = {"scheduler"} if other_scheduler else set()
        about["defaults"] = {k: v for k, v in defaults.items() if k not in left_out}
    return about


def result_name(output: Path) -> str:
    """What a training's result is called: as its folder, and never as a bundled model."""
    name = "".join(filter(str.isprintable, output.resolve().name))[:80]
    return f"{name}-finetuned" if name in bundled_models() else name


def _copy(origin: Path, target: Path) -> None:
    """A folder's files under another name, whole or as before; of equal ones nothing is touched.

    Raises CannotWrite.
    """
    if _equal(origin, target):
        return
    with staged_directory(target) as staging:
        try:
            shutil.copytree(origin, staging, dirs_exist_ok=True)
        except shutil.Error as error:  # a list of what went wrong with each file
            reason = re.sub(r"^\[Errno \d+\] ([^:]*).*", r"\1", error.args[0][0][2])
            raise CannotWrite(f"cannot write {target}: {reason}") from error


def _equal(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    files, others = (
        sorted(path.relative_to(folder) for path in _files(folder)) for folder in (one, other)
    )
    return files == others and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in files
    )
