"""Distances between two sets of pictures in the features of a network."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm_toolkit.errors import UserError, install_hint

__all__ = [
    "diversity",
    "frechet_distance",
    "kernel_distance",
    "nearest",
    "torchmetrics_version",
]

# Every process has all features; torchmetrics would count those of each once more.
_ALONE: dict[str, Any] = {"sync_on_compute": False}


def torchmetrics_version() -> str:
    """The version of the package that computes the distances. Raises UserError without it."""
    try:
        return importlib.metadata.version("torchmetrics")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"the distances need torchmetrics: {install_hint('eval')}") from error


class _Identity(nn.Module):
    """Features in place of pictures, in the form in which torchmetrics asks for a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit two sets of features (N, F), (M, F).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); Heusel et al. 2017, eq. 6, computed by
    torchmetrics in float64. The estimate falls with N: compare equal numbers only.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Identity(first.shape[1]), normalize=False, **_ALONE)
    metric.set_dtype(torch.float64)
    metric.update(first.double(), real=True)
    metric.update(second.double(), real=False)
    return float(metric.compute())


def kernel_distance(
    first: Tensor, second: Tensor, seed: int = 0, size: int | None = None
) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the cubic kernel, and its deviation over 100 subsets.

    Bińkowski et al. 2018, unbiased in the number of samples, computed by torchmetrics on subsets
    of ``size``, which is the whole or 1,000 unless it is given.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(1000, len(first), len(second)) if size is None else size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torchmetrics draws the subsets from torch's own generator
        metric = KernelInceptionDistance(_Identity(first.shape[1]), subset_size=size, **_ALONE)
        metric.update(first, real=True)
        metric.update(second, real=False)
        middle, deviation = metric.compute()
    return float(middle), float(deviation)


def diversity(groups: Sequence[Tensor]) -> float:
    """Mean distance of the features of pictures of one prompt: 0 where one was memorised.

    Each group is (K, F), the K pictures of a prompt, K >= 2.
    """
    means = []
    for group in groups:
        apart = torch.pdist(group.double())
        means.append(float(apart.mean()))
    return float(np.mean(means))


def nearest(features: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) and index (N,) of the nearest row of ``among`` (M, F) to each of (N, F)."""
    found = torch.cdist(features.double(), among.double()).min(1)
    return found.values, found.indices
