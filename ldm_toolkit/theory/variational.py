"""Variational autoencoders and the adversarial values that sharpen them."""

import torch
from torch import Tensor

__all__ = ["discriminator_hinge", "generator_hinge", "kl_to_standard_normal", "reparameterise"]


def reparameterise(mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    """A draw of N(mean, exp(log_variance)): mean + exp(log_variance / 2) eps.

    Kingma and Welling 2014, section 2.4.
    """
    return mean + torch.exp(0.5 * log_variance) * eps


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) an element, in nats.

    Kingma and Welling 2014, appendix B: (mean^2 + variance - 1 - log variance) / 2.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, mean over logits. Lim and Ye 2017, section 3."""
    return 0.5 * (torch.relu(1.0 - real).mean() + torch.relu(1.0 + fake).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """Hinge loss of the generator: minus the discriminator's mean logit. Lim and Ye 2017."""
    return -fake.mean()
