"""The forward process against float64 arithmetic, written differently, and against diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

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


def test_min_snr_weight_at_the_ends():
    """SNR 0 (a zero-terminal schedule) and infinity: no NaN, no infinity."""
    ends = torch.tensor([0.0, 1.0])
    expected = {"epsilon": [1.0, 0.0], "v_prediction": [0.0, 0.0], "sample": [0.0, 5.0]}
    for kind, values in expected.items():
        assert diffusion.min_snr_weight(kind, ends, 5.0).tolist() == values


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
