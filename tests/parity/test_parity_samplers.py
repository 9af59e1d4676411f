"""Our own DDPM, DDIM and LMS against diffusers' schedulers, run from noise to picture in float64.

The levels are diffusers', which computes them, and the coefficients of each step, in float32; the
difference that is left, below 1e-5, is the rounding of its coefficients.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LMSDiscreteScheduler

from ldm_toolkit.theory import diffusion, samplers

TOLERANCE = 1e-5
STEPS = 20
SHAPE = (2, 4, 3, 3)
KINDS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def network(kind: str, levels: torch.Tensor) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """One that is not linear, guesses pictures in [-1, 1] and says so as ``kind``."""

    def predict(x: torch.Tensor, i: int) -> torch.Tensor:
        guess = torch.tanh(1.5 * levels[i].sqrt() * x)
        eps = (x - levels[i].sqrt() * guess) / (1 - levels[i]).sqrt()
        return diffusion.prediction_target(kind, guess, eps, levels[i])

    return predict


def draws(count: int) -> list[torch.Tensor]:
    """One after another, as a scheduler draws them."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=rng, dtype=torch.float64) for _ in range(count)]


def run(
    scheduler: Any,
    model: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    settings: Callable[[int], dict[str, Any]] = lambda i: {},
) -> torch.Tensor:
    """Diffusers' own loop; ``settings`` are those of its i-th ``step``."""
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(x, t), i)
        x = scheduler.step(output, t, x, **settings(i)).prev_sample
    return x


def make(scheduler: type, spacing: str, **settings: Any) -> Any:
    made = scheduler(timestep_spacing=spacing, **SCHEDULE, **settings)
    made.set_timesteps(STEPS)
    return made


def visited(scheduler: Any, last: float = 1.0) -> torch.Tensor:
    return samplers.visited_levels(scheduler.alphas_cumprod.double(), scheduler.timesteps, last)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert found.dtype == expected.dtype == torch.float64
    assert 0.1 < float(expected.std()) < 3
    return float((found - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_ddpm(kind, variance, spacing):
    """Spacings that end at timestep 0; after others diffusers adds noise to the last picture."""
    theirs = {"learned": "learned_range"}.get(variance, variance)
    settings = {"prediction_type": kind, "variance_type": theirs, "clip_sample": False}
    scheduler = make(DDPMScheduler, spacing, **settings)
    levels = visited(scheduler)
    predict = network(kind, levels)

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        output = predict(x, i)
        return torch.cat([output, torch.cos(x)], 1) if variance == "learned" else output

    x, *noise = draws(STEPS + 1)
    rng = torch.Generator().manual_seed(0)
    torch.randn(SHAPE, generator=rng, dtype=torch.float64)  # the start
    expected = run(scheduler, model, x, lambda i: {"generator": rng})
    found = samplers.ddpm(model, x, levels, torch.stack(noise), kind=kind, variance=variance)
    assert same(found, expected)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim(kind, eta, spacing):
    """Spacings whose timesteps are evenly apart; diffusers' DDIM takes them to be so."""
    scheduler = make(DDIMScheduler, spacing, prediction_type=kind, clip_sample=False)
    levels = visited(scheduler)
    model = network(kind, levels)
    x, *noise = draws(STEPS + 1)
    expected = run(scheduler, model, x, lambda i: {"eta": eta, "variance_noise": noise[i]})
    found = samplers.ddim(model, x, levels, torch.stack(noise), kind=kind, eta=eta)
    assert same(found, expected)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_as_stable_diffusion_has_it(eta):
    """Timesteps one later, and the end is the first level instead of the clean picture."""
    settings = {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
    scheduler = make(DDIMScheduler, "leading", **settings)
    levels = visited(scheduler, float(scheduler.alphas_cumprod[0]))
    model = network("epsilon", levels)
    x, *noise = draws(STEPS + 1)
    expected = run(scheduler, model, x, lambda i: {"eta": eta, "variance_noise": noise[i]})
    found = samplers.ddim(model, x, levels, torch.stack(noise), eta=eta)
    assert same(found, expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("order", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_lms(kind, order, spacing):
    scheduler = make(LMSDiscreteScheduler, spacing, prediction_type=kind)
    sigmas = scheduler.sigmas.double()
    model = network(kind, 1 / (1 + sigmas.square()))
    x = draws(1)[0] * sigmas[0]
    expected = run(scheduler, model, x, lambda i: {"order": order})
    found = samplers.lms(model, x, sigmas, kind=kind, order=order)
    assert same(found, expected)


def test_noise_levels_are_those_of_diffusers():
    scheduler = make(LMSDiscreteScheduler, "leading")
    levels = samplers.visited_levels(scheduler.alphas_cumprod.double(), scheduler.timesteps.long())
    assert torch.allclose(samplers.noise_levels(levels), scheduler.sigmas.double(), rtol=1e-5)
