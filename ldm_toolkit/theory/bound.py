"""The variational bound of a diffusion model, term by term, in nats and in bits per dimension.

-log p(x_0) <= L_T + (L_{T-1} + ... + L_1) + L_0 in expectation over the noise (Ho et al. 2020,
eq. 5): the last x_t is hardly N(0, 1), each step back is not quite the posterior's, and the picture
is not quite the decoder's. Pictures are (B, C, h, w), or (B, ...); a term is (B,), summed over the
elements. ``alphas_cumprod`` (T,) is the schedule, best in float64, as everything here: its betas
are small differences. Step i of 0 .. T - 1 is the paper's t = i + 1; step 0 belongs to L_0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_toolkit.theory import diffusion
from ldm_toolkit.theory.divergences import kl_normal
from ldm_toolkit.theory.variational import kl_to_standard_normal, normal_log_density

__all__ = [
    "Bound",
    "bits_per_dimension",
    "bound_weight",
    "denoising_term",
    "discrete_reconstruction",
    "gaussian_reconstruction",
    "prior_term",
    "simple_loss",
    "smallest_variances",
    "step_terms",
    "variational_bound",
]


class Bound(NamedTuple):
    """The terms of the bound in nats."""

    prior: Tensor  # L_T, (B,)
    denoising: Tensor  # L_1 .. L_{T-1}, (B, T - 1)
    reconstruction: Tensor  # L_0, (B,)

    @property
    def total(self) -> Tensor:
        """Their sum (B,), which bounds -log p(x_0) from above in expectation."""
        return self.prior + self.denoising.sum(1) + self.reconstruction


def prior_term(x_0: Tensor, alpha_bar: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, 1)); ``alpha_bar`` is the last one. Ho et al. 2020, eq. 5."""
    mean, variance = diffusion.forward_moments(x_0, alpha_bar)
    return _summed(kl_to_standard_normal(mean, variance.log()))


