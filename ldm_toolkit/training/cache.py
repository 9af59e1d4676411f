"""Latent moments and text embeddings, computed once and kept in sharded safetensors.

A shard appears under its name only when it is whole, so a killed run goes on where it was. Its
header holds the hash of its rows, so that a bit that a disk has changed is noticed. The folder's
name is a hash of the data, its preparation and the model's weights.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.files import write_atomic
from ldm_toolkit.models.components import tensors_hash
from ldm_toolkit.progress import follow

__all__ = ["ComputedRows", "Rows", "cached_rows", "rows_at"]

logger = logging.getLogger(__name__)
_SHARD = 256
_TOGETHER = 8


def cached_rows(
    folder: Path, key: str, length: int, compute: Callable[[Sequence[int]], Tensor], label: str
) -> Tensor:
    """Rows 0 .. length - 1 of ``compute`` as one float16 tensor, from the cache where it has them.

    ``compute`` gets up to 8 indices and returns a tensor with one row each. Raises CannotWrite.
    """
    home = folder / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write {home}: {error.strerror or error}") from error
    shards = []
    starts = range(0, length, _SHARD)
    for start in follow(starts, len(starts), f"caching {label}", tell=logger.info, what="shard"):
        path = home / f"{start:08d}.safetensors"
        indices = range(start, min(start + _SHARD, length))
        shard = _read(path, len(indices))
        if shard is None:
            shard = _computed(compute, indices)
            write_atomic(path, save({"rows": shard}, {"sha256": tensors_hash({"rows": shard})}))
        shards.append(shard)
    return torch.cat(shards)


class ComputedRows:
    """Rows as `cached_rows` would give them, computed whenever they are wanted."""

    def __init__(self, length: int, compute: Callable[[Sequence[int]], Tensor]) -> None:
        self._length, self._compute = length, compute

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        return self.at([index])[0]

    def at(self, indices: Sequence[int]) -> Tensor:
        """The rows of ``indices``, computed together."""
        return _computed(self._compute, indices)


Rows = Tensor | Sequence[Tensor] | ComputedRows
"""A row for each picture or caption."""


def rows_at(rows: Rows, indices: Sequence[int]) -> Tensor | Sequence[Tensor]:
    """The rows of ``indices``."""
    return rows.at(indices) if isinstance(rows, ComputedRows) else [rows[i] for i in indices]


def _computed(compute: Callable[[Sequence[int]], Tensor], indices: Sequence[int]) -> Tensor:
    parts = [compute(indices[i : i + _TOGETHER]) for i in range(0, len(indices), _TOGETHER)]
    return torch.cat(parts).to(torch.float16).contiguous()


def _read(path: Path, length: int) -> Tensor | None:
    """The rows of a shard, or None where it has to be computed."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as shard:
            rows, told = shard.get_tensor("rows"), (shard.metadata() or {}).get("sha256")
        whole = rows.dtype == torch.float16 and tensors_hash({"rows": rows}) == told
        reason = "its rows are not those of its hash"
    except (SafetensorError, OSError, ValueError) as error:
        whole, reason = False, str(error)
    if not whole:
        logger.warning("cached shard %s is damaged (%s); computing it again", path, reason)
        return None
    return rows if len(rows) == length else None
