"""A model's name or folder -> Components: checked, loaded in the target dtype, on the device."""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ldm_toolkit import schedulers
from ldm_toolkit.errors import ModelError
from ldm_toolkit.hardware import choose_device, choose_dtype, lay_out
from ldm_toolkit.models.checks import CheckedFolder, check_model_folder
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.configs import image_size
from ldm_toolkit.models.identity import ModelIdentity, bundled_models, find_model, weights_sha256
from ldm_toolkit.models.tokenizer import load_tokenizer
from ldm_toolkit.recipe import ModelDefaults

__all__ = ["bundled_models", "load_components"]


def load_components(
    model: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto"
) -> Components:
    """Load a bundled model by name or a folder in the diffusers layout.

    The folder is checked before a loader sees it. Raises ModelError and UserError.
    """
    target = choose_device(device)
    computing = choose_dtype(dtype, target)
    checked = check_model_folder(find_model(model))
    with ThreadPoolExecutor(1) as pool:  # hashing releases the GIL: it costs no time of its own
        digest = pool.submit(weights_sha256, checked.root, checked.weights)
        parts = _load_parts(checked, computing)
        for name in ("text_encoder", "vae", "unet"):
            parts[name].to(target).eval().requires_grad_(False)
        memory_format = lay_out([parts["unet"], parts["vae"]], computing)
        identity = _identity(checked, digest.result())
    tokenizer = parts["tokenizer"]
    if len(tokenizer) > parts["text_encoder"].config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder only "
            f"{parts['text_encoder'].config.vocab_size}; they are of different models"
        )
    scheduler_config = dict(checked.configs["scheduler"])
    return Components(
        **parts,
        scheduler_config=scheduler_config,
        identity=identity,
        defaults=_defaults(checked, identity.name, scheduler_config),
        memory_format=memory_format,
    )


def _load_parts(checked: CheckedFolder, dtype: torch.dtype) -> dict[str, Any]:
    """Tokenizer and networks through their own classes' loaders, every tensor accounted for."""
    # Imported here: diffusers costs seconds, and a wrong folder is found without it.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.modeling_clip import CLIPTextModel

    parts: dict[str, Any] = {"tokenizer": load_tokenizer(checked.root)}
    with _without_progress_bar():
        parts["text_encoder"] = _load_network(
            "text_encoder", CLIPTextModel, checked, {"dtype": dtype}
        )
    parts["vae"] = _load_network("vae", AutoencoderKL, checked, {"torch_dtype": dtype})
    parts["unet"] = _load_network("unet", UNet2DConditionModel, checked, {"torch_dtype": dtype})
    return parts


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keep transformers' bar over milliseconds of loading off the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_network(
    name: str, network_class: Any, checked: CheckedFolder, options: Mapping[str, Any]
) -> Any:
    """One network; missing, unexpected and misshapen tensors are a ModelError, not a warning."""
    try:
        network, report = network_class.from_pretrained(
            str(checked.root / name),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{name} cannot be loaded: {_first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = [str(key) for key in report.get(problem) or ()]
        # Checkpoints made before transformers 4.31 hold this table of 0, 1, 2, ... as a weight.
        keys = [key for key in keys if not key.endswith("position_ids")]
        if keys:
            raise ModelError(
                f"{name}: {len(keys)} {problem.replace('_', ' ')}, the first is {keys[0]!r:.120}; "
                "weights and config.json are of different models"
            )
    return network


def _identity(checked: CheckedFolder, sha256: str) -> ModelIdentity:
    """Name and revision from the card, else the folder's name; never a path."""
    name = _card_text(checked.card, "name") or checked.root.resolve().name
    return ModelIdentity(name, _card_text(checked.card, "revision"), sha256)


def _card_text(card: Mapping[str, Any], key: str) -> str:
    """A short printable text of the model's card, or nothing."""
    value = card.get(key, "")
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise ModelError(f"ldm_toolkit.json: {key} must be a short text, not {value!r:.120}")
    return value


def _defaults(checked: CheckedFolder, name: str, config: Mapping[str, Any]) -> ModelDefaults:
    """What the model uses where the user says nothing: its card, else its configurations."""
    factor = 2 ** (len(checked.configs["vae"].get("block_out_channels", [1])) - 1)
    width, height = image_size(checked.configs["unet"], factor)
    declared = checked.index["scheduler"][1]
    values: dict[str, Any] = {
        "width": width,
        "height": height,
        "scheduler": schedulers.name_for_config(declared, config),
        "guidance_rescale": 0.0,
    }
    stated = checked.card.get("defaults", {})
    if not isinstance(stated, dict):
        raise ModelError("ldm_toolkit.json: defaults must be an object")
    values |= {key: value for key, value in stated.items() if key in values}
    for key in ("width", "height"):
        if type(values[key]) is not int or values[key] < 1 or values[key] % factor:
            raise ModelError(f"ldm_toolkit.json: {key} must be a multiple of {factor}")
    rescale = values["guidance_rescale"]
    if type(rescale) not in (int, float) or not 0 <= rescale <= 1:
        raise ModelError("ldm_toolkit.json: guidance_rescale must be a number from 0 to 1")
    values["scheduler"] = schedulers.resolve_name(str(values["scheduler"]))
    return ModelDefaults(name=name, multiple=factor, **values)


def _first_line(error: Exception) -> str:
    """The first line of an error of another library, with its type when there is no text."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