def denoising_term(
    x_0: Tensor,
    x_t: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    alpha_bar: Tensor,
    alpha_bar_previous: Tensor,
) -> Tensor:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || N(mean, exp(log_variance))) at a draw of x_t.

    Ho et al. 2020, eq. 5; the model's moments are those of ``diffusion.reverse_moments``.
    """
    true_mean, variance = diffusion.posterior_moments(x_0, x_t, alpha_bar, alpha_bar_previous)
    return _summed(kl_normal(true_mean, variance.log(), mean, log_variance))


def gaussian_reconstruction(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """L_0 of continuous data, for example latents: -log N(x_0; mean, exp(log_variance))."""
    return -_summed(normal_log_density(x_0, mean, log_variance))


def discrete_reconstruction(
    x_0: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256
) -> Tensor:
    """L_0 of pixels: -log of the normal's probability of the bin around x_0.

    Ho et al. 2020, eq. 13. x_0 holds multiples of 2 / (levels - 1) from -1 to 1, and the two outer
    bins reach to infinity, so that the probabilities of all levels sum to 1. Computed from log
    cumulative probabilities: finite, with a gradient, far out in the tails as well.
    """
    half = 1.0 / (levels - 1)
    inverse = torch.exp(-0.5 * log_variance)
    low, high = (x_0 - half - mean) * inverse, (x_0 + half - mean) * inverse
    # A bin above the mean is mirrored: differences of probabilities near 1 have no digits.
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    inner = log_high + torch.log(-torch.expm1(log_low - log_high))
    first = torch.special.log_ndtr((x_0 + half - mean) * inverse)
    last = torch.special.log_ndtr((mean - x_0 + half) * inverse)
    return -_summed(torch.where(x_0 < half - 1, first, torch.where(x_0 > 1 - half, last, inner)))


def smallest_variances(alphas_cumprod: Tensor) -> Tensor:
    """The fixed-small variance of each step, (T,); the first, which would be 0, has the second's.

    So do Ho et al. 2020 and Nichol and Dhariwal 2021 in their code, for a decoder needs a width.
    A schedule of a single step has its beta.
    """
    previous = diffusion.previous_alpha_bars(alphas_cumprod)
    betas = 1 - alphas_cumprod / previous
    small = betas * (1 - previous) / (1 - alphas_cumprod)
    return torch.cat([small[1:2] if len(small) > 1 else betas, small[1:]])


def step_terms(
    output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    step: Tensor,
    alphas_cumprod: Tensor,
    *,
    kind: str = "epsilon",
    variance: str = "fixed_small",
    decoder: str = "gaussian",
    decoder_variance: float | None = None,
) -> Tensor:
    """The bound's term of each sample's step: L_0 at step 0, otherwise L_{t-1}; (B,).

    ``output`` is the network's at x_t, ``step`` (B,) whole numbers of 0 .. T - 1; for ``kind``,
    ``variance`` and a learned variance's output see ``diffusion.reverse_moments``. T times the mean
    over steps drawn evenly, plus ``prior_term``, is an unbiased estimate of the whole bound.
    ``decoder`` is ``gaussian`` or ``discrete``, the two reconstructions above. Its variance is
    that of ``smallest_variances`` for both fixed kinds, as in the published code, unless
    ``decoder_variance`` says another. Raises KeyError for another kind, variance or decoder.
    """
    alpha_bar = alphas_cumprod[step]
    previous = diffusion.previous_alpha_bars(alphas_cumprod)[step]
    smallest = smallest_variances(alphas_cumprod)[step]
    mean, log_variance = diffusion.reverse_moments(
        output, x_t, alpha_bar, previous, kind=kind, variance=variance, smallest=smallest
    )
    denoising = denoising_term(x_0, x_t, mean, log_variance, alpha_bar, previous)
    if decoder_variance is not None:
        width = torch.full_like(x_0, math.log(decoder_variance))
    elif variance == "learned":
        width = log_variance
    else:
        width = diffusion.per_sample(smallest.log(), x_0)
    reconstructions: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "gaussian": gaussian_reconstruction,
        "discrete": discrete_reconstruction,
    }
    return torch.where(step > 0, denoising, reconstructions[decoder](x_0, mean, width))


def variational_bound(
    denoise: Callable[[Tensor, int], Tensor],
    x_0: Tensor,
    noise: Tensor,
    alphas_cumprod: Tensor,
    *,
    kind: str = "epsilon",
    variance: str = "fixed_small",
    decoder: str = "gaussian",
    decoder_variance: float | None = None,
) -> Bound:
    """Every term at one draw of x_t a step. Ho et al. 2020, eq. 5.

    ``denoise(x_t, step)`` is the network, ``noise`` (T, B, ...) standard normal; the settings are
    those of ``step_terms``. One network call a step.
    """
    steps = torch.arange(len(alphas_cumprod), device=x_0.device)
    terms = []
    for i, step in enumerate(steps[:, None].expand(-1, len(x_0))):
        x_t = diffusion.add_noise(x_0, noise[i], alphas_cumprod[step])
        terms.append(
            step_terms(
                denoise(x_t, i),
                x_0,
                x_t,
                step,
                alphas_cumprod,
                kind=kind,
                variance=variance,
                decoder=decoder,
                decoder_variance=decoder_variance,
            )
        )
    found = torch.stack(terms, 1)
    return Bound(prior_term(x_0, alphas_cumprod[-1]), found[:, 1:], found[:, 0])


def bound_weight(
    kind: str, alpha_bar: Tensor, alpha_bar_previous: Tensor, variance: Tensor
) -> Tensor:
    """What ``simple_loss`` has to be multiplied with to be L_{t-1} at a fixed ``variance``; (B,).

    Ho et al. 2020, eq. 12, for epsilon beta^2 / (2 variance alpha (1 - alpha_bar)). What is left
    does not depend on the prediction: a KL of two variances, 0 for fixed-small, whose weight of a
    loss on the sample is half of what the SNR loses in the step (Kingma et al. 2021, section 4).
    Raises KeyError for another kind.
    """
    drift = alpha_bar_previous.sqrt() * (1 - alpha_bar / alpha_bar_previous) / (1 - alpha_bar)
    of_sample = drift.square() / (2 * variance)
    weights = {
        "epsilon": lambda: of_sample * (1 - alpha_bar) / alpha_bar,
        "v_prediction": lambda: of_sample * (1 - alpha_bar),
        "sample": lambda: of_sample,
    }
    return weights[kind]()


def simple_loss(
    kind: str, prediction: Tensor, x_0: Tensor, eps: Tensor, alpha_bar: Tensor
) -> Tensor:
    """Squared error to the target of ``kind``, summed: L_{t-1} without its weight; (B,).

    Ho et al. 2020, eq. 14. ``training.objectives.prediction_errors`` is its mean over elements.
    """
    target = diffusion.prediction_target(kind, x_0, eps, alpha_bar)
    return _summed((prediction - target).square())


def bits_per_dimension(nats: Tensor, dimensions: int, unit: float = 1.0) -> Tensor:
    """Nats of a whole picture as bits an element: nats / (dimensions log 2) + log2(unit).

    ``unit`` turns a density into the probability of a bin: how many levels the data has in a
    length of 1, 127.5 for pixels of 256 levels in [-1, 1] (Theis et al. 2016, section 3.1); 1 for
    what is a probability already (``discrete_reconstruction``) or has no bins (latents).
    """
    return nats / (dimensions * math.log(2.0)) + math.log2(unit)


def _summed(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)
