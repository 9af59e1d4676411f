"""The forward process against float64 arithmetic, written differently, and against diffusers."""

import math
from statistics import NormalDist

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from ldm_toolkit.theory import diffusion

ALPHA_BARS = [1e-6, 0.0047, 0.3, 0.5, 0.97, 0.99915]


def tensors(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, count, 4, 3, 3, generator=rng)
    return x_0, eps


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
def test_noise_and_velocity_are_a_rotation(alpha_bar):
    """x_t = cos x_0 + sin eps, v = cos eps - sin x_0, in float64 and element by element."""
    x_0, eps = tensors(1)
    angle = math.acos(math.sqrt(alpha_bar))
    noisy = diffusion.add_noise(x_0, eps, torch.tensor([alpha_bar]))
    velocity = diffusion.velocity(x_0, eps, torch.tensor([alpha_bar]))
    rows = zip(x_0.flatten(), eps.flatten(), noisy.flatten(), velocity.flatten(), strict=True)
    for x, e, x_t, v in (tuple(map(float, row)) for row in rows):
        assert x_t == pytest.approx(math.cos(angle) * x + math.sin(angle) * e, abs=2e-6)
        assert v == pytest.approx(math.cos(angle) * e - math.sin(angle) * x, abs=2e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_gives_back_the_picture(kind):
    alpha_bar = torch.tensor(ALPHA_BARS, dtype=torch.float64)
    x_0, eps = (t.double() for t in tensors(len(ALPHA_BARS)))
    noisy = diffusion.add_noise(x_0, eps, alpha_bar)
    target = diffusion.prediction_target(kind, x_0, eps, alpha_bar)
    signal, noise = (a.sqrt()[:, None, None, None] for a in (alpha_bar, 1 - alpha_bar))
    recovered = {
        "epsilon": (noisy - noise * target) / signal,
        "v_prediction": signal * noisy - noise * target,
        "sample": target,
    }[kind]
    assert torch.allclose(recovered, x_0, atol=1e-9)


def test_unknown_predictions_are_an_error():
    x_0, eps = tensors(1)
    with pytest.raises(KeyError):
        diffusion.prediction_target("score", x_0, eps, torch.tensor([0.5]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_diffusers_agrees(kind):
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    x_0, eps = tensors(len(timesteps))
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    ours = diffusion.add_noise(x_0, eps, alpha_bar)
    assert torch.allclose(ours, scheduler.add_noise(x_0, eps, timesteps), atol=1e-6)
    expected = eps if kind == "epsilon" else scheduler.get_velocity(x_0, eps, timesteps)
    ours = diffusion.prediction_target(kind, x_0, eps, alpha_bar)
    assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weight_by_its_definition(kind, gamma):
    for alpha_bar in ALPHA_BARS:
        snr = alpha_bar / (1 - alpha_bar)
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[kind]
        weight = diffusion.min_snr_weight(
            kind, torch.tensor([alpha_bar], dtype=torch.float64), gamma
        )
        assert float(weight) == pytest.approx(min(snr, gamma) / divisor, rel=1e-9)


# Weights at SNR 0 (a zero-terminal schedule), 1, 9 and infinity; gamma is 5.
SNRS_AS_ALPHA_BAR = [0.0, 0.5, 0.9, 1.0]
MIN_SNR = {
    "epsilon": [1.0, 1.0, 5 / 9, 0.0],
    "v_prediction": [1.0, 1 / 2, 5 / 10, 0.0],
    "sample": [1.0, 1.0, 5.0, 5.0],
}
DEBIASED = {
    "epsilon": [1000.0, 1.0, 1 / 3, 0.0],
    "v_prediction": [1.0, 2**-0.5, 10**-0.5, 0.0],
    "sample": [1.0, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_table_of_weights(kind, dtype):
    alpha_bar = torch.tensor(SNRS_AS_ALPHA_BAR, dtype=dtype)
    tables = {
        "min-SNR": (diffusion.min_snr_weight(kind, alpha_bar, 5.0), MIN_SNR[kind]),
        "debiased": (diffusion.debiased_weight(kind, alpha_bar), DEBIASED[kind]),
    }
    for name, (found, expected) in tables.items():
        assert found.dtype == dtype
        assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=0.0), name


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_debiased_weight_is_the_share_of_an_error_that_reaches_the_picture(kind):
    """The derivative of the recovered x_0 by the prediction, taken by autograd in float64."""
    alpha_bar = torch.tensor(ALPHA_BARS[1:], dtype=torch.float64)
    noisy = torch.randn(len(alpha_bar), generator=torch.Generator().manual_seed(0)).double()
    prediction = torch.zeros_like(noisy, requires_grad=True)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    recovered = {
        "epsilon": (noisy - noise * prediction) / signal,
        "v_prediction": signal * noisy - noise * prediction,
        "sample": prediction,
    }[kind]
    (slope,) = torch.autograd.grad(recovered.sum(), prediction)
    assert torch.allclose(diffusion.debiased_weight(kind, alpha_bar), slope.abs(), rtol=1e-12)


def test_min_snr_weights_agree_across_predictions():
    """The same error in x_0 costs the same, whatever the network predicts."""
    alpha_bar = torch.tensor(ALPHA_BARS[1:], dtype=torch.float64)
    error = 0.1  # in x_0; in eps it is error * sqrt(snr), in v error * sqrt(snr + 1)
    snr = diffusion.signal_to_noise(alpha_bar)
    scale = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    costs = [
        diffusion.min_snr_weight(kind, alpha_bar, 5.0) * scale[kind] * error**2 for kind in scale
    ]
    assert torch.allclose(costs[0], costs[2])
    assert torch.allclose(costs[1], costs[2])


def betas() -> torch.Tensor:
    """The schedule of Stable Diffusion in float64."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def test_zero_terminal_schedules():
    """The last alpha_bar is exactly 0, the first what it was, and they fall in between."""
    for dtype in (torch.float32, torch.float64):
        before = torch.cumprod(1 - betas(), 0).to(dtype)
        after = diffusion.zero_terminal_snr(before)
        assert after.dtype == dtype
        assert after[-1] == 0
        assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-15)
        assert (after.diff() < 0).all()
        assert (after[1:] < before[1:]).all()
        assert torch.allclose(diffusion.zero_terminal_snr(after), after, rtol=1e-6, atol=0)
    ends = diffusion.zero_terminal_snr(torch.tensor([0.81, 0.25, 0.01]))
    expected = [0.81, (0.4 / 0.8 * 0.9) ** 2, 0.0]
    assert ends.tolist() == pytest.approx(expected, rel=1e-6, abs=0)


def test_zero_terminal_schedules_are_those_of_diffusers():
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas()), 0)
    ours = diffusion.zero_terminal_snr(torch.cumprod(1 - betas(), 0))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-14)
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    sampling = DDPMScheduler(**settings, rescale_betas_zero_snr=True).alphas_cumprod
    training = diffusion.zero_terminal_snr(DDPMScheduler(**settings).alphas_cumprod)
    assert sampling[-1] == training[-1] == 0
    assert torch.allclose(sampling, training, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_every_step_of_a_zero_terminal_schedule_counts(kind):
    alpha_bar = diffusion.zero_terminal_snr(torch.cumprod(1 - betas(), 0).float())
    for weight in (
        diffusion.min_snr_weight(kind, alpha_bar, 5.0),
        diffusion.debiased_weight(kind, alpha_bar),
    ):
        assert torch.isfinite(weight).all()
        assert (weight > 0).all()
        assert weight[-1] == 1


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-0.7, 0.5), (1.0, 2.0)])
def test_logit_normal_timesteps_have_their_distribution(mean, scale):
    """Evenly spread phases: the share below t is Phi((logit(t / count) - mean) / scale)."""
    phases = [(i + 0.5) / 2000 for i in range(2000)]
    drawn = [diffusion.logit_normal_timestep(phase, 1000, mean, scale) for phase in phases]
    assert drawn == sorted(drawn)
    assert 0 <= drawn[0] <= drawn[-1] < 1000
    for t in (1, 20, 100, 300, 500, 700, 900, 980, 999):
        logit = math.log(t / (1000 - t))
        share = sum(timestep < t for timestep in drawn) / len(drawn)
        assert share == pytest.approx(NormalDist(mean, scale).cdf(logit), abs=1.01 / 2000)


def test_logit_normal_timesteps_at_quantiles_and_ends():
    for phase, mean, scale in [(0.5, 0.0, 1.0), (0.1, 0.5, 1.0), (0.9, -1.0, 0.8)]:
        logit = NormalDist(mean, scale).inv_cdf(phase)
        expected = 1000 / (1 + math.exp(-logit))
        found = diffusion.logit_normal_timestep(phase, 1000, mean, scale)
        assert found == pytest.approx(expected - 0.5, abs=0.51)
    below_one = 1 - 2.0**-53
    assert diffusion.logit_normal_timestep(0.0, 1000, 0.0, 1.0) == 0
    assert diffusion.logit_normal_timestep(below_one, 1000, 0.0, 10.0) == 999
    assert diffusion.logit_normal_timestep(below_one, 1000, 50.0, 1.0) == 999


def test_noises_that_are_added_to_noise():
    eps, draw = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    offset = draw[:, :, :1, :1]
    shifted = diffusion.offset_noise(eps, offset, 0.3)
    assert torch.allclose(shifted - eps, (0.3 * offset).expand_as(eps))
    perturbed = diffusion.input_perturbation(eps, draw, 0.1)
    assert torch.allclose((perturbed - eps) / 0.1, draw)
