"""An autoencoder that returns the blurred picture before it is trained."""

import pytest
import torch
from training_tools import tiny_vae

from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.storybook import render, scenes
from ldm_toolkit.training.autoencoder import pass_colour_, standardise_latents_


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    drawn = [render.render(scenes.sample_scene(1, index), 128) for index in range(4)]
    return torch.stack([pil_to_pixels(picture) for picture in drawn])


@torch.no_grad()
def psnr_to_the_blurred(vae, pixels: torch.Tensor) -> float:
    made = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    blurred = torch.nn.functional.avg_pool2d(pixels, 8)
    blurred = torch.nn.functional.interpolate(blurred, scale_factor=8)
    return float(10 * torch.log10(4.0 / (made - blurred).square().mean()))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_untrained_network_returns_the_blurred_picture(seed, pixels):
    """At least 13 dB to the picture averaged over 8 x 8 blocks, and 2 dB more than without."""
    vae = tiny_vae(seed, channels=(32, 64, 64, 64), groups=4)
    without = psnr_to_the_blurred(vae, pixels)
    pass_colour_(vae)
    assert psnr_to_the_blurred(vae, pixels) > max(13, without + 2)


def test_the_posterior_starts_narrow_and_everything_stays_trainable(pixels):
    vae = tiny_vae(0, channels=(32, 64, 64, 64), groups=4)
    pass_colour_(vae)
    posterior = vae.encode(pixels).latent_dist
    assert float(posterior.std.mean()) < 0.1
    vae.decode(posterior.mean).sample.square().mean().backward()
    trained = dict(vae.named_parameters())
    assert all(p.requires_grad for p in trained.values())
    assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)
    dead = [n for n, p in trained.items() if p.grad is not None and not p.grad.any()]
    assert dead == []


def test_standard_latents_change_no_reconstruction(pixels):
    vae = tiny_vae(0, channels=(32, 64, 64, 64), groups=4)
    pass_colour_(vae)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        drawn = posterior.mean + posterior.std * torch.randn(
            posterior.mean.shape, generator=torch.Generator().manual_seed(0)
        )
        made = vae.decode(drawn).sample
        mean, deviation = posterior.mean.mean((0, 2, 3)), posterior.mean.std((0, 2, 3))
        standardise_latents_(vae, posterior.mean)
        after = vae.encode(pixels).latent_dist
        shape = (1, -1, 1, 1)
        moved = (drawn - mean.reshape(shape)) / deviation.reshape(shape)
        assert torch.allclose(vae.decode(moved).sample, made, atol=1e-4)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    ratio = posterior.std / after.std
    assert torch.allclose(ratio, deviation.reshape(shape).expand_as(ratio), rtol=1e-3)
    assert vae.config["scaling_factor"] == 1.0


def test_without_the_convolutions_the_scaling_factor_stands_in(pixels):
    vae = tiny_vae()
    vae.quant_conv = vae.post_quant_conv = None
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 5
    standardise_latents_(vae, latents)
    assert vae.config["scaling_factor"] == pytest.approx(0.2, rel=0.05)
