"""The training commands: from options to a method, through the loop, to a model folder."""

import hashlib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_toolkit.errors import LdmToolkitError, UserError
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.training import cache
from ldm_toolkit.training.autoencoder import pass_colour_, standardise_latents_
from ldm_toolkit.training.config import LoopConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ldm_toolkit.training.data import Source, open_source
from ldm_toolkit.training.folders import (
    complete_model,
    load_network,
    model_folder,
    network_config,
    write_json,
)
from ldm_toolkit.training.loop import set_threads, train
from ldm_toolkit.training.methods import method_class
from ldm_toolkit.training.methods.unet_step import UNetMethod, trained_scheduler
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.prior import DrawClass, PromptedFolder, complete_class, only_pictures
from ldm_toolkit.training.samples import Draw, draw_prompts, draw_reconstructions

__all__ = ["encode_captions", "train_text_encoder", "train_unet", "train_vae"]

logger = logging.getLogger(__name__)
_TOKENS = 77


def _begin(config: LoopConfig) -> Accelerator:
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from error
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
    except ValueError as error:  # fp16 without an accelerator
        raise UserError(f"--mixed-precision {config.mixed_precision}: {error}") from error
    if accelerator.is_main_process:
        write_json(output / "config.json", vars(config))
    return accelerator


def train_vae(config: VAEConfig) -> None:
    """Train the autoencoder; OUTPUT is a model folder, with ``--from-config`` only OUTPUT/vae."""
    accelerator = _begin(config)
    base = model_folder(config.from_config or config.model)
    if config.from_config is not None:
        vae = AutoencoderKL.from_config(network_config(base / "vae"))
        pass_colour_(vae)
    else:
        vae = load_network(AutoencoderKL, base / "vae")
    source = open_source(config, seed=config.seed)
    if accelerator.is_main_process and config.from_config is None:
        complete_model(base, Path(config.output), {"vae"})
    method = VAEMethod(vae, config, source)
    sample = _sampler(config, lambda file: draw_reconstructions(vae, source, file))
    train(method, config, accelerator, sample=sample, inputs={"data": source.fingerprint})
    if accelerator.is_main_process:
        if config.train == "all":
            _standardise(Path(config.output) / "vae", method, config.crops)
        sys.stdout.write(f"{config.output}\n")
    accelerator.wait_for_everyone()


def train_text_encoder(config: TextEncoderConfig) -> None:
    """Train a tokenizer, then a text encoder, on storybook captions; writes both to OUTPUT."""
    from ldm_toolkit.storybook import scenes
    from ldm_toolkit.training.text import AttributeText, train_tokenizer

    accelerator = _begin(config)
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


def train_unet(
    config: UNetConfig, draw: Draw | None = None, draw_class: DrawClass | None = None
) -> None:
    """Train the UNet, or what stands beside it, on cached latents.

    OUTPUT becomes a whole model folder, or gets the file of what is trained beside a model.
    ``draw`` makes the pictures of ``--sample-every``, ``draw_class`` those of ``--class-prompt``:
    training itself knows no pipeline.
    """
    accelerator = _begin(config)
    base = model_folder(config.from_config or config.model)
    scheduler_config = network_config(base / "scheduler", "scheduler_config.json")
    text_folder = Path(config.text_encoder or base)
    parts = {"vae": Path(config.vae or base / "vae"), "text_encoder": text_folder / "text_encoder"}
    parts["tokenizer"] = text_folder / "tokenizer"
    # All of these refuse before hours of caching.
    trained = trained_scheduler(config, scheduler_config) if config.zero_terminal_snr else None
    kind = method_class(config.method)
    kind.check(config, network_config(base / "unet"))
    tokenizer = _tokenizer(parts["tokenizer"])
    kind.check_words(config, tokenizer)
    sources = _sources(config, kind, base, parts, accelerator, draw_class)
    folder = Path(config.cache or Path(config.output) / "cache")
    with accelerator.main_process_first():
        moments, scaling_factor, data = _moments(parts["vae"], sources, folder, accelerator)
        captions = [source.captions(i) for source in sources for i in range(len(source))]
        given, text = _text(kind, tokenizer, parts["text_encoder"], captions, folder, accelerator)
    if kind.class_pictures:
        given["instances"] = len(sources[0])
    method = kind(
        _fresh_or_loaded(config, base),
        config,
        moments=moments,
        scaling_factor=scaling_factor,
        scheduler_config=scheduler_config,
        **given,
    )
    adapter = kind.adapter_file is not None
    if accelerator.is_main_process and not adapter:
        complete_model(base, Path(config.output), {"unet"}, parts, scheduler_config=trained)

    def complete(folder: Path) -> Path:
        return _completed(config, adapter, base, parts, folder, trained)

    sample = None
    if draw is not None:
        prompts = config.sample_prompts
        sample = _sampler(config, lambda file: draw_prompts(method, complete, prompts, file, draw))
    train(method, config, accelerator, sample=sample, inputs={"data": data, "text_encoder": text})
    if accelerator.is_main_process:
        sys.stdout.write(f"{config.output}\n")
    accelerator.wait_for_everyone()


def _completed(
    config: UNetConfig,
    adapter: bool,
    base: Path,
    parts: Mapping[str, Path],
    folder: Path,
    scheduler_config: Mapping[str, Any] | None = None,
) -> Path:
    """A model that draws: ``base`` itself, or ``folder`` with what it lacks.

    What was trained is beside the model (``adapter``), or lies in ``folder`` as its UNet.
    """
    if adapter and config.vae is None and config.text_encoder is None:
        return base
    without: set[str] = set() if adapter else {"unet"}
    complete_model(base, folder, without, parts, scheduler_config=scheduler_config)
    return folder


