"""What a resumed run must have in common with the run that it goes on from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import UserError
from ldm_toolkit.files import write_atomic
from ldm_toolkit.training.config import LoopConfig

__all__ = ["check_course", "course", "trim_metrics"]

# None of these changes what a step computes; that of its steps changes the learning rates of most
# schedules, which `rates` tells. Data and models are compared by content, not by path.
_FREE = frozenset(
    {"steps", "threads", "checkpoint_every", "keep", "sample_every", "sample_prompts", "resume"}
    | {"output", "cache", "no_cache", "compile", "gradient_checkpointing", "auto_batch"}
    | {"validate_every", "validation_data", "trackers"}
    | {"data", "model", "from_config", "vae", "text_encoder", "class_data", "class_count"}
    | {"image_column", "caption_column", "data_split", "data_subset", "data_revision"}
    | {"check_data", "skip_bad", "max_bad"}
)

# Which weights are frozen, and so what their hash is of.
_FREEZING = {"method", "lora_targets", "vectors", "train"}

# What runs had that were begun before these options were there.
_BEFORE = {
    "accumulate": 1,
    "optimizer": "adamw",
    "train_text_encoder": False,
    "masked_loss": False,
    "perceptual": "none",
}


def course(config: LoopConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the weights depend on, as JSON values; ``inputs`` are content hashes."""
    options = {name: value for name, value in vars(config).items() if name not in _FREE}
    return json.loads(json.dumps({**options, **inputs}))


def check_course(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on from checkpoints that other options or other data made. Raises UserError."""
    before = {**_BEFORE, **before}
    changed = [name for name in before if name in now and before[name] != now[name]]
    if _FREEZING & set(changed):  # the hashes cannot be compared
        changed = [name for name in changed if name != "model"]
    if changed:
        told = ", ".join(_told(name, before[name], now[name]) for name in changed)
        raise UserError(
            f"{folder} belongs to a run with other options: {told}; pass the same options, another "
            "--output, or --resume false to start again"
        )


def _told(name: str, before: Any, now: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(before, str) and len(before) == 64:  # a content hash tells a person nothing
        return f"{flag} (its content has changed)"
    return f"{flag} {before} (now {now})"


def trim_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, which will be repeated. Raises CannotWrite."""
    if not path.is_file():
        return
    lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step(line) <= step]
    if len(kept) < len(lines):
        write_atomic(path, "".join(kept).encode())


def _step(line: str) -> float:
    """The step of a line; a line that a kill cut short belongs to no step."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
