"""Pickled weights: the one place where torch.load is called, and never without weights_only.

Loading a pickle can run code. Nothing comes here unless the person allowed it by name, and what
torch's weights-only reader refuses stays refused.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ldm_toolkit.errors import ModelError

__all__ = ["load_pickle", "written_anew"]

# CVE-2025-32434 and CVE-2026-24747: before it, weights_only did not keep its promise.
_SAFE_SINCE = (2, 10)


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.bin`` or ``.ckpt`` file by name, on the CPU. Raises ModelError."""
    version = torch.__version__
    if tuple(int(number) for number in version.split(".")[:2]) < _SAFE_SINCE:
        raise ModelError(f"{path.name}: torch {version} reads pickles unsafely; 2.10 is needed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make it raise anything
        kind = type(error).__name__
        raise ModelError(
            f"{path.name} is refused by torch's weights-only loader ({kind}): it holds more than "
            "tensors or is broken, and may run code; get the model as safetensors"
        ) from error
    state = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(state, dict):
        raise ModelError(f"{path.name} holds no dictionary of tensors; it is no model")
    found = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not found or not all(isinstance(name, str) for name in found):
        raise ModelError(f"{path.name} holds no tensors under names; it is no model")
    return found


@contextlib.contextmanager
def written_anew(path: Path) -> Iterator[Path]:
    """A file of the same tensors, written here, for a library that would run what a pickle says.

    It is there inside the block alone. Raises ModelError.
    """
    tensors = load_pickle(path)
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "weights.pth"
        torch.save(tensors, safe)
        yield safe
