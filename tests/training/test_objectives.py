"""Losses of a batch against plain arithmetic in float64."""

import numpy as np
import pytest
import torch

from ldm_toolkit.training import objectives


def batch(seed=0):
    rng = torch.Generator().manual_seed(seed)
    prediction, x_0, eps = torch.randn(3, 4, 4, 3, 3, generator=rng)
    return prediction, x_0, eps, torch.tensor([0.99, 0.6, 0.2, 0.005])


@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_prediction_loss(kind, gamma):
    prediction, x_0, eps, alpha_bar = batch()
    loss = objectives.noise_prediction_loss(prediction, kind, x_0, eps, alpha_bar, gamma)
    p, x, e = (t.double().numpy() for t in (prediction, x_0, eps))
    parts = []
    for i, a in enumerate(alpha_bar.double().tolist()):
        target = e[i] if kind == "epsilon" else np.sqrt(a) * e[i] - np.sqrt(1 - a) * x[i]
        snr = a / (1 - a)
        weight = min(snr, gamma) / (snr if kind == "epsilon" else snr + 1) if gamma else 1.0
        parts.append(weight * np.mean((p[i] - target) ** 2))
    assert float(loss) == pytest.approx(np.mean(parts), rel=1e-5)


def test_losses_are_float32_under_autocast_dtypes():
    prediction, x_0, eps, alpha_bar = batch()
    half = objectives.noise_prediction_loss(prediction.bfloat16(), "epsilon", x_0, eps, alpha_bar)
    assert half.dtype == torch.float32
    assert objectives.reconstruction_loss(x_0.bfloat16(), eps, 1.0).dtype == torch.float32


def test_reconstruction_loss():
    rng = torch.Generator().manual_seed(0)
    made, pixels = torch.randn(2, 2, 3, 5, 6, generator=rng)
    error = (made - pixels).double().numpy()
    plain = np.abs(error).mean()
    edges = np.abs(np.diff(error, axis=-1)).mean() + np.abs(np.diff(error, axis=-2)).mean()
    assert float(objectives.reconstruction_loss(made, pixels, 0.0)) == pytest.approx(plain)
    found = float(objectives.reconstruction_loss(made, pixels, 0.5))
    assert found == pytest.approx(plain + 0.5 * edges)
    assert float(objectives.reconstruction_loss(made + 3, made, 0.5)) == pytest.approx(3.0)


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    fit, fooled = (3 * layer).sum(), (layer * torch.tensor([0.0, 0.5])).sum()
    weight = objectives.adaptive_weight(fit, fooled, layer)
    assert float(weight) == pytest.approx(3 * 2**0.5 / 0.5, rel=1e-4)
    assert not weight.requires_grad
    (fit + weight * fooled).backward()  # the graph is still there
    tiny = (layer * 1e-12).sum()
    assert float(objectives.adaptive_weight((3 * layer).sum(), tiny, layer)) == 1e4


def test_the_discriminator_judges_patches():
    logits = objectives.PatchDiscriminator()(torch.zeros(2, 3, 64, 64))
    assert logits.shape[:2] == (2, 1)
    assert logits.shape[-1] > 4
