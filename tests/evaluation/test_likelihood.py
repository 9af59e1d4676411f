"""Bounds against the likelihoods of models that have one: a linear VAE, a perfect network.

x = W z + N(0, SIGMA^2) with z of N(0, 1) a latent cell; the latents that the network sees are SCALE
times z, and the network is the perfect one for them (`theory.diffusion.gaussian_prediction`).
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm_toolkit.errors import ModelError, NumericalError, UserError
from ldm_toolkit.evaluation.likelihood import (
    Bits,
    Likelihood,
    LikelihoodOptions,
    chosen_steps,
    squared_error,
    summary,
)
from ldm_toolkit.latents import pil_to_pixels, pixels_to_pil
from ldm_toolkit.models.components import Components
from ldm_toolkit.parts import Parts
from ldm_toolkit.theory.bound import variational_bound
from ldm_toolkit.theory.diffusion import gaussian_prediction

KINDS = ["epsilon", "v_prediction", "sample"]
SIGMA, GAIN, SCALE = 0.1, 1.0, 2.0
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OPTIONS = LikelihoodOptions(sigma=SIGMA, steps=None, samples=8, batch_size=250)
# Orthogonal columns: the true posterior is diagonal, as an encoder's is.
WEIGHTS = GAIN * torch.linalg.qr(
    torch.randn(192, 4, generator=torch.Generator().manual_seed(0)).double()
).Q.T.reshape(4, 3, 8, 8)
PRECISION = 1 + GAIN**2 / SIGMA**2
ALPHAS = torch.cumprod(
    1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
)


class LinearVae(nn.Module):
    """The VAE with its true posterior, shifted and widened where asked."""

    def __init__(self, shift: float = 0.0, widen: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            latent_channels=4, scaling_factor=SCALE, block_out_channels=(1, 1, 1, 1)
        )
        self.shift, self.widen = shift, widen

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        seen = nn.functional.conv2d(pixels.double(), WEIGHTS, stride=8)
        mean = seen / SIGMA**2 / PRECISION + self.shift
        log_variance = torch.full_like(mean, math.log(self.widen / PRECISION))
        moments = torch.cat([mean, log_variance], 1)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        made = nn.functional.conv_transpose2d(latents.double(), WEIGHTS, stride=8)
        return SimpleNamespace(sample=made)


class PerfectUnet(nn.Module):
    """Knows that the data is N(embedding, SCALE^2)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(in_channels=4)
        self.kind = kind

    def forward(
        self, latents: torch.Tensor, steps: torch.Tensor, text: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        mean = text[:, :1, :1, None].double()
        found = gaussian_prediction(self.kind, latents.double(), ALPHAS[steps], mean, SCALE**2)
        return (found.float(),)


class Analytic(Parts):
    """A model whose likelihood is known; a caption is the mean of its latents."""

    def __init__(self, kind: str = "epsilon", vae: LinearVae | None = None) -> None:
        self.components = Components(
            tokenizer=None,
            text_encoder=None,
            vae=vae if vae is not None else LinearVae(),
            unet=PerfectUnet(kind),
            scheduler_config={**SCHEDULE, "prediction_type": kind},
            identity=None,
            defaults=None,
        )
        self.components.vae.use_tiling = False

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        return torch.full((1, 77, 4), float(prompt or 0))


def picture(seed: int = 0, side: int = 64) -> Image.Image:
    """What the model draws."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(1, 4, side // 8, side // 8, generator=rng).double()
    mean = nn.functional.conv_transpose2d(z, WEIGHTS, stride=8)
    return pixels_to_pil(mean + SIGMA * torch.randn(mean.shape, generator=rng))[0]


def true_bits(image: Image.Image) -> float:
    """-log2 p(x) of the picture's levels, a channel: N(0, W W^T + SIGMA^2) times a bin's width."""
    pixels = pil_to_pixels(image)[None].double()
    patches = nn.functional.unfold(pixels, 8, stride=8)[0].T
    weights = WEIGHTS.reshape(4, 192)
    covariance = weights.T @ weights + SIGMA**2 * torch.eye(192)
    law = torch.distributions.MultivariateNormal(torch.zeros(192).double(), covariance)
    nats = -law.log_prob(patches).sum()
    return float(nats) / math.log(2) / pixels.numel() + math.log2(127.5)


# --- the truth ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_model_comes_near_to_the_likelihood_from_above(kind: str) -> None:
    """What is left is the steps' number and the noise of one draw of each."""
    measure = Likelihood(Analytic(kind), OPTIONS).measure
    gaps = [measure(k, picture(k, 128)).pixel - true_bits(picture(k, 128)) for k in range(3)]
    assert sum(gaps) / 3 == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize(("name", "mean"), [("latent", 0.0), ("latent_captioned", 0.5)])
def test_the_latents_bound_is_that_of_their_density(name: str, mean: float) -> None:
    """At a posterior without width the latents are known; also where a caption moves the prior.

    Its expectation is its mean over noise of +-1, for everything is quadratic in the noise.
    """
    vae, image = LinearVae(widen=1e-9), picture(5, 128)
    z = SCALE * vae.encode(pil_to_pixels(image)[None]).latent_dist.mean
    both = [
        variational_bound(
            lambda z_t, i: gaussian_prediction("epsilon", z_t, ALPHAS[i], mean, SCALE**2),
            z,
            torch.full((1000, *z.shape), sign).double(),
            ALPHAS,
            variance="fixed_large",
            decoder_variance=1 - float(ALPHAS[0]),
        )
        for sign in (-1, 1)
    ]
    expected = sum(float(one.total) for one in both) / 2 / z.numel() / math.log(2)
    last = ALPHAS[-1]
    given = Normal(last.sqrt() * z, (1 - last).sqrt())
    start = Normal(last.sqrt() * mean, (last * SCALE**2 + 1 - last).sqrt())
    surprise = -Normal(torch.tensor(mean).double(), SCALE).log_prob(z)
    cost = kl_divergence(given, Normal(0.0, 1.0)) - kl_divergence(given, start)
    assert 0 < expected - float((surprise + cost).mean()) / math.log(2) < 0.001
    measure = Likelihood(Analytic(vae=vae), OPTIONS).measure
    found = torch.tensor([getattr(measure(k, image, "0.5"), name) for k in range(4)])
    assert 0 < found.std() < 0.08
    assert float(found.mean()) == pytest.approx(expected, abs=0.08)


def test_with_its_true_posterior_a_vae_reaches_its_likelihood() -> None:
    """All importance weights are p(x) then, so one sample is enough."""
    for samples in (1, 8):
        options = replace(OPTIONS, samples=samples, steps=2)
        found = Likelihood(Analytic(), options).measure(0, picture(3))
        assert found.vae_importance == pytest.approx(true_bits(picture(3)), abs=5e-4)
    assert found.vae_elbo == pytest.approx(true_bits(picture(3)), abs=4e-3)


def test_more_importance_samples_of_a_poor_encoder_come_nearer_to_it() -> None:
    image = picture(4, 8)
    pipe = Analytic(vae=LinearVae(shift=0.05, widen=2.0))
    bits = []
    for samples in (1, 16, 256):
        options = replace(OPTIONS, samples=samples, steps=2)
        found = [Likelihood(pipe, options).measure(k, image) for k in range(16)]
        bits.append(sum(one.vae_importance for one in found) / 16)
    # The last of 256 samples each: the bound is the expectation of what one sample gives.
    assert sum(one.vae_elbo for one in found) / 16 > true_bits(image) + 5e-3
    assert bits[0] > bits[1] + 2e-3
    assert bits[1] > bits[2] + 2e-4
    assert bits[2] == pytest.approx(true_bits(image), abs=1e-3)


def test_another_sigma_or_prior_is_another_likelihood() -> None:
    image = picture(6)
    right = Likelihood(Analytic(), replace(OPTIONS, steps=2)).measure(0, image)
    wide = Likelihood(Analytic(), replace(OPTIONS, steps=2, sigma=0.2)).measure(0, image)
    assert wide.vae_importance > right.vae_importance + 0.3
    moved = Likelihood(Analytic(), OPTIONS).measure(0, image, "3")
    assert moved.pixel_captioned > moved.pixel
    # The caption's cost is in the latents alone: 48 pixel channels a latent.
    of_latents = moved.latent_captioned - moved.latent
    assert moved.pixel_captioned - moved.pixel == pytest.approx(of_latents / 48)


# --- estimates ---


@pytest.mark.parametrize("count", [2, 10, 300])
def test_a_share_of_the_steps_is_unbiased(count: int) -> None:
    """Over all phases the weighted terms add up to the sum over all steps."""
    terms = torch.linspace(3.0, -1.0, 1000, dtype=torch.float64).exp()
    phases = (torch.arange(2000) + 0.5) / 2000
    found = []
    for phase in phases.tolist():
        steps, weights = chosen_steps(ALPHAS, count, phase)
        assert len(steps) == count
        assert steps[0] == 0
        found.append(float((weights * terms[steps]).sum()))
    assert sum(found) / len(found) == pytest.approx(float(terms.sum()), rel=2e-3)


@pytest.mark.parametrize("count", [None, 1000])
def test_all_steps_count_once(count: int | None) -> None:
    steps, weights = chosen_steps(ALPHAS, count, 0.3)
    assert steps.tolist() == list(range(1000))
    assert (weights == 1).all()


def test_every_step_can_be_drawn_also_where_the_schedule_ends_in_pure_noise() -> None:
    ending = torch.cat([ALPHAS, torch.zeros(1)])
    seen: set[int] = set()
    for phase in range(500):
        steps, weights = chosen_steps(ending, 40, phase / 500)
        assert torch.isfinite(weights).all()
        seen |= set(steps.tolist())
    assert seen == set(range(1001))


def test_few_steps_estimate_the_bound_of_all() -> None:
    everything = Likelihood(Analytic(), OPTIONS).measure(0, picture(1))
    few = replace(OPTIONS, steps=60)
    found = [Likelihood(Analytic(), few).measure(k, picture(1)).latent for k in range(12)]
    error = torch.tensor(found).std() / 12**0.5
    assert error < 0.05
    assert abs(sum(found) / 12 - everything.latent) < 4 * error + 0.02


# --- the same number again ---


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_decides_nothing(batch_size: int, pipe: Parts) -> None:
    options = LikelihoodOptions(sigma=0.2, steps=9, samples=2)
    expected = Likelihood(pipe, options).measure(3, picture(2), "a red cat")
    other = replace(options, batch_size=batch_size)
    found = Likelihood(pipe, other).measure(3, picture(2), "a red cat")
    assert vars(found) == pytest.approx(vars(expected), rel=1e-5)


def test_noise_is_a_function_of_seed_and_picture() -> None:
    options = replace(OPTIONS, steps=5)
    measure = Likelihood(Analytic(), options).measure
    first = measure(0, picture())
    assert measure(0, picture()) == first
    assert measure(1, picture()) != first
    assert Likelihood(Analytic(), replace(options, seed=1)).measure(0, picture()) != first


# --- around it ---


def test_the_root_of_the_mean_error_is_the_likeliest_sigma() -> None:
    """The perfect posterior's draw is as far from the picture as another draw of the decoder."""
    images = [picture(seed) for seed in range(4)]
    errors = [squared_error(k, one, Analytic().components) for k, one in enumerate(images)]
    assert (sum(errors) / 4) ** 0.5 == pytest.approx(SIGMA, rel=0.03)
    options = [replace(OPTIONS, steps=2, sigma=SIGMA * factor) for factor in (0.9, 1.0, 1.1)]
    low, best, high = (Likelihood(Analytic(), one).measure(0, images[0]) for one in options)
    assert best.vae_elbo < min(low.vae_elbo, high.vae_elbo)


def test_a_summary_has_means_with_error_bars() -> None:
    row = Bits(
        latent=2.0, latent_captioned=None, pixel=4.0, pixel_captioned=None, vae_elbo=5.0,
        vae_importance=4.5,
    )  # fmt: skip
    told = replace(row, latent=3.0, latent_captioned=2.5, pixel_captioned=3.9)
    found = summary([row, told, told])
    assert found["latent"].value == pytest.approx(8 / 3)
    assert found["latent"].low < 8 / 3 < found["latent"].high
    assert (found["latent_captioned"].count, found["saved_by_caption"].value) == (2, 0.5)
    assert "latent_captioned" not in summary([row, row])


def test_the_settings_say_what_the_number_depends_on() -> None:
    found = Likelihood(Analytic("v_prediction"), OPTIONS).settings
    assert "sigma 0.1" in found["decoder"]
    assert (found["timesteps"], found["samples"], found["seed"]) == (1000, 8, 0)
    assert found["prediction"] == "v_prediction"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"sigma": 0.0}, "sigma must be a number from 0.001 to 10"),
        ({"steps": 1}, "steps must be 2 or more"),
        ({"samples": 0, "batch_size": 0}, "samples must be 1 or more.*batch_size"),
    ],
)
def test_options_that_make_no_sense(wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        LikelihoodOptions(**({"sigma": 0.1} | wrong))


def test_more_steps_than_the_schedule_has() -> None:
    with pytest.raises(UserError, match="at most 1000"):
        Likelihood(Analytic(), replace(OPTIONS, steps=1001))


def test_an_inpainting_model_has_none() -> None:
    model = Analytic()
    model.components.unet.config.in_channels = 9
    with pytest.raises(ModelError, match="inpainting"):
        Likelihood(model, OPTIONS)


def test_numbers_that_are_none_are_not_reported() -> None:
    model = Analytic()
    with pytest.raises(NumericalError, match="NaN or infinite"):
        Likelihood(model, replace(OPTIONS, steps=3)).measure(7, picture(), "nan")
