"""How far one distribution is from another: KL and Jensen-Shannon, exact and estimated, in nats.

KL(p || q) = E_p[log p - log q] (Kullback and Leibler 1951) is 0 only for p = q, otherwise above 0,
without an upper end, and not symmetric. JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with
m = (p + q) / 2 (Lin 1991) is symmetric and lies in [0, log 2]. ``variational`` has the KL to
N(0, 1) that VAE training uses.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "js_discrete",
    "js_monte_carlo",
    "kl_discrete",
    "kl_monte_carlo",
    "kl_multivariate_normal",
    "kl_normal",
]


def kl_normal(
    mean_p: Tensor, log_variance_p: Tensor, mean_q: Tensor, log_variance_q: Tensor
) -> Tensor:
    """KL(N(mean_p, exp(log_variance_p)) || N(mean_q, ...)) an element; the sum is a vector's KL.

    Kingma and Welling 2014, appendix B, for two normals: (log variance_q - log variance_p - 1
    + variance_p / variance_q + (mean_p - mean_q)^2 / variance_q) / 2. The arguments broadcast.
    """
    ratio = log_variance_p - log_variance_q
    distance = (mean_p - mean_q).square() * torch.exp(-log_variance_q)
    return 0.5 * (ratio.exp() - 1.0 - ratio + distance)


def kl_multivariate_normal(
    mean_p: Tensor, covariance_p: Tensor, mean_q: Tensor, covariance_q: Tensor
) -> Tensor:
    """KL(N(mean_p, covariance_p) || N(mean_q, covariance_q)), (...): means (..., d), (..., d, d).

    (tr(C_q^-1 C_p) + (m_q - m_p)^T C_q^-1 (m_q - m_p) - d + log det C_q - log det C_p) / 2
    (Bishop 2006, exercise 2.13), by Cholesky factors. Raises torch.linalg.LinAlgError for a
    covariance that is not positive definite.
    """
    root_p, root_q = torch.linalg.cholesky(covariance_p), torch.linalg.cholesky(covariance_q)
    shape = torch.linalg.solve_triangular(root_q, root_p, upper=False)
    shift = torch.linalg.solve_triangular(root_q, (mean_q - mean_p).unsqueeze(-1), upper=False)
    log_roots = [root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in (root_p, root_q)]
    quadratic = shape.square().sum((-2, -1)) + shift.square().sum((-2, -1))
    return 0.5 * (quadratic - mean_p.shape[-1]) + log_roots[1] - log_roots[0]


def kl_discrete(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of probabilities (..., n) that sum to 1 along the last axis; (...).

    0 log 0 is 0; infinite where q is 0 and p is not (Cover and Thomas 2006, eq. 2.26).
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def js_discrete(p: Tensor, q: Tensor) -> Tensor:
    """JS(p, q) of probabilities (..., n) that sum to 1 along the last axis; (...). Lin 1991."""
    middle = 0.5 * (p + q)
    return 0.5 * (kl_discrete(p, middle) + kl_discrete(q, middle))


def kl_monte_carlo(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate of KL(p || q) and its standard error: the mean of log p - log q at draws of p.

    Log densities (n, ...) at n >= 2 independent draws, both results (...). Unbiased; the error
    falls as 1 / sqrt(n), and an estimate may be negative though no KL is.
    """
    return _mean_and_error(log_p - log_q)


def js_monte_carlo(
    log_p_at_p: Tensor, log_q_at_p: Tensor, log_p_at_q: Tensor, log_q_at_q: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimate of JS(p, q) and its standard error, from draws of p (n, ...) and of q (m, ...).

    ``log_q_at_p`` is the log density of q at the draws of p, -inf where q is 0. Unbiased, and
    never above log 2: each draw counts (log of its own density - log m) / 2 <= log(2) / 2.
    """
    of_p, error_p = _mean_and_error(log_p_at_p - _log_middle(log_p_at_p, log_q_at_p))
    of_q, error_q = _mean_and_error(log_q_at_q - _log_middle(log_p_at_q, log_q_at_q))
    return 0.5 * (of_p + of_q), 0.5 * torch.hypot(error_p, error_q)


def _log_middle(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.logaddexp(log_p, log_q) - math.log(2.0)


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / math.sqrt(len(values))
