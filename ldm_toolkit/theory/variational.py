"""Variational autoencoders and the adversarial values that sharpen them.

Means and log variances are (B, ...), values in nats. KLs between any two normals stand in
``divergences``, the other losses of a GAN in ``gan``.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "discriminator_hinge",
    "elbo",
    "generator_hinge",
    "importance_weighted_log_likelihood",
    "kl_to_standard_normal",
    "normal_log_density",
    "reparameterise",
    "reparameterised_gradient",
]


def reparameterise(mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    """A draw of N(mean, exp(log_variance)): mean + exp(log_variance / 2) eps.

    Kingma and Welling 2014, section 2.4.
    """
    return mean + torch.exp(0.5 * log_variance) * eps


def reparameterised_gradient(
    slope: Tensor, log_variance: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by mean and log variance of f(z), z drawn by ``reparameterise``; slope is f'(z).

    The chain rule through z = mean + exp(log_variance / 2) eps: slope and
    slope exp(log_variance / 2) eps / 2. Their means over eps are unbiased gradients of E[f(z)]
    (Kingma and Welling 2014, section 2.4), and what autograd finds.
    """
    return slope, 0.5 * slope * torch.exp(0.5 * log_variance) * eps


def normal_log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the density N(x; mean, exp(log_variance)) an element; the sum is a vector's."""
    distance = (x - mean).square() * torch.exp(-log_variance)
    return -0.5 * (math.log(2.0 * math.pi) + log_variance + distance)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) an element, in nats.

    Kingma and Welling 2014, appendix B: (mean^2 + variance - 1 - log variance) / 2.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def elbo(log_likelihood: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Evidence lower bound of log p(x) at one draw z of the encoder; (B,).

    log p(x | z) - KL(q(z | x) || N(0, 1)), Kingma and Welling 2014, eq. 10 with one draw:
    ``log_likelihood`` (B,) is that of the decoder at z, summed over the data's elements, the others
    (B, ...) are the encoder's. Its mean over z is log p(x) - KL(q(z | x) || p(z | x)).
    """
    return log_likelihood - kl_to_standard_normal(mean, log_variance).flatten(1).sum(1)


def importance_weighted_log_likelihood(log_weights: Tensor) -> Tensor:
    """log of the mean of k importance weights p(x, z) / q(z | x), z drawn of q; (k, ...) -> (...).

    Burda et al. 2016, eq. 8. Its mean over draws is the ELBO for k = 1, rises with k and goes to
    log p(x) if q is nowhere 0 where p(z | x) is not; its error is about the variance of the
    normalised weights / (2 k).
    """
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, mean over logits. Lim and Ye 2017, section 3."""
    return 0.5 * (torch.relu(1.0 - real).mean() + torch.relu(1.0 + fake).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """Hinge loss of the generator: minus the discriminator's mean logit. Lim and Ye 2017."""
    return -fake.mean()
