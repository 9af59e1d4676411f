"""What an untrusted model folder must satisfy before any loader sees it. Level 1: no torch.

Class names are matched against a list, code in the folder refuses the model, every file that will
be read is a regular file inside the folder, and safetensors headers keep their promises.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.files import contained_path
from ldm_toolkit.models.configs import check_configs
from ldm_toolkit.models.headers import check_safetensors

__all__ = ["CheckedFolder", "check_model_folder", "read_json"]

_MAX_JSON = 16 << 20
_MAX_FILES = 20_000

_OTHER_MODELS = {
    "XL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "Flux",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
    "Lumina": "Lumina",
    "StableCascade": "Stable Cascade",
    "Wan": "Wan",
    "QwenImage": "Qwen-Image",
    "LatentConsistency": "a latent consistency model",
    "Inpaint": "an inpainting model",
    "Upscale": "an upscaler",
}
_CLASSES: Mapping[str, tuple[str, frozenset[str]]] = {
    "unet": ("diffusers", frozenset({"UNet2DConditionModel"})),
    "vae": ("diffusers", frozenset({"AutoencoderKL"})),
    "text_encoder": ("transformers", frozenset({"CLIPTextModel"})),
    "tokenizer": ("transformers", frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "scheduler": (
        "diffusers",
        frozenset(
            {
                "DDIMScheduler",
                "DDPMScheduler",
                "DEISMultistepScheduler",
                "DPMSolverMultistepScheduler",
                "DPMSolverSDEScheduler",
                "DPMSolverSinglestepScheduler",
                "EulerAncestralDiscreteScheduler",
                "EulerDiscreteScheduler",
                "HeunDiscreteScheduler",
                "IPNDMScheduler",
                "KDPM2AncestralDiscreteScheduler",
                "KDPM2DiscreteScheduler",
                "LCMScheduler",
                "LMSDiscreteScheduler",
                "PNDMScheduler",
                "TCDScheduler",
                "UniPCMultistepScheduler",
            }
        ),
    ),
}
_IGNORED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class CheckedFolder:
    """A model folder that passed: its configurations and the weight files that will be read."""

    root: Path
    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    card: Mapping[str, Any]
    weights: tuple[Path, ...]


def check_model_folder(folder: Path) -> CheckedFolder:
    """Check a model folder in the diffusers layout. Raises ModelError with the first finding."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    _refuse_code(folder)
    if not (folder / "model_index.json").exists():
        raise ModelError(
            f"{folder} holds no model_index.json; a model is a folder in the diffusers layout"
        )
    index = read_json(folder, "model_index.json")
    _check_index(index)
    configs = {
        "scheduler": read_json(folder, "scheduler/scheduler_config.json"),
        **{part: read_json(folder, f"{part}/config.json") for part in _WEIGHTS},
    }
    for part, config in configs.items():
        _check_class(part, config)
    check_configs(configs)
    _check_tokenizer(folder)
    weights = [path for part in _WEIGHTS for path in _weight_files(folder, part)]
    for path in weights:
        check_safetensors(path)
    card = read_json(folder, "ldm_toolkit.json") if (folder / "ldm_toolkit.json").exists() else {}
    return CheckedFolder(folder, index, configs, card, tuple(weights))


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file inside a model folder. Raises ModelError."""
    path = _regular_file(folder, name)
    if path.stat().st_size > _MAX_JSON:
        raise ModelError(f"{name} is larger than {_MAX_JSON >> 20} MB; that is no configuration")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON: {error}") from error
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror or error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{name} must hold a JSON object, not {type(data).__name__}")
    return data


def _refuse_code(folder: Path) -> None:
    """Refuse a folder with Python files in it, at any depth; links are not followed."""
    seen = 0
    for _, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > _MAX_FILES:
            raise ModelError(f"{folder} holds over {_MAX_FILES} files; that is no model folder")
        for name in files:
            if name.lower().endswith((".py", ".pyc", ".so", ".pyd")):
                raise ModelError(f"the model folder contains code ({name!r:.80}); no code is run")


def _regular_file(folder: Path, name: str) -> Path:
    """The path of a regular file inside a model folder; hub-cache links to blobs are fine."""
    path = _contained(folder, name)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ModelError(f"the model folder lacks {name}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot read {name!r:.200}: {error}") from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{name} is not a regular file")
    return path


def _contained(folder: Path, name: str) -> Path:
    """``folder / name`` when it stays inside, or in the blobs of the hub cache it is part of."""
    try:
        return contained_path(folder, name)
    except ModelError:
        path = folder / name
        cache = folder.resolve().parent
        inside = name and ".." not in Path(name).parts and not Path(name).is_absolute()
        if inside and cache.name == "snapshots" and path.is_symlink():
            target = path.resolve()
            if target.parent == cache.parent / "blobs":
                return path
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name!r:.200} cannot be read: {error}") from error


def _check_index(index: Mapping[str, Any]) -> None:
    """Pipeline and component classes of model_index.json against the lists."""
    pipeline = index.get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        known_kinds = (name for key, name in _OTHER_MODELS.items() if key in str(pipeline))
        kind = next(known_kinds, "of an unknown kind")
        raise ModelError(
            f"the model is {kind} ({pipeline!r:.80}); this edition reads Stable Diffusion 1.x "
            "(StableDiffusionPipeline)"
        )
    for part, value in index.items():
        if part.startswith("_") or part in _IGNORED or not isinstance(value, list):
            continue
        if part not in _CLASSES:
            hint = "Stable Diffusion XL and 3 have it" if part.endswith("_2") else "not 1.x"
            raise ModelError(f"model_index.json names an unknown part {part!r:.80} ({hint})")
    for part, (library, known) in _CLASSES.items():
        value = index.get(part)
        if not isinstance(value, list) or len(value) != 2:
            raise ModelError(f"model_index.json lacks the part {part!r} as [library, class]")
        if value[0] != library or not isinstance(value[1], str) or value[1] not in known:
            expected = f"[{library!r}, {sorted(known)[0]!r}]"
            raise ModelError(f"{part} must be {expected}, not {value!r:.120}; no code is run")


def _check_class(part: str, config: Mapping[str, Any]) -> None:
    """A component's own configuration must not name another class or code."""
    for key in ("auto_map", "custom_pipeline", "trust_remote_code"):
        if config.get(key):
            raise ModelError(f"{part}'s configuration asks for code ({key}); no code is run")
    named = config.get("_class_name")
    known = _CLASSES[part][1]
    if named is not None and (not isinstance(named, str) or named not in known):
        raise ModelError(f"{part}'s configuration is for {named!r:.80}, not for {sorted(known)[0]}")
    kind = config.get("model_type")
    if part == "text_encoder" and kind is not None and kind not in ("clip_text_model", "clip"):
        raise ModelError(f"text_encoder must be a CLIP text model, not {kind!r:.80}")


