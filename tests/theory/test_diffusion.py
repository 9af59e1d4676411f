"""The forward process against float64 arithmetic, written differently, and against diffusers."""

import math
from statistics import NormalDist

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from ldm_toolkit.theory import diffusion

ALPHA_BARS = [1e-6, 0.0047, 0.3, 0.5, 0.97, 0.99915]
KINDS = ["epsilon", "v_prediction", "sample"]


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_of_the_target_means_the_picture_and_the_noise(kind):
    alpha_bar = torch.tensor(ALPHA_BARS, dtype=torch.float64)
    x_0, eps = (t.double() for t in tensors(len(ALPHA_BARS)))
    noisy = diffusion.add_noise(x_0, eps, alpha_bar)
    target = diffusion.prediction_target(kind, x_0, eps, alpha_bar)
    found = diffusion.predicted_sample(kind, target, noisy, alpha_bar)
    assert torch.allclose(found, x_0, rtol=0, atol=1e-9)
    found = diffusion.predicted_noise(kind, target, noisy, alpha_bar)
    assert torch.allclose(found, eps, rtol=0, atol=1e-9)


def test_unknown_predictions_are_an_error():
    x_0, eps = tensors(1)
    level = torch.tensor([0.5])
    with pytest.raises(KeyError):
        diffusion.prediction_target("score", x_0, eps, level)
    for function in (diffusion.predicted_sample, diffusion.predicted_noise):
        with pytest.raises(KeyError):
            function("score", x_0, eps, level)
    for settings in ({"kind": "score"}, {"variance": "small"}):
        with pytest.raises(KeyError):
            diffusion.reverse_moments(x_0, eps, level, 2 * level, **settings)


# --- one step, many steps, a step back ---


def chain(betas: torch.Tensor) -> list[torch.Tensor]:
    """What x_0, x_1, .. are made of: (1, T + 1) weights of x_0 and of each step's noise.

    ``forward_step`` is linear an element, so it takes the weights along when it is fed with them.
    """
    parts = torch.eye(len(betas) + 1, dtype=torch.float64)[:, None]
    made = [parts[0]]
    for beta, eps in zip(betas, parts[1:], strict=True):
        made.append(diffusion.forward_step(made[-1], eps, beta))
    return made


BETAS = torch.linspace(0.02, 0.5, 9, dtype=torch.float64)


def test_one_step_after_another_is_the_closed_form():
    alphas_cumprod = torch.cumprod(1 - BETAS, 0)
    for weights, alpha_bar in zip(chain(BETAS)[1:], alphas_cumprod, strict=True):
        mean, variance = diffusion.forward_moments(torch.ones(1, 1).double(), alpha_bar)
        assert float(mean) == pytest.approx(float(weights[0, 0]), rel=1e-12)
        assert float(variance) == pytest.approx(float(weights[0, 1:].square().sum()), rel=1e-12)
        x_0, eps = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
        drawn = diffusion.add_noise(x_0, eps, alpha_bar)
        assert drawn.flatten().tolist() == pytest.approx([float(mean), float(variance) ** 0.5])


@pytest.mark.parametrize("apart", [1, 2, 5])
def test_the_posterior_is_what_conditioning_the_chain_gives(apart):
    """x_{t-k} and x_t, given x_0, are jointly normal; x_t is then observed (Bishop 2006, 2.81)."""
    levels = [1.0, *torch.cumprod(1 - BETAS, 0).tolist()]
    made = chain(BETAS)
    x_0, x_t = 0.7, -1.9
    for t in range(apart, len(made)):
        (before,), (now,) = made[t - apart], made[t]
        covariance = float((before[1:] * now[1:]).sum())
        gain = covariance / float(now[1:].square().sum())
        mean = float(before[0]) * x_0 + gain * (x_t - float(now[0]) * x_0)
        variance = float(before[1:].square().sum()) - gain * covariance
        arguments = (torch.tensor([v], dtype=torch.float64) for v in (levels[t], levels[t - apart]))
        x = (torch.full((1, 1), v, dtype=torch.float64) for v in (x_0, x_t))
        found = diffusion.posterior_moments(*x, *arguments)
        assert float(found[0]) == pytest.approx(mean, rel=1e-12)
        assert float(found[1]) == pytest.approx(variance, rel=1e-12, abs=1e-15)


