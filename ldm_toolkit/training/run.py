"""The training commands: from options to a method, through the loop, to a model folder."""

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_toolkit.errors import LdmToolkitError, UserError
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.training import cache
from ldm_toolkit.training.autoencoder import pass_colour_, standardise_latents_
from ldm_toolkit.training.begin import begin
from ldm_toolkit.training.config import LoopConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ldm_toolkit.training.data import Source, open_source
from ldm_toolkit.training.folders import (
    complete_model,
    load_network,
    model_folder,
    network_config,
)
from ldm_toolkit.training.held_out import hold_out
from ldm_toolkit.training.loop import train
from ldm_toolkit.training.methods import method_class
from ldm_toolkit.training.methods.unet_step import UNetMethod, trained_scheduler
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.samples import Draw, draw_prompts, draw_reconstructions
from ldm_toolkit.training.validation import UNetHeldOut, VAEHeldOut, Validation

__all__ = ["encode_captions", "train_text_encoder", "train_unet", "train_vae"]

logger = logging.getLogger(__name__)
_TOKENS = 77
_Latents = tuple[Tensor, float, str]
_Texts = tuple[Tensor, list[list[int]], str]


def train_vae(config: VAEConfig) -> None:
    """Train the autoencoder; OUTPUT is a model folder, with ``--from-config`` only OUTPUT/vae."""
    accelerator = begin(config)
    base = model_folder(config.from_config or config.model)
    if config.from_config is not None:
        vae = AutoencoderKL.from_config(network_config(base / "vae"))
        pass_colour_(vae)
    else:
        vae = load_network(AutoencoderKL, base / "vae")
    source, held = _sources(config)
    if accelerator.is_main_process and config.from_config is None:
        complete_model(base, Path(config.output), {"vae"})
    method = VAEMethod(vae, config, source)
    sample = _sampler(config, lambda file: draw_reconstructions(vae, source, file))
    validation = None
    if held is not None and config.validate_every > 0:
        held_out = VAEHeldOut(method, held, config.reconstruction)
        validation = Validation(held_out, config.validate_every)
    inputs = {"data": source.fingerprint}
    train(method, config, accelerator, sample=sample, validation=validation, inputs=inputs)
    if accelerator.is_main_process:
        if config.train == "all":
            _standardise(Path(config.output) / "vae", method, config.crops)
        sys.stdout.write(f"{config.output}\n")
    accelerator.wait_for_everyone()


def train_text_encoder(config: TextEncoderConfig) -> None:
    """Train a tokenizer, then a text encoder, on storybook captions; writes both to OUTPUT."""
    from ldm_toolkit.storybook import scenes
    from ldm_toolkit.training.text import AttributeText, train_tokenizer

    accelerator = begin(config)
    settings = CLIPTextConfig.from_dict(network_config(Path(config.from_config) / "text_encoder"))
    drawn = (scenes.sample_scene(config.seed, index) for index in range(config.caption_count))
    tokenizer = train_tokenizer(scenes.caption(scene, config.seed).text for scene in drawn)
    settings.vocab_size = len(tokenizer)
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    train(AttributeText(tokenizer, config, settings), config, accelerator)
    if accelerator.is_main_process:
        sys.stdout.write(f"{config.output}\n")
    accelerator.wait_for_everyone()


@torch.inference_mode()
def _standardise(folder: Path, method: VAEMethod, crops: int, batches: int = 64) -> None:
    """Make the latents of a trained encoder have mean 0 and variance 1."""
    vae = load_network(AutoencoderKL, folder).eval()
    places = range(0, batches * crops, crops)  # one crop of each picture
    means = [vae.encode(method.batch([place])["pixels"]).latent_dist.mean for place in places]
    standardise_latents_(vae, torch.cat(means))
    vae.save_pretrained(folder)


def train_unet(config: UNetConfig, draw: Draw | None = None) -> None:
    """Train the UNet on cached latents and embeddings.

    OUTPUT becomes a whole model folder, or gets the file of what is trained beside a model.
    ``draw`` makes the pictures of ``--sample-every``: training itself knows no pipeline.
    """
    accelerator = begin(config)
    base = model_folder(config.from_config or config.model)
    scheduler_config = network_config(base / "scheduler", "scheduler_config.json")
    # Both refuse before hours of caching.
    trained = trained_scheduler(config, scheduler_config) if config.zero_terminal_snr else None
    kind = method_class(config.method)
    kind.check(config, network_config(base / "unet"))
    vae_folder = Path(config.vae or base / "vae")
    text_folder = Path(config.text_encoder or base)
    source, held = _sources(config, config.captions)
    folder = Path(config.cache or Path(config.output) / "cache")

    def cached(pictures: Source) -> tuple[_Latents, _Texts]:
        with accelerator.main_process_first():
            latents = _moments(vae_folder, pictures, folder, accelerator)
            return latents, _embeddings(text_folder, pictures, folder, accelerator)

    (moments, scaling_factor, data), (embeddings, rows, text) = cached(source)
    method = kind(
        _fresh_or_loaded(config, base),
        config,
        moments=moments,
        embeddings=embeddings,
        caption_rows=rows,
        scaling_factor=scaling_factor,
        scheduler_config=scheduler_config,
    )
    parts = {n: text_folder / n for n in ("text_encoder", "tokenizer")} | {"vae": vae_folder}
    if accelerator.is_main_process and kind.adapter_file is None:
        complete_model(base, Path(config.output), {"unet"}, parts, scheduler_config=trained)

    sample = None
    if draw is not None:
        prompts = config.sample_prompts

        def complete(folder: Path) -> Path:
            """The model for sample pictures: ``base`` itself, or ``folder`` with what it lacks."""
            if kind.adapter_file is None:
                complete_model(base, folder, {"unet"}, parts, scheduler_config=trained)
            elif config.vae is None and config.text_encoder is None:
                return base
            else:
                complete_model(base, folder, set(), parts)
            return folder

        sample = _sampler(config, lambda file: draw_prompts(method, complete, prompts, file, draw))
    validation = None
    if held is not None and config.validate_every > 0:
        validation = _unet_validation(method, config, *cached(held))
    inputs = {"data": data, "text_encoder": text}
    train(method, config, accelerator, sample=sample, validation=validation, inputs=inputs)
    if accelerator.is_main_process:
        sys.stdout.write(f"{config.output}\n")
    accelerator.wait_for_everyone()


