"""An autoencoder that returns the blurred picture before it is trained."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from training_tools import tiny_vae

from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.models.identity import find_model
from ldm_toolkit.storybook import render, scenes
from ldm_toolkit.training.autoencoder import (
    _writes_little,
    keep_colour_,
    pass_colour_,
    standardise_latents_,
)
from ldm_toolkit.training.folders import load_network


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


def reached(vae) -> dict[str, bool]:
    """Whether a gradient reaches the weights that write into the first eight channels."""
    vae.zero_grad()
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.decode(vae.encode(pixels).latent_dist.mean).sample.square().mean().backward()
    ends = ("conv2", "conv_shortcut", "conv_in", "samplers.0.conv")
    found = {}
    for name, module in vae.named_modules():
        if name.endswith(ends) and isinstance(module, torch.nn.Conv2d):
            assert module.weight.grad[8:].abs().sum() > 0, name
            found[name] = bool(module.weight.grad[:8].any() or module.bias.grad[:8].any())
    return found


def test_what_carries_the_picture_is_kept_after_loading(tmp_path):
    vae = tiny_vae(0, channels=(32, 64, 64, 64), groups=4)
    assert all(reached(vae).values())
    keep_colour_(vae)  # an ordinary network
    assert all(reached(vae).values())
    pass_colour_(vae)
    vae.save_pretrained(tmp_path)
    loaded = load_network(AutoencoderKL, tmp_path)
    keep_colour_(loaded)
    found = reached(loaded)
    assert len(found) == 26
    assert not any(found.values())
    with torch.no_grad():  # a little of everything has come in, by training without it
        for name, parameter in loaded.decoder.named_parameters():
            if parameter.ndim == 4 and "conv_out" not in name:
                noise = torch.randn(parameter[:8].shape, generator=torch.Generator().manual_seed(1))
                parameter[:8] += 0.1 * parameter[8:].std() * noise
    loaded.save_pretrained(tmp_path)
    again = load_network(AutoencoderKL, tmp_path)
    keep_colour_(again)
    assert not any(reached(again).values())
    with torch.no_grad():  # one half that is another's
        again.decoder.load_state_dict(tiny_vae(1, channels=(32, 64, 64, 64)).decoder.state_dict())
    again.save_pretrained(tmp_path)
    mixed = load_network(AutoencoderKL, tmp_path)
    keep_colour_(mixed)
    assert {name.partition(".")[0] for name, value in reached(mixed).items() if value} == {
        "decoder"
    }


def test_the_bundled_autoencoder_is_one_of_them():
    tensors = load_file(find_model("storybook") / "vae" / "diffusion_pytorch_model.safetensors")
    own = {n: t.float() for n, t in tensors.items() if n.endswith("conv2.weight")}
    assert len(own) > 10
    assert all(_writes_little(weight) for weight in own.values())


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


def test_the_command_keeps_them_in_a_model_that_it_loads(trainer, tiny_model, pictures, tmp_path):
    model, output = tmp_path / "model", tmp_path / "output"
    shutil.copytree(tiny_model, model)
    vae = tiny_vae(0, channels=(32, 64, 64, 64), groups=4)
    pass_colour_(vae)
    vae.save_pretrained(model / "vae")
    child = trainer.run(
        "finetune_vae", "--model", model, "--data", pictures, "--output", output, "--size", 64,
        "--crop", 32, "--batch_size", 1, "--steps", 2, "--warmup", 0, "--lr", "1e-2", "--ema", 0,
        "--threads", 1,
    )  # fmt: skip
    assert child.wait() == 0, child.errors
    trained = load_network(AutoencoderKL, output / "vae").state_dict()
    names = [n for n in trained if n.startswith("decoder.") and n.endswith("conv2.weight")]
    assert len(names) == 10
    for name in names:
        assert not trained[name][:8].any(), name
        assert not torch.equal(trained[name][8:], vae.state_dict()[name][8:]), name
