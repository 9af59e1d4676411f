"""To and from diffusers: its pipelines, its folders. No lock-in."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ldm_toolkit import schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath.attention import install
from ldm_toolkit.files import staged_directory
from ldm_toolkit.models.checks import PARTS
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.configs import image_size, latent_factor
from ldm_toolkit.models.identity import ModelIdentity
from ldm_toolkit.models.networks import read_weights
from ldm_toolkit.models.places import CARD, read_card
from ldm_toolkit.models.tokenizer import tokenizer_sha256
from ldm_toolkit.recipe import ModelDefaults

__all__ = ["from_diffusers", "save_components", "to_diffusers"]


def to_diffusers(components: Components, scheduler: Any) -> Any:
    """diffusers' own pipeline around the same networks; nothing is copied."""
    with _without_notes_on_torchvision():
        from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    kind = StableDiffusionInpaintPipeline if components.inpainting else StableDiffusionPipeline
    return kind(
        tokenizer=components.tokenizer,
        text_encoder=components.text_encoder,
        vae=components.vae,
        unet=components.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@contextlib.contextmanager
def _without_notes_on_torchvision() -> Iterator[None]:
    """Keep transformers from saying of image processors that they want torchvision.

    Importing diffusers' pipelines imports them, for a safety checker that is not used here. Only
    these notes are held back, and only in the block.
    """

    def about_something_else(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(about_something_else)
    try:
        yield
    finally:
        logger.removeFilter(about_something_else)


def from_diffusers(pipeline: Any) -> Components:
    """The parts of a diffusers pipeline for Stable Diffusion 1.x or 2.x; nothing is copied.

    The identity's hash is over the tensors as they are in memory. Raises UserError for a pipeline
    of another kind.
    """
    parts: dict[str, Any] = {}
    for name in ("tokenizer", "text_encoder", "vae", "unet", "scheduler"):
        parts[name] = getattr(pipeline, name, None)
    missing = [name for name, part in parts.items() if part is None]
    second = getattr(pipeline, "text_encoder_2", None)
    if missing or second is not None or type(parts["unet"]).__name__ != "UNet2DConditionModel":
        raise UserError(
            f"{type(pipeline).__name__} is not a pipeline of Stable Diffusion 1.x or 2.x"
            + (f": it lacks {', '.join(missing)}" if missing else "")
        )
    scheduler = parts.pop("scheduler")
    # A default of its class is no property of the model: another scheduler has its own, as in
    # diffusers' from_config.
    assumed = {"_use_default_values", *scheduler.config.get("_use_default_values", ())}
    config = {key: value for key, value in scheduler.config.items() if key not in assumed}
    factor = latent_factor(parts["vae"].config)
    width, height = image_size(parts["unet"].config, factor)
    name = Path(str(pipeline.config.get("_name_or_path") or "")).name or type(pipeline).__name__
    defaults = ModelDefaults(
        name=name,
        width=width,
        height=height,
        scheduler=schedulers.name_for_config(type(scheduler).__name__, config),
        guidance_rescale=0.0,
        multiple=factor,
    )
    for network in PARTS:
        parts[network].eval().requires_grad_(False)
    install(parts["unet"])
    digests = _tensors_sha256(parts), tokenizer_sha256(parts["tokenizer"])
    identity = ModelIdentity(name, "", *digests)
    return Components(**parts, scheduler_config=config, identity=identity, defaults=defaults)


def _tensors_sha256(parts: dict[str, Any]) -> str:
    """One SHA-256 over name, dtype, shape and bytes of every tensor, in sorted order."""
    total = hashlib.sha256()
    for part in sorted(PARTS):
        for name, tensor in sorted(parts[part].state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            total.update(f"{part}.{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
            total.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_components(components: Components, folder: str | Path, scheduler: Any) -> None:
    """Write a model folder in the diffusers layout; it appears whole or not at all.

    A network whose weights are those of its source is copied byte for byte; a changed one is
    written in its source's dtype, so that computing in bfloat16 loses no bits of float16 weights.
    Raises CannotWrite, and UserError for what is no path or exists already.
    """
    with staged_directory(_free_place(folder)) as staging:
        for name, (stem, _) in PARTS.items():
            _save_network(getattr(components, name), components, staging / name, stem)
        components.tokenizer.save_pretrained(staging / "tokenizer")
        scheduler.save_pretrained(staging / "scheduler")
        index = {
            "_class_name": _pipeline_name(components),
            "scheduler": ["diffusers", type(scheduler).__name__],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
        (staging / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        about = _latents(components)
        if about:
            (staging / CARD).write_text(json.dumps(about, indent=2) + "\n")


def _latents(components: Components) -> dict[str, Any]:
    """What the source's ldm_toolkit.json says of the latents that the UNet learned, if anything.

    With another autoencoder they are other latents, of which it says nothing.
    """
    unet, vae = (components.files.get(name, ()) for name in ("unet", "vae"))
    if not unet or not vae or unet[0].parent.parent != vae[0].parent.parent:
        return {}
    known = read_card(unet[0].parent.parent)
    return {"latents": known["latents"]} if "latents" in known else {}


def _free_place(folder: str | Path) -> Path:
    """Where a model can be saved over nothing, not even a link. Raises UserError."""
    try:
        place = Path(folder)
    except TypeError as error:
        raise UserError(f"a folder is a text or a Path, not {folder!r:.80}") from error
    if os.path.lexists(place):
        raise UserError(f"{place} exists already; choose another name")
    return place


def _pipeline_name(components: Components) -> str:
    return "StableDiffusionInpaintPipeline" if components.inpainting else "StableDiffusionPipeline"


def _save_network(network: Any, components: Components, target: Path, stem: str) -> None:
    """One network's configuration and weights."""
    files = components.files.get(target.name, ())
    if not files or any(file.suffix != ".safetensors" for file in files):
        network.save_pretrained(target, safe_serialization=True)
        return
    source = read_weights(files)
    now = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    strange = now.keys() - source.keys()
    if strange:
        raise UserError(
            f"{target.name} has tensors that it was not loaded with, such as "
            f"{min(strange)!r:.80}; unload LoRAs before saving"
        )
    target.mkdir(parents=True)
    for beside in sorted(files[0].parent.glob("*.json")):
        shutil.copyfile(beside, target / beside.name)
    if any(tensor.shape != source[name].shape for name, tensor in now.items()):
        network.config.save_pretrained(target)  # textual inversions made the table of words longer
    changed = {
        name: tensor.to(source[name].dtype).contiguous()
        for name, tensor in now.items()
        if tensor.shape != source[name].shape
        or not torch.equal(tensor, source[name].to(tensor.dtype))
    }
    if not changed:
        for file in files:
            shutil.copyfile(file, target / file.name)
        return
    save_file(source | changed, target / f"{stem}.safetensors", metadata={"format": "pt"})
    for index in target.glob("*.index.json"):  # one file now, whatever the source had
        index.unlink()
