"""Divergences against torch.distributions, closed forms, quadrature and their own error bars."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ldm_toolkit.theory import divergences

# Estimates with a fixed seed have to lie within this many standard errors of the truth.
ERRORS = 4.0


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals() -> tuple[torch.Tensor, ...]:
    """Mean and log variance of 50 pairs of normals."""
    mean_p, log_p, mean_q, log_q = torch.randn(4, 50, generator=rng(), dtype=torch.float64)
    return mean_p, 2 * log_p, mean_q, 2 * log_q


def covariances() -> tuple[torch.Tensor, ...]:
    """Means (6, 3) and covariances (6, 3, 3) of six pairs of vectors."""
    means = torch.randn(2, 6, 3, generator=rng(1), dtype=torch.float64)
    roots = torch.randn(2, 6, 3, 3, generator=rng(2), dtype=torch.float64)
    full = roots @ roots.mT + 0.3 * torch.eye(3, dtype=torch.float64)
    return means[0], full[0], means[1], full[1]


# --- KL of normals ---


def test_kl_of_normals_by_hand_and_by_the_library():
    """KL(N(0, 1) || N(1, 4)) = (log 4 - 1 + 1/4 + 1/4) / 2."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    found = divergences.kl_normal(zero, zero, one, math.log(4) * one)
    assert float(found) == pytest.approx((math.log(4) - 0.5) / 2, rel=1e-12)
    mean_p, log_p, mean_q, log_q = normals()
    p, q = Normal(mean_p, (0.5 * log_p).exp()), Normal(mean_q, (0.5 * log_q).exp())
    found = divergences.kl_normal(mean_p, log_p, mean_q, log_q)
    assert torch.allclose(found, kl_divergence(p, q), rtol=1e-10)


def test_kl_is_positive_zero_for_equals_and_not_symmetric():
    mean_p, log_p, mean_q, log_q = normals()
    there = divergences.kl_normal(mean_p, log_p, mean_q, log_q)
    back = divergences.kl_normal(mean_q, log_q, mean_p, log_p)
    assert (there > 0).all()
    assert (back > 0).all()
    assert ((there - back).abs() > 0.01 * there).sum() > 40
    assert divergences.kl_normal(mean_p, log_p, mean_p, log_p).abs().max() == 0


def test_kl_of_vectors_is_that_of_the_library():
    mean_p, full_p, mean_q, full_q = covariances()
    expected = kl_divergence(MultivariateNormal(mean_p, full_p), MultivariateNormal(mean_q, full_q))
    found = divergences.kl_multivariate_normal(mean_p, full_p, mean_q, full_q)
    assert found.shape == (6,)
    assert torch.allclose(found, expected, rtol=1e-9)
    same = divergences.kl_multivariate_normal(mean_p, full_p, mean_p, full_p)
    assert torch.allclose(same, torch.zeros_like(same), atol=1e-12)


def test_kl_of_vectors_adds_up_over_independent_elements():
    mean_p, log_p, mean_q, log_q = normals()
    found = divergences.kl_multivariate_normal(
        mean_p, torch.diag(log_p.exp()), mean_q, torch.diag(log_q.exp())
    )
    expected = divergences.kl_normal(mean_p, log_p, mean_q, log_q).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-10)


def test_kl_does_not_depend_on_coordinates():
    """KL is the same after x -> A x + b, which turns every mean and covariance."""
    mean_p, full_p, mean_q, full_q = covariances()
    turn = torch.randn(3, 3, generator=rng(3), dtype=torch.float64)
    turned = [mean @ turn.mT + 1.0 for mean in (mean_p, mean_q)]
    full = [turn @ covariance @ turn.mT for covariance in (full_p, full_q)]
    before = divergences.kl_multivariate_normal(mean_p, full_p, mean_q, full_q)
    after = divergences.kl_multivariate_normal(turned[0], full[0], turned[1], full[1])
    assert torch.allclose(before, after, rtol=1e-8)


def test_kl_of_vectors_wants_covariances():
    zero, singular = torch.zeros(2).double(), torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
    with pytest.raises(torch.linalg.LinAlgError):
        divergences.kl_multivariate_normal(zero, torch.eye(2).double(), zero, singular)


# --- probabilities ---


def test_divergences_of_probabilities_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.5], [0.0, 0.5, 0.5]], dtype=torch.float64)
    assert divergences.kl_discrete(p, q).tolist() == pytest.approx([math.log(2), math.inf])
    assert divergences.kl_discrete(q, p).tolist() == [math.inf, math.inf]
    # m = (3/8, 3/8, 1/4): (log(4/3) + log(2/3) / 2 + log(2) / 2) / 2 = log(4/3) 3/4
    expected = [0.75 * math.log(4 / 3), math.log(2)]
    assert divergences.js_discrete(p, q).tolist() == pytest.approx(expected, rel=1e-12)


