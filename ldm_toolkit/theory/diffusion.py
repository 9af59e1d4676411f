"""Forward process and prediction targets. Tensors are (B, C, h, w); alpha_bar is (B,)."""

import torch
from torch import Tensor

__all__ = [
    "add_noise",
    "debiased_weight",
    "input_perturbation",
    "logit_normal_timestep",
    "min_snr_weight",
    "offset_noise",
    "prediction_target",
    "signal_to_noise",
    "velocity",
    "zero_terminal_snr",
]

_LARGEST = 1000.0  # of a weight that grows without bound as SNR goes to 0: reached at SNR 1e-6


def _expand(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """A draw of q(x_t | x_0): sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

    Ho et al. 2020, eq. 4.
    """
    alpha_bar = _expand(alpha_bar, x_0)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def velocity(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The v target: sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

    Salimans and Ho 2022, section 4.
    """
    alpha_bar = _expand(alpha_bar, x_0)
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