def _check_tokenizer(folder: Path) -> None:
    """A tokenizer's files: plain data, vocabulary and merges there."""
    for name in _TOKENIZER_FILES:
        relative = f"tokenizer/{name}"
        if not os.path.lexists(folder / relative):
            continue
        if name.endswith(".json"):
            data = read_json(folder, relative)
            if data.get("auto_map"):
                raise ModelError(f"{relative} asks for code (auto_map); no code is run")
        else:
            _regular_file(folder, relative)
    if not (folder / "tokenizer/tokenizer.json").exists():
        for name in ("vocab.json", "merges.txt"):
            _regular_file(folder, f"tokenizer/{name}")


def _weight_files(folder: Path, part: str) -> list[Path]:
    """A component's safetensors files: one, or the shards of its index. Raises ModelError."""
    stem = _WEIGHTS[part]
    single = f"{part}/{stem}.safetensors"
    if os.path.lexists(folder / single):
        return [_regular_file(folder, single)]
    index = f"{part}/{stem}.safetensors.index.json"
    if os.path.lexists(folder / index):
        shards = read_json(folder, index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{index} has no weight_map")
        names = set()
        for name in shards.values():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise ModelError(
                    f"{index} names {name!r:.80}; a shard is a safetensors file beside it"
                )
            names.add(name)
        return [_regular_file(folder, f"{part}/{name}") for name in sorted(names)]
    others = sorted(path.name for path in (folder / part).glob(f"{stem}*"))
    pickles = [name for name in others if name.endswith(_PICKLES)]
    variants = [name for name in others if name.endswith(".safetensors")]
    if variants:
        raise ModelError(
            f"{part} holds only a variant ({variants[0]}); rename it to {stem}.safetensors"
        )
    if pickles:
        raise ModelError(
            f"{part} has only pickled weights ({pickles[0]}), which can run code when they are "
            "read; convert them to safetensors"
        )
    raise ModelError(f"the model folder lacks {single}")
