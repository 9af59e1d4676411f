"""A checkpoint in one file: what it is, from its names and shapes. Level 1: no torch, no network.

The layout is that of the latent-diffusion repository (``model.diffusion_model.``,
``first_stage_model.``, ``cond_stage_model.``); the configurations are JSON beside this module.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.headers import read_header

__all__ = ["PREFIXES", "Description", "check_single_file", "describe", "is_single_file"]

SUFFIXES = (".safetensors", ".ckpt")
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
_CONFIGURATIONS = Path(__file__).parent / "configurations"
_UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
_OPEN_CLIP = "cond_stage_model.model."
_CLIP = "cond_stage_model.transformer."
# A piece of a name that only this kind has. Looked at in this order.
_OTHERS = {
    "lora_": "a LoRA; load it onto a model",
    ".lora_": "a LoRA; load it onto a model",
    "emb_params": "a textual inversion; load it onto a model",
    "control_model.": "a ControlNet",
    "conditioner.embedders.": "Stable Diffusion XL",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "down_blocks.": "one part of a model in the diffusers layout; name the model's folder",
}
_INPUTS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an InstructPix2Pix model"}
# Training leftovers, schedules that the configuration holds, marks of the web UIs.
_LEFT_OUT = re.compile(
    r"model_ema\.|(alphas|betas|sqrt|log_one|posterior|lvlb|logvar|scale_factor|global_step)"
    r"|first_stage_model\.loss\.|(v_pred|ztsnr)$"
    r"|cond_stage_model\.(model\.)?(logit_scale|attn_mask)$|cond_stage_model\..*position_ids$"
)


@dataclass(frozen=True)
class Description:
    """What a checkpoint is: its configurations, the names of each part's tensors.

    ``prediction`` is None where nothing says it and the UNet has to be asked.
    """

    kind: str
    configs: dict[str, dict[str, Any]]
    names: Mapping[str, tuple[str, ...]]
    prediction: str | None

    def settled(self, prediction: str) -> dict[str, dict[str, Any]]:
        """The configurations for a prediction type; 2.x draws 768 px with v, 512 with epsilon."""
        scheduler = {**self.configs["scheduler"], "prediction_type": prediction}
        unet = dict(self.configs["unet"])
        if self.kind == "2.x" and prediction == "epsilon":
            unet["sample_size"] = unet["sample_size"] * 2 // 3
        return {**self.configs, "scheduler": scheduler, "unet": unet}


def is_single_file(model: str | Path) -> bool:
    """Whether ``model`` is the path of a file that a checkpoint may be in."""
    try:
        path = Path(model)
        return path.suffix.lower() in SUFFIXES and path.is_file()
    except (OSError, ValueError, TypeError):
        return False


def check_single_file(path: Path, *, with_vae: bool = True) -> Description:
    """Describe a ``.safetensors`` checkpoint from its checked header. Raises ModelError."""
    header, metadata = read_header(path)
    shapes = {name: entry["shape"] for name, entry in header.items()}
    return describe(path.name, shapes, metadata, with_vae=with_vae)


def describe(
    label: str,
    shapes: Mapping[str, Sequence[int]],
    metadata: Mapping[str, str],
    *,
    with_vae: bool = True,
) -> Description:
    """Kind and configurations from names, shapes and metadata; every name is accounted for.

    ``with_vae=False``: the VAE comes from elsewhere. Raises ModelError.
    """
    channels = _unet_channels(label, shapes)
    kind = _kind(label, shapes)
    configs = _configurations(kind)
    configs["unet"]["in_channels"] = channels
    _check_widths(label, kind, configs, shapes)
    parts = [part for part in PREFIXES if part != "vae" or with_vae]
    names: dict[str, tuple[str, ...]] = {}
    for part in parts:
        prefix = PREFIXES[part]
        names[part] = tuple(
            name for name in shapes if name.startswith(prefix) and not _LEFT_OUT.match(name)
        )
        if not names[part]:
            raise ModelError(f"{label} holds no {part} ({prefix}...); it is not a whole model")
    known = tuple(PREFIXES.values())
    strange = [n for n in shapes if not n.startswith(known) and not _LEFT_OUT.match(n)]
    if strange:
        raise ModelError(
            f"{label}: {len(strange)} unexpected tensors, the first is {strange[0]!r:.120}"
        )
    prediction = _stated_prediction(shapes, metadata)
    if prediction is None and (kind == "1.x" or channels != 4):
        prediction = "epsilon"
    return Description(kind, configs, names, prediction)


def _unet_channels(label: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """Input channels of the UNet: 4, or 9 to inpaint. Raises ModelError for other models."""
    for piece, what in _OTHERS.items():
        if any(piece in name for name in shapes):
            raise ModelError(f"{label} is {what}; Stable Diffusion 1.x and 2.x are read")
    shape = shapes.get(_UNET_IN)
    if shape is None or len(shape) != 4:
        raise ModelError(
            f"{label} holds no UNet of Stable Diffusion ({_UNET_IN}); 1.x and 2.x are read"
        )
    if shape[1] not in (4, 9):
        what = _INPUTS.get(shape[1], "of another kind")
        raise ModelError(f"{label} is {what}: its UNet has {shape[1]} input channels, not 4 or 9")
    return int(shape[1])


def _kind(label: str, shapes: Mapping[str, Sequence[int]]) -> str:
    """1.x with CLIP's text encoder, 2.x with OpenCLIP's. Raises ModelError."""
    if any(name.startswith(_OPEN_CLIP) for name in shapes):
        return "2.x"
    if any(name.startswith(_CLIP) for name in shapes):
        return "1.x"
    raise ModelError(
        f"{label} holds no text encoder ({PREFIXES['text_encoder']}...); it is not a whole model"
    )


def _configurations(kind: str) -> dict[str, dict[str, Any]]:
    """The configurations of a kind, a fresh copy."""
    configs: dict[str, dict[str, Any]] = json.loads(
        (_CONFIGURATIONS / f"{kind}.json").read_text(encoding="utf-8")
    )
    return configs


def _check_widths(
    label: str,
    kind: str,
    configs: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """The text that the UNet attends to is as wide as this kind's. Raises ModelError."""
    width = configs["unet"]["cross_attention_dim"]
    for name, shape in shapes.items():
        if name.startswith(PREFIXES["unet"]) and name.endswith("attn2.to_k.weight"):
            if len(shape) != 2 or shape[1] != width:
                raise ModelError(
                    f"{label}: its UNet reads text of shape {list(shape)!r:.40}, Stable Diffusion "
                    f"{kind} has width {width}; UNet and text encoder are of different models"
                )
            return


def _stated_prediction(
    shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]
) -> str | None:
    """The prediction type where the file says it: ModelSpec's keys, the web UIs' mark."""
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated in ("v", "v_prediction"):
        return "v_prediction"
    if stated in ("epsilon", "eps"):
        return "epsilon"
    architecture = metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-768-v") or "v_pred" in shapes:
        return "v_prediction"
    return "epsilon" if architecture.startswith("stable-diffusion-v2-512") else None
