"""The training loop: when things happen. What happens is the method's."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ldm_toolkit.errors import NumericalError
from ldm_toolkit.hardware import threads_per_process
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.methods.protocol import Method
from ldm_toolkit.training.rates import learning_rate, warn_of_warmup
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.signals import Interrupted, SignalFlag
from ldm_toolkit.training.space import check_space
from ldm_toolkit.training.step import advance
from ldm_toolkit.training.validation import Validation
from ldm_toolkit.training.watching import Watch

__all__ = ["learning_rate", "set_threads", "train"]

logger = logging.getLogger(__name__)


def set_threads(threads: int) -> int:
    """Set torch's CPU threads and return their number; 0 shares the cores among local processes."""
    if threads == 0:
        threads = threads_per_process()
    torch.set_num_threads(threads)
    return threads


def train(
    method: Method,
    config: LoopConfig,
    accelerator: Accelerator,
    *,
    sample: Callable[[int], None] | None = None,
    validation: Validation | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Train until ``config.steps`` and write the averaged network to ``config.output``.

    ``sample(step)`` is called before the first step, every ``config.sample_every`` steps and after
    the last one, with the averaged weights in place; ``validation`` measures its held-out pictures
    when it is due; ``inputs`` names hashes of the data and models, which a resumed run must share.
    Raises Interrupted after a signal, NumericalError, UserError, CannotWrite.
    """
    if accelerator.is_main_process:
        check_space(method, config)
        warn_of_warmup(config)
    run = RunState(method, config, accelerator, inputs if inputs is not None else {})
    if config.resume:
        run.restore()
    if run.step >= config.steps:
        logger.info(
            "all %d steps are done already: for another run pass another --output than %s, or "
            "--resume false",
            config.steps,
            config.output,
        )
    with SignalFlag() as flag, Watch(config, accelerator, run.step) as watch:
        if run.step == 0:
            _sample(run, sample)
        while run.step < config.steps:
            started = time.monotonic()
            logs = advance(run)
            seconds = time.monotonic() - started
            stopping = run.stopping(flag.received is not None)
            measured = None
            if validation is not None and not stopping and validation.due(run.step, config.steps):
                measured = validation.measure(run)
            watch.report(run.step, logs, seconds, measured)
            if run.step % config.checkpoint_every == 0 or run.step == config.steps or stopping:
                run.checkpoint()
            if stopping:
                raise _interrupted(run, flag.exit_code)
            if run.step % (config.sample_every or config.steps) == 0 and run.step < config.steps:
                _sample(run, sample)
    with run.finished():
        if accelerator.is_main_process:
            _check_finite(method)
            method.save(Path(config.output))
    _sample(run, sample)
    accelerator.wait_for_everyone()


def _interrupted(run: RunState, code: int) -> Interrupted:
    if run.zero:
        anew = ("--model", run.config.output, "--output", f"{run.config.output}-2")
        told = (
            "stopped by a signal; DeepSpeed cannot go on exactly, this starts anew from the weights"
        )
        return Interrupted(code, told, anew)
    words = () if run.config.resume else ("--resume", "true")
    command = " ".join(["the same command", *(["with"] if words else []), *words])
    return Interrupted(code, f"stopped by a signal; {command} goes on from {run.folder}", words)


def _check_finite(method: Method) -> None:
    """Refuse to write weights that hold NaN or infinity. Raises NumericalError."""
    for name, parameter in method.trainable().named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise NumericalError(
                f"{name} holds NaN or infinity after the training; nothing was written; try a "
                "smaller --lr"
            )


def _sample(run: RunState, sample: Callable[[int], None] | None) -> None:
    if sample is None or run.config.sample_every == 0:
        return
    with run.finished():
        if run.accelerator.is_main_process:
            sample(run.step)
    run.accelerator.wait_for_everyone()
