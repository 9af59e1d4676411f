"""One step of the optimiser: gradients of its samples, clipping, the change of the weights."""

import contextlib
import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_toolkit.errors import NumericalError
from ldm_toolkit.training.rates import learning_rate
from ldm_toolkit.training.run_state import RunState

__all__ = ["advance"]

logger = logging.getLogger(__name__)
_BAD_STEPS = 3


def advance(run: RunState) -> dict[str, float]:
    """One optimiser step; what to log. Raises NumericalError after several bad ones."""
    config, accelerator = run.config, run.accelerator
    rate = learning_rate(config, run.step)
    for group, factor in zip(run.optimizer.param_groups, run.rate_factors, strict=True):
        if isinstance(group["lr"], Tensor):  # compiled into torchao's step as the place to look at
            group["lr"].fill_(rate * factor)
        else:
            group["lr"] = rate * factor
    batches = _batches(run)
    loss, logs = _of_all_processes(run, *_add_gradients(run, batches))
    norm = accelerator.clip_grad_norm_(run.parameters, config.max_grad_norm)
    finite = math.isfinite(float(norm))
    if not finite:
        _note_bad(run, loss, float(norm), batches)
    if finite or accelerator.scaler is not None:  # a scaler skips the step and lowers its scale
        run.optimizer.step()
    if finite:
        run.bad_steps = 0
        if run.ema is not None:
            run.ema.step(run.parameters)
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return {"loss": loss, "grad_norm": float(norm), "lr": rate, **logs}


def _batches(run: RunState) -> list[range]:
    """The positions of this process's batches: of all processes together, one after the other."""
    size, ranks = run.config.batch_size, run.accelerator.num_processes
    together = size * run.config.accumulate
    first = (run.step * ranks + run.accelerator.process_index) * together
    return [range(start, start + size) for start in range(first, first + together, size)]


def _add_gradients(run: RunState, batches: Sequence[range]) -> tuple[float, dict[str, float]]:
    """Leave the gradients of the mean loss of all batches; that loss and the means of the logs.

    All batches are of one size, so the mean of their means is the mean over their samples. What a
    method computes of a batch as a whole (an adaptive weight) it computes of each.
    """
    accelerator, losses = run.accelerator, []
    means: dict[str, float] = {}
    for number, positions in enumerate(batches, 1):
        # Processes exchange the sum once, not each part of it.
        last = number == len(batches)
        with contextlib.nullcontext() if last else accelerator.no_sync(run.module):
            inputs = {k: v.to(accelerator.device) for k, v in run.method.batch(positions).items()}
            with accelerator.autocast():
                outputs = run.module(**inputs)
            loss, logs = run.method.loss(outputs, run.step)
            accelerator.backward(loss)
        losses.append(loss.detach())  # as a number at the end: asking a GPU for one waits for it
        for name, value in logs.items():
            means[name] = means.get(name, 0.0) + value / len(batches)
    return float(torch.stack(losses).mean()), means


def _of_all_processes(
    run: RunState, loss: float, logs: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """The means over processes, whose batches are of one size: what one with all of them logs."""
    if run.accelerator.num_processes == 1:
        return loss, logs
    own = torch.tensor([loss, *logs.values()], device=run.accelerator.device)
    loss, *values = run.accelerator.reduce(own, "mean").tolist()
    return loss, dict(zip(logs, values, strict=True))


def _note_bad(run: RunState, loss: float, norm: float, batches: Sequence[range]) -> None:
    # Gradients are reduced over ranks, so a non-finite norm is seen by all of them alike.
    scaler = run.accelerator.scaler
    if scaler is not None and scaler.get_scale() > 1:
        return  # fp16 looks for its loss scale by overflowing
    run.bad_steps += 1
    where = f"step {run.step}, positions {batches[0][0]} to {batches[-1][-1]}"
    names = [name for positions in batches for name in run.method.names(positions)]
    if names:
        where += f" ({', '.join(dict.fromkeys(names))})"
    if run.zero:
        raise NumericalError(
            f"{where}: loss {loss}, gradient norm {norm}; DeepSpeed may have changed the weights "
            f"by it, those before are in {run.folder}; try a smaller --lr"
        )
    logger.warning("%s skipped: loss %s, gradient norm %s", where, loss, norm)
    if run.bad_steps >= _BAD_STEPS:
        raise NumericalError(
            f"{_BAD_STEPS} steps in a row without finite gradients, last {where}; "
            "try a smaller --lr or --mixed-precision no"
        )
