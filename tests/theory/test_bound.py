"""The bound's terms by other means, and the whole of it on data whose likelihood is known.

Data of N(MEAN, VARIANCE) has a perfect network, ``diffusion.gaussian_prediction``, and every term
is then quadratic in x_0 and in the noise, so that its expectation is its mean over x_0 one standard
deviation above and below the mean and noise of +-1: nothing here is left to chance.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm_toolkit.theory import bound, diffusion

KINDS = ["epsilon", "v_prediction", "sample"]
MEAN, VARIANCE = 0.3, 0.25
# Betas of Ho et al. 2020.
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def schedule(steps: int) -> torch.Tensor:
    """alpha_bar (steps,) of evenly spaced log SNR, from 7.5 down to -12 whatever the step count."""
    return torch.linspace(7.5, -12.0, steps, dtype=torch.float64).sigmoid()


def network(kind: str, alphas_cumprod: torch.Tensor) -> Callable[[torch.Tensor, int], torch.Tensor]:
    return lambda x_t, i: diffusion.gaussian_prediction(
        kind, x_t, alphas_cumprod[i], MEAN, VARIANCE
    )


def points(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 (4, 1) and noise (steps, 4, 1) over which means are expectations."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    x_0 = MEAN + VARIANCE**0.5 * signs[:, :1]
    return x_0, signs[:, 1:].expand(steps, 4, 1)


def decoder_variance(alphas_cumprod: torch.Tensor) -> float:
    """Of x_0 given x_1, for the data here."""
    first = float(alphas_cumprod[0])
    return 1 / (1 / VARIANCE + first / (1 - first))


def gap(steps: int, **settings: str) -> float:
    """Expected bound minus entropy of the data, in nats; entropy is the expected -log p(x_0)."""
    levels = schedule(steps)
    x_0, noise = points(steps)
    settings = {"kind": "epsilon", **settings}
    found = bound.variational_bound(
        network(settings["kind"], levels),
        x_0,
        noise,
        levels,
        decoder_variance=decoder_variance(levels),
        **settings,
    )
    return float(found.total.mean()) - 0.5 * math.log(2 * math.pi * math.e * VARIANCE)


# --- the whole bound ---


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_with_more_steps_the_bound_comes_down_to_the_likelihood(variance):
    gaps = [gap(steps, variance=variance) for steps in (10, 40, 160, 640)]
    assert all(after < 0.4 * before for before, after in pairwise(gaps))
    assert gaps[0] > 0.1
    assert 0 < gaps[-1] < 0.05


def test_the_bound_is_the_same_whatever_the_network_predicts():
    found = [gap(30, kind=kind) for kind in KINDS]
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)


def perfect_share(levels: torch.Tensor) -> torch.Tensor:
    """2 s - 1 of a learned variance that is the true one of x_{t-1} given x_t, in each step.

    Of the data's chain: 1 / (alpha / beta + 1 / variance of x_{t-1}).
    """
    previous = diffusion.previous_alpha_bars(levels)
    alpha = levels / previous
    true = 1 / (alpha / (1 - alpha) + 1 / (previous * VARIANCE + 1 - previous))
    small, large = bound.smallest_variances(levels).log(), (1 - alpha).log()
    return 2 * (true.log() - small) / (large - small) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_with_the_true_reverse_process_the_bound_is_exact_at_any_number_of_steps(kind, steps):
    """Only the start is wrong: N(0, 1) instead of q(x_T), which costs KL(q(x_T) || N(0, 1)).

    -log p(x_0) of each x_0, not only of all; the noise is averaged over.
    """
    levels = schedule(steps)
    x_0, noise = points(steps)
    share, guess = perfect_share(levels), network(kind, levels)

    def denoise(x_t: torch.Tensor, i: int) -> torch.Tensor:
        return torch.cat([guess(x_t, i), share[i].expand_as(x_t)], 1)

    found = bound.variational_bound(denoise, x_0, noise, levels, kind=kind, variance="learned")
    last, mean = levels[-1], torch.full((4,), MEAN, dtype=torch.float64)
    surprise = -Normal(mean, VARIANCE**0.5).log_prob(x_0[:, 0])
    start = Normal(last.sqrt() * mean, (last * VARIANCE + 1 - last).sqrt())
    given = Normal(last.sqrt() * x_0[:, 0], (1 - last).sqrt())
    expected = surprise + kl_divergence(given, Normal(0.0, 1.0)) - kl_divergence(given, start)
    pairs = found.total.reshape(2, 2).mean(1)
    assert torch.allclose(pairs, expected[::2], rtol=1e-8, atol=1e-10)


def test_fixed_large_is_exact_for_standard_normal_data_and_fixed_small_for_one_point():
    """Ho et al. 2020, section 3.2; the terms between are KLs of a step back from the true one."""
    levels = torch.cumprod(1 - BETAS, 0)[::50]
    x_0, noise = points(len(levels))
    for variance, spread in (("fixed_large", 1.0), ("fixed_small", 0.0)):
        data = spread * (x_0 - MEAN) / VARIANCE**0.5

        def perfect(x_t: torch.Tensor, i: int, spread: float = spread) -> torch.Tensor:
            return diffusion.gaussian_prediction("epsilon", x_t, levels[i], 0.0, spread)

        found = bound.variational_bound(
            perfect, data, noise, levels, variance=variance, decoder_variance=1 - float(levels[0])
        )
        if spread:  # all that is left is the entropy of N(0, 1)
            entropy = 0.5 * math.log(2 * math.pi * math.e)
            assert float(found.total.mean()) == pytest.approx(entropy, abs=1e-9)
        else:
            assert found.denoising.abs().max() < 1e-12


def test_an_estimate_from_some_steps_adds_up_to_the_bound():
    """The sum of ``step_terms`` over all steps, mixed within a batch, plus the prior's."""
    levels = schedule(6)
    x_0 = torch.tensor([[0.2], [1.1]]).double()
    noise = torch.randn(6, 2, 1, generator=torch.Generator().manual_seed(0)).double()
    guess = network("epsilon", levels)
    whole = bound.variational_bound(guess, x_0, noise, levels)
    assert whole.denoising.shape == (2, 5)
    assert whole.prior.shape == whole.reconstruction.shape == whole.total.shape == (2,)
    total = bound.prior_term(x_0, levels[-1])
    for i in range(6):
        step = torch.tensor([i, 5 - i])
        x_t = diffusion.add_noise(x_0, noise[step, [0, 1]], levels[step])
        output = torch.cat([guess(x_t[k : k + 1], int(step[k])) for k in (0, 1)])
        total = total + bound.step_terms(output, x_0, x_t, step, levels)
    assert torch.allclose(total, whole.total, rtol=1e-10)


