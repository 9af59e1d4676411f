"""Losses of a batch, built from the formulas in ``theory``."""

import torch
from torch import Tensor, nn

from ldm_toolkit.theory import diffusion

__all__ = [
    "PatchDiscriminator",
    "adaptive_weight",
    "masked_mean",
    "prediction_errors",
    "prior_preservation",
    "reconstruction_loss",
]


def prediction_errors(
    prediction: Tensor,
    kind: str,
    x_0: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    gamma: float = 0.0,
    *,
    debiased: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Weighted squared error to the target of ``kind``, one a sample; float32, (B,).

    Ho et al. 2020, eq. 14, for the other predictions Salimans and Ho 2022; the weight is min-SNR's
    where gamma > 0 and that of debiased estimation where ``debiased``. ``mask`` (B, 1, h, w) in
    [0, 1] says where errors count.
    """
    target = diffusion.prediction_target(kind, x_0, eps, alpha_bar)
    error = (prediction.float() - target.float()).square()
    per_sample = error.mean(dim=(1, 2, 3)) if mask is None else masked_mean(error, mask)
    if gamma > 0:
        per_sample = per_sample * diffusion.min_snr_weight(kind, alpha_bar, gamma)
    if debiased:
        per_sample = per_sample * diffusion.debiased_weight(kind, alpha_bar)
    return per_sample


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each sample over the part that ``mask`` shows: mean(values mask) / mean(mask); (B,).

    Values are (B, C, h, w), the mask is (B, 1, h, w) in [0, 1]. A small mask counts as much as a
    large one; a sample whose mask shows nothing gives 0.
    """
    mask = mask.to(values.dtype)
    shown = mask.mean(dim=(1, 2, 3))
    return (values * mask).mean(dim=(1, 2, 3)) / torch.where(shown > 0, shown, 1.0)


def prior_preservation(per_sample: Tensor, prior: Tensor, weight: float) -> Tensor:
    """Mean error of the instance's samples + weight * that of the class's samples; scalar.

    Ruiz et al. 2023 (DreamBooth), eq. 2. ``per_sample`` (B,) holds each sample's own timestep
    weight already, ``prior`` (B,) of bool says which are of the class; either part may be missing.
    """
    instance, other = (chosen.to(per_sample.dtype) for chosen in (~prior, prior))
    means = [(per_sample * rows).sum() / rows.sum().clamp(min=1) for rows in (instance, other)]
    return means[0] + weight * means[1]


def reconstruction_loss(
    reconstruction: Tensor, pixels: Tensor, gradient_weight: float, distance: str = "l1"
) -> Tensor:
    """Distance of pixels and, weighted, L1 of their horizontal and vertical differences; scalar.

    ``distance`` is ``l1`` (mean absolute error) or ``l2`` (mean squared error).
    """
    error = reconstruction.float() - pixels.float()
    loss = error.square().mean() if distance == "l2" else error.abs().mean()
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
