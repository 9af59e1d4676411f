"""What an untrusted model folder must satisfy before any loader sees it. Level 1: no torch.

Class names are matched against a list, code in the folder refuses the model, every file that will
be read is a regular file inside the folder, and safetensors headers keep their promises.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.configs import check_configs
from ldm_toolkit.models.headers import check_safetensors
from ldm_toolkit.models.places import read_card, read_json, refuse_code, regular_file

__all__ = [
    "PARTS",
    "PICKLES",
    "TOKENIZER_FILES",
    "CheckedFolder",
    "check_description",
    "check_model_folder",
    "check_tokenizer",
    "check_vae_folder",
    "check_variant",
    "no_weights",
    "shard_names",
    "weight_names",
]

_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
)
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
    "Upscale": "an upscaler",
    "Pix2Pix": "an InstructPix2Pix model",
    "Depth2Img": "a depth-to-image model",
    "ControlNet": "a ControlNet",
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
# A part's weights: the file name's beginning as safetensors and as a pickle.
PARTS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.(safetensors|bin)")
_VARIANT = re.compile(r"[A-Za-z0-9_-]{1,32}")
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class CheckedFolder:
    """A model folder that passed: its configurations and the very files that will be read.

    ``weights`` are safetensors, or pickles where those were allowed, a tuple of files a part.
    """

    root: Path
    tokenizer: Path
    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    card: Mapping[str, Any]
    weights: Mapping[str, tuple[Path, ...]]

    @property
    def files(self) -> dict[str, Path]:
        """Every weight file by its place in the layout, ``part/name``."""
        return {
            f"{part}/{path.name}": path for part, paths in self.weights.items() for path in paths
        }


def check_model_folder(
    folder: Path,
    *,
    variant: str | None = None,
    vae: Path | None = None,
    tokenizer: Path | None = None,
    allow_pickle: bool = False,
) -> CheckedFolder:
    """Check a model folder in the diffusers layout. Raises ModelError with the first finding.

    ``variant`` names weights like ``model.fp16.safetensors``; ``vae`` and ``tokenizer`` are folders
    in place of the model's own; ``allow_pickle`` accepts ``.bin`` where there is no safetensors.
    """
    check_variant(variant)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    refuse_code(folder)
    index, configs = check_description(folder)
    parts = [part for part in PARTS if part != "vae" or vae is None]
    weights = {
        part: _weight_files(folder, f"{part}/", part, variant, allow_pickle) for part in parts
    }
    for paths in weights.values():
        _check_headers(paths)
    if vae is not None:
        config, weights["vae"] = check_vae_folder(vae, allow_pickle=allow_pickle)
        configs = {**configs, "vae": config}
        check_configs(configs)
    card = read_card(folder)
    if tokenizer is None:
        _check_tokenizer_files(folder, "tokenizer/")
        place = folder / "tokenizer"
    else:
        place = check_tokenizer(tokenizer)
    return CheckedFolder(folder, place, index, configs, card, weights)


def check_variant(variant: str | None) -> None:
    """A variant is a short word like fp16. Raises ModelError."""
    if variant is not None and not (isinstance(variant, str) and _VARIANT.fullmatch(variant)):
        raise ModelError(f"variant must be a word like 'fp16', not {variant!r:.80}")


def check_description(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Check all that says what a model is, and no weights; returns index and configurations.

    Raises ModelError.
    """
    if not os.path.lexists(folder / "model_index.json"):
        raise ModelError(
            f"{folder} holds no model_index.json; a model is a folder in the diffusers layout"
        )
    index = read_json(folder, "model_index.json")
    _check_index(index)
    configs = {
        "scheduler": read_json(folder, "scheduler/scheduler_config.json"),
        **{part: read_json(folder, f"{part}/config.json") for part in PARTS},
    }
    for part, config in configs.items():
        _check_class(part, config)
    check_configs(configs)
    return index, configs


