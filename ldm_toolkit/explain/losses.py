"""What is minimised: the bound of the diffusion, and the game of the autoencoder's training."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from ldm_toolkit.explain.picture import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SOFT,
    VERMILION,
    Picture,
    curves,
    legend,
)
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.theory import bound, diffusion, gan
from ldm_toolkit.theory.divergences import js_discrete
from ldm_toolkit.theory.variational import normal_log_density

__all__ = ["adversarial_losses", "bound_terms"]

_ASKED = 24  # timesteps at which the network is asked
_KINDS = {"epsilon": "the noise", "v_prediction": "v", "sample": "x_0"}
_APART = 2.0  # of the means of the game's two densities


def bound_terms(pipeline: LatentPipeline, image: Image.Image, prompt: str, seed: int) -> Picture:
    """The terms of the variational bound of a picture's latents over the timesteps, and the loss.

    One draw of x_t at each of some timesteps, with one noise for all. Raises UserError for the
    picture's size.
    """
    kind = pipeline.components.scheduler_config.get("prediction_type", "epsilon")
    levels = pipeline.make_scheduler("ddpm").alphas_cumprod.double()
    x_0 = pipeline.pil_to_latents(image).cpu().double()
    noise = pipeline.initial_noise(seed, *image.size).double()
    embeddings = pipeline.encode_prompt(prompt)
    last = len(levels) - 1
    spread = [np.geomspace(1, last, _ASKED // 2), np.linspace(1, last, _ASKED // 2)]
    times = np.unique(np.concatenate(spread).round().astype(int))
    terms, simple = [], []
    for time in torch.from_numpy(times):
        x_t = diffusion.add_noise(x_0, noise, levels[time])
        raw = pipeline.predict_noise(x_t, time, embeddings).cpu().double()
        found = bound.step_terms(raw, x_0, x_t, time[None], levels, kind=kind)
        terms.append(float(bound.bits_per_dimension(found, x_0.numel())))
        loss = bound.simple_loss(kind, raw, x_0, noise, levels[time])
        simple.append(float(loss) / x_0.numel())
    prior = bound.bits_per_dimension(bound.prior_term(x_0, levels[-1]), x_0.numel())
    picture = Picture("training", "bound", "What the network is trained on", (10, 3.6))
    left, right = picture.grid(1, 2)[0]
    curves(left, "the bound's term at t, bits per latent number", "timestep t")
    left.plot(times, terms, color=BLUE, linewidth=2, marker="o", markersize=4)
    left.set_xscale("log")
    left.set_yscale("log")
    curves(right, f"the loss at t: mean squared error of {_KINDS.get(kind, kind)}", "timestep t")
    right.plot(times, simple, color=ORANGE, linewidth=2, marker="o", markersize=4)
    right.set_ylim(bottom=0)
    early = times <= last / 4
    whole = _area(times, terms)
    share = _area(times[early], np.array(terms)[early]) / whole
    picture.caption = (
        "Left the variational bound on -log p(x_0), term by term: each is the divergence between "
        "the true step back and the model's, for this picture's latents. Over all timesteps they "
        f"come to about {whole:.2g} bits per latent number, {share:.0%} of it in the first "
        f"quarter, where noise is weak; the prior term beyond the last adds {float(prior):.2g} "
        "bits to each. Right the simple "
        "loss that training minimises: the same errors without the bound's weights, so that the "
        "timesteps of much noise, which decide the large shapes, count as well."
    )
    return picture


def _area(times: np.ndarray, terms: "np.ndarray | list[float]") -> float:
    """The sum over all timesteps, by the trapezoids between those that are known."""
    return float(torch.trapezoid(torch.as_tensor(terms), torch.as_tensor(times)))


def adversarial_losses() -> Picture:
    """The generator's losses over the discriminator's logit, and the best discriminator."""
    logits = torch.linspace(-4, 4, 161)
    losses = {
        "minimax": (gan.generator_minimax, PURPLE),
        "non-saturating": (gan.generator_non_saturating, BLUE),
        "hinge": (gan.generator_hinge, ORANGE),
    }
    picture = Picture("training", "adversarial", "The game of the autoencoder's decoder", (10, 3.6))
    left, right = picture.grid(1, 2)[0]
    curves(left, "loss of the generator", "logit of the discriminator: fake ... real")
    for name, (loss, colour) in losses.items():
        left.plot(
            logits, [float(loss(one)) for one in logits], color=colour, linewidth=2, label=name
        )
    legend(left)
    x = torch.linspace(-5, 5, 401)
    zero = torch.zeros_like(x)
    data = normal_log_density(x, zero - _APART / 2, zero)
    model = normal_log_density(x, zero + _APART / 2, zero)
    curves(right, "two densities and the best discriminator", "x")
    right.plot(x, data.exp(), color=GREEN, linewidth=2, label="data")
    right.plot(x, model.exp(), color=VERMILION, linewidth=2, label="generator")
    right.plot(x, gan.optimal_discriminator(data, model), color=SOFT, linewidth=2, ls="--",
               label="best discriminator")  # fmt: skip
    legend(right)
    shares = [one.exp() / one.exp().sum() for one in (data, model)]
    divergence = js_discrete(*shares)
    slopes = [float(_slope(loss)) for loss, _ in losses.values()]
    picture.caption = (
        "A decoder trained on squared errors alone blurs, so a discriminator judges patches of its "
        "pictures; this is the theory, without a network. Left three losses of the generator: "
        f"where it is seen through, at a logit of -4, their slopes are {slopes[0]:.2f} (minimax), "
        f"{slopes[1]:.2f} (non-saturating) and {slopes[2]:.2f} (hinge, the one used here), so the "
        "first teaches it nothing there. Right the best discriminator of two normal densities "
        f"{_APART:g} apart: the Jensen-Shannon divergence is {float(divergence):.3f} nats and the "
        f"value of the game, 2 JS - log 4, is {float(gan.optimal_value(divergence)):.3f}."
    )
    return picture


def _slope(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The slope of a generator's loss at a logit of -4."""
    logit = torch.tensor(-4.0, requires_grad=True)
    return torch.autograd.grad(loss(logit), logit)[0]
