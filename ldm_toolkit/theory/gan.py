"""Generative adversarial networks: losses on logits, the best discriminator, the game's value.

A discriminator's output is a logit: D(x) = sigmoid(logit) is its belief that x is data. Logits have
any shape, a patch discriminator's are (B, 1, h, w); losses are their means, in nats, to be
minimised. The hinge losses, which VAE training uses, live in ``variational``; the PatchGAN
discriminator that they teach is ``ldm_toolkit.training.objectives.PatchDiscriminator``.
"""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from ldm_toolkit.theory.variational import discriminator_hinge, generator_hinge

__all__ = [
    "discriminator_hinge",
    "discriminator_minimax",
    "game_value",
    "generator_hinge",
    "generator_minimax",
    "generator_non_saturating",
    "optimal_discriminator",
    "optimal_logit",
    "optimal_value",
]


def game_value(real: Tensor, fake: Tensor) -> Tensor:
    """V(D, G) = mean log D(real) + mean log(1 - D(fake)), which D raises and G lowers; scalar.

    Goodfellow et al. 2014, eq. 1. At most 0; -log 4 for a D that knows nothing.
    """
    return logsigmoid(real).mean() + logsigmoid(-fake).mean()


def discriminator_minimax(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of the discriminator, -V(D, G); scalar. Goodfellow et al. 2014, eq. 1."""
    return -game_value(real, fake)


def generator_minimax(fake: Tensor) -> Tensor:
    """The generator's part of V: mean log(1 - D(fake)); scalar. Goodfellow et al. 2014, eq. 1.

    Its slope by the logit is -D(fake): a generator that is seen through learns nothing.
    """
    return logsigmoid(-fake).mean()


def generator_non_saturating(fake: Tensor) -> Tensor:
    """-mean log D(fake); scalar. Goodfellow et al. 2014, section 3.

    Its slope by the logit is D(fake) - 1: steepest for a generator that is seen through.
    """
    return -logsigmoid(fake).mean()


def optimal_logit(log_p_data: Tensor, log_p_model: Tensor) -> Tensor:
    """Logit of the best discriminator: the log ratio of the densities at each point.

    Infinite where one density is 0, not a number where both are: there is nothing to decide.
    """
    return log_p_data - log_p_model


def optimal_discriminator(log_p_data: Tensor, log_p_model: Tensor) -> Tensor:
    """The best D, p_data / (p_data + p_model), at each point. Goodfellow et al. 2014, eq. 2."""
    return optimal_logit(log_p_data, log_p_model).sigmoid()


def optimal_value(jensen_shannon: Tensor) -> Tensor:
    """V(D, G) at the best D: 2 JS(p_data, p_model) - log 4. Goodfellow et al. 2014, theorem 1.

    -log 4 when the generator has learnt the data, 0 when the two share nothing.
    """
    return 2.0 * jensen_shannon - math.log(4.0)
