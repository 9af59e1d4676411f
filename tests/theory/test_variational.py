"""The variational and adversarial formulas against torch.distributions and plain arithmetic."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm_toolkit.theory import variational


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
