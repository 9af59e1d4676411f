"""Final latents of our pipeline against diffusers' StableDiffusionPipeline, float32, CPU.

diffusers itself raises or gives NaN for none of the combinations here, so there are no exceptions.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_models import BETAS, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_toolkit import schedulers
from ldm_toolkit.pipeline import LatentPipeline

TOLERANCE = 1e-4
SEED = 11
PROMPTS = ["a dog wearing a hat", "a red cat on the beach"]
NEGATIVE = "a car"

# Written down a second time, independently of the package's table.
DPM = {"solver_order": 2}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", DPM),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", {**DPM, "algorithm_type": "sde-dpmsolver++"}),
    "dpm++_sde": ("DPMSolverSinglestepScheduler", {**DPM, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
SIGMAS = ("karras", "exponential", "beta")


def reference_scheduler(name: str, config: Any) -> Any:
    for sigmas in ("", *SIGMAS):
        base = name.removesuffix(f"_{sigmas}") if sigmas else name
        if base in BASES:
            class_name, options = BASES[base]
            if sigmas:
                options = {**options, f"use_{sigmas}_sigmas": True}
            return getattr(diffusers, class_name).from_config(config, **options)
    raise KeyError(name)


def generators() -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(SEED + k) for k in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def pair(model_factory: Callable[..., Path]) -> Callable[[str], tuple[Any, LatentPipeline]]:
    """diffusers' pipeline and ours over the same folder, by prediction type."""
    made: dict[str, tuple[Any, LatentPipeline]] = {}

    def load(prediction_type: str) -> tuple[Any, LatentPipeline]:
        if prediction_type not in made:
            # One level, 16 channels: some 9,000 evaluations stay under a minute.
            folder = model_factory(prediction_type=prediction_type, unet_channels=(16,))
            theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
            theirs.set_progress_bar_config(disable=True)
            ours = LatentPipeline.from_pretrained(folder, device="cpu", dtype="float32")
            made[prediction_type] = theirs, ours
        return made[prediction_type]

    return load


def both(
    pair: tuple[Any, LatentPipeline], name: str, steps: int, guidance: float, rescale: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    theirs, ours = pair
    config = diffusers.PNDMScheduler.load_config(ours_folder(theirs), subfolder="scheduler")
    theirs.scheduler = reference_scheduler(name, config)
    expected = theirs(
        PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=rescale,
        generator=generators(),
        output_type="latent",
    ).images
    run = ours.stream(
        PROMPTS,
        negative_prompt=NEGATIVE,
        steps=steps,
        guidance=guidance,
        guidance_rescale=rescale,
        seed=SEED,
        scheduler=name,
    )
    taken = list(run)
    assert len(taken) == run.total
    return expected, taken[-1].latents


def ours_folder(theirs: Any) -> str:
    return theirs.config._name_or_path


@pytest.mark.parametrize("name", schedulers.names())
def test_final_latents_equal_diffusers(name: str, pair: Callable) -> None:
    for steps in (1, 2, 20):
        for guidance in (1.0, 7.5):
            expected, got = both(pair("epsilon"), name, steps, guidance)
            assert torch.isfinite(expected).all(), (name, steps, guidance)
            difference = (expected - got).abs().max().item()
            assert difference <= TOLERANCE, (name, steps, guidance, difference)


@pytest.mark.parametrize("name", sorted(BASES))
def test_v_prediction_equals_diffusers(name: str, pair: Callable) -> None:
    expected, got = both(pair("v_prediction"), name, 7, 5.0)
    assert torch.isfinite(expected).all()
    assert (expected - got).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_guidance_rescale_equals_diffusers(rescale: float, pair: Callable) -> None:
    expected, got = both(pair("v_prediction"), "ddim", 5, 7.5, rescale)
    assert (expected - got).abs().max().item() <= TOLERANCE


def test_every_registered_scheduler_is_in_the_table() -> None:
    spaced = ["lms", "euler", "heun", "dpm2", "dpm2_a", "dpm++_2m", "dpm++_2m_sde", "dpm++_sde"]
    spaced += ["unipc", "deis"]
    table = {*BASES, *(f"{name}_{sigmas}" for name in spaced for sigmas in SIGMAS)}
    assert table == set(schedulers.names())


def test_decoded_pictures_equal_diffusers(pair: Callable) -> None:
    theirs, ours = pair("epsilon")
    theirs.scheduler = reference_scheduler("ddim", theirs.scheduler.config)
    images = theirs(PROMPTS, num_inference_steps=3, generator=generators(), output_type="np").images
    result = ours(PROMPTS, steps=3, seed=SEED, scheduler="ddim")
    for expected, image in zip(images, result.images, strict=True):
        # Ours decodes one at a time: sums in another order, so a level may round the other way.
        assert np.abs(expected * 255 - np.asarray(image, dtype=np.float32)).max() <= 0.51


# --- the networks of Stable Diffusion 1.5 in full size ---

SIZES = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def full_size(folder: Path) -> Any:
    """diffusers' pipeline with the networks of Stable Diffusion 1.5, random weights, 4.3 GB.

    torch's and transformers' own first weights keep activations small: norms all the way, and
    sums that shrink.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        end = write_tokenizer(folder) - 1
        text = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
        unet = diffusers.UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,
            layers_per_block=2,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
        vae = diffusers.AutoencoderKL(
            sample_size=512,
            latent_channels=4,
            layers_per_block=2,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=0.18215,
        )
        return diffusers.StableDiffusionPipeline(
            tokenizer=CLIPTokenizer.from_pretrained(str(folder)),
            text_encoder=CLIPTextModel(text),
            unet=unet,
            vae=vae,
            scheduler=diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@pytest.fixture
def every_core() -> Iterator[None]:
    """As many threads as the machine has cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_networks_of_stable_diffusion_equal_diffusers(every_core: None, tmp_path: Path) -> None:
    """512 x 512 pixels, two evaluations; 8 GB of memory. euler, because it clips nothing."""
    theirs = full_size(tmp_path / "tokenizer")
    theirs.set_progress_bar_config(disable=True)
    for part, size in SIZES.items():
        assert sum(weight.numel() for weight in getattr(theirs, part).parameters()) == size
    ours = LatentPipeline.from_diffusers(theirs)
    theirs.scheduler = reference_scheduler("euler", theirs.scheduler.config)
    expected = theirs(
        PROMPTS[0],
        negative_prompt=NEGATIVE,
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=generators()[:1],
        output_type="latent",
    ).images
    options: dict[str, Any] = {"steps": 2, "guidance": 7.5, "scheduler": "euler"}
    run = ours.stream(PROMPTS[0], negative_prompt=NEGATIVE, seed=SEED, **options)
    got = list(run)[-1].latents
    assert (run.total, run.recipes[0].width, run.recipes[0].height) == (2, 512, 512)
    assert got.shape == expected.shape == (1, 4, 64, 64)
    assert torch.isfinite(expected).all()
    assert 0.1 < expected.std() < 100
    assert (expected - got).abs().max().item() <= TOLERANCE