def _sources(
    config: UNetConfig,
    kind: type[UNetMethod],
    base: Path,
    parts: Mapping[str, Path],
    accelerator: Accelerator,
    draw_class: DrawClass | None,
) -> list[Source]:
    """The pictures to learn from, and those of the subject's class where the method wants them.

    The model draws these when there are none. Raises InputError, UserError, CannotWrite.
    """
    own = _own_source(config, kind)
    if not kind.class_pictures:
        return [own]
    folder = Path(config.class_data or Path(config.output) / "class")
    prompt = config.class_prompt or ""
    with accelerator.main_process_first(), tempfile.TemporaryDirectory() as temporary:

        def draw(seeds: Sequence[int]) -> Iterable[Image.Image]:
            if draw_class is None:
                raise UserError(f"--class-data {folder} lacks {len(seeds)} pictures: give it some")
            model = _completed(config, True, base, parts, Path(temporary, "model"))
            return draw_class(model, prompt, seeds, config.size)

        complete_class(folder, prompt, config.class_count, config.seed, draw)
    return [own, PromptedFolder(folder, config.size, prompt, "--class-data")]


def _own_source(config: UNetConfig, kind: type[UNetMethod]) -> Source:
    """The pictures of ``--data``, whose captions an option or the method may make unnecessary."""
    folder, prompt = Path(config.data), config.instance_prompt
    if prompt is None and kind.makes_captions and only_pictures(folder):
        prompt = ""
    if prompt is not None:
        return PromptedFolder(folder, config.size, prompt, "--data")
    return open_source(config, captions=config.captions, seed=config.seed)


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
def _moments(
    vae_folder: Path, sources: Sequence[Source], folder: Path, accelerator: Accelerator
) -> tuple[Tensor, float, str]:
    """Mean and log variance of all pictures, (N, 8, h, w) float16, scaling factor, and hash.

    Each source has a cache of its own.
    """
    vae = load_network(AutoencoderKL, vae_folder).eval()
    model = cache.module_hash(vae)
    found, keys = [], []
    for source in sources:

        def compute(indices: Sequence[int], source: Source = source) -> Tensor:
            pixels = torch.stack([pil_to_pixels(source.image(index)) for index in indices])
            with accelerator.autocast():  # not around the cache: CPUs cannot join float16 in it
                return vae.encode(pixels).latent_dist.parameters.clamp(-30.0, 20.0)

        keys.append(f"{source.fingerprint} {model} {accelerator.mixed_precision}")
        found.append(cache.cached_rows(folder, keys[-1], len(source), compute, "latents"))
    told = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return torch.cat(found), vae.config.scaling_factor, told


def _text(
    kind: type[UNetMethod],
    tokenizer: Any,
    encoder_folder: Path,
    captions: Sequence[Sequence[str]],
    folder: Path,
    accelerator: Accelerator,
) -> tuple[dict[str, Any], str]:
    """What a method gets of the captions of each picture, by argument, and its hash.

    Cached embeddings, or the text encoder itself where the method has to run it.
    """
    encoder = load_network(CLIPTextModel, encoder_folder).eval()
    if kind.encodes_text:  # the encoder's weights are among what is frozen
        words = tokenizer.backend_tokenizer.to_str()
        told = hashlib.sha256(f"{captions} {words}".encode()).hexdigest()
        return {"tokenizer": tokenizer, "encoder": encoder, "captions": captions}, told
    rows, texts = _caption_rows(captions)
    _warn_of_cuts(tokenizer, texts)

    @torch.inference_mode()
    def compute(indices: Sequence[int]) -> Tensor:
        with accelerator.autocast():
            return encode_captions(tokenizer, encoder, [texts[index] for index in indices])

    # The tokenizer counts as well: other tokens, other embeddings.
    model = f"{tokenizer.backend_tokenizer.to_str()} {cache.module_hash(encoder)}"
    key = f"{texts} {hashlib.sha256(model.encode()).hexdigest()} {accelerator.mixed_precision}"
    embeddings = cache.cached_rows(folder, key, len(texts), compute, "embeddings")
    told = hashlib.sha256(key.encode()).hexdigest()
    return {"embeddings": embeddings, "caption_rows": rows}, told


def _caption_rows(captions: Sequence[Sequence[str]]) -> tuple[list[list[int]], list[str]]:
    """Rows of each picture's captions, and the text of each row; row 0 is the empty caption."""
    known = {"": 0}
    rows = [[known.setdefault(text, len(known)) for text in own] for own in captions]
    return rows, list(known)


def _warn_of_cuts(tokenizer: Any, texts: Sequence[str]) -> None:
    lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    if max(lengths) > _TOKENS:
        longest = texts[lengths.index(max(lengths))]
        cut = sum(length > _TOKENS for length in lengths)
        logger.warning("%d captions are cut at %d tokens, e.g. %.60r", cut, _TOKENS, longest)


def _tokenizer(folder: Path) -> Any:
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no CLIP tokenizer: {error}") from error


def encode_captions(tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Tensor:
    """Captions -> (B, 77, D); longer ones are cut at 77 tokens."""
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, max_length=_TOKENS)
    return encoder(torch.tensor(tokens["input_ids"])).last_hidden_state
