"""The training loop: when things happen. What happens is the method's."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from ldm_toolkit.errors import NumericalError, UserError
from ldm_toolkit.hardware import threads_per_process
from ldm_toolkit.training import checkpoints
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.methods.protocol import Method
from ldm_toolkit.training.resume import check_course, course, trim_metrics
from ldm_toolkit.training.signals import Interrupted, SignalFlag

__all__ = ["learning_rate", "set_threads", "train"]

logger = logging.getLogger(__name__)
_BAD_STEPS = 3


def set_threads(threads: int) -> int:
    """Set torch's CPU threads and return their number; 0 shares the cores among local processes."""
    if threads == 0:
        threads = threads_per_process()
    torch.set_num_threads(threads)
    return threads


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then the schedule down to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.lr * shapes[config.lr_schedule]


class _Run:
    """The state of a run between two steps: what a checkpoint holds."""

    def __init__(
        self,
        method: Method,
        config: LoopConfig,
        accelerator: Accelerator,
        inputs: Mapping[str, Any],
    ) -> None:
        self.method, self.config, self.accelerator = method, config, accelerator
        self.folder = Path(config.output) / "checkpoints"
        self.course = course(
            config, {**_frozen(method), **inputs, "processes": accelerator.num_processes}
        )
        self.parameters = [p for p in method.trainable().parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        module = method.module.to(accelerator.device)
        if config.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.ema = None
        if config.ema > 0:
            self.ema = EMAModel(
                self.parameters, decay=config.ema, use_ema_warmup=True, power=0.75, foreach=True
            )
        self.step, self.bad_steps = 0, 0

    def checkpoint(self) -> None:
        """Write the run's state; on one process only, the others wait."""
        if self.accelerator.is_main_process:
            tensors = {
                "weights": checkpoints.named_state(self.method.trainable()),
                "optimizer": checkpoints.optimizer_tensors(self.optimizer.optimizer),
            }
            state: dict[str, Any] = {"seed": self.config.seed, "bad_steps": self.bad_steps}
            state["course"] = self.course
            if self.ema is not None:
                tensors["ema"] = {str(i): p for i, p in enumerate(self.ema.shadow_params)}
                state["ema_step"] = self.ema.optimization_step
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            checkpoints.save(self.folder, checkpoints.Checkpoint(self.step, tensors, state))
            checkpoints.prune(self.folder, self.config.keep, newest=self.step)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Take up the newest whole checkpoint where there is one. Raises UserError."""
        found = checkpoints.latest(self.folder)
        if found is None:
            return
        before = {"seed": found.state["seed"], **found.state.get("course", {})}
        check_course(before, self.course, self.folder)
        try:
            checkpoints.restore_state(self.method.trainable(), found.tensors["weights"])
        except ValueError as error:
            raise UserError(
                f"{self.folder} belongs to another network ({error}); pass the same model, another "
                "--output, or --resume false to start again"
            ) from error
        checkpoints.restore_optimizer(self.optimizer.optimizer, found.tensors["optimizer"])
        if self.ema is not None:
            shadow = found.tensors["ema"]
            for index, parameter in enumerate(self.ema.shadow_params):
                parameter.copy_(shadow[str(index)])
            self.ema.optimization_step = found.state["ema_step"]
        if self.accelerator.scaler is not None and "scaler" in found.state:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.step, self.bad_steps = found.step, found.state["bad_steps"]
        logger.info("resumed at step %d", self.step)

    def advance(self) -> dict[str, float]:
        """One optimiser step; what to log. Raises NumericalError after several bad ones."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        positions = self._positions()
        inputs = {k: v.to(accelerator.device) for k, v in self.method.batch(positions).items()}
        with accelerator.autocast():
            outputs = self.module(**inputs)
        loss, logs = self.method.loss(outputs, self.step)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
        finite = math.isfinite(float(norm))
        if not finite:
            self._note_bad(loss, norm, positions)
        if finite or accelerator.scaler is not None:  # a scaler skips the step and lowers its scale
            self.optimizer.step()
        if finite:
            self.bad_steps = 0
            if self.ema is not None:
                self.ema.step(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        lr = learning_rate(config, self.step - 1)
        return {"loss": float(loss.detach()), "grad_norm": float(norm), "lr": lr, **logs}

    def _positions(self) -> Sequence[int]:
        size, ranks = self.config.batch_size, self.accelerator.num_processes
        first = (self.step * ranks + self.accelerator.process_index) * size
        return range(first, first + size)

    def _note_bad(self, loss: Tensor, norm: Tensor, positions: Sequence[int]) -> None:
        # Gradients are reduced over ranks, so a non-finite norm is seen by all of them alike.
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() > 1:
            return  # fp16 looks for its loss scale by overflowing
        self.bad_steps += 1
        where = f"step {self.step}, positions {positions[0]} to {positions[-1]}"
        logger.warning(
            "%s skipped: loss %s, gradient norm %s", where, float(loss.detach()), float(norm)
        )
        if self.bad_steps >= _BAD_STEPS:
            raise NumericalError(
                f"{_BAD_STEPS} steps in a row without finite gradients, last {where}; "
                "try a smaller --lr or --mixed-precision no"
            )

    def stopping(self, received: bool) -> bool:
        """Whether any process received a signal: all have to leave after the same step."""
        if self.accelerator.num_processes == 1:
            return received
        flag = torch.tensor([int(received)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the network has its averaged weights."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def _frozen(method: Method) -> dict[str, str]:
    """The content of what checkpoints leave out: a resumed run must start from the same model."""
    digest = checkpoints.frozen_hash(method.trainable())
    return {"model": digest} if digest is not None else {}


def train(
    method: Method,
    config: LoopConfig,
    accelerator: Accelerator,
    *,
    sample: Callable[[int], None] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Train until ``config.steps`` and write the averaged network to ``config.output``.

    ``sample(step)`` is called every ``config.sample_every`` steps with the averaged weights in
    place; ``inputs`` names hashes of the data and models, which a resumed run must share.
    Raises Interrupted after a signal, NumericalError, UserError, CannotWrite.
    """
    run = _Run(method, config, accelerator, inputs if inputs is not None else {})
    if config.resume:
        run.restore()
    metrics = Path(config.output) / "metrics.jsonl"
    if accelerator.is_main_process:
        trim_metrics(metrics, run.step)
    with SignalFlag() as flag, _progress(run) as bar:
        while run.step < config.steps:
            started = time.monotonic()
            logs = run.advance()
            _report(run, bar, metrics, logs, time.monotonic() - started)
            stopping = run.stopping(flag.received is not None)
            if run.step % config.checkpoint_every == 0 or run.step == config.steps or stopping:
                run.checkpoint()
            if stopping:
                raise Interrupted(flag.exit_code, run.folder)
            if sample and config.sample_every and run.step % config.sample_every == 0:
                _sample(run, sample)
    if accelerator.is_main_process:
        with run.averaged():
            method.save(Path(config.output))
    accelerator.wait_for_everyone()


def _sample(run: _Run, sample: Callable[[int], None]) -> None:
    if run.accelerator.is_main_process:
        with run.averaged():
            sample(run.step)
    run.accelerator.wait_for_everyone()


def _progress(run: _Run) -> tqdm:
    return tqdm(
        total=run.config.steps,
        initial=run.step,
        unit="step",
        disable=not run.accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )


def _report(run: _Run, bar: tqdm, metrics: Path, logs: dict[str, float], seconds: float) -> None:
    if not run.accelerator.is_main_process:
        return
    bar.update()
    bar.set_postfix({k: f"{v:.3g}" for k, v in logs.items()}, refresh=False)
    with open(metrics, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": run.step, **logs, "seconds": round(seconds, 3)}) + "\n")
