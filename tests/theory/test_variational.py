"""The variational and adversarial formulas against torch.distributions and plain arithmetic."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ldm_toolkit.theory import divergences, variational


def posterior() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    return mean, 2 * log_variance


def test_kl_equals_the_library():
    mean, log_variance = posterior()
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    assert torch.allclose(variational.kl_to_standard_normal(mean, log_variance), expected)


def test_kl_equals_a_monte_carlo_estimate():
    mean, log_variance = torch.tensor([0.7, -1.2]), torch.tensor([-1.0, 0.5])
    eps = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(1))
    draws = variational.reparameterise(mean, log_variance, eps)
    inside, outside = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    estimate = (inside.log_prob(draws) - outside.log_prob(draws)).mean(dim=0)
    exact = variational.kl_to_standard_normal(mean, log_variance)
    assert torch.allclose(estimate, exact, atol=0.01)


def test_kl_is_zero_only_at_the_standard_normal():
    mean, log_variance = posterior()
    assert (variational.kl_to_standard_normal(mean, log_variance) > 0).all()
    assert variational.kl_to_standard_normal(torch.zeros(1), torch.zeros(1)) == 0


def test_draws_have_the_moments_that_were_asked_for():
    mean, log_variance = torch.tensor(2.0), torch.tensor(-1.5)
    eps = torch.randn(100_000, generator=torch.Generator().manual_seed(2))
    draws = variational.reparameterise(mean, log_variance, eps)
    assert float(draws.mean()) == pytest.approx(2.0, abs=0.01)
    assert float(draws.var()) == pytest.approx(2.718281828**-1.5, rel=0.02)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    expected = 0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert float(variational.discriminator_hinge(real, fake)) == pytest.approx(expected)
    assert float(variational.generator_hinge(fake)) == pytest.approx(2 / 3)


def test_a_critic_that_is_sure_learns_no_more():
    real = torch.tensor([1.5], requires_grad=True)
    fake = torch.tensor([-1.5], requires_grad=True)
    variational.discriminator_hinge(real, fake).backward()
    assert real.grad.item() == fake.grad.item() == 0.0


# --- the gradient through a draw ---


def test_the_gradient_through_a_draw_is_autograds():
    mean, log_variance = (t.clone().requires_grad_() for t in posterior())
    eps = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draw = variational.reparameterise(mean, log_variance, eps)
    draw.sin().sum().backward()
    slope = draw.detach().cos()
    found = variational.reparameterised_gradient(slope, log_variance.detach(), eps)
    assert torch.allclose(found[0], mean.grad, rtol=1e-10, atol=1e-12)
    assert torch.allclose(found[1], log_variance.grad, rtol=1e-10, atol=1e-12)


def test_the_gradient_through_draws_is_that_of_the_expectation():
    """E[z^2] = mean^2 + variance. A normal's expectation of a quadratic is its mean at eps +-1."""
    mean, log_variance = posterior()
    gradients = []
    for eps in (torch.ones_like(mean), -torch.ones_like(mean)):
        draw = variational.reparameterise(mean, log_variance, eps)
        gradients.append(variational.reparameterised_gradient(2 * draw, log_variance, eps))
    by_mean, by_log_variance = (sum(parts) / 2 for parts in zip(*gradients, strict=True))
    assert torch.allclose(by_mean, 2 * mean, rtol=1e-10, atol=1e-12)
    assert torch.allclose(by_log_variance, log_variance.exp(), rtol=1e-10)


def test_log_densities_are_those_of_the_library():
    mean, log_variance = posterior()
    x = torch.linspace(-5, 5, 50, dtype=torch.float64)
    expected = Normal(mean, (0.5 * log_variance).exp()).log_prob(x)
    found = variational.normal_log_density(x, mean, log_variance)
    assert torch.allclose(found, expected, rtol=1e-10)


# --- a VAE whose likelihood is known: z of N(0, I), x = W z + b + N(0, NOISE) ---

WEIGHTS = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1]], dtype=torch.float64)
BIAS = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
NOISE = 0.4
DATA = torch.tensor([[0.9, -1.0, 0.4], [-1.5, 0.3, 2.0]], dtype=torch.float64)


def log_evidence() -> torch.Tensor:
    """log p(x) of DATA: x is N(b, W W^T + NOISE)."""
    covariance = WEIGHTS @ WEIGHTS.mT + NOISE * torch.eye(3, dtype=torch.float64)
    return MultivariateNormal(BIAS, covariance).log_prob(DATA)


