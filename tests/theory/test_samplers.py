"""The samplers on data of which everything is known; diffusers' are compared in tests/parity.

For data of N(0, VARIANCE) a perfect network is linear, and so is a whole run: fed with weights, of
the start and of each step's noise, it gives the weights of the result, whose squares sum to the
result's variance. No number is drawn.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ldm_toolkit.theory import diffusion, samplers

KINDS = ["epsilon", "v_prediction", "sample"]
VARIANCE = 0.25
# Betas of Stable Diffusion.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SCHEDULE = torch.cumprod(1 - BETAS, 0)


def levels(steps: int) -> torch.Tensor:
    return samplers.visited_levels(SCHEDULE, torch.linspace(999, 0, steps).long())


def perfect(
    visited: torch.Tensor, kind: str = "epsilon", mean: float = 0.0, variance: float = VARIANCE
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    return lambda x, i: diffusion.gaussian_prediction(kind, x, visited[i], mean, variance)


def weights(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Start (1, steps + 1) and noise (steps, 1, steps + 1), each a coordinate of its own."""
    parts = torch.eye(steps + 1, dtype=torch.float64)[:, None]
    return parts[0], parts[1:]


def deviation(made: torch.Tensor) -> float:
    return float(made.square().sum().sqrt())


# --- what is visited ---


def test_visited_levels_and_their_noise():
    found = samplers.visited_levels(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([2, 0]))
    assert found.tolist() == pytest.approx([0.2, 0.9, 1.0])
    assert samplers.noise_levels(found).tolist() == pytest.approx([2.0, 1 / 3, 0.0])
    found = samplers.visited_levels(torch.tensor([0.9, 0.5]), torch.tensor([1]), last=0.9)
    assert found.tolist() == pytest.approx([0.5, 0.9])


# --- all of them ---

