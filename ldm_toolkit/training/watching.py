"""What a person sees of a run: the progress bar and metrics.jsonl."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.resume import trim_metrics

__all__ = ["Watch"]


class Watch(AbstractContextManager):
    """Reports steps, on the main process only. Raises CannotWrite."""

    def __init__(self, config: LoopConfig, accelerator: Accelerator, step: int) -> None:
        self._main = accelerator.is_main_process
        self._metrics = Path(config.output) / "metrics.jsonl"
        if self._main:
            trim_metrics(self._metrics, step)
        self._bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            disable=not self._main,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def report(
        self,
        step: int,
        logs: Mapping[str, float],
        seconds: float,
        validation: Mapping[str, Any] | None = None,
    ) -> None:
        """One line of metrics.jsonl and one step of the bar."""
        if not self._main:
            return
        self._bar.update()
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in logs.items()}, refresh=False)
        line = {"step": step, **logs, "seconds": round(seconds, 3)}
        if validation is not None:
            line["validation"] = validation
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
