"""Optimisers by name; those of other packages are checked before they are trusted with a run."""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ldm_toolkit.errors import UserError, install_hint
from ldm_toolkit.training import checkpoints
from ldm_toolkit.training.config import LoopConfig

__all__ = ["STATE_BYTES", "averaged", "averages", "check", "create"]

STATE_BYTES = {
    "adamw": 8.0,
    "adamw-8bit": 2.3,
    "adamw-8bit-ao": 2.1,
    "adamw-4bit": 1.1,
    "prodigy": 16.0,
    "schedule-free": 8.0,
}
"""Bytes of an optimiser's state for each number that it trains, in float32."""

# Module, class and settings. Prodigy's two: its authors' advice for diffusion models and warm-up.
_OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adamw-8bit": ("bitsandbytes.optim", "AdamW8bit", {}),
    "adamw-8bit-ao": ("torchao.optim", "AdamW8bit", {}),
    "adamw-4bit": ("torchao.optim", "AdamW4bit", {}),
    "prodigy": ("prodigyopt", "Prodigy", {"use_bias_correction": True, "safeguard_warmup": True}),
    "schedule-free": ("schedulefree", "AdamWScheduleFree", {}),
}
_PROBE = (8, 8192)  # 8-bit optimisers quantise from 4096 numbers on


def create(config: LoopConfig, parameters: ParamsT) -> torch.optim.Optimizer:
    """The optimiser that ``--optimizer`` names, of parameters or of groups of them.

    Raises UserError where its package is missing.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
    module, kind, settings = _OTHERS[config.optimizer]
    with contextlib.redirect_stdout(sys.stderr):  # Prodigy prints, and stdout is data
        try:
            made = getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise UserError(
                f"--optimizer {config.optimizer} needs {kind} of the package "
                f"{module.partition('.')[0]} ({error}): {install_hint('optimizers')}"
            ) from error
        optimizer = made(parameters, lr=config.lr, weight_decay=config.weight_decay, **settings)
    if averages(optimizer):
        optimizer.train()
    if module == "torchao.optim":
        optimizer.register_state_dict_post_hook(_take_apart)
        optimizer.register_load_state_dict_pre_hook(_put_together)
    return optimizer


def _take_apart(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Hand out a quantised moment of torchao as the plain tensors that it is made of."""

    def plain(value: Any) -> Any:
        if not hasattr(value, "__tensor_flatten__"):
            return value
        names, _ = value.__tensor_flatten__()
        return {name: getattr(value, name) for name in names}

    state = {
        index: {name: plain(value) for name, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _put_together(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The way back: fill a fresh moment, as torchao makes it, with its plain tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def moment(index: int, name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        made = optimizer._new_buffer(parameters[index], name == "exp_avg")  # the other has no sign
        for part, tensor in value.items():
            getattr(made, part).copy_(tensor)
        return made

    state = {
        index: {name: moment(index, name, value) for name, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def check(config: LoopConfig, device: torch.device) -> None:
    """Refuse an optimiser that does not run here or would not resume exactly. Raises UserError.

    A few steps on a handful of numbers: one optimiser goes straight on, another is made from what
    a checkpoint would hold of the first.
    """
    try:
        exact = _resumes_exactly(config, device)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--optimizer {config.optimizer} does not run on {device.type}, or its state cannot be "
            f"saved ({reason:.200}); choose another one"
        ) from error
    if not exact:
        raise UserError(
            f"--optimizer {config.optimizer} does not go on from its saved state as if nothing had "
            "happened, in this version of its package; choose another one"
        )


def _resumes_exactly(config: LoopConfig, device: torch.device) -> bool:
    weights = [torch.linspace(-1, 1, n, device=device).requires_grad_() for n in _PROBE]
    straight = create(config, weights)
    _steps(straight, weights, range(2))
    tensors, scalars = _saved(straight)
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    resumed = create(config, copies)
    checkpoints.restore_optimizer(resumed, tensors, scalars)
    for optimizer, parameters in ((straight, weights), (resumed, copies)):
        _steps(optimizer, parameters, range(2, 4))
    tensors, scalars = _saved(straight)
    others, other_scalars = _saved(resumed)
    pairs = [*zip(weights, copies, strict=True)]
    pairs += [(tensor, others.get(name, torch.empty(0))) for name, tensor in tensors.items()]
    same = all(torch.equal(one, other) for one, other in pairs)
    return same and tensors.keys() == others.keys() and scalars == other_scalars


def _saved(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as it comes out of a checkpoint's files."""
    tensors = checkpoints.optimizer_tensors(optimizer)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return load(data), json.loads(json.dumps(checkpoints.optimizer_scalars(optimizer)))


def _steps(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], numbers: Sequence[int]
) -> None:
    for number in numbers:
        for parameter in parameters:
            slope = torch.linspace(1, -0.5, parameter.numel(), device=parameter.device)
            parameter.grad = slope * (1 + number)
        optimizer.step()


@contextlib.contextmanager
def averaged(optimizer: Any, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block parameters have the average that a schedule-free optimiser keeps of them.

    Defazio et al. 2024, eq. 3-5: gradients are taken at y, the average x is what was learned.
    Optimisers without one change nothing.
    """
    if not averages(optimizer):
        yield
        return
    kept = [parameter.detach().cpu().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():  # the way back from x to y is rounded: resuming would not be exact
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


def averages(optimizer: Any) -> bool:
    """Whether an optimiser keeps an average of the weights."""
    return hasattr(optimizer, "train") and hasattr(optimizer, "eval")
