"""``--auto-batch``: as many samples at once as memory takes, together the batch that was asked for.

Several small batches a step are one large batch (`step`), so what is found changes what a run needs
and not what it learns, but for rounding.
"""

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator

from ldm_toolkit.errors import UserError, is_out_of_memory
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.folders import write_config
from ldm_toolkit.training.methods.protocol import Method
from ldm_toolkit.training.optimizers import STATE_BYTES

__all__ = ["fitted"]

logger = logging.getLogger(__name__)
Config = TypeVar("Config", bound=LoopConfig)


def fitted(method: Method, config: Config, accelerator: Accelerator) -> Config:
    """The configuration with the largest batch that fits, and as many of them a step as it takes.

    Without ``--auto-batch`` the configuration as it is. What was found stands in
    OUTPUT/config.json, and a run that goes on takes it from there. Raises UserError where not even
    the smallest batch fits, CannotWrite.
    """
    if not config.auto_batch:
        return config
    together = config.batch_size * config.accumulate
    path = Path(config.output) / "config.json"
    size = _found_before(path, together) if config.resume else None
    if size is None:
        size = _largest(method, config, accelerator)
    found = replace(config, batch_size=size, accumulate=together // size)
    if accelerator.is_main_process:
        write_config(found)
        seen = "" if accelerator.device.type != "cpu" else "; a CPU shows only what it cannot allot"
        logger.info("--auto-batch: %d at once, %d times a step%s", size, found.accumulate, seen)
    return found


def _found_before(path: Path, together: int) -> int | None:
    """The batch that an earlier start of this run has found."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_text("utf-8"))
        size, times = told["batch_size"], told["accumulate"]
        if told["auto_batch"] and size * times == together:
            return size
    return None


def _largest(method: Method, config: LoopConfig, accelerator: Accelerator) -> int:
    """The largest batch that divides the one asked for and fits. Raises UserError."""
    if config.gradient_checkpointing:
        method.checkpoint_gradients()
    sizes = range(config.batch_size, 0, -config.batch_unit)
    for size in (one for one in sizes if config.batch_size % one == 0):
        if _fits(method, config, accelerator, size):
            return size
        logger.info("--auto-batch: %d at once are too many", size)
    raise UserError(
        "--auto-batch: memory takes no batch at all; try --gradient-checkpointing, a smaller "
        "--size or --method lora"
    )


def _fits(method: Method, config: LoopConfig, accelerator: Accelerator, size: int) -> bool:
    """Whether all processes have the memory for a step of batches of ``size``."""
    try:
        _attempt(method, config, accelerator, size)
        enough = True
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        enough = False
    method.module.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if accelerator.num_processes == 1:
        return enough
    votes = torch.tensor([int(enough)], device=accelerator.device)
    return int(accelerator.reduce(votes, "sum").item()) == accelerator.num_processes


def _attempt(method: Method, config: LoopConfig, accelerator: Accelerator, size: int) -> None:
    """What a step needs: of its batches the first two, since the second finds gradients there.

    Not through Accelerate, whose processes would wait for one that has failed.
    """
    device, module = accelerator.device, method.module.to(accelerator.device)
    numbers = sum(p.numel() for p in method.trainable().parameters() if p.requires_grad)
    average = 4 if config.ema > 0 else 0
    exchanged = 4 if accelerator.num_processes > 1 else 0
    later = int(numbers * (STATE_BYTES[config.optimizer] + average + exchanged))
    reserved = torch.empty(later, dtype=torch.uint8, device=device)
    together = config.batch_size * config.accumulate
    first = accelerator.process_index * together
    for start in range(first, first + min(2 * size, together), size):
        inputs = method.batch(range(start, start + size))
        with accelerator.autocast():
            outputs = module(**{name: value.to(device) for name, value in inputs.items()})
        loss, _ = method.loss(outputs, 0)
        loss.backward()
    del reserved
