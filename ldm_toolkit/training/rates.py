"""The learning rate as a pure function of the step, so that no schedule has a state to lose."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable

import torch

from ldm_toolkit.training.config import LoopConfig

__all__ = ["learning_rate", "warn_of_other_steps", "warn_of_warmup"]

logger = logging.getLogger(__name__)

_OURS = ("constant", "linear", "cosine")


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then the schedule down to 0.

    The shapes that are not ours are those of ``diffusers.optimization``, whose warm-up begins
    with a rate of 0.
    """
    warmup = config.warmup_steps
    if config.lr_schedule not in _OURS:
        numbers = (config.lr, warmup, config.steps, config.lr_cycles, config.lr_power)
        return config.lr * _factor(config.lr_schedule, *numbers)(step)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
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


def warn_of_warmup(config: LoopConfig) -> None:
    """Say it where a run ends before its warm-up: short ones would learn hardly anything."""
    if config.warmup_steps >= config.steps:
        logger.warning(
            "--warmup %d takes the whole run of %d steps, whose learning rate ends at %.2g where "
            "--lr is %.2g: pass a smaller --warmup",
            *(config.warmup_steps, config.steps),
            *(learning_rate(config, config.steps - 1), config.lr),
        )


def warn_of_other_steps(config: LoopConfig, before: int, step: int) -> None:
    """Say it where a run of ``before`` steps has other rates from ``step`` on, being of others now.

    The shape of most schedules goes by the number of steps.
    """
    shorter = dataclasses.replace(config, steps=before)
    for place in (step, max(step, before - 1)):
        rates = learning_rate(shorter, place), learning_rate(config, place)
        if step < config.steps and rates[0] != rates[1]:
            logger.warning(
                "--steps %d was %d before: --lr-schedule %s goes by the new number from here on, "
                "with a learning rate of %.2g in step %d, not %.2g",
                *(config.steps, before, config.lr_schedule, rates[1], place + 1, rates[0]),
            )
            return
