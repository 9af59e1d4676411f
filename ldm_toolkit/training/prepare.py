"""What the UNet's training is given: pictures, and their latents and captions, computed once."""

import functools
import hashlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.models.components import module_hash
from ldm_toolkit.training import cache
from ldm_toolkit.training.advice import warn_of_words
from ldm_toolkit.training.cache import Rows
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.data import Plan, Source, open_source
from ldm_toolkit.training.data.folder import only_pictures
from ldm_toolkit.training.data.geometry import Geometry
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.held_out import hold_out
from ldm_toolkit.training.inputs import network_config
from ldm_toolkit.training.methods import method_class
from ldm_toolkit.training.methods.unet_step import UNetMethod
from ldm_toolkit.training.prior import DrawClass, check_class, complete_class
from ldm_toolkit.training.rng import BucketIndex
from ldm_toolkit.values import counted

__all__ = [
    "UNetInputs",
    "caption_tokens",
    "masks",
    "moments",
    "open_data",
    "shared_caption",
    "text",
    "unet_inputs",
    "unet_plan",
]

logger = logging.getLogger(__name__)
_TOKENS = 77
_PIXELS = 8  # of a picture's side for one latent

_Place = tuple[Source, int]  # a picture: its source and its index there


def unet_plan(config: UNetConfig, tokenizer: Any, encoder_folder: Path, processes: int) -> Plan:
    """What the data is brought to and cached as. Raises ModelError."""
    width = network_config(encoder_folder).get("hidden_size")
    if config.train_text_encoder or method_class(config.method).encodes_text:
        width = 0  # texts are encoded in each step
    return Plan(
        Geometry.buckets(config.size) if config.buckets else Geometry.square(config.size),
        batch=config.batch_size * config.accumulate * processes,
        token_counts=lambda texts: _lengths(tokenizer, texts),
        text_width=None if config.no_cache else width,
    )


def shared_caption(config: UNetConfig, kind: type[UNetMethod]) -> str | None:
    """The caption of all pictures of ``--data``; "" where they need none, None for their own."""
    if config.instance_prompt is None and kind.makes_captions and only_pictures(Path(config.data)):
        return ""
    return config.instance_prompt


def open_data(
    config: UNetConfig | VAEConfig,
    plan: Plan,
    accelerator: Accelerator,
    cache_folder: Path,
    *,
    captions: int = 1,
    caption: str | None = None,
    masks: bool = False,
) -> Source:
    """The pictures of ``--data``, the same in every process. Raises InputError.

    ``captions`` is the number of those of a drawn scene, ``caption`` the one of all pictures;
    ``masks``: whether theirs are read.
    """
    memory = cache_folder / "checked.jsonl"
    quiet = not accelerator.is_main_process
    source = open_source(
        config,
        captions=captions,
        seed=config.seed,
        plan=plan,
        memory=memory,
        quiet=quiet,
        caption=caption,
        masks=masks,
    )
    if len(set(gather_object([source.fingerprint]))) > 1:
        raise InputError(
            f"--data {config.data} is not the same for every process: a picture cannot be read, or "
            "is another one, on one of the machines"
        )
    return source


@dataclass(frozen=True)
class UNetInputs:
    """What a method trains on.

    ``given`` are arguments of a `UNetMethod`, ``held_out`` those of what is validated on, if there
    is any; ``hashes`` say what a resumed run must share. ``pictures`` is the number of one's own,
    ``fingerprint`` the hash of what they show and of their captions.
    """

    given: dict[str, Any]
    held_out: dict[str, Any] | None
    hashes: dict[str, str]
    pictures: int
    fingerprint: str