def test_the_posterior_by_hand():
    """alpha = 1/2, alpha_bar = 3/8: (sqrt(1/2) 1/4 x_t + sqrt(3/4) 1/2 x_0) / (5/8), 1/5."""
    x_0, x_t = torch.tensor([[2.0]]).double(), torch.tensor([[3.0]]).double()
    levels = torch.tensor([0.375, 0.75], dtype=torch.float64)
    mean, variance = diffusion.posterior_moments(x_0, x_t, levels[:1], levels[1:])
    assert float(mean) == pytest.approx((0.5**0.5 * 0.25 * 3 + 0.75**0.5 * 0.5 * 2) / 0.625)
    assert float(variance) == pytest.approx(0.2)


def test_the_first_step_back_ends_at_the_picture():
    x_0, x_t = (t.double() for t in tensors(1))
    level = torch.tensor([0.9], dtype=torch.float64)
    mean, variance = diffusion.posterior_moments(x_0, x_t, level, torch.ones_like(level))
    assert torch.allclose(mean, x_0, rtol=1e-12)
    assert variance.flatten().tolist() == [0.0]


def test_levels_one_step_earlier():
    levels = torch.tensor([0.9, 0.5, 0.0])
    assert diffusion.previous_alpha_bars(levels).tolist() == pytest.approx([1.0, 0.9, 0.5])


# --- the step back of a model ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_of_normal_data_predicts_the_conditional_mean(kind):
    """E[target | x_t] = E[target] + cov / var (x_t - E[x_t]); the target is p x_0 + q eps."""
    mean, variance = 0.4, 0.3
    x_t = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    one, nothing = torch.ones_like(x_t), torch.zeros_like(x_t)
    for alpha_bar in [*ALPHA_BARS, 0.0]:
        level = torch.full((7,), alpha_bar, dtype=torch.float64)
        p = diffusion.prediction_target(kind, one, nothing, level)
        q = diffusion.prediction_target(kind, nothing, one, level)
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        covariance = p * signal * variance + q * noise
        slope = covariance / (signal**2 * variance + noise**2)
        expected = p * mean + slope * (x_t - signal * mean)
        found = diffusion.gaussian_prediction(kind, x_t, level, mean, variance)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_knows_the_picture_steps_back_like_the_posterior(kind, variance):
    x_0, eps = (t.double() for t in tensors(3))
    level, previous = torch.tensor([[0.3, 0.5, 0.97], [0.4, 0.8, 1.0]], dtype=torch.float64)
    x_t = diffusion.add_noise(x_0, eps, level)
    output = diffusion.prediction_target(kind, x_0, eps, level)
    if variance == "learned":
        output = torch.cat([output, torch.zeros_like(output)], 1)
    expected, small = diffusion.posterior_moments(x_0, x_t, level, previous)
    mean, log_variance = diffusion.reverse_moments(
        output, x_t, level, previous, kind=kind, variance=variance
    )
    assert torch.allclose(mean, expected, rtol=1e-10, atol=1e-12)
    large = 1 - (level / previous)[:, None, None, None]
    between = (small * large).sqrt()  # the network said 0: halfway, in logarithms
    wanted = {"fixed_small": small, "fixed_large": large, "learned": between}[variance]
    assert torch.allclose(log_variance.exp(), wanted.expand_as(log_variance), rtol=1e-10)


def test_a_learned_variance_goes_from_the_small_one_to_the_large_one():
    x_t = torch.zeros(3, 1, dtype=torch.float64)
    said = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    level, previous = torch.tensor([0.375, 0.75], dtype=torch.float64)
    _, found = diffusion.reverse_moments(said, x_t, level, previous, variance="learned")
    expected = [0.2, 0.5, 0.5**0.75 * 0.2**0.25]
    assert found.exp().flatten().tolist() == pytest.approx(expected, rel=1e-12)
    smallest = torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64)
    _, found = diffusion.reverse_moments(
        said, x_t, level, previous, variance="learned", smallest=smallest
    )
    expected = [0.1, 0.5, 0.5**0.75 * 0.1**0.25]
    assert found.exp().flatten().tolist() == pytest.approx(expected, rel=1e-12)


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