def _sources(config: UNetConfig | VAEConfig, captions: int = 1) -> tuple[Source, Source | None]:
    """What is trained on and what is held out, if anything."""

    def opened(one: UNetConfig | VAEConfig) -> Source:
        return open_source(one, captions=captions, seed=config.seed)

    return hold_out(config, opened(config), opened)


def _unet_validation(
    method: UNetMethod, config: UNetConfig, latents: _Latents, texts: _Texts
) -> Validation:
    """The loss on held-out pictures, which are cached."""
    moments, scaling_factor, _ = latents
    embeddings, rows, _ = texts
    held_out = UNetHeldOut(
        method,
        moments=moments,
        embeddings=embeddings,
        caption_rows=rows,
        scaling_factor=scaling_factor,
        batch_size=config.batch_size,
    )
    return Validation(held_out, config.validate_every)


def _fresh_or_loaded(config: UNetConfig, base: Path) -> UNet2DConditionModel:
    if config.from_config is not None:
        settings = network_config(Path(config.from_config) / "unet")
        return UNet2DConditionModel.from_config(settings)
    return load_network(UNet2DConditionModel, base / "unet")


def _sampler(config: LoopConfig, draw: Callable[[Path], None]) -> Callable[[int], None]:
    """Writes OUTPUT/samples/step-00000500.png with ``draw``."""

    def sample(step: int) -> None:
        try:
            draw(Path(config.output) / "samples" / f"step-{step:08d}.png")
        except LdmToolkitError as error:  # a picture is not worth the run
            logger.warning("no sample picture at step %d: %s", step, error)

    return sample


@torch.inference_mode()
def _moments(vae_folder: Path, source: Source, folder: Path, accelerator: Accelerator) -> _Latents:
    """Mean and log variance of all pictures, (N, 8, h, w) float16, scaling factor, and hash."""
    vae = load_network(AutoencoderKL, vae_folder).eval()

    def compute(indices: Sequence[int]) -> Tensor:
        pixels = torch.stack([pil_to_pixels(source.image(index)) for index in indices])
        with accelerator.autocast():  # not around the cache: CPUs cannot join float16 in it
            return vae.encode(pixels).latent_dist.parameters.clamp(-30.0, 20.0)

    key = f"{source.fingerprint} {cache.module_hash(vae)} {accelerator.mixed_precision}"
    rows = cache.cached_rows(folder, key, len(source), compute, "latents")
    return rows, vae.config.scaling_factor, hashlib.sha256(key.encode()).hexdigest()


@torch.inference_mode()
def _embeddings(
    text_folder: Path, source: Source, folder: Path, accelerator: Accelerator
) -> _Texts:
    """Embeddings of all different captions, row 0 the empty one, rows of each picture, and hash."""
    tokenizer = _tokenizer(text_folder / "tokenizer")
    encoder = load_network(CLIPTextModel, text_folder / "text_encoder").eval()
    captions = {"": 0}
    rows = [
        [captions.setdefault(text, len(captions)) for text in source.captions(index)]
        for index in range(len(source))
    ]
    texts = list(captions)
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    if max(lengths) > _TOKENS:
        longest = texts[lengths.index(max(lengths))]
        cut = sum(length > _TOKENS for length in lengths)
        logger.warning("%d captions are cut at %d tokens, e.g. %.60r", cut, _TOKENS, longest)

    def compute(indices: Sequence[int]) -> Tensor:
        with accelerator.autocast():
            return encode_captions(tokenizer, encoder, [texts[index] for index in indices])

    # The tokenizer counts as well: other tokens, other embeddings.
    model = f"{tokenizer.backend_tokenizer.to_str()} {cache.module_hash(encoder)}"
    key = f"{texts} {hashlib.sha256(model.encode()).hexdigest()} {accelerator.mixed_precision}"
    embeddings = cache.cached_rows(folder, key, len(texts), compute, "embeddings")
    return embeddings, rows, hashlib.sha256(key.encode()).hexdigest()


def _tokenizer(folder: Path) -> Any:
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no CLIP tokenizer: {error}") from error


def encode_captions(tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Tensor:
    """Captions -> (B, 77, D); longer ones are cut at 77 tokens."""
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, max_length=_TOKENS)
    return encoder(torch.tensor(tokens["input_ids"])).last_hidden_state
