"""The forward process, what a network predicts of it, and the step back that follows.

Tensors are (B, C, h, w), or (B, ...); beta and alpha_bar are (B,), or a scalar for all samples,
and computed with in their own dtype. Step i of a schedule ``alphas_cumprod`` (T,) is the papers'
t = i + 1: alpha_bar of the clean picture, 1, does not stand in it.
"""

import torch
from torch import Tensor

__all__ = [
    "add_noise",
    "debiased_weight",
    "forward_moments",
    "forward_step",
    "gaussian_prediction",
    "input_perturbation",
    "logit_normal_timestep",
    "min_snr_weight",
    "offset_noise",
    "per_sample",
    "posterior_moments",
    "predicted_noise",
    "predicted_sample",
    "prediction_target",
    "previous_alpha_bars",
    "reverse_moments",
    "signal_to_noise",
    "velocity",
    "zero_terminal_snr",
]

_LARGEST = 1000.0  # of a weight that grows without bound as SNR goes to 0: reached at SNR 1e-6


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,), or a scalar, in the dtype of ``like`` (B, ...) and shaped to multiply it."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def previous_alpha_bars(alphas_cumprod: Tensor) -> Tensor:
    """alpha_bar one step earlier, (T,): the schedule moved by one, 1 for the clean picture."""
    return torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])


def forward_step(x_previous: Tensor, eps: Tensor, beta: Tensor) -> Tensor:
    """A draw of q(x_t | x_{t-1}), one step of noise: sqrt(1 - beta) x_{t-1} + sqrt(beta) eps.

    Ho et al. 2020, eq. 2; beta is 1 - alpha_bar_t / alpha_bar_{t-1}.
    """
    beta = per_sample(beta, x_previous)
    return (1 - beta).sqrt() * x_previous + beta.sqrt() * eps


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """A draw of q(x_t | x_0): sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

    Ho et al. 2020, eq. 4.
    """
    alpha_bar = per_sample(alpha_bar, x_0)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def forward_moments(x_0: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1, ...) of q(x_t | x_0): sqrt(alpha_bar) x_0, 1 - alpha_bar.

    Ho et al. 2020, eq. 4.
    """
    return per_sample(alpha_bar.sqrt(), x_0) * x_0, per_sample(1 - alpha_bar, x_0)


def posterior_moments(
    x_0: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_previous: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0), the step back to an x_0.

    Ho et al. 2020, eqs. 6 and 7; with alpha = alpha_bar / alpha_bar_previous the mean is
    (sqrt(alpha) (1 - alpha_bar_previous) x_t + sqrt(alpha_bar_previous) (1 - alpha) x_0)
    / (1 - alpha_bar) and the variance (1 - alpha) (1 - alpha_bar_previous) / (1 - alpha_bar).
    The two levels may lie several steps apart. To alpha_bar_previous 1 it is x_0 and 0. With levels
    of float32 the small betas have four digits: likelihoods want float64.
    """
    alpha = alpha_bar / alpha_bar_previous
    of_noisy = alpha.sqrt() * (1 - alpha_bar_previous) / (1 - alpha_bar)
    of_clean = alpha_bar_previous.sqrt() * (1 - alpha) / (1 - alpha_bar)
    variance = (1 - alpha) * (1 - alpha_bar_previous) / (1 - alpha_bar)
    mean = per_sample(of_noisy, x_t) * x_t + per_sample(of_clean, x_t) * x_0
    return mean, per_sample(variance, x_t)


