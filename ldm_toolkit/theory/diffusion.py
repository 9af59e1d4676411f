"""Forward process and prediction targets. Tensors are (B, C, h, w); alpha_bar is (B,)."""

import torch
from torch import Tensor

__all__ = ["add_noise", "min_snr_weight", "prediction_target", "signal_to_noise", "velocity"]


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
    finite at SNR 0 and at infinity: the epsilon weight at SNR 0 is 1.
    """
    snr = signal_to_noise(alpha_bar)
    if kind == "epsilon":
        return torch.clamp(gamma * (1 - alpha_bar) / alpha_bar, max=1.0)
    if kind == "v_prediction":
        return torch.minimum(alpha_bar, gamma * (1 - alpha_bar))
    return torch.clamp(snr, max=gamma)
