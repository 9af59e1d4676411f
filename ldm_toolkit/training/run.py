"""The training commands: from options to a method, through the loop, to a model folder."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.models.checks import check_tokenizer
from ldm_toolkit.models.components import module_hash
from ldm_toolkit.models.tokenizer import load_tokenizer
from ldm_toolkit.training import prepare
from ldm_toolkit.training.advice import warn_of_size
from ldm_toolkit.training.attention import suit_attention
from ldm_toolkit.training.auto_batch import fitted
from ldm_toolkit.training.autoencoder import keep_colour_, pass_colour_, standardise_latents_
from ldm_toolkit.training.begin import begin
from ldm_toolkit.training.card import Result, write_card
from ldm_toolkit.training.config import (
    JudgeConfig,
    LoopConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from ldm_toolkit.training.data import Plan, Source, check_data
from ldm_toolkit.training.data.geometry import Geometry
from ldm_toolkit.training.folders import (
    complete_model,
    copied_bytes,
    load_network,
    save_network,
)
from ldm_toolkit.training.held_out import a_few, hold_out
from ldm_toolkit.training.inputs import model_folder, network_config, usual_latents
from ldm_toolkit.training.loop import train
from ldm_toolkit.training.methods import method_class
from ldm_toolkit.training.methods.protocol import Method
from ldm_toolkit.training.methods.unet_step import UNetMethod, trained_scheduler
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.perceptual import EncoderDistance, load_lpips
from ldm_toolkit.training.prior import DrawClass
from ldm_toolkit.training.quality import Quality
from ldm_toolkit.training.samples import (
    Draw,
    draw_prompts,
    draw_reconstructions,
    sample_file,
    write_before_after,
)
from ldm_toolkit.training.space import check_space
from ldm_toolkit.training.validation import UNetHeldOut, VAEHeldOut, Validation

__all__ = ["train_judge", "train_text_encoder", "train_unet", "train_vae"]

logger = logging.getLogger(__name__)


def train_vae(config: VAEConfig) -> None:
    """Train the autoencoder; OUTPUT is a model folder, with ``--from-config`` only OUTPUT/vae."""
    plan = Plan(Geometry.square(config.size))
    if config.check_data:
        _on_one_process(lambda: check_data(config, plan))
        return
    accelerator = begin(config)
    lpips = None
    if config.perceptual == "lpips":  # refuses before anything that takes long
        with accelerator.local_main_process_first():
            lpips = load_lpips()
    base = model_folder(config.from_config or config.model)
    if config.train == "all" and config.from_config is None and accelerator.is_main_process:
        logger.warning(
            "--train all changes the latents: no UNet that learned the old ones fits them, not the "
            "one in %s either, nor its LoRAs; train it on the new ones (finetune_unet.py --model "
            "%s), or pass --train decoder",
            config.output,
            config.output,
        )
    if config.from_config is not None:
        vae = AutoencoderKL.from_config(network_config(base / "vae"))
        pass_colour_(vae)
    else:
        vae = load_network(AutoencoderKL, base / "vae")
    keep_colour_(vae)

    def opened(one: UNetConfig | VAEConfig) -> Source:
        return prepare.open_data(one, plan, accelerator, Path(config.output) / "cache")

    source, held = hold_out(config, opened(config), opened)
    watched = held if held is not None else a_few(source)
    file = Path(config.output) / "quality.json"
    quality = Quality(watched, held is not None, file, accelerator, lpips)
    quality.before(vae)
    inputs = {"data": source.fingerprint}
    perceptual: nn.Module | None = lpips
    if config.perceptual == "encoder":
        perceptual = EncoderDistance(vae)
        if config.train == "all":  # nothing else of the model stays as it was
            inputs["model"] = module_hash(perceptual)
    method = VAEMethod(vae, config, source, perceptual)
    config = fitted(method, config, accelerator)
    if accelerator.is_main_process and config.from_config is None:
        _copy_parts(method, config, base, {"vae"})
    sample = _sampler(config, lambda file: draw_reconstructions(vae, source, file))
    validation = None
    if held is not None and config.validate_every > 0:
        held_out = VAEHeldOut(method, held, config.reconstruction)
        validation = Validation(held_out, config.validate_every)
    train(method, config, accelerator, sample=sample, validation=validation, inputs=inputs)
    if accelerator.is_main_process and config.train == "all":
        _standardise(Path(config.output) / "vae", method, config.crops)
    accelerator.wait_for_everyone()
    quality.after(load_network(AutoencoderKL, Path(config.output) / "vae"))
    if accelerator.is_main_process:
        write_before_after(Path(config.output), config.steps)
        whole = config.from_config is None
        _describe(config, Result(len(source), source.fingerprint, whole=whole))
    _finish(config, accelerator)


def train_text_encoder(config: TextEncoderConfig) -> None:
    """Train a tokenizer, then a text encoder, on storybook captions; writes both to OUTPUT."""
    from ldm_toolkit.storybook import scenes
    from ldm_toolkit.training.text import AttributeText, start_from, train_tokenizer

    accelerator = begin(config)
    settings = CLIPTextConfig.from_dict(network_config(Path(config.from_config) / "text_encoder"))
    drawn = (scenes.sample_scene(config.seed, index) for index in range(config.caption_count))
    tokenizer = train_tokenizer(scenes.caption(scene, config.seed).text for scene in drawn)
    settings.vocab_size = len(tokenizer)
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    method = AttributeText(tokenizer, config, settings)
    if config.model is not None:
        folder = model_folder(config.model)
        trained = load_network(CLIPTextModel, folder / "text_encoder")
        known = load_tokenizer(check_tokenizer(folder / "tokenizer"))
        start_from(method.encoder, tokenizer, trained, known)
    train(method, fitted(method, config, accelerator), accelerator)
    _finish(config, accelerator)


def train_judge(config: JudgeConfig) -> None:
    """Train a judge of storybook pictures; writes OUTPUT/judge.safetensors."""
    from ldm_toolkit.training.judging import JudgeTraining

    accelerator = begin(config)
    vae = load_network(AutoencoderKL, model_folder(config.model) / "vae").eval()
    method = JudgeTraining(config, vae)
    train(method, fitted(method, config, accelerator), accelerator)
    _finish(config, accelerator)


def _finish(config: LoopConfig, accelerator: Accelerator) -> None:
    """Tell where the result lies; no process ends before all is written."""
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
    save_network(vae, folder)


def train_unet(
    config: UNetConfig, draw: Draw | None = None, draw_class: DrawClass | None = None
) -> None:
    """Train the UNet, or what stands beside it, on cached latents.

    OUTPUT becomes a whole model folder, or gets the file of what is trained beside a model.
    ``draw`` makes the pictures of ``--sample-every``, ``draw_class`` those of ``--class-prompt``:
    training itself knows no pipeline.
    """
    base = model_folder(config.from_config or config.model)
    text_folder = Path(config.text_encoder or base)
    parts = {"vae": Path(config.vae or base / "vae"), "text_encoder": text_folder / "text_encoder"}
    parts["tokenizer"] = text_folder / "tokenizer"
    if config.latents is None:
        config.latents = usual_latents(base) if config.vae is None else "sample"
    kind = method_class(config.method)
    tokenizer = load_tokenizer(check_tokenizer(parts["tokenizer"]))
    if config.check_data:
        plan = prepare.unet_plan(config, tokenizer, parts["text_encoder"], 1)
        caption = prepare.shared_caption(config, kind)
        masks = config.masked_loss
        _on_one_process(lambda: check_data(config, plan, caption=caption, masks=masks))
        return
    scheduler_config = network_config(base / "scheduler", "scheduler_config.json")
    # All of these refuse before anything is written, and before hours of caching.
    trained = trained_scheduler(config, scheduler_config) if config.zero_terminal_snr else None
    kind.check(config, network_config(base / "unet"))
    kind.check_words(config, tokenizer)
    accelerator = begin(config)
    if accelerator.is_main_process:
        warn_of_size(config, base, parts["vae"])
    trained_parts = _trained_parts(config, kind)

    def untrained(folder: Path) -> Path:
        return _completed(config, set(), base, parts, folder)

    found = prepare.unet_inputs(config, kind, parts, tokenizer, accelerator, untrained, draw_class)
    unet = _fresh_or_loaded(config, base)
    suit_attention(unet)
    method = kind(unet, config, scheduler_config=scheduler_config, **found.given)
    config = fitted(method, config, accelerator)
    if accelerator.is_main_process and trained_parts:
        _copy_parts(method, config, base, trained_parts, parts, trained)

    def complete(folder: Path) -> Path:
        return _completed(config, trained_parts, base, parts, folder, trained)

    sample = None
    if draw is not None:
        prompts = config.sample_prompts
        sample = _sampler(config, lambda file: draw_prompts(method, complete, prompts, file, draw))
    validation = None
    if found.held_out is not None:
        held_out = UNetHeldOut(method, batch_size=config.batch_size, **found.held_out)
        validation = Validation(held_out, config.validate_every)
    train(method, config, accelerator, sample=sample, validation=validation, inputs=found.hashes)
    if accelerator.is_main_process:
        write_before_after(Path(config.output), config.steps)
        _describe(config, Result(found.pictures, found.fingerprint, kind.adapter_file))
    _finish(config, accelerator)


def _trained_parts(config: UNetConfig, kind: type[UNetMethod]) -> set[str]:
    """The parts of a model folder that a method saves; none where its file lies beside a model."""
    if kind.adapter_file is not None:
        return set()
    return {"unet", "text_encoder"} if config.train_text_encoder else {"unet"}


def _copy_parts(
    method: Method,
    config: LoopConfig,
    base: Path,
    trained_parts: set[str],
    parts: Mapping[str, Path] | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
) -> None:
    """Complete OUTPUT to a model folder, where there is room for that and all that is to come."""
    output = Path(config.output)
    check_space(method, config, copied_bytes(base, output, trained_parts, parts))
    complete_model(base, output, trained_parts, parts, scheduler_config=scheduler_config)


def _completed(
    config: UNetConfig,
    trained_parts: set[str],
    base: Path,
    parts: Mapping[str, Path],
    folder: Path,
    scheduler_config: Mapping[str, Any] | None = None,
) -> Path:
    """A model that draws: ``base`` itself, or ``folder`` with what it lacks.

    What was trained is beside the model, or lies in ``folder`` as its ``trained_parts``.
    """
    if not trained_parts and config.vae is None and config.text_encoder is None:
        return base
    complete_model(base, folder, trained_parts, parts, scheduler_config=scheduler_config)
    return folder


def _describe(config: UNetConfig | VAEConfig, result: Result) -> None:
    """The model card, which is not worth the end of a training either."""
    try:
        write_card(config, result)
    except LdmToolkitError as error:
        logger.warning("no model card: %s", error)


def _on_one_process(act: Callable[[], None]) -> None:
    """Act where one process of several is enough."""
    if int(os.environ.get("RANK", 0)) == 0:
        act()


def _fresh_or_loaded(config: UNetConfig, base: Path) -> UNet2DConditionModel:
    if config.from_config is not None:
        settings = network_config(Path(config.from_config) / "unet")
        return UNet2DConditionModel.from_config(settings)
    return load_network(UNet2DConditionModel, base / "unet")


def _sampler(config: LoopConfig, draw: Callable[[Path], None]) -> Callable[[int], None]:
    """Writes OUTPUT/samples/step-00000500.png with ``draw``."""

    def sample(step: int) -> None:
        try:
            draw(sample_file(Path(config.output), step))
        except LdmToolkitError as error:  # a picture is not worth the run
            logger.warning("no sample picture at step %d: %s", step, error)

    return sample
