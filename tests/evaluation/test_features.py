"""Distances between sets of features, against scipy and sums written out."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; pip install '.[eval]'")

from ldm_toolkit.evaluation.features import diversity, frechet_distance, kernel_distance, nearest


def features(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 6, generator=rng) @ mixing + shift


def test_the_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    first, second = features(0, 200), features(1, 150, 0.4) * 1.3
    a, b = first.double().numpy(), second.double().numpy()
    means = a.mean(0) - b.mean(0)
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = means @ means + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-8)


def test_the_kernel_distance_is_the_unbiased_sum() -> None:
    first, second = features(2, 80) / 4, features(3, 80, 6.0) / 4
    x, y = first.double(), second.double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    inner = sum(float((k.sum() - k.trace()) / (n * (n - 1))) for k in (kernel(x, x), kernel(y, y)))
    expected = inner - 2 * float(kernel(x, y).mean())
    middle, deviation = kernel_distance(first, second)
    assert middle == pytest.approx(expected, rel=1e-3)
    assert deviation == pytest.approx(0, abs=1e-4 * abs(middle))  # every subset is the whole
    assert abs(kernel_distance(first, features(4, 80) / 4)[0]) < middle / 4


def test_one_memorised_picture_a_prompt_has_no_diversity() -> None:
    same, apart = torch.ones(4, 6), torch.eye(4, 6)
    assert diversity([same, same]) == 0
    assert diversity([apart]) == pytest.approx(2**0.5)
    assert diversity([same, apart]) == pytest.approx(2**0.5 / 2)


def test_the_nearest_is_found() -> None:
    among = features(5, 50)
    distances, indices = nearest(among[[7, 3]] + 1e-4, among)
    assert indices.tolist() == [7, 3]
    assert float(distances.max()) < 1e-2
