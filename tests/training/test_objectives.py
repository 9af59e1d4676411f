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
def test_prediction_errors(kind, gamma):
    prediction, x_0, eps, alpha_bar = batch()
    loss = objectives.prediction_errors(prediction, kind, x_0, eps, alpha_bar, gamma).mean()
    p, x, e = (t.double().numpy() for t in (prediction, x_0, eps))
    parts = []
    for i, a in enumerate(alpha_bar.double().tolist()):
        target = e[i] if kind == "epsilon" else np.sqrt(a) * e[i] - np.sqrt(1 - a) * x[i]
        snr = a / (1 - a)
        weight = min(snr, gamma) / (snr if kind == "epsilon" else snr + 1) if gamma else 1.0
        parts.append(weight * np.mean((p[i] - target) ** 2))
    assert float(loss) == pytest.approx(np.mean(parts), rel=1e-5)


def expected_loss_and_gradient(kind, weighting, mask, prior=None, prior_weight=0.0):
    """The loss and its gradient by the prediction, in numpy and float64, sample by sample."""
    prediction, x_0, eps, alpha_bar = batch()
    p, x, e = (t.double().numpy() for t in (prediction, x_0, eps))
    prior = [False] * len(p) if prior is None else prior
    loss, gradient = 0.0, np.zeros_like(p)
    for i, a in enumerate(alpha_bar.double().tolist()):
        snr = a / (1 - a)
        target = {
            "epsilon": e[i],
            "v_prediction": np.sqrt(a) * e[i] - np.sqrt(1 - a) * x[i],
            "sample": x[i],
        }[kind]
        factor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[kind]
        weight = {"none": 1.0, "min_snr": min(snr, 5.0) / factor, "debiased": factor**-0.5}
        shown = np.ones((1, 3, 3)) if mask is None else mask[i].double().numpy()
        area = p[i].size * shown.mean() if shown.any() else 1.0
        share = prior_weight / sum(prior) if prior[i] else 1 / (len(p) - sum(prior))
        part = share * weight[weighting] / area * shown * (p[i] - target)
        loss += np.sum(part * (p[i] - target))
        gradient[i] = 2 * part
    return loss, gradient


def weighting_options(weighting):
    return {"gamma": 5.0 if weighting == "min_snr" else 0.0, "debiased": weighting == "debiased"}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_losses_and_gradients(kind, weighting, masked):
    prediction, x_0, eps, alpha_bar = batch()
    prediction.requires_grad_()
    mask = None
    if masked:
        mask = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
        mask[1], mask[2, :, :2] = 0.0, 0.0  # one shows nothing, one little
    options = weighting_options(weighting)
    loss = objectives.prediction_errors(
        prediction, kind, x_0, eps, alpha_bar, mask=mask, **options
    ).mean()
    loss.backward()
    value, gradient = expected_loss_and_gradient(kind, weighting, mask)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-5)
    found = prediction.grad.double().numpy()
    assert np.allclose(found, gradient, rtol=1e-4, atol=1e-6 * np.abs(gradient).max())


@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_prior_preservation_with_weights(kind, weighting):
    prediction, x_0, eps, alpha_bar = batch()
    prediction.requires_grad_()
    prior = [False, True, False, False]
    errors = objectives.prediction_errors(
        prediction, kind, x_0, eps, alpha_bar, **weighting_options(weighting)
    )
    loss = objectives.prior_preservation(errors, torch.tensor(prior), 0.7)
    loss.backward()
    value, gradient = expected_loss_and_gradient(kind, weighting, None, prior, 0.7)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-5)
    found = prediction.grad.double().numpy()
    assert np.allclose(found, gradient, rtol=1e-4, atol=1e-6 * np.abs(gradient).max())


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_an_instance_is_not_weighted_by_the_timestep_of_its_prior(kind):
    """One instance and one class picture, the latter at the last step of a zero-terminal schedule.

    diffusers' DreamBooth script broadcasts both weights over the instance's loss.
    """
    prediction, x_0, eps, alpha_bar = (t[:2] for t in batch())
    prior, gradients = torch.tensor([False, True]), []
    for other in (0.9, 0.0):
        predicted = prediction.clone().requires_grad_()
        levels = torch.tensor([float(alpha_bar[0]), other])
        errors = objectives.prediction_errors(predicted, kind, x_0, eps, levels, 5.0)
        objectives.prior_preservation(errors, prior, 1.0).backward()
        gradients.append(predicted.grad)
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])
    assert torch.isfinite(gradients[1]).all()
    assert gradients[1][1].abs().min() > 0


