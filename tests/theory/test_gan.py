"""Adversarial losses by plain arithmetic, and the game on densities that are known."""

import math

import pytest
import torch
from torch.distributions import Normal

from ldm_toolkit.theory import divergences, gan, variational

# How often each of four values occurs among ten of the data and ten of the model: all means over
# these draws are exact expectations.
DATA, MODEL = (1, 2, 3, 4), (4, 3, 2, 1)


def draws(values: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    return values.repeat_interleave(torch.tensor(counts))


def best_logits() -> torch.Tensor:
    data, model = (torch.tensor(c, dtype=torch.float64) / 10 for c in (DATA, MODEL))
    return gan.optimal_logit(data.log(), model.log())


def value(logits: torch.Tensor) -> torch.Tensor:
    return gan.game_value(draws(logits, DATA), draws(logits, MODEL))


def test_losses_by_plain_arithmetic():
    real, fake = [2.0, 0.5, -1.0], [-3.0, 0.0]
    of_real, of_fake = ([1 / (1 + math.exp(-x)) for x in logits] for logits in (real, fake))
    worth = sum(map(math.log, of_real)) / 3 + sum(math.log(1 - d) for d in of_fake) / 2
    real, fake = torch.tensor(real, dtype=torch.float64), torch.tensor(fake, dtype=torch.float64)
    assert float(gan.game_value(real, fake)) == pytest.approx(worth, rel=1e-12)
    assert float(gan.discriminator_minimax(real, fake)) == pytest.approx(-worth, rel=1e-12)
    expected = sum(math.log(1 - d) for d in of_fake) / 2
    assert float(gan.generator_minimax(fake)) == pytest.approx(expected, rel=1e-12)
    expected = -sum(map(math.log, of_fake)) / 2
    assert float(gan.generator_non_saturating(fake)) == pytest.approx(expected, rel=1e-12)


def test_the_hinge_losses_are_those_that_training_uses():
    assert gan.discriminator_hinge is variational.discriminator_hinge
    assert gan.generator_hinge is variational.generator_hinge


def test_losses_stand_sure_logits():
    sure = torch.tensor([1000.0])
    assert float(gan.discriminator_minimax(sure, -sure)) == 0
    assert float(gan.discriminator_minimax(-sure, sure)) == pytest.approx(2000.0)
    assert float(gan.generator_minimax(sure)) == pytest.approx(-1000.0)
    assert float(gan.generator_non_saturating(-sure)) == pytest.approx(1000.0)


def test_the_minimax_loss_saturates_and_the_other_does_not():
    """Slopes by the logit are -D and D - 1: both pull upwards, one not where the logit is low."""
    logits = torch.tensor([-20.0, -2.0, 0.0, 3.0], dtype=torch.float64)
    belief = logits.sigmoid()
    for loss, slope in (
        (gan.generator_minimax, -belief / 4),
        (gan.generator_non_saturating, (belief - 1) / 4),
    ):
        held = logits.clone().requires_grad_()
        loss(held).backward()
        assert torch.allclose(held.grad, slope, rtol=1e-9)


def test_the_best_discriminator_is_the_share_of_the_data():
    data, model = (torch.tensor(c, dtype=torch.float64) / 10 for c in (DATA, MODEL))
    found = gan.optimal_discriminator(data.log(), model.log())
    assert found.tolist() == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5], rel=1e-12)


def test_no_discriminator_is_better_than_the_best():
    best = best_logits().requires_grad_()
    gan.discriminator_minimax(draws(best, DATA), draws(best, MODEL)).backward()
    assert best.grad.abs().max() < 1e-12
    for seed in range(20):
        shift = torch.randn(4, generator=torch.Generator().manual_seed(seed)).double()
        assert float(value(best.detach() + shift)) < float(value(best.detach()))


def test_the_value_of_the_game_is_that_of_the_divergence():
    """2 JS - log 4, exactly, for probabilities."""
    data, model = (torch.tensor(c, dtype=torch.float64) / 10 for c in (DATA, MODEL))
    expected = gan.optimal_value(divergences.js_discrete(data, model))
    assert float(value(best_logits())) == pytest.approx(float(expected), rel=1e-12)


def test_the_value_of_the_game_on_two_normals():
    """At draws of N(0, 1) and N(1.5, 0.6^2); JS is integrated by the trapezium rule."""
    zero = torch.zeros(1, dtype=torch.float64)
    data, model = Normal(zero, 1.0), Normal(zero + 1.5, 0.6)
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    densities = [density.log_prob(grid).exp() for density in (data, model)]
    js = divergences.js_discrete(*densities) * float(grid[1] - grid[0])
    eps = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, fake = eps[0], 1.5 + 0.6 * eps[1]
    logits = [gan.optimal_logit(data.log_prob(x), model.log_prob(x)) for x in (real, fake)]
    # Twice the standard error of JS, which is below 0.0015 here, times four.
    assert float(gan.game_value(*logits)) == pytest.approx(float(gan.optimal_value(js)), abs=0.012)


@pytest.mark.parametrize("apart", [0.0, 0.5, 1.0])
def test_the_value_of_the_game_on_two_boxes(apart):
    """Uniform on [0, 1] and on [a, 1 + a]: JS = a log 2; outside the overlap nothing is open."""
    real = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    fake = real + apart
    logits = [
        gan.optimal_logit(
            torch.where(x <= 1, 0.0, -math.inf).double(),
            torch.where(x >= apart, 0.0, -math.inf).double(),
        )
        for x in (real, fake)
    ]
    expected = gan.optimal_value(torch.tensor(apart * math.log(2), dtype=torch.float64))
    assert float(gan.game_value(*logits)) == pytest.approx(float(expected), abs=1e-12)


def test_what_the_game_is_worth_at_its_ends():
    ends = gan.optimal_value(torch.tensor([0.0, math.log(2)], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([-math.log(4), 0.0], abs=1e-12)
