"""The learning rate as a pure function of the step, so that no schedule has a state to lose."""

import functools
import math
from collections.abc import Callable

import torch

from ldm_toolkit.training.config import LoopConfig

__all__ = ["learning_rate"]

_OURS = ("constant", "linear", "cosine")


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then the schedule down to 0.

    The shapes that are not ours are those of ``diffusers.optimization``, whose warm-up begins
    with a rate of 0.
    """
    if config.lr_schedule not in _OURS:
        numbers = (config.lr, config.warmup, config.steps, config.lr_cycles, config.lr_power)
        return config.lr * _factor(config.lr_schedule, *numbers)(step)
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.lr * shapes[config.lr_schedule]


@functools.lru_cache(maxsize=8)
def _factor(
    name: str, lr: float, warmup: int, steps: int, cycles: int, power: float
) -> Callable[[int], float]:
    """What diffusers multiplies the rate by at a step."""
    from diffusers.optimization import get_scheduler

    schedule = get_scheduler(
        name,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr),
        num_warmup_steps=warmup,
        num_training_steps=steps,
        num_cycles=cycles,
        power=power,
    )
    return schedule.lr_lambdas[0]