# --- terms ---


def picture(count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, count, 2, 3, 3, generator=rng, dtype=torch.float64)
    return x_0, eps


def test_the_prior_term_is_the_librarys_divergence():
    x_0, _ = picture()
    for alpha_bar in (4e-5, 0.5):
        given = Normal(alpha_bar**0.5 * x_0, (1 - alpha_bar) ** 0.5)
        expected = kl_divergence(given, Normal(0.0, 1.0)).sum((1, 2, 3))
        found = bound.prior_term(x_0, torch.tensor(alpha_bar, dtype=torch.float64))
        assert torch.allclose(found, expected, rtol=1e-8)
    ended = bound.prior_term(x_0, torch.tensor(0.0, dtype=torch.float64))
    assert ended.abs().max() == 0  # a zero-terminal schedule


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_denoising_term_is_the_librarys_divergence(kind, variance):
    """Of a network that says anything at all, at three steps of a batch."""
    levels = torch.cumprod(1 - BETAS, 0)
    step = torch.tensor([1, 400, 999])
    x_0, eps = picture()
    x_t = diffusion.add_noise(x_0, eps, levels[step])
    output = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    if variance != "learned":
        output = output[:, :2]
    found = bound.step_terms(output, x_0, x_t, step, levels, kind=kind, variance=variance)
    now, previous = levels[step], levels[step - 1]
    mean, log_variance = diffusion.reverse_moments(
        output, x_t, now, previous, kind=kind, variance=variance
    )
    true_mean, true_variance = diffusion.posterior_moments(x_0, x_t, now, previous)
    truth = Normal(true_mean, true_variance.sqrt().expand_as(true_mean))
    model = Normal(mean, (0.5 * log_variance).exp().expand_as(mean))
    expected = kl_divergence(truth, model).sum((1, 2, 3))
    assert torch.allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_reconstruction_term_and_its_width(variance):
    """-log of the normal density around the predicted x_0, as wide as the published code has it."""
    levels = torch.cumprod(1 - BETAS, 0)
    x_0, eps = picture()
    step = torch.zeros(3, dtype=torch.long)
    x_t = diffusion.add_noise(x_0, eps, levels[step])
    guess = x_0 + 0.01 * eps
    share = torch.full_like(guess, 0.5)
    output = torch.cat([guess, 2 * share - 1], 1) if variance == "learned" else guess
    settings = {"kind": "sample", "variance": variance}
    found = bound.step_terms(output, x_0, x_t, step, levels, **settings)
    second = float(BETAS[1] * BETAS[0] / (1 - levels[1]))  # the posterior's variance at t = 2
    width = (second * 1e-4) ** 0.5 if variance == "learned" else second
    expected = -Normal(guess, width**0.5).log_prob(x_0).sum((1, 2, 3))
    assert torch.allclose(found, expected, rtol=1e-8)
    found = bound.step_terms(output, x_0, x_t, step, levels, decoder_variance=0.04, **settings)
    expected = -Normal(guess, 0.2).log_prob(x_0).sum((1, 2, 3))
    assert torch.allclose(found, expected, rtol=1e-8)