def unet_inputs(
    config: UNetConfig,
    kind: type[UNetMethod],
    parts: Mapping[str, Path],
    tokenizer: Any,
    accelerator: Accelerator,
    untrained: Callable[[Path], Path],
    draw_class: DrawClass | None,
) -> UNetInputs:
    """Look at the pictures, draw those of the class that lack, encode them and their captions.

    ``parts`` are the folders of the model's parts. ``untrained`` says where the model lies that
    draws; it may put it into the folder that it is given. Raises InputError, UserError, ModelError,
    CannotWrite.
    """
    folder = Path(config.cache or Path(config.output) / "cache")
    kept = None if config.no_cache else folder
    plan = unet_plan(config, tokenizer, parts["text_encoder"], accelerator.num_processes)
    caption = shared_caption(config, kind)
    if kind.class_pictures:
        check_class(_class_folder(config), config.class_prompt or "")

    def opened(one: UNetConfig | VAEConfig) -> Source:
        options: dict[str, Any] = {"captions": config.captions, "caption": caption}
        return open_data(one, plan, accelerator, folder, masks=config.masked_loss, **options)

    def cached(
        sources: Sequence[Source], captions: Sequence[Sequence[str]]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        with accelerator.main_process_first():
            latents, scaling_factor, data = moments(parts["vae"], sources, kept, accelerator)
            encoder = parts["text_encoder"]
            given, told = text(config, kind, tokenizer, encoder, captions, kept, accelerator)
            if config.masked_loss:
                given["masks"] = masks(sources, kept)
        given |= {"moments": latents, "scaling_factor": scaling_factor}
        return given, {"data": data, "text_encoder": told}

    own, held = hold_out(config, opened(config), opened)
    sources = [own]
    if kind.class_pictures:
        _complete_class(config, accelerator, untrained, draw_class)
        place = str(_class_folder(config))
        pictures = replace(config, data=place, validation_data=None, validate_every=0)
        sources.append(open_data(pictures, plan, accelerator, folder, caption=config.class_prompt))
    captions = _captions(sources)
    if accelerator.is_main_process and not (kind.encodes_text or config.train_text_encoder):
        warn_of_words(itertools.chain.from_iterable(captions), tokenizer)
    given, hashes = cached(sources, captions)
    given["name"] = functools.partial(_name, sources)
    if kind.encodes_text or config.train_text_encoder:
        given["encoder"] = load_network(CLIPTextModel, parts["text_encoder"])
    if kind.class_pictures:
        given["instances"] = len(own)
    if config.buckets:
        given["index"] = _bucket_index(own, config.seed, plan.batch)
    watched = None
    if held is not None and config.validate_every > 0:
        watched = cached([held], _captions([held]))[0]
    return UNetInputs(given, watched, hashes, len(own), own.fingerprint)


def _name(sources: Sequence[Source], index: int) -> str:
    """The name of picture ``index`` of all sources, one after the other."""
    for source in sources:
        if index < len(source):
            break
        index -= len(source)
    return source.name(index)


def _captions(sources: Sequence[Source]) -> list[tuple[str, ...]]:
    """Those of each picture."""
    return [source.captions(index) for source in sources for index in range(len(source))]


def _class_folder(config: UNetConfig) -> Path:
    return Path(config.class_data or Path(config.output) / "class")


def _complete_class(
    config: UNetConfig,
    accelerator: Accelerator,
    untrained: Callable[[Path], Path],
    draw_class: DrawClass | None,
) -> None:
    """Draw the pictures of a subject's class where they lack."""
    folder, prompt = _class_folder(config), config.class_prompt or ""
    with accelerator.main_process_first(), tempfile.TemporaryDirectory() as temporary:

        def draw(seeds: Sequence[int]) -> Iterable[Image.Image]:
            if draw_class is None:
                lacking = counted(len(seeds), "picture")
                raise UserError(f"--class-data {folder} lacks {lacking}: give it some")
            return draw_class(untrained(Path(temporary, "model")), prompt, seeds, config.size)

        complete_class(folder, prompt, config.class_count, config.seed, draw)


def _bucket_index(source: Source, seed: int, batch: int) -> BucketIndex:
    """The order of pictures of several sizes, batches of one size each."""
    return BucketIndex(seed, [source.size(index) for index in range(len(source))], batch)


def moments(
    vae_folder: Path, sources: Sequence[Source], folder: Path | None, accelerator: Accelerator
) -> tuple[Rows, float, str]:
    """Mean and log variance of every picture, (8, h, w) float16, scaling factor, and hash.

    Each source has a cache of its own; without a folder they are computed when they are wanted.
    """
    vae = load_network(AutoencoderKL, vae_folder).eval()
    model = module_hash(vae)
    vae.to(accelerator.device, memory_format=torch.channels_last)  # convolutions are faster so
    keys = [f"{source.fingerprint} {model} {accelerator.mixed_precision}" for source in sources]
    told = hashlib.sha256("\n".join(keys).encode()).hexdigest()

    @torch.inference_mode()
    def encode(places: Sequence[_Place]) -> Tensor:
        pixels = torch.stack([pil_to_pixels(source.image(index)) for source, index in places])
        # A CPU takes half as long for one picture at a time, which its caches hold.
        parts = pixels.split(1 if accelerator.device.type == "cpu" else len(pixels))
        with accelerator.autocast():  # not around the cache: CPUs cannot join float16 in it
            found = [vae.encode(part.to(accelerator.device)).latent_dist for part in parts]
        return torch.cat([one.parameters for one in found]).clamp(-30.0, 20.0).cpu()

    return _rows(sources, folder, keys, "latents", encode), vae.config.scaling_factor, told


def masks(sources: Sequence[Source], folder: Path | None) -> Rows:
    """Where each picture counts, (1, h, w) in [0, 1] float16: the mean of its mask over a latent.

    A picture without mask counts everywhere.
    """

    def shown(places: Sequence[_Place]) -> Tensor:
        levels = []
        for source, index in places:
            mask = source.mask(index)
            if mask is None:
                mask = Image.new("L", source.size(index), 255)
            levels.append(torch.from_numpy(np.array(mask))[None] / 255)
        return nn.functional.avg_pool2d(torch.stack(levels), _PIXELS)

    keys = [source.fingerprint for source in sources]
    return _rows(sources, folder, keys, "masks", shown)


def _rows(
    sources: Sequence[Source],
    folder: Path | None,
    keys: Sequence[str],
    label: str,
    compute: Callable[[Sequence[_Place]], Tensor],
) -> Rows:
    """A row of each picture of all sources, from the cache that each of them has for itself."""
    if folder is None:
        places = [(source, index) for source in sources for index in range(len(source))]
        return cache.ComputedRows(len(places), lambda rows: compute([places[i] for i in rows]))
    found = [
        _source_rows(compute, source, folder, key, label)
        for source, key in zip(sources, keys, strict=True)
    ]
    return found[0] if len(found) == 1 else [row for one in found for row in one]


def _source_rows(
    compute: Callable[[Sequence[_Place]], Tensor],
    source: Source,
    folder: Path,
    key: str,
    label: str,
) -> Sequence[Tensor] | Tensor:
    """The row of each picture of a source, one tensor where all have the same size."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for index in range(len(source)):
        sizes.setdefault(source.size(index), []).append(index)

    def rows(own: str, members: Sequence[int]) -> Tensor:
        """Those of pictures of one size."""

        def of_places(places: Sequence[int]) -> Tensor:
            return compute([(source, members[place]) for place in places])

        return cache.cached_rows(folder, own, len(members), of_places, label)

    if len(sizes) == 1:
        return rows(key, range(len(source)))
    found = [torch.empty(0)] * len(source)
    for (width, height), members in sizes.items():
        for index, row in zip(members, rows(f"{key} {width}x{height}", members), strict=True):
            found[index] = row
    return found


def text(
    config: UNetConfig,
    kind: type[UNetMethod],
    tokenizer: Any,
    encoder_folder: Path,
    captions: Sequence[Sequence[str]],
    folder: Path | None,
    accelerator: Accelerator,
) -> tuple[dict[str, Any], str]:
    """What a method gets of the captions of each picture, by argument, and its hash.

    Cached embeddings, without a folder such as are computed when they are wanted; token ids, or the
    captions themselves, where the text encoder runs in every step.
    """
    # Other tokens, other embeddings.
    words = tokenizer.backend_tokenizer.to_str()
    told = hashlib.sha256(f"{captions} {words}".encode()).hexdigest()
    if kind.encodes_text:  # the encoder's weights are among what is frozen
        return {"tokenizer": tokenizer, "captions": captions}, told
    rows, texts = _caption_rows(captions)
    _warn_of_cuts(tokenizer, texts)
    if config.train_text_encoder:
        return {"embeddings": caption_tokens(tokenizer, texts), "caption_rows": rows}, told
    encoder = load_network(CLIPTextModel, encoder_folder).eval()

    @torch.inference_mode()
    def compute(indices: Sequence[int]) -> Tensor:
        with accelerator.autocast():
            tokens = caption_tokens(tokenizer, [texts[index] for index in indices])
            return encoder(tokens.to(accelerator.device)).last_hidden_state.cpu()

    model = f"{words} {module_hash(encoder)}"
    key = f"{texts} {hashlib.sha256(model.encode()).hexdigest()} {accelerator.mixed_precision}"
    encoder.to(accelerator.device)
    embeddings: Rows = cache.ComputedRows(len(texts), compute)
    if folder is not None:
        embeddings = cache.cached_rows(folder, key, len(texts), compute, "embeddings")
    told = hashlib.sha256(key.encode()).hexdigest()
    return {"embeddings": embeddings, "caption_rows": rows}, told


def _caption_rows(captions: Sequence[Sequence[str]]) -> tuple[list[list[int]], list[str]]:
    """Rows of each picture's captions, and the text of each row; row 0 is the empty caption."""
    known = {"": 0}
    rows = [[known.setdefault(text, len(known)) for text in own] for own in captions]
    return rows, list(known)


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text; transformers would warn of long ones, which are ours to tell."""
    return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def _warn_of_cuts(tokenizer: Any, texts: Sequence[str]) -> None:
    lengths = _lengths(tokenizer, texts)
    if max(lengths) > _TOKENS:
        longest = texts[lengths.index(max(lengths))]
        cut = sum(length > _TOKENS for length in lengths)
        told = counted(cut, "caption")
        logger.warning("%s longer than %d tokens and cut, e.g. %.60r", told, _TOKENS, longest)


def caption_tokens(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Captions -> token ids (B, 77); longer ones are cut at 77 tokens."""
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, max_length=_TOKENS)
    return torch.tensor(tokens["input_ids"])
