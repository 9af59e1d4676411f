"""The learning rate as a pure function of the step, so that no schedule has a state to lose."""

import math

from ldm_toolkit.training.config import LoopConfig

__all__ = ["learning_rate"]


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then the schedule down to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.lr * shapes[config.lr_schedule]
