"""Image-to-image and inpainting against diffusers' own pipelines, float32, CPU, same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_parity_text_to_image import BASES, NEGATIVE, PROMPTS, SEED, TOLERANCE, reference_scheduler

from ldm_toolkit.pipeline import LatentPipeline

Pair = tuple[Any, LatentPipeline]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Not of the model's size, so that resizing is compared too."""
    levels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((120, 100), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """A soft-edged hole, off centre."""
    mask = Image.new("L", (120, 100), 0)
    ImageDraw.Draw(mask).ellipse((30, 10, 100, 80), fill=255)
    return mask.resize((60, 50)).resize((120, 100), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def load(model_factory: Callable[..., Path]) -> Callable[..., Pair]:
    made: dict[Any, Pair] = {}

    def pair(pipeline: str, prediction: str = "epsilon", inpainting: bool = False) -> Pair:
        key = pipeline, prediction, inpainting
        if key not in made:
            folder = model_factory(
                prediction_type=prediction, unet_channels=(16,), in_channels=9 if inpainting else 4
            )
            theirs = getattr(diffusers, pipeline).from_pretrained(folder)
            theirs.set_progress_bar_config(disable=True)
            made[key] = theirs, load_ours(folder)
        return made[key]

    return pair


def load_ours(folder: Path) -> LatentPipeline:
    return LatentPipeline.from_pretrained(folder, device="cpu", dtype="float32")


def expect(pair: Pair, name: str, **options: Any) -> torch.Tensor:
    theirs = pair[0]
    folder = theirs.config._name_or_path
    config = diffusers.PNDMScheduler.load_config(folder, subfolder="scheduler")
    theirs.scheduler = reference_scheduler(name, config)
    generators = [torch.Generator("cpu").manual_seed(SEED + k) for k in range(len(PROMPTS))]
    return theirs(
        PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        generator=generators,
        output_type="latent",
        **options,
    ).images


def got(pair: Pair, name: str, **options: Any) -> torch.Tensor:
    run = pair[1].stream(PROMPTS, negative_prompt=NEGATIVE, seed=SEED, scheduler=name, **options)
    taken = list(run)
    assert len(taken) == run.total
    return taken[-1].latents


def allowed(expected: torch.Tensor) -> float:
    """1e-4, and in proportion where random weights make latents grow past 10 (lcm divides by alpha
    at every step)."""
    return TOLERANCE * max(1.0, expected.abs().max().item() / 10)


@pytest.mark.parametrize("name", sorted(BASES))
def test_image_to_image_equals_diffusers(
    name: str, load: Callable[..., Pair], picture: Image.Image
) -> None:
    pair = load("StableDiffusionImg2ImgPipeline")
    size = {"width": 96, "height": 64}
    fitted = picture.resize((96, 64), Image.Resampling.LANCZOS)
    for steps, strength, guidance in ((20, 0.75, 7.5), (4, 0.5, 1.0), (3, 1.0, 7.5), (2, 0.5, 3.0)):
        expected = expect(
            pair, name, image=[fitted] * len(PROMPTS),
            num_inference_steps=steps, strength=strength, guidance_scale=guidance,
        )  # fmt: skip
        assert torch.isfinite(expected).all()
        found = got(
            pair, name, image=picture, steps=steps, strength=strength, guidance=guidance, **size
        )
        difference = (expected - found).abs().max().item()
        assert difference <= allowed(expected), (name, steps, strength, difference)


@pytest.mark.parametrize("inpainting", [False, True], ids=["4 channels", "9 channels"])
@pytest.mark.parametrize("name", sorted(BASES))
def test_inpainting_equals_diffusers(
    name: str,
    inpainting: bool,
    load: Callable[..., Pair],
    picture: Image.Image,
    mask: Image.Image,
) -> None:
    pair = load("StableDiffusionInpaintPipeline", inpainting=inpainting)
    for steps, strength, guidance in ((8, 1.0, 7.5), (6, 0.6, 1.0)):
        expected = expect(
            pair, name, image=[picture] * len(PROMPTS), mask_image=[mask] * len(PROMPTS),
            width=96, height=64,
            num_inference_steps=steps, strength=strength, guidance_scale=guidance,
        )  # fmt: skip
        assert torch.isfinite(expected).all()
        found = got(
            pair, name, image=picture, mask=mask, width=96, height=64,
            steps=steps, strength=strength, guidance=guidance,
        )  # fmt: skip
        difference = (expected - found).abs().max().item()
        assert difference <= allowed(expected), (name, steps, strength, difference)


def test_v_prediction_from_a_picture_equals_diffusers(
    load: Callable[..., Pair], picture: Image.Image
) -> None:
    pair = load("StableDiffusionImg2ImgPipeline", "v_prediction")
    fitted = picture.resize((120, 96), Image.Resampling.LANCZOS)
    expected = expect(pair, "ddim", image=[fitted] * 2, num_inference_steps=5, strength=0.8)
    # No size given: the picture's own, brought down to a multiple of 8.
    found = got(pair, "ddim", image=picture, steps=5, strength=0.8)
    assert (expected - found).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_eta_equals_diffusers(name: str, eta: float, load: Callable[..., Pair]) -> None:
    pair = load("StableDiffusionPipeline")
    expected = expect(pair, name, num_inference_steps=5, eta=eta)
    found = got(pair, name, steps=5, eta=eta)
    assert (expected - found).abs().max().item() <= TOLERANCE


def test_latents_of_ones_own_equal_diffusers(load: Callable[..., Pair]) -> None:
    pair = load("StableDiffusionPipeline")
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    for name in ("euler_a", "lms"):
        expected = expect(pair, name, num_inference_steps=4, latents=latents, width=96, height=64)
        found = got(pair, name, steps=4, latents=latents)
        # A stochastic scheduler's later noise differs: here the first noise is drawn as well, so
        # that the steps' noise is that of the seed, whatever the first latents are.
        if name == "lms":
            assert (expected - found).abs().max().item() <= TOLERANCE
        again = got(pair, name, steps=4, latents=latents)
        assert torch.equal(found, again)