# min-SNR weights at SNR 0 (the last step of a zero-terminal schedule), 1, 9 and infinity; gamma 5.
LEVELS = [0.0, 0.5, 0.9, 1.0]
WEIGHTS = {"epsilon": [1.0, 1.0, 5 / 9, 0.0], "v_prediction": [1.0, 1 / 2, 5 / 10, 0.0]}


@pytest.mark.parametrize("other", range(4))
@pytest.mark.parametrize("one", range(4))
@pytest.mark.parametrize("kind", WEIGHTS)
def test_min_snr_from_no_signal_to_no_noise_with_prior_preservation(kind, one, other):
    """One picture of the subject, one of the class, each with its own weight: 0.3 times the latter.

    diffusers' scripts divide 0 by 0 at SNR 0 of epsilon, give v no gradient there, and weigh either
    picture by both timesteps.
    """
    prediction, x_0, eps, _ = (t[:2] for t in batch())
    prediction = prediction.clone().requires_grad_()
    levels = torch.tensor([LEVELS[one], LEVELS[other]])
    errors = objectives.prediction_errors(prediction, kind, x_0, eps, levels, 5.0)
    loss = objectives.prior_preservation(errors, torch.tensor([False, True]), 0.3)
    loss.backward()
    expected, shares = 0.0, (1.0, 0.3)
    for row, place in enumerate((one, other)):
        p, x, e = (t.detach()[row].double().numpy() for t in (prediction, x_0, eps))
        a = LEVELS[place]
        target = e if kind == "epsilon" else np.sqrt(a) * e - np.sqrt(1 - a) * x
        factor = shares[row] * WEIGHTS[kind][place]
        expected += factor * np.mean((p - target) ** 2)
        gradient = 2 * factor * (p - target) / p.size
        assert np.allclose(prediction.grad[row].numpy(), gradient, rtol=1e-4, atol=1e-8)
        assert prediction.grad[row].any() == (WEIGHTS[kind][place] > 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_a_batch_may_lack_either_part_of_prior_preservation():
    errors = torch.tensor([1.0, 3.0])
    for prior, expected in (([False, False], 2.0), ([True, True], 1.0), ([True, False], 3.5)):
        found = objectives.prior_preservation(errors, torch.tensor(prior), 0.5)
        assert float(found) == pytest.approx(expected)


def test_masked_means():
    values = torch.arange(16.0).reshape(2, 2, 2, 2)
    everything = objectives.masked_mean(values, torch.ones(2, 1, 2, 2))
    assert torch.allclose(everything, values.mean((1, 2, 3)))
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    values.requires_grad_()
    found = objectives.masked_mean(values, mask)
    assert found.tolist() == [2.0, 0.0]  # the mean of 0 and 4; nothing
    assert torch.equal(objectives.masked_mean(values, 0.25 * mask), found)  # how much, not how big
    found.sum().backward()
    assert torch.isfinite(values.grad).all()
    assert not values.grad[1].any()


def test_losses_are_float32_under_autocast_dtypes():
    prediction, x_0, eps, alpha_bar = batch()
    half = objectives.prediction_errors(prediction.bfloat16(), "epsilon", x_0, eps, alpha_bar)
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


def test_squared_reconstruction_loss():
    rng = torch.Generator().manual_seed(0)
    made, pixels = torch.randn(2, 2, 3, 5, 6, generator=rng)
    error = (made - pixels).double().numpy()
    edges = np.abs(np.diff(error, axis=-1)).mean() + np.abs(np.diff(error, axis=-2)).mean()
    made.requires_grad_()
    loss = objectives.reconstruction_loss(made, pixels, 0.0, "l2")
    assert float(loss.detach()) == pytest.approx(np.mean(error**2))
    (gradient,) = torch.autograd.grad(loss, made)
    assert np.allclose(gradient.numpy(), 2 * error / error.size, rtol=1e-5, atol=1e-9)
    found = objectives.reconstruction_loss(made.detach(), pixels, 0.5, "l2")
    assert float(found) == pytest.approx(np.mean(error**2) + 0.5 * edges)


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