def check_vae_folder(
    folder: Path, *, allow_pickle: bool = False
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Check a VAE's own folder, or the one in a model folder; returns configuration and files.

    Raises ModelError.
    """
    if not folder.is_dir():
        raise ModelError(f"vae: {folder} is not a folder")
    refuse_code(folder)
    own = os.path.lexists(folder / "config.json")
    prefix = "" if own and not os.path.lexists(folder / "vae" / "config.json") else "vae/"
    config = read_json(folder, f"{prefix}config.json")
    if config.get("_class_name") is None:
        raise ModelError(
            f"vae: {folder}/{prefix}config.json does not say that it is an AutoencoderKL"
        )
    _check_class("vae", config)
    files = _weight_files(folder, prefix, "vae", None, allow_pickle)
    _check_headers(files)
    return config, files


def _check_index(index: Mapping[str, Any]) -> None:
    """Pipeline and component classes of model_index.json against the lists."""
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES:
        known_kinds = (name for key, name in _OTHER_MODELS.items() if key in str(pipeline))
        kind = next(known_kinds, "of an unknown kind")
        raise ModelError(
            f"the model is {kind} ({pipeline!r:.80}); Stable Diffusion 1.x and 2.x are read "
            "(StableDiffusionPipeline)"
        )
    _refuse_requests_for_code("model_index.json", index)
    for part, value in index.items():
        if part.startswith("_") or part in _IGNORED or not isinstance(value, list):
            continue
        if part not in _CLASSES:
            hint = "Stable Diffusion XL and 3 have it" if part.endswith("_2") else "not 1.x and 2.x"
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
    _refuse_requests_for_code(f"{part}'s configuration", config)
    named = config.get("_class_name")
    known = _CLASSES[part][1]
    if named is not None and (not isinstance(named, str) or named not in known):
        raise ModelError(f"{part}'s configuration is for {named!r:.80}, not for {sorted(known)[0]}")
    kind = config.get("model_type")
    if part == "text_encoder" and kind is not None and kind not in ("clip_text_model", "clip"):
        raise ModelError(f"text_encoder must be a CLIP text model, not {kind!r:.80}")


def _refuse_requests_for_code(label: str, config: Mapping[str, Any]) -> None:
    """No configuration may name code of its own. Raises ModelError."""
    for key in ("auto_map", "custom_pipeline", "trust_remote_code"):
        if config.get(key):
            raise ModelError(f"{label} asks for code ({key}); no code is run")


def check_tokenizer(folder: Path) -> Path:
    """Check a tokenizer's own folder, or the one in a model folder; returns where its files are.

    Raises ModelError.
    """
    if not folder.is_dir():
        raise ModelError(f"tokenizer: {folder} is not a folder")
    refuse_code(folder)
    prefix = "tokenizer/" if os.path.lexists(folder / "tokenizer") else ""
    _check_tokenizer_files(folder, prefix)
    return folder / prefix


def _check_tokenizer_files(root: Path, prefix: str) -> None:
    """A tokenizer's files are plain data, a vocabulary among them. Raises ModelError."""
    for name in TOKENIZER_FILES:
        relative = f"{prefix}{name}"
        if not os.path.lexists(root / relative):
            continue
        if name.endswith(".json"):
            data = read_json(root, relative)
            _refuse_requests_for_code(relative, data)
            if data.get("fast_tokenizer_files"):  # transformers would open whatever it names
                raise ModelError(f"{relative} names files of its own (fast_tokenizer_files)")
        else:
            regular_file(root, relative)
    if not (root / prefix / "tokenizer.json").exists():
        for name in ("vocab.json", "merges.txt"):
            regular_file(root, f"{prefix}{name}")


def weight_names(
    part: str, variant: str | None, *, allow_pickle: bool = False
) -> list[tuple[str, str]]:
    """The names that a part's weights may have, best first: (one file, index of shards)."""
    kinds = list(zip(PARTS[part], ("safetensors", "bin"), strict=True))
    middle = f".{variant}" if variant is not None else ""
    return [
        (f"{stem}{middle}.{ending}", f"{stem}.{ending}.index{middle}.json")
        for stem, ending in (kinds if allow_pickle else kinds[:1])
    ]


def _weight_files(
    folder: Path, prefix: str, part: str, variant: str | None, allow_pickle: bool
) -> tuple[Path, ...]:
    """A component's weight files: one, or the shards of its index. Raises ModelError."""
    names = weight_names(part, variant, allow_pickle=allow_pickle)
    for single, index in names:
        if os.path.lexists(folder / prefix / single):
            return (regular_file(folder, f"{prefix}{single}"),)
        if os.path.lexists(folder / prefix / index):
            shards = shard_names(folder, f"{prefix}{index}")
            return tuple(regular_file(folder, f"{prefix}{name}") for name in shards)
    present = [path.name for path in (folder / prefix).glob("*model*")]
    raise no_weights(part, f"{prefix}{names[0][0]}", present, allow_pickle=allow_pickle)


def no_weights(part: str, wanted: str, present: Iterable[str], *, allow_pickle: bool) -> ModelError:
    """The error for a part without fitting weights, with the way to what is there instead."""
    others = sorted(present)
    weights = [name for name in others if name.endswith(".safetensors")]
    pickles = [name for name in others if name.endswith(PICKLES)]
    if weights:
        return ModelError(
            f"{part} holds {weights[0]:.120} but not {wanted}; choose with variant what is there"
        )
    if pickles and not allow_pickle:
        return ModelError(
            f"{part} has only pickled weights ({pickles[0]:.120}), which can run code when they "
            "are read; convert them to safetensors, or allow pickles, which torch's weights-only "
            "loader then reads"
        )
    return ModelError(f"the model lacks {wanted}")


def shard_names(folder: Path, index: str) -> list[str]:
    """The files that an index inside ``folder`` names, plain names beside it. Raises ModelError."""
    shards = read_json(folder, index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index} has no weight_map")
    ending = ".bin" if ".bin.index" in index else ".safetensors"
    for name in shards.values():
        if not (isinstance(name, str) and _SHARD.fullmatch(name) and name.endswith(ending)):
            raise ModelError(
                f"{index} names {name!r:.80}; a shard is a {ending[1:]} file beside it"
            )
    return sorted(set(shards.values()))


def _check_headers(files: Iterable[Path]) -> None:
    """The safetensors among the files keep their promises. Raises ModelError."""
    for path in files:
        if path.suffix.lower() not in PICKLES:
            check_safetensors(path)
