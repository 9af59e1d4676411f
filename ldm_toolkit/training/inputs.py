"""What a training is given, looked at before torch is imported. Level 1.

The folders and names that the options mean must be there; what is in them, the training says.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

from ldm_toolkit.errors import CannotWrite, ModelError, UserError, suggestion
from ldm_toolkit.models.configs import check_unet
from ldm_toolkit.models.hub import on_hub
from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.models.places import read_card
from ldm_toolkit.training.config import (
    JudgeConfig,
    LoopConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)

__all__ = [
    "EXPECTED_DATA",
    "check_inputs",
    "data_problems",
    "model_folder",
    "network_config",
    "usual_latents",
]

EXPECTED_DATA = (
    "expected pictures with captions: a folder, shards (.tar), tables (.parquet, .arrow) or "
    "owner/name of a data set on the hub"
)


def check_inputs(config: LoopConfig) -> None:
    """Whether data, model and output can be what they should.

    Raises UserError with all that cannot, CannotWrite.
    """
    problems = []
    if isinstance(config, UNetConfig | VAEConfig):
        problems += data_problems("--data", config.data)
        if config.validation_data is not None:
            problems += data_problems("--validation-data", config.validation_data)
    problems += _model_problems(config)
    if not getattr(config, "check_data", False):
        problems += _output_problems(config.output)
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    there = _nearest(Path(config.output))
    if not getattr(config, "check_data", False) and not os.access(there, os.W_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        reason = f"no permission to write in {there}"
        reason = "the file system is read-only" if read_only else reason
        raise CannotWrite(f"cannot write --output {config.output}: {reason}")


def model_folder(name: str) -> Path:
    """The folder of a bundled model's name or of a path, also one of configurations only.

    Raises ModelError.
    """
    bundled = bundled_models()
    folder = bundled.get(name, Path(name))
    if not folder.is_dir():
        known = ", ".join(bundled) or "none"
        raise ModelError(
            f"{name} is neither a folder nor a bundled model (bundled: {known})"
            f"{suggestion(name, bundled)}{_here(folder)}"
        )
    return folder


def network_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The configuration of one component. Raises ModelError."""
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{folder} holds no {name}; expected a model in the diffusers layout")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    return config


def _model_problems(config: LoopConfig) -> list[str]:
    """What is missing of the model that a training starts from, one line each."""
    wanted: list[tuple[Path, str]] = []
    problems = []
    if isinstance(config, TextEncoderConfig):
        wanted.append((Path(config.from_config) / "text_encoder", "config.json"))
    elif isinstance(config, UNetConfig | VAEConfig | JudgeConfig):
        try:
            base = model_folder(getattr(config, "from_config", None) or config.model)
        except ModelError as error:
            return [str(error)]
        if isinstance(config, UNetConfig):
            text = Path(config.text_encoder or base)
            wanted.append((base / "unet", "config.json"))
            wanted.append((base / "scheduler", "scheduler_config.json"))
            wanted.append((text / "text_encoder", "config.json"))
            wanted.append((Path(config.vae or base / "vae"), "config.json"))
            if not (text / "tokenizer").is_dir():
                problems.append(f"{text / 'tokenizer'} is missing; expected a CLIP tokenizer")
        else:
            wanted.append((base / "vae", "config.json"))
    found = {}
    for folder, name in wanted:
        try:
            found[folder.name] = network_config(folder, name)
        except ModelError as error:
            problems.append(str(error))
    if {"unet", "text_encoder"} <= found.keys():
        try:
            check_unet(found["unet"], found["text_encoder"])
        except ModelError as error:
            problems.append(str(error))
    return problems


def data_problems(option: str, place: str) -> list[str]:
    """A line about data that cannot be there, or nothing."""
    if not place.strip():
        return [f"{option} is empty; {EXPECTED_DATA}"]
    # Several shards are one name with braces; "storybook" is drawn.
    if place == "storybook" or "{" in place or os.path.lexists(place) or on_hub(place):
        return []
    return [f"{option} {place} is not a folder; {EXPECTED_DATA}{_here(Path(place))}"]


def _here(missing: Path) -> str:
    """The end of a message about a path that may be meant from another folder, or nothing."""
    return "" if missing.is_absolute() else f"; the current folder is {Path.cwd()}"


def _output_problems(output: str) -> list[str]:
    """A line about a folder that cannot be made, or nothing."""
    if not output.strip():
        return ["--output is empty; expected a folder for what is trained"]
    there = _nearest(Path(output))
    return [] if there.is_dir() else [f"--output {output} cannot be made: {there} is not a folder"]


def _nearest(output: Path) -> Path:
    """What there is of a path: itself or the nearest of its parents."""
    return next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))


def usual_latents(base: Path) -> Literal["sample", "mean"]:
    """What a model was trained on, by its ldm_toolkit.json: draws from the posterior, or its mean.

    A UNet that never saw a posterior's noise takes it for a fault, and learns to keep it.
    """
    return "mean" if read_card(base).get("latents") == "mean" else "sample"
