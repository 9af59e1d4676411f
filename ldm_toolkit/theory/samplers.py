"""Samplers from first principles, to read and to check others by: DDPM ancestral, DDIM and LMS.

The pipeline samples with diffusers' schedulers; these are the same mathematics in a screen each.
``levels`` (n + 1,) are the alpha_bars that a run of n steps visits, from noise to picture, as
``visited_levels`` gives them; a step goes from one to the next. ``denoise(x, i)`` is the network at
level i and ``kind`` what it predicts: ``epsilon``, ``v_prediction`` or ``sample`` (KeyError for
another). x is (B, C, h, w), or (B, ...). ``noise`` (n, B, ...) is standard normal, drawn by the
caller: the functions are pure. No prediction is clipped.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ldm_toolkit.theory import diffusion

__all__ = [
    "Denoiser",
    "ddim",
    "ddim_step",
    "ddpm",
    "ddpm_step",
    "lms",
    "lms_coefficients",
    "noise_levels",
    "visited_levels",
]

Denoiser = Callable[[Tensor, int], Tensor]


def visited_levels(alphas_cumprod: Tensor, timesteps: Tensor, last: float = 1.0) -> Tensor:
    """alpha_bar (n + 1,) at n timesteps from high to low, and ``last`` where the run ends.

    ``last`` is 1, the clean picture; Stable Diffusion's DDIM ends at alphas_cumprod[0]
    (diffusers' ``set_alpha_to_one=False``).
    """
    return torch.cat([alphas_cumprod[timesteps], alphas_cumprod.new_tensor([last])])


def noise_levels(levels: Tensor) -> Tensor:
    """sigma = sqrt((1 - alpha_bar) / alpha_bar), the noise beside a picture of scale 1; (n + 1,).

    Karras et al. 2022, table 1 (VP).
    """
    return ((1 - levels) / levels).sqrt()


def ddpm_step(
    output: Tensor,
    x_t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    alpha_bar_previous: Tensor,
    *,
    kind: str = "epsilon",
    variance: str = "fixed_small",
) -> Tensor:
    """A draw of p(x_{t-1} | x_t): mean + standard deviation eps. Ho et al. 2020, algorithm 2.

    ``variance`` and what ``learned`` expects of ``output``: see ``diffusion.reverse_moments``. The
    last step wants eps 0; ``learned`` has no last step, its standard deviation is not finite.
    """
    mean, log_variance = diffusion.reverse_moments(
        output, x_t, alpha_bar, alpha_bar_previous, kind=kind, variance=variance
    )
    return mean + torch.exp(0.5 * log_variance) * eps


def ddpm(
    denoise: Denoiser,
    x: Tensor,
    levels: Tensor,
    noise: Tensor,
    *,
    kind: str = "epsilon",
    variance: str = "fixed_small",
) -> Tensor:
    """Ancestral sampling from x at levels[0]: n draws of p(x_{t-1} | x_t), the last its mean.

    Ho et al. 2020, algorithm 2. The last of ``noise`` is not used.
    """
    last = len(levels) - 2
    for i in range(last):
        output = denoise(x, i)
        x = ddpm_step(output, x, noise[i], levels[i], levels[i + 1], kind=kind, variance=variance)
    output = denoise(x, last)
    prediction = output.chunk(2, dim=1)[0] if variance == "learned" else output
    x_0 = diffusion.predicted_sample(kind, prediction, x, levels[last])
    return diffusion.posterior_moments(x_0, x, levels[last], levels[last + 1])[0]


def ddim_step(
    output: Tensor,
    x_t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    alpha_bar_previous: Tensor,
    *,
    kind: str = "epsilon",
    eta: float = 0.0,
) -> Tensor:
    """To the next level by the predicted x_0 and noise, of which eta of 0 .. 1 is drawn anew.

    Song et al. 2021 (arXiv 2010.02502), eqs. 12 and 16: sqrt(alpha_bar_previous) x_0
    + sqrt(1 - alpha_bar_previous - sigma^2) noise + sigma eps with sigma = eta sqrt((1 -
    alpha_bar_previous) / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar_previous). eta 0 draws
    nothing; eta 1 is ``ddpm_step`` with the fixed-small variance.
    """
    kept = (1 - alpha_bar_previous) / (1 - alpha_bar)
    variance = eta**2 * kept * (1 - alpha_bar / alpha_bar_previous)
    # Rounding may leave the share that is kept a hair below 0 where all noise is drawn anew.
    direction = (1 - alpha_bar_previous - variance).clamp(min=0).sqrt()
    x_0 = diffusion.predicted_sample(kind, output, x_t, alpha_bar)
    noise = diffusion.predicted_noise(kind, output, x_t, alpha_bar)
    parts = [(alpha_bar_previous.sqrt(), x_0), (direction, noise), (variance.sqrt(), eps)]
    return torch.stack([diffusion.per_sample(a, x_t) * part for a, part in parts]).sum(0)


def ddim(
    denoise: Denoiser,
    x: Tensor,
    levels: Tensor,
    noise: Tensor,
    *,
    kind: str = "epsilon",
    eta: float = 0.0,
) -> Tensor:
    """DDIM from x at levels[0]; with eta 0 a map without chance, and ``noise`` counts nothing.

    Song et al. 2021, section 4.1.
    """
    for i in range(len(levels) - 1):
        output = denoise(x, i)
        x = ddim_step(output, x, noise[i], levels[i], levels[i + 1], kind=kind, eta=eta)
    return x


def lms_coefficients(sigmas: Tensor, step: int, order: int) -> list[float]:
    """Weights of the last ``order`` slopes in step sigmas[step] -> sigmas[step + 1], newest first.

    Each is the integral over the step of the Lagrange polynomial that is 1 at its own sigma and 0
    at the others (Adams-Bashforth with uneven steps; Hairer et al. 1993, section III.5). Gauss's
    rule with ``order`` nodes integrates them exactly. ``order`` is at most step + 1.
    """
    known = sigmas[step - order + 1 : step + 1].flip(0).tolist()
    start, end = float(sigmas[step]), float(sigmas[step + 1])
    nodes, weights = np.polynomial.legendre.leggauss(order)
    points = (start + end) / 2 + (end - start) / 2 * nodes
    coefficients = []
    for j, own in enumerate(known):
        basis = np.ones_like(points)
        for other in known[:j] + known[j + 1 :]:
            basis = basis * (points - other) / (own - other)
        coefficients.append(float((end - start) / 2 * (weights * basis).sum()))
    return coefficients


def lms(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, kind: str = "epsilon", order: int = 4
) -> Tensor:
    """Linear multistep for dx / d sigma = noise in x, from x = x_0 + sigmas[0] eps down to x_0.

    Song et al. 2021 (arXiv 2010.02502), eq. 14, is the equation, Katherine Crowson's k-diffusion
    (``sample_lms``) the method: the slopes of the last ``order`` steps, as many as there are, are
    continued by their polynomial. ``sigmas`` (n + 1,) fall to 0 (``noise_levels``). x has the
    picture's scale; the network sees x / sqrt(1 + sigma^2), whose variance is 1.
    """
    slopes: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        alpha_bar = 1 / (1 + sigmas[i].square())
        scaled = x * diffusion.per_sample(alpha_bar.sqrt(), x)
        newest = diffusion.predicted_noise(kind, denoise(scaled, i), scaled, alpha_bar)
        slopes = [newest, *slopes][:order]
        weights = lms_coefficients(sigmas, i, len(slopes))
        for weight, slope in zip(weights, slopes, strict=True):
            x = x + weight * slope
    return x
