"""Checkpoints that are whole or not there, without pickles.

``OUTPUT/checkpoints/step-00000500/`` holds weights.safetensors (what is trained, nothing frozen),
ema.safetensors, optimizer.safetensors, state.json and, written last, manifest.json with sizes and
SHA-256.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_toolkit.errors import CannotWrite, ModelError, UserError, listed
from ldm_toolkit.files import sha256_file, staged_directory
from ldm_toolkit.models.components import tensors_hash
from ldm_toolkit.training.sharding import whole

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "frozen_hash",
    "latest",
    "named_state",
    "optimizer_scalars",
    "optimizer_tensors",
    "prune",
    "restore_optimizer",
    "restore_state",
    "save",
]

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
"""Their folder in OUTPUT."""

_NAME = re.compile(r"step-(\d{8})")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ModelError)


@dataclass
class Checkpoint:
    """Tensors by group (weights, ema, optimizer, ...) and the scalars of a run."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below ``folder``; its name appears only when it is whole.

    Raises CannotWrite.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    try:
        with staged_directory(final) as staging:
            for group, tensors in checkpoint.tensors.items():
                whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
                save_file(whole, staging / f"{group}.safetensors")
            state = {"step": checkpoint.step, **checkpoint.state}
            (staging / "state.json").write_text(json.dumps(state, indent=1))
            manifest = {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
                for file in sorted(staging.iterdir())
            }
            (staging / "manifest.json").write_text(json.dumps(manifest, indent=1))
    except SafetensorError as error:  # what safetensors raises on a full disk
        raise CannotWrite(f"cannot write {final}: {error}") from error
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are named in the log and passed over.

    None where there are none at all. Raises UserError where there are some and none of them is
    whole: they may only be unreadable today, and a run from the start would remove them.
    """
    if not folder.is_dir():
        return None
    reasons = []
    steps = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    for path in sorted(steps, reverse=True):
        try:
            return _load(path)
        except _DAMAGE as error:
            reasons.append(f"{path.name}: {error}")
            logger.warning("checkpoint %s is damaged (%s) and passed over", path.name, error)
    if reasons:
        raise UserError(
            f"no checkpoint in {folder} is whole ({listed(reasons)}); put one back, pass another "
            "--output, or --resume false to start again"
        )
    return None


def _load(path: Path) -> Checkpoint:
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest.items():
        file = path / Path(name).name
        if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
            raise ModelError(f"{name} does not match its manifest")
    state = json.loads((path / "state.json").read_text())
    groups = [name for name in manifest if name.endswith(".safetensors")]
    tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in groups}
    return Checkpoint(step=state.pop("step"), tensors=tensors, state=state)


def prune(folder: Path, keep: int, newest: int) -> None:
    """Keep the checkpoint of step ``newest`` and those before it, ``keep`` together.

    Later ones were damaged or belong to a run that was started again: they would come first at
    the next resume. What killed runs left beside them goes too.
    """
    for leftover in [*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")]:
        shutil.rmtree(leftover, ignore_errors=True)
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))
    }
    staying = sorted(step for step in found if step <= newest)[-keep:]
    for step in found.keys() - set(staying):
        shutil.rmtree(found[step], ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state: ``{parameter index}.{state name}``."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in _optimizer_state(optimizer):
        if isinstance(value, Tensor):
            value = whole(value)
            storage = value.untyped_storage().data_ptr()
            # Some share one table among all parameters; safetensors takes each tensor by itself.
            tensors[name] = value.clone() if storage in storages else value
            storages.add(storage)
    return tensors


def optimizer_scalars(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser keeps besides tensors, as JSON values; nothing for torch's AdamW.

    ``{parameter index}.{state name}`` of its state, ``groups.{index}.{name}`` of its groups; there
    only what it made itself. The learning rate is set before every step.
    """
    scalars = {
        n: value for n, value in _optimizer_state(optimizer) if not isinstance(value, Tensor)
    }
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            given = name in optimizer.defaults and optimizer.defaults[name] == value
            if name not in ("params", "lr") and not given:
                scalars[f"groups.{index}.{name}"] = value
    return scalars


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """Names and values of the state, also of those that are a dictionary deeper."""
    places = [(str(index), values) for index, values in optimizer.state_dict()["state"].items()]
    while places:
        place, values = places.pop(0)
        for name, value in values.items():
            if isinstance(value, dict):
                places.append((f"{place}.{name}", value))
            else:
                yield f"{place}.{name}", value


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any] | None = None,
) -> None:
    """Put what ``optimizer_tensors`` and ``optimizer_scalars`` gave back."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **(scalars or {})}.items():
        first, *path, name = key.split(".")
        if first == "groups":
            group = whole["param_groups"][int(path[0])]
            group[name] = tuple(value) if isinstance(value, list) else value
            continue
        place = state.setdefault(int(first), {})
        for deeper in path:
            place = place.setdefault(deeper, {})
        place[name] = value
    whole["state"] = state
    optimizer.load_state_dict(whole)


def named_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state without what is frozen, as tensors that no later step changes."""
    frozen = _frozen(module)
    return {
        name: whole(value.detach()).clone()
        for name, value in module.state_dict().items()
        if name not in frozen
    }


def restore_state(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of ``named_state`` back. Raises ValueError for those of another network."""
    try:
        missing, strange = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # other shapes
        raise ValueError(str(error).splitlines()[-1].strip()) from error
    missing = [name for name in missing if name not in _frozen(module)]
    for names, told in ((missing, "is missing"), (strange, "has no place")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{names[0]}{others} {told}")


def frozen_hash(module: nn.Module) -> str | None:
    """SHA-256 of the parameters that no checkpoint holds; None where everything is trained."""
    frozen = _frozen(module)
    return tensors_hash(frozen) if frozen else None


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are not trained, shared ones under each of their names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if not parameter.requires_grad}
