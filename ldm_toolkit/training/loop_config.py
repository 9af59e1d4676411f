"""The options that every training command has: when things happen, how weights are changed.

Level 1: no torch.
"""

import typing
from dataclasses import dataclass
from typing import Literal

from ldm_toolkit.errors import UserError, suggestion

__all__ = ["OPTIMIZERS", "TRACKERS", "LoopConfig", "ValidationOptions"]

OPTIMIZERS = ("adamw", "adamw-8bit", "adamw-8bit-ao", "adamw-4bit", "prodigy", "schedule-free")
"""What ``--optimizer`` may say; `training.optimizers` makes them."""

TRACKERS = ("tensorboard", "wandb", "trackio")
"""What ``--trackers`` may name, which are the names of their packages."""

_WARMUP = 50


@dataclass(kw_only=True)
class LoopConfig:
    """Options that every training command has.

    Attributes:
        output: Folder for the trained model, the checkpoints, metrics.jsonl and sample pictures.
        steps: Optimiser steps of the whole run.
        batch_size: Samples that a process computes at once.
        accumulate: Batches whose gradients are added up for one step: the same as a batch so many
            times as large, in less memory.
        auto_batch: Try before the first step how many samples fit into memory, and compute a batch
            that does not fit in equal parts: the same training but for rounding. A run that goes
            on keeps what was found.
        lr: Learning rate at its peak.
        lr_schedule: Shape of the learning rate over the run after the warm-up, which constant has
            too; those with a longer name and polynomial are computed by diffusers.
        lr_cycles: Cosines one after the other in cosine_with_restarts.
        lr_power: Exponent of the schedule polynomial.
        warmup: Steps of linear warm-up; by default a tenth of the steps, at most 50.
        optimizer: Rule by which the weights change: adamw is torch's; adamw-8bit of bitsandbytes
            and adamw-8bit-ao of torchao keep their state in a quarter of the memory, adamw-4bit of
            torchao in an eighth; prodigy finds the learning rate itself, schedule-free needs
            neither a schedule nor a moving average. All but the first come with
            pip install 'ldm-toolkit[optimizers]'.
        weight_decay: Decoupled weight decay of the optimiser.
        max_grad_norm: Gradients longer than this are shortened to it.
        ema: Decay of the moving average of the weights; 0 switches it off.
        seed: Everything random is a function of this and of the position in the run.
        mixed_precision: bf16 computes in bfloat16 with float32 weights, which is
            faster where the hardware knows it; fp16 is for GPUs.
        threads: CPU threads of each process; 0 shares the usable cores among local processes.
        checkpoint_every: Steps between checkpoints; one is also written at the end and at a signal.
        keep: Checkpoints that stay, at least 2.
        sample_every: Steps between sample pictures; 0 for none. There are also some before the
            first step and after the last, side by side in OUTPUT/before_after.png.
        trackers: Where the metrics go besides metrics.jsonl, separated by commas: tensorboard (into
            OUTPUT/logs), wandb, trackio. They come with pip install 'ldm-toolkit[trackers]'.
        resume: Go on from the newest whole checkpoint in OUTPUT/checkpoints where there is one.
        compile: Compile the trained network with torch.compile.
        gradient_checkpointing: Compute a block again when its gradients are due instead of keeping
            all that it computed: less memory, about a third more time, the same numbers.
    """

    output: str
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    auto_batch: bool = False
    lr: float = 1e-4
    lr_schedule: Literal[
        "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial"
    ] = "cosine"
    lr_cycles: int = 1
    lr_power: float = 1.0
    warmup: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    threads: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    sample_every: int = 0
    trackers: str = ""
    resume: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Report every contradiction at once, naming the option. Raises UserError."""
        problems = self._null_problems() or self.problems()
        if problems:
            raise UserError("; ".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with the options, one line each."""
        found = []
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                found.append(f"--{name.replace('_', '-')} must be at least 1")
        if self.warmup is not None and self.warmup < 0:
            found.append("--warmup must not be negative")
        for name in ("seed", "threads", "sample_every", "weight_decay"):
            if not getattr(self, name) >= 0:  # NaN neither
                found.append(f"--{name.replace('_', '-')} must not be negative")
        for name, most in (("seed", 2**63 - 1), ("threads", 1 << 16), ("batch_size", 1 << 16)):
            if getattr(self, name) > most:
                found.append(f"--{name.replace('_', '-')} must be at most {most}")
        if not 0 < self.lr < float("inf"):
            found.append("--lr must be positive")
        if not self.max_grad_norm > 0:
            found.append("--max-grad-norm must be positive")
        if self.keep < 2:
            found.append("--keep must be at least 2: the newest may be damaged")
        if not 0 <= self.ema < 1:
            found.append("--ema must be at least 0 and below 1")
        for name in self.tracker_names():
            if name not in TRACKERS:
                found.append(
                    f"--trackers knows {', '.join(TRACKERS)}, not {name!r:.80}"
                    + suggestion(name, TRACKERS)
                )
        return found + self._optimizer_problems() + self._schedule_problems()

    @property
    def warmup_steps(self) -> int:
        """The steps of warm-up: as many as were asked for, or as fit the run."""
        return self.warmup if self.warmup is not None else min(_WARMUP, self.steps // 10)

    def _null_problems(self) -> list[str]:
        """What YAML's null was given for and cannot be."""
        hints = typing.get_type_hints(type(self))
        return [
            f"--{name.replace('_', '-')} must not be null: leave it out for the default"
            for name, hint in hints.items()
            if getattr(self, name) is None and type(None) not in typing.get_args(hint)
        ]

    @property
    def batch_unit(self) -> int:
        """What the number of samples computed at once has to be a multiple of."""
        return 1

    def tracker_names(self) -> list[str]:
        """The names in ``trackers``."""
        return [name.strip() for name in self.trackers.split(",")] if self.trackers else []

    def _optimizer_problems(self) -> list[str]:
        found = []
        if self.optimizer not in OPTIMIZERS:
            found.append(
                f"--optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r:.80}"
                + suggestion(self.optimizer, OPTIMIZERS)
            )
        if self.optimizer == "prodigy" and 0 < self.lr < 0.01:
            found.append(
                "--optimizer prodigy finds the learning rate itself, --lr is a factor of it: "
                "pass --lr 1"
            )
        if self.optimizer == "schedule-free":
            if self.ema > 0:
                found.append("--optimizer schedule-free averages the weights itself: pass --ema 0")
            if self.lr_schedule != "constant":
                found.append("--optimizer schedule-free needs --lr-schedule constant")
        return found

    def _schedule_problems(self) -> list[str]:
        found = []
        if self.lr_cycles < 1:
            found.append("--lr-cycles must be at least 1")
        elif self.lr_cycles > 1 and self.lr_schedule != "cosine_with_restarts":
            found.append("--lr-cycles belongs to --lr-schedule cosine_with_restarts: pass it too")
        if not 0 < self.lr_power < float("inf"):
            found.append("--lr-power must be positive")
        elif self.lr_power != 1 and self.lr_schedule != "polynomial":
            found.append("--lr-power belongs to --lr-schedule polynomial: pass it too")
        if self.lr_schedule == "polynomial" and 0 < self.lr <= 1e-7:
            found.append("--lr-schedule polynomial ends at 1e-7: pass a larger --lr")
        return found


@dataclass(kw_only=True)
class ValidationOptions:
    """How the loss on held-out pictures is watched.

    Attributes:
        validate_every: Steps between measurements of the loss on held-out pictures, which go to
            metrics.jsonl; 0 for none. The same pictures, noise and timesteps each time, with the
            weights as they are and with their average.
        validation_data: Held-out pictures with captions, in any form that training takes them.
        validation_count: Pictures of the training's own that are held out instead, always the same.
    """

    validate_every: int = 0
    validation_data: str | None = None
    validation_count: int = 0

    def validation_problems(self, data: str) -> list[str]:
        """What is wrong with the options of the validation, one line each."""
        found = []
        for name in ("validate_every", "validation_count"):
            if getattr(self, name) < 0:
                found.append(f"--{name.replace('_', '-')} must not be negative")
        if self.validation_data is not None and self.validation_count > 0:
            found.append("--validation-data and --validation-count both hold out: pass one")
        if self.validation_data is not None and self.validation_data == data:
            found.append("--validation-data is what is trained on: pass --validation-count instead")
        if self.validate_every > 0 and self.validation_data is None and self.validation_count == 0:
            found.append("--validate-every needs --validation-data FOLDER or --validation-count N")
        return found