def velocity(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The v target: sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

    Salimans and Ho 2022, section 4.
    """
    alpha_bar = per_sample(alpha_bar, x_0)
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0


def prediction_target(kind: str, x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the network has to predict: ``epsilon``, ``v_prediction`` or ``sample``.

    Raises KeyError for another kind.
    """
    targets = {
        "epsilon": lambda: eps,
        "v_prediction": lambda: velocity(x_0, eps, alpha_bar),
        "sample": lambda: x_0,
    }
    return targets[kind]()


def predicted_sample(kind: str, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The x_0 that a prediction of ``kind`` means at x_t: the inverse of ``prediction_target``.

    Ho et al. 2020, eq. 15; for v Salimans and Ho 2022, section 4. Raises KeyError for another
    kind. epsilon says nothing of x_0 where alpha_bar is 0: not a finite number.
    """
    alpha_bar = per_sample(alpha_bar, x_t)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    samples = {
        "epsilon": lambda: (x_t - noise * prediction) / signal,
        "v_prediction": lambda: signal * x_t - noise * prediction,
        "sample": lambda: prediction,
    }
    return samples[kind]()


def predicted_noise(kind: str, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that a prediction of ``kind`` means at x_t; x_t is made of it and of the x_0.

    Sources and errors are those of ``predicted_sample``; alpha_bar is below 1 for ``sample``.
    """
    alpha_bar = per_sample(alpha_bar, x_t)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    noises = {
        "epsilon": lambda: prediction,
        "v_prediction": lambda: signal * prediction + noise * x_t,
        "sample": lambda: (x_t - signal * prediction) / noise,
    }
    return noises[kind]()


def gaussian_prediction(
    kind: str, x_t: Tensor, alpha_bar: Tensor, mean: Tensor | float, variance: Tensor | float
) -> Tensor:
    """What a perfect network predicts for data of N(mean, variance): E[target | x_t].

    x_t and the target are jointly normal, so the expectation is linear (Bishop 2006, eq. 2.81):
    with c = (x_t - sqrt(alpha_bar) mean) / (alpha_bar variance + 1 - alpha_bar) the x_0 is
    mean + sqrt(alpha_bar) variance c and the noise sqrt(1 - alpha_bar) c. Mean and variance are of
    each element, a number or a tensor that broadcasts to x_t. Raises KeyError for another kind.
    """
    level = per_sample(alpha_bar, x_t)
    centred = (x_t - level.sqrt() * mean) / (level * variance + 1 - level)
    x_0 = mean + level.sqrt() * variance * centred
    return prediction_target(kind, x_0, (1 - level).sqrt() * centred, alpha_bar)


def reverse_moments(
    output: Tensor,
    x_t: Tensor,
    alpha_bar: Tensor,
    alpha_bar_previous: Tensor,
    *,
    kind: str = "epsilon",
    variance: str = "fixed_small",
    smallest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the model's step back, p(x_{t-1} | x_t), both broadcast to x_t.

    The mean is that of ``posterior_moments`` at the predicted x_0 (Ho et al. 2020, eq. 11). The
    variance is ``fixed_small``, the posterior's, right for data of one point; ``fixed_large``,
    beta_t, right for data of N(0, 1) (both Ho et al. 2020, section 3.2); or ``learned`` in between,
    exp(s log beta_t + (1 - s) log of the posterior's) (Nichol and Dhariwal 2021, eq. 15), for which
    ``output`` is (B, 2 C, h, w): the prediction, then 2 s - 1, one an element. ``smallest`` (B,)
    stands in for the posterior's variance, which is 0 in the first step. Raises KeyError for
    another kind or variance.
    """
    share = None
    if variance == "learned":
        output, scaled = output.chunk(2, dim=1)
        share = (scaled + 1) / 2
    x_0 = predicted_sample(kind, output, x_t, alpha_bar)
    mean, small = posterior_moments(x_0, x_t, alpha_bar, alpha_bar_previous)
    if smallest is not None:
        small = per_sample(smallest, x_t)
    large = per_sample(1 - alpha_bar / alpha_bar_previous, x_t)
    if share is not None:
        return mean, share * large.log() + (1 - share) * small.log()
    return mean, {"fixed_small": small, "fixed_large": large}[variance].log()


def signal_to_noise(alpha_bar: Tensor) -> Tensor:
    """SNR(t) = alpha_bar / (1 - alpha_bar). Kingma et al. 2021, eq. 2."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(kind: str, alpha_bar: Tensor, gamma: float) -> Tensor:
    """Loss weight min(SNR, gamma), expressed for what the network predicts.

    Hang et al. 2023, section 3.4: for a loss on epsilon min(SNR, gamma)/SNR, on v
    min(SNR, gamma)/(SNR + 1), on the sample min(SNR, gamma). Written with alpha_bar so that it is
    finite at infinity. At SNR 0, which only a zero-terminal schedule has, the weight is 1: for
    epsilon that is the limit; for v and the sample the formula says 0, so that the step which
    sampling starts from would learn nothing, and the authors' code says 1 too.
    """
    if kind == "epsilon":
        return torch.clamp(gamma * (1 - alpha_bar) / alpha_bar, max=1.0)
    if kind == "v_prediction":
        weight = torch.minimum(alpha_bar, gamma * (1 - alpha_bar))
    else:
        weight = torch.clamp(signal_to_noise(alpha_bar), max=gamma)
    return torch.where(alpha_bar > 0, weight, 1.0)


def debiased_weight(kind: str, alpha_bar: Tensor) -> Tensor:
    """Loss weight |d x_0 / d prediction|: how much an error of the prediction counts in x_0.

    Yu et al. 2023 (arXiv 2310.08442): an error of epsilon counts 1/sqrt(SNR) times in x_0, which
    is the weight of a loss on epsilon. The same argument gives a loss on v, whose error counts
    sqrt(1 - alpha_bar) times, 1/sqrt(SNR + 1), and one on the sample, which has no such bias, 1.
    Finite everywhere: the weight for epsilon ends at 1000, at SNR 1e-6.
    """
    if kind == "epsilon":
        return ((1 - alpha_bar) / alpha_bar).sqrt().clamp(max=_LARGEST)
    if kind == "v_prediction":
        return (1 - alpha_bar).sqrt()
    return torch.ones_like(alpha_bar)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """A schedule (T,) shifted and scaled in sqrt(alpha_bar) so that its last alpha_bar is 0.

    Lin et al. 2023, algorithm 1, in float64; the first alpha_bar stays, the dtype as well. At
    SNR 0 epsilon says nothing of x_0: such a schedule is for v and the sample.
    """
    root = alphas_cumprod.double().sqrt()
    first, last = root[0], root[-1]
    return ((root - last) / (first - last) * first).square().to(alphas_cumprod.dtype)


def logit_normal_timestep(phase: float, count: int, mean: float, scale: float) -> int:
    """The timestep of 0 .. count - 1 at quantile ``phase`` in [0, 1) of a logit-normal t/count.

    Esser et al. 2024, eq. 19: logit(t) is N(mean, scale^2); t near 1 is noise. Evenly spread
    phases give evenly spread quantiles, so stratified phases stay stratified.
    """
    normal = torch.special.ndtri(torch.tensor(phase, dtype=torch.float64))
    return min(int(torch.sigmoid(mean + scale * normal) * count), count - 1)


def offset_noise(eps: Tensor, offset: Tensor, strength: float) -> Tensor:
    """Noise whose channel means vary more: eps + strength * offset, offset (..., C, 1, 1).

    Guttenberg 2023, "Diffusion with offset noise". The sum is what the network has to predict.
    """
    return eps + strength * offset


def input_perturbation(eps: Tensor, perturbation: Tensor, gamma: float) -> Tensor:
    """The noise of the network's input alone: eps + gamma * perturbation, both N(0, 1).

    Ning et al. 2023 (DDPM-IP): the target stays that of eps, so that the network learns to put up
    with errors like its own while sampling.
    """
    return eps + gamma * perturbation
