"""One step of the optimiser: gradients of its samples, clipping, the change of the weights."""

import logging
import math
from collections.abc import Sequence

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
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    positions = _positions(run)
    inputs = {k: v.to(accelerator.device) for k, v in run.method.batch(positions).items()}
    with accelerator.autocast():
        outputs = run.module(**inputs)
    loss, logs = run.method.loss(outputs, run.step)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(run.parameters, config.max_grad_norm)
    finite = math.isfinite(float(norm))
    if not finite:
        _note_bad(run, loss, norm, positions)
    if finite or accelerator.scaler is not None:  # a scaler skips the step and lowers its scale
        run.optimizer.step()
    if finite:
        run.bad_steps = 0
        if run.ema is not None:
            run.ema.step(run.parameters)
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return {"loss": float(loss.detach()), "grad_norm": float(norm), "lr": rate, **logs}


def _positions(run: RunState) -> Sequence[int]:
    size, ranks = run.config.batch_size, run.accelerator.num_processes
    first = (run.step * ranks + run.accelerator.process_index) * size
    return range(first, first + size)


def _note_bad(run: RunState, loss: Tensor, norm: Tensor, positions: Sequence[int]) -> None:
    # Gradients are reduced over ranks, so a non-finite norm is seen by all of them alike.
    scaler = run.accelerator.scaler
    if scaler is not None and scaler.get_scale() > 1:
        return  # fp16 looks for its loss scale by overflowing
    run.bad_steps += 1
    where = f"step {run.step}, positions {positions[0]} to {positions[-1]}"
    logger.warning(
        "%s skipped: loss %s, gradient norm %s", where, float(loss.detach()), float(norm)
    )
    if run.bad_steps >= _BAD_STEPS:
        raise NumericalError(
            f"{_BAD_STEPS} steps in a row without finite gradients, last {where}; "
            "try a smaller --lr or --mixed-precision no"
        )
