"""Losses of a batch, built from the formulas in ``theory``."""

import torch
from torch import Tensor, nn

from ldm_toolkit.theory import diffusion

__all__ = ["PatchDiscriminator", "adaptive_weight", "noise_prediction_loss", "reconstruction_loss"]


def noise_prediction_loss(
    prediction: Tensor, kind: str, x_0: Tensor, eps: Tensor, alpha_bar: Tensor, gamma: float = 0.0
) -> Tensor:
    """Mean squared error to the target of ``kind``, weighted by min-SNR where gamma > 0.

    Ho et al. 2020, eq. 14, for the other predictions Salimans and Ho 2022; float32, scalar.
    """
    target = diffusion.prediction_target(kind, x_0, eps, alpha_bar)
    per_sample = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))  # (B,)
    if gamma > 0:
        per_sample = per_sample * diffusion.min_snr_weight(kind, alpha_bar, gamma)
    return per_sample.mean()


def reconstruction_loss(reconstruction: Tensor, pixels: Tensor, gradient_weight: float) -> Tensor:
    """L1 distance of pixels and, weighted, of their horizontal and vertical differences; scalar."""
    error = reconstruction.float() - pixels.float()
    loss = error.abs().mean()
    if gradient_weight > 0:
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = loss + gradient_weight * edges
    return loss


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the two losses' gradient norms at the decoder's last layer, at most 1e4.

    Esser et al. 2021, eq. 7.
    """
    (first,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (first.norm() / (second.norm() + 1e-6)).clamp(max=1e4).detach()


class PatchDiscriminator(nn.Sequential):
    """PatchGAN: (B, 3, H, W) -> one logit a patch. Isola et al. 2017, section 3.2.2."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(4, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 1, 1),
            nn.GroupNorm(4, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )
