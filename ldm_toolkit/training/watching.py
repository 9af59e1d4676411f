"""What a person sees of a run: the progress bar, metrics.jsonl and trackers."""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ldm_toolkit.errors import CannotWrite, UserError
from ldm_toolkit.progress import Progress
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.folders import shown_options
from ldm_toolkit.training.resume import trim_metrics

__all__ = ["Watch"]

_PROJECT = "ldm-toolkit"
_SMOOTH = 0.9  # of the rate: the bar does not jump with each step
_EVERY = 10.0  # seconds between lines where there is no bar

logger = logging.getLogger(__name__)


class Watch(AbstractContextManager):
    """Reports steps, on the main process only. Raises CannotWrite, UserError."""

    def __init__(self, config: LoopConfig, accelerator: Accelerator, step: int) -> None:
        self._accelerator = accelerator
        self._metrics = Path(config.output) / "metrics.jsonl"
        self._samples = config.batch_size * config.accumulate * accelerator.num_processes
        self._rate = 0.0
        if accelerator.is_main_process:
            trim_metrics(self._metrics, step)
            self._write("")  # a file that cannot be written is told before the first step
        if accelerator.log_with:
            _start_trackers(config, accelerator, step)
        self._progress: Progress | None = None
        if accelerator.is_main_process:
            self._progress = Progress(
                config.steps, "training", tell=logger.info, begun=step, every=_EVERY
            )

    def report(
        self,
        step: int,
        logs: Mapping[str, float],
        seconds: float,
        validation: Mapping[str, Any] | None = None,
    ) -> None:
        """One line of metrics.jsonl, one step of the bar, one entry of each tracker."""
        if self._progress is None:
            return
        rate = self._samples / max(seconds, 1e-9)
        self._rate = _SMOOTH * self._rate + (1 - _SMOOTH) * rate if self._rate else rate
        shown = {**logs, "samples/s": self._rate}
        self._progress.update(", ".join(f"{name}={value:.3g}" for name, value in shown.items()))
        line: dict[str, Any] = {"step": step, **logs, "seconds": round(seconds, 3)}
        if validation is not None:
            line["validation"] = validation
        self._write(json.dumps(line) + "\n")
        if self._accelerator.log_with:
            values = {**logs, "samples_per_second": rate, "validation": validation or {}}
            self._accelerator.log(_flat(values), step=step)

    def _write(self, line: str) -> None:
        try:
            with open(self._metrics, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            reason = error.strerror or error
            raise CannotWrite(f"cannot write {self._metrics}: {reason}") from error

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.__exit__()
        for tracker in self._accelerator.trackers:  # end_training() would end the processes' group
            tracker.finish()


def _start_trackers(config: LoopConfig, accelerator: Accelerator, step: int) -> None:
    """Begin a run of each tracker. Raises UserError."""
    plain = (bool, int, float, str)
    told = {
        k: v if isinstance(v, plain) else json.dumps(v) for k, v in shown_options(config).items()
    }
    name = Path(config.output).name
    settings = {
        "tensorboard": {"purge_step": step + 1},  # what a resumed run does again
        "wandb": {"dir": config.output, "name": name},
        "trackio": {"name": name},
    }
    try:
        accelerator.init_trackers(_PROJECT, config=told, init_kwargs=settings)
    except Exception as error:  # no account, no network: whatever a service raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--trackers {config.trackers} cannot start: {reason:.200}") from error


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Nested numbers as ``validation/raw/loss``, which trackers draw in groups."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}/")
        else:
            flat[f"{before}{name}"] = value
    return flat