def test_the_smallest_variances():
    levels = torch.cumprod(1 - BETAS, 0)
    found = bound.smallest_variances(levels)
    expected = BETAS[1:] * (1 - levels[:-1]) / (1 - levels[1:])
    assert torch.allclose(found[1:], expected, rtol=1e-9)
    assert found[0] == found[1]
    assert float(bound.smallest_variances(levels[:1])) == pytest.approx(1e-4)


def test_unknown_settings_are_an_error():
    x, step = torch.zeros(1, 1).double(), torch.zeros(1, dtype=torch.long)
    for settings in ({"kind": "score"}, {"variance": "small"}, {"decoder": "laplace"}):
        with pytest.raises(KeyError):
            bound.step_terms(x, x, x, step, schedule(3), **settings)
    with pytest.raises(KeyError):
        bound.bound_weight("score", *torch.tensor([0.5, 0.6, 0.1]))


# --- the decoder of pixels ---


def levels_of_grey(count: int = 256) -> torch.Tensor:
    return (2 * torch.arange(count, dtype=torch.float64) / (count - 1) - 1)[:, None]


@pytest.mark.parametrize("width", [1e-3, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("mean", [-1.2, -1.0, 0.0013, 0.7, 3.0])
def test_the_probabilities_of_all_greys_sum_to_one(mean, width):
    grey = levels_of_grey()
    log_variance = torch.full_like(grey, 2 * math.log(width))
    found = bound.discrete_reconstruction(grey, torch.full_like(grey, mean), log_variance)
    assert float((-found).exp().sum()) == pytest.approx(1.0, abs=1e-10)
    normal = Normal(torch.tensor(mean, dtype=torch.float64), width)
    edges = normal.cdf(levels_of_grey()[:-1] + 1 / 255)[:, 0]
    nothing, all_ = torch.zeros(1).double(), torch.ones(1).double()
    expected = torch.cat([nothing, edges, all_]).diff()
    assert torch.allclose((-found).exp(), expected, rtol=1e-6, atol=1e-12)


def test_a_grey_that_is_far_off_costs_a_finite_number_with_a_slope():
    grey = levels_of_grey()
    mean = torch.full_like(grey, 0.25).requires_grad_()
    log_variance = torch.full_like(grey, -12.0).requires_grad_()
    for sign in (1, -1):
        found = bound.discrete_reconstruction(sign * grey, sign * mean, log_variance)
        # Of the tail, -log is about half the squared distance in standard deviations.
        distance = (0.25 + 1 - 1 / 255) * math.exp(6)
        assert float(found[0].detach()) == pytest.approx(distance**2 / 2, rel=1e-4)
        slopes = torch.autograd.grad(found.sum(), [mean, log_variance])
        assert all(torch.isfinite(slope).all() for slope in slopes)


def test_fine_bins_are_the_density():
    """A bin's probability goes to density times width."""
    x = levels_of_grey(20001)[5000:15001:1000]
    mean, log_variance = torch.full_like(x, 0.1), torch.full_like(x, -1.0)
    fine = bound.discrete_reconstruction(x, mean, log_variance, levels=20001)
    density = bound.gaussian_reconstruction(x, mean, log_variance)
    assert torch.allclose(fine, density - math.log(1e-4), rtol=1e-6)


# --- the simple loss, bits ---


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_simple_loss_is_the_bound_with_other_weights(kind, variance):
    levels = torch.cumprod(1 - BETAS, 0)
    step = torch.tensor([1, 30, 999])
    now, previous = levels[step], levels[step - 1]
    x_0, eps = picture()
    x_t = diffusion.add_noise(x_0, eps, now)
    prediction = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    large = 1 - now / previous
    small = large * (1 - previous) / (1 - now)
    chosen = {"fixed_small": small, "fixed_large": large}[variance]
    weight = bound.bound_weight(kind, now, previous, chosen)
    loss = bound.simple_loss(kind, prediction, x_0, eps, now)
    # What no prediction changes: the KL of two variances, of 18 elements.
    rest = 9 * (small / chosen - 1 - (small / chosen).log())
    found = bound.step_terms(prediction, x_0, x_t, step, levels, kind=kind, variance=variance)
    assert torch.allclose(found, weight * loss + rest, rtol=1e-7)


def test_the_weights_of_the_papers():
    levels = torch.cumprod(1 - BETAS, 0)
    now, previous = levels[1:], levels[:-1]
    alpha = 1 - BETAS[1:]
    found = bound.bound_weight("epsilon", now, previous, BETAS[1:])
    expected = BETAS[1:] ** 2 / (2 * BETAS[1:] * alpha * (1 - now))  # Ho et al., eq. 12
    assert torch.allclose(found, expected, rtol=1e-8)
    small = BETAS[1:] * (1 - previous) / (1 - now)
    found = bound.bound_weight("sample", now, previous, small)
    lost = diffusion.signal_to_noise(previous) - diffusion.signal_to_noise(now)
    assert torch.allclose(found, lost / 2, rtol=1e-8)  # Kingma et al., section 4


def test_bits_per_dimension():
    """Pixels of which nothing is known cost 8 bits: as 256 levels, and as a density in [-1, 1]."""
    dimensions = 3 * 32 * 32
    nats = torch.tensor([dimensions * math.log(256)], dtype=torch.float64)
    assert bound.bits_per_dimension(nats, dimensions).tolist() == pytest.approx([8.0])
    # Dequantised, a pixel lies anywhere in 256 bins of 2 / 255.
    nats = torch.tensor([dimensions * math.log(512 / 255)], dtype=torch.float64)
    found = bound.bits_per_dimension(nats, dimensions, unit=127.5)
    assert found.tolist() == pytest.approx([8.0])
