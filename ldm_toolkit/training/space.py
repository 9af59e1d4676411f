"""Whether the disk takes all that a run writes, before its first step."""

import shutil
from pathlib import Path

from torch import nn

from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.training import optimizers
from ldm_toolkit.training.checkpoints import CHECKPOINTS
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.methods.protocol import Method

__all__ = ["check_space", "checkpoint_bytes"]


def check_space(method: Method, config: LoopConfig, copied: int = 0) -> None:
    """Make the folder of the checkpoints; raise CannotWrite where they or the result will not fit.

    ``keep`` checkpoints stay while the next one is written. Those of a run that goes on are counted
    as room, because new ones take their place. ``copied`` are the bytes of a model's other parts,
    which are to be copied beside the result.
    """
    output, copies = Path(config.output), config.keep + 1
    folder = output / CHECKPOINTS
    one, result = checkpoint_bytes(method, config), _result_bytes(method) + copied
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    needed = max(0, copies * one - there) + result
    try:
        free = shutil.disk_usage(output).free
    except OSError as error:
        raise CannotWrite(f"cannot write {output}: {error.strerror or error}") from error
    if free < needed:
        raise CannotWrite(
            f"{output} is on a disk with {_size(free)} free, and the run needs {_size(needed)}: "
            f"{copies} checkpoints of {_size(one)} while one is written, and {_size(result)} for "
            "the result; make room or choose another --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write {folder}: {error.strerror or error}") from error


def checkpoint_bytes(method: Method, config: LoopConfig) -> int:
    """About how large a checkpoint will be: weights, average and the optimiser's state."""
    parameters = [one for one in method.trainable().parameters() if one.requires_grad]
    trained = sum(parameter.nbytes for parameter in parameters)
    numbers = sum(parameter.numel() for parameter in parameters)
    state = numbers * optimizers.STATE_BYTES[config.optimizer]
    average = trained if config.ema > 0 else 0
    return _trained_bytes(method.trainable()) + average + int(state)


def _result_bytes(method: Method) -> int:
    """About how large the result will be: a whole network, or what was trained beside one.

    The latter counts twice, because a LoRA is written for diffusers and for the web UIs.
    """
    module = method.trainable()
    if getattr(method, "adapter_file", None) is not None:
        return 2 * _trained_bytes(module)
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _trained_bytes(module: nn.Module) -> int:
    whole = sum(tensor.nbytes for tensor in module.state_dict().values())
    return whole - sum(p.nbytes for p in module.parameters() if not p.requires_grad)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