def true_posterior() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (2, 2) and covariance (2, 2) of p(z | x) (Bishop 2006, eqs. 12.41 and 12.42)."""
    precision = torch.eye(2, dtype=torch.float64) + WEIGHTS.mT @ WEIGHTS / NOISE
    covariance = torch.linalg.inv(precision)
    return (DATA - BIAS) @ WEIGHTS @ covariance / NOISE, covariance


def poor_encoder() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log variance (2, 2) of a q(z | x) that is shifted, too wide and uncorrelated."""
    mean, covariance = true_posterior()
    return mean + 0.2, (1.5 * covariance.diagonal()).log().expand(2, 2)


def log_likelihood(z: torch.Tensor) -> torch.Tensor:
    """log p(x | z) of latents (..., 2, 2); (..., 2)."""
    log_noise = torch.tensor(math.log(NOISE), dtype=torch.float64)
    return variational.normal_log_density(DATA, z @ WEIGHTS.mT + BIAS, log_noise).sum(-1)


def log_joint(z: torch.Tensor) -> torch.Tensor:
    nothing = torch.zeros_like(z)
    return log_likelihood(z) + variational.normal_log_density(z, nothing, nothing).sum(-1)


def test_the_elbo_falls_short_by_the_encoders_divergence():
    """Its mean over z, exactly: the likelihood is quadratic in eps, so eps of +-1 are enough."""
    mean, log_variance = poor_encoder()
    bounds = []
    for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
        eps = torch.tensor(signs, dtype=torch.float64).expand(2, 2)
        z = variational.reparameterise(mean, log_variance, eps)
        bounds.append(variational.elbo(log_likelihood(z), mean, log_variance))
    true_mean, covariance = true_posterior()
    gap = divergences.kl_multivariate_normal(
        mean, torch.diag_embed(log_variance.exp()), true_mean, covariance.expand(2, 2, 2)
    )
    assert (gap > 0.05).all()
    assert torch.allclose(sum(bounds) / 4, log_evidence() - gap, rtol=1e-10)


def log_weights(count: int) -> torch.Tensor:
    """log p(x, z) / q(z | x) at draws of the poor encoder; (count, 2)."""
    mean, log_variance = poor_encoder()
    rng = torch.Generator().manual_seed(4)
    eps = torch.randn(count, 2, 2, generator=rng, dtype=torch.float64)
    z = variational.reparameterise(mean, log_variance, eps)
    return log_joint(z) - variational.normal_log_density(z, mean, log_variance).sum(-1)


def test_more_importance_samples_come_nearer_to_the_likelihood():
    """The same draws in groups of k: by Jensen's inequality a doubled k never gives less."""
    weights = log_weights(2**15)
    bounds = []
    for k in (2**power for power in range(16)):
        grouped = weights.reshape(-1, k, 2).transpose(0, 1)
        bounds.append(variational.importance_weighted_log_likelihood(grouped).mean(0))
    for fewer, more in pairwise(bounds):
        assert (more > fewer).all()
    truth = log_evidence()
    mean, log_variance = poor_encoder()
    true_mean, covariance = true_posterior()
    gap = divergences.kl_multivariate_normal(
        mean, torch.diag_embed(log_variance.exp()), true_mean, covariance.expand(2, 2, 2)
    )
    # One sample: the ELBO, within four standard errors of a mean of 2^15.
    error = weights.std(0) / 2**7.5
    assert ((bounds[0] - (truth - gap)).abs() < 4 * error).all()
    # All of them: the truth, within four standard errors of the mean of the weights.
    ratio = (weights - truth).exp()
    assert ((bounds[-1] - truth).abs() < 4 * ratio.std(0) / 2**7.5).all()
    assert ((bounds[-1] - truth).abs() < 0.03).all()


@pytest.mark.parametrize("k", [1, 7])
def test_with_the_true_posterior_one_sample_is_enough(k):
    """All weights are p(x) then."""
    mean, covariance = true_posterior()
    encoder = MultivariateNormal(mean, covariance.expand(2, 2, 2))
    eps = torch.randn(k, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = mean + eps @ torch.linalg.cholesky(covariance).mT
    found = variational.importance_weighted_log_likelihood(log_joint(z) - encoder.log_prob(z))
    assert torch.allclose(found, log_evidence(), rtol=1e-10)