def test_divergences_of_probabilities_keep_their_laws():
    p, q = torch.rand(2, 200, 6, generator=rng(4), dtype=torch.float64)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    there, back = divergences.kl_discrete(p, q), divergences.kl_discrete(q, p)
    assert (there > 0).all()
    assert ((there - back).abs() > 0).all()
    assert divergences.kl_discrete(p, p).abs().max() < 1e-15
    js = divergences.js_discrete(p, q)
    assert torch.allclose(js, divergences.js_discrete(q, p), rtol=1e-12)
    assert (js > 0).all()
    assert (js < math.log(2)).all()
    assert divergences.js_discrete(p, p).abs().max() < 1e-15


# --- estimates ---


def test_estimated_kl_of_normals_lies_within_its_error():
    mean_p, full_p, mean_q, full_q = covariances()
    p, q = MultivariateNormal(mean_p, full_p), MultivariateNormal(mean_q, full_q)
    eps = torch.randn(20_000, 6, 3, 1, generator=rng(5), dtype=torch.float64)
    draws = mean_p + (torch.linalg.cholesky(full_p) @ eps).squeeze(-1)
    estimate, error = divergences.kl_monte_carlo(p.log_prob(draws), q.log_prob(draws))
    exact = divergences.kl_multivariate_normal(mean_p, full_p, mean_q, full_q)
    assert ((estimate - exact).abs() < ERRORS * error).all()
    assert (error < 0.05 * exact + 0.02).all()


def test_estimated_kl_of_waiting_times():
    """KL(Exp(a) || Exp(b)) = log(a / b) + b / a - 1."""
    a, b = 2.0, 0.7
    uniform = torch.rand(100_000, generator=rng(6), dtype=torch.float64)
    draws = -torch.log1p(-uniform) / a
    log_p, log_q = math.log(a) - a * draws, math.log(b) - b * draws
    estimate, error = divergences.kl_monte_carlo(log_p, log_q)
    exact = math.log(a / b) + b / a - 1
    assert abs(float(estimate) - exact) < ERRORS * float(error)
    assert float(error) == pytest.approx((1 - b / a) / math.sqrt(100_000), rel=0.02)


def test_the_error_bar_is_the_spread_of_estimates():
    """Of 400 estimates; a spread of 400 is known to 1 / sqrt(800), 3.5 %: four times that."""
    x = torch.randn(1000, 400, generator=rng(7), dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    log_p = Normal(zero, 1.0).log_prob(x)
    log_q = Normal(zero + 0.5, 1.3).log_prob(x)
    estimates, errors = divergences.kl_monte_carlo(log_p, log_q)
    assert float(estimates.std()) == pytest.approx(float(errors.mean()), rel=0.15)


@pytest.mark.parametrize("apart", [0.0, 0.25, 0.9, 1.0])
def test_estimated_js_of_two_boxes(apart):
    """Uniform on [0, 1] and on [a, 1 + a]: of each, the share a is recognised, JS = a log 2."""
    at_p = torch.rand(20_000, generator=rng(8), dtype=torch.float64)
    at_q = torch.rand(20_000, generator=rng(9), dtype=torch.float64) + apart

    def log_box(x: torch.Tensor, start: float) -> torch.Tensor:
        return torch.where((x >= start) & (x <= start + 1), 0.0, -math.inf).double()

    estimate, error = divergences.js_monte_carlo(
        log_box(at_p, 0.0), log_box(at_p, apart), log_box(at_q, 0.0), log_box(at_q, apart)
    )
    exact = apart * math.log(2)
    assert abs(float(estimate) - exact) <= ERRORS * float(error) + 1e-12
    expected = math.log(2) * math.sqrt(apart * (1 - apart) / 20_000 / 2)
    assert float(error) == pytest.approx(expected, rel=0.05, abs=1e-12)


def test_estimated_js_of_normals_is_their_integral():
    """The integral by the trapezium rule, which is exact to rounding for such densities."""
    zero = torch.zeros(1, dtype=torch.float64)
    p, q = Normal(zero, 1.0), Normal(zero + 1.5, 0.6)
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density_p, density_q = p.log_prob(grid).exp(), q.log_prob(grid).exp()
    exact = divergences.js_discrete(density_p, density_q) * float(grid[1] - grid[0])
    at_p = torch.randn(50_000, generator=rng(10), dtype=torch.float64)
    at_q = 1.5 + 0.6 * torch.randn(50_000, generator=rng(11), dtype=torch.float64)
    estimate, error = divergences.js_monte_carlo(
        p.log_prob(at_p), q.log_prob(at_p), p.log_prob(at_q), q.log_prob(at_q)
    )
    assert abs(float(estimate - exact)) < ERRORS * float(error)
    assert float(error) < 0.002
    swapped, _ = divergences.js_monte_carlo(
        q.log_prob(at_q), p.log_prob(at_q), q.log_prob(at_p), p.log_prob(at_p)
    )
    assert float(swapped) == pytest.approx(float(estimate), rel=1e-12)