SAMPLERS = {
    "ddpm": lambda *given, **settings: samplers.ddpm(*given, **settings),
    "ddpm, large": lambda *given, **settings: samplers.ddpm(
        *given, variance="fixed_large", **settings
    ),
    "ddim": lambda *given, **settings: samplers.ddim(*given, **settings),
    "ddim, eta 0.5": lambda *given, **settings: samplers.ddim(*given, eta=0.5, **settings),
    "ddim, eta 1": lambda *given, **settings: samplers.ddim(*given, eta=1.0, **settings),
    "lms": lambda denoise, x, visited, noise, **settings: samplers.lms(
        denoise, x / visited[0].sqrt(), samplers.noise_levels(visited), **settings
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_network_makes_the_data(name):
    """With many steps: what starts as N(0, 1) ends with the data's deviation and mean."""
    visited = levels(500)
    start, noise = weights(500)
    made = SAMPLERS[name](perfect(visited), start, visited, noise)
    assert deviation(made) == pytest.approx(VARIANCE**0.5, rel=0.02)
    nothing = torch.zeros(500, 1, 1, dtype=torch.float64)
    start = 0.7 * visited[:1, None].sqrt()
    made = SAMPLERS[name](perfect(visited, mean=0.7), start, visited, nothing)
    assert float(made) == pytest.approx(0.7, rel=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_data_of_one_point_is_found_in_any_number_of_steps(name):
    for steps in (1, 2, 7):
        visited = levels(steps)
        x, *noise = torch.randn(
            steps + 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        made = SAMPLERS[name](perfect(visited, mean=-0.4, variance=0.0), x, visited, noise)
        assert torch.allclose(made, torch.full_like(made, -0.4), atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_result_is_the_same_whatever_the_network_predicts(name):
    visited = levels(12)
    x, *noise = torch.randn(13, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    made = [
        SAMPLERS[name](perfect(visited, kind, mean=0.2), x, visited, noise, kind=kind)
        for kind in KINDS
    ]
    assert torch.allclose(made[1], made[0], rtol=1e-8)
    assert torch.allclose(made[2], made[0], rtol=1e-8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pictures_keep_their_dtype(name):
    visited = levels(3)
    x, *noise = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2))
    assert SAMPLERS[name](perfect(visited), x, visited, noise).dtype == torch.float32


@pytest.mark.parametrize("name", SAMPLERS)
def test_unknown_predictions_are_an_error(name):
    visited = levels(2)
    x = torch.zeros(1, 1).double()
    with pytest.raises(KeyError):
        SAMPLERS[name](perfect(visited), x, visited, [x, x], kind="score")


# --- DDPM and DDIM ---


def test_ddim_with_eta_one_is_ddpm():
    visited = levels(10)
    start, noise = weights(10)
    by_ddpm = samplers.ddpm(perfect(visited), start, visited, noise)
    by_ddim = samplers.ddim(perfect(visited), start, visited, noise, eta=1.0)
    assert torch.allclose(by_ddim, by_ddpm, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_of_ddim_keeps_the_levels_whatever_eta(eta):
    """With the true x_0 and noise, x_{t-1} is again sqrt(a) x_0 + noise of variance 1 - a.

    As weights of x_0, of the noise in x_t and of the noise that is drawn anew.
    """
    x_0, eps, anew = torch.eye(3, dtype=torch.float64)[:, None]
    level, previous = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x_t = diffusion.add_noise(x_0, eps, level)
    (made,) = samplers.ddim_step(eps, x_t, anew, level, previous, eta=eta)
    assert float(made[0]) == pytest.approx(0.6**0.5, rel=1e-12)
    assert float(made[1:].square().sum()) == pytest.approx(0.4, rel=1e-12)
    sigma = eta * (0.4 / 0.7 * (1 - 0.3 / 0.6)) ** 0.5
    assert float(made[2]) == pytest.approx(sigma, abs=1e-15)


def test_a_step_of_ddpm_is_a_draw_of_the_reverse_process():
    x_t, output, eps = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(3)).double()
    level, previous = torch.tensor([0.3, 0.6], dtype=torch.float64)
    guess = (x_t - 0.7**0.5 * output) / 0.3**0.5
    mean = (0.5**0.5 * 0.4 * x_t + 0.6**0.5 * 0.5 * guess) / 0.7
    for variance, expected in (("fixed_small", 0.5 * 0.4 / 0.7), ("fixed_large", 0.5)):
        made = samplers.ddpm_step(output, x_t, eps, level, previous, variance=variance)
        assert torch.allclose(made, mean + expected**0.5 * eps, rtol=1e-10)
    both = torch.cat([output, torch.zeros_like(output)], 1)
    made = samplers.ddpm_step(both, x_t, eps, level, previous, variance="learned")
    deviation = (0.5 * 0.5 * 0.4 / 0.7) ** 0.25
    assert torch.allclose(made, mean + deviation * eps, rtol=1e-10)


def test_ddpm_with_a_learned_variance_ends_too():
    visited = levels(6)
    x, *noise = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(4)).double()
    guess = perfect(visited)

    def learned(x_t: torch.Tensor, i: int) -> torch.Tensor:
        return torch.cat([guess(x_t, i), torch.full_like(x_t, -1.0)], 1)

    made = samplers.ddpm(learned, x, visited, noise, variance="learned")
    expected = samplers.ddpm(guess, x, visited, noise)
    assert torch.allclose(made, expected, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_zero_terminal_schedule_is_sampled_from_v(eta):
    """At alpha_bar 0 the picture is pure noise; all of that may be drawn anew."""
    visited = samplers.visited_levels(
        diffusion.zero_terminal_snr(SCHEDULE), torch.arange(999, -1, -1)
    )
    assert visited[0] == 0
    start, noise = weights(1000)
    made = samplers.ddim(
        perfect(visited, "v_prediction"), start, visited, noise, kind="v_prediction", eta=eta
    )
    assert deviation(made) == pytest.approx(VARIANCE**0.5, rel=0.02)


# --- LMS ---


def test_the_coefficients_are_those_of_adams_and_bashforth():
    even = torch.tensor([8.0, 6.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    table = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
    table[4] = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    for order, expected in table.items():
        found = samplers.lms_coefficients(even, 3, order)
        assert found == pytest.approx([-2 * c for c in expected], rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_uneven_steps_integrate_polynomials_exactly(order):
    sigmas = torch.tensor([14.6, 9.7, 6.2, 4.9, 3.0, 0.0], dtype=torch.float64)
    for step in range(order - 1, 5):
        found = samplers.lms_coefficients(sigmas, step, order)
        known = sigmas[step - order + 1 : step + 1].flip(0).tolist()
        start, end = sigmas[step].item(), sigmas[step + 1].item()
        for power in range(order):
            integral = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
            estimate = sum(c * s**power for c, s in zip(found, known, strict=True))
            assert estimate == pytest.approx(integral, rel=1e-9)


def test_lms_of_order_one_is_ddim():
    """Both are Euler's method for the same equation, in x / sqrt(alpha_bar)."""
    visited = levels(9)
    x, *noise = torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(5)).double()
    by_ddim = samplers.ddim(perfect(visited, mean=0.3), x, visited, noise)
    by_lms = samplers.lms(
        perfect(visited, mean=0.3), x / visited[0].sqrt(), samplers.noise_levels(visited), order=1
    )
    assert torch.allclose(by_lms, by_ddim, rtol=1e-9)


def test_a_higher_order_needs_fewer_steps():
    """The exact solution for this data: x falls with sqrt(VARIANCE + sigma^2)."""
    sigmas = torch.tensor([*np.geomspace(15.0, 0.01, 80).tolist(), 0.0], dtype=torch.float64)

    def slope(scaled: torch.Tensor, i: int) -> torch.Tensor:
        return diffusion.gaussian_prediction(
            "epsilon", scaled, 1 / (1 + sigmas[i] ** 2), 0.0, VARIANCE
        )

    start = torch.ones(1, 1, dtype=torch.float64)
    exact = math.sqrt(VARIANCE / (VARIANCE + 15.0**2))
    errors = [
        abs(float(samplers.lms(slope, start, sigmas, order=k)) / exact - 1) for k in (1, 2, 4)
    ]
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 2
    assert errors[2] < 0.005
