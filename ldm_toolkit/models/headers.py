"""The header of a safetensors file, checked before a loader reads it. Level 1: no torch.

The format: 8 bytes little-endian header length, that many bytes of JSON, then the data; offsets
must cover the data without holes or overlaps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.values import without_repeats

__all__ = ["DTYPE_BYTES", "check_safetensors", "read_header"]

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_MAX_HEADER = 16 << 20
_MAX_TENSORS = 50_000
_MAX_RANK = 8


def check_safetensors(path: Path) -> dict[str, Any]:
    """Check a file's header against its size; returns name -> {dtype, shape, data_offsets}.

    Raises ModelError that names the file and the finding.
    """
    return read_header(path)[0]


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The same check; returns the tensors' entries and the file's metadata. Raises ModelError."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8 or length > _MAX_HEADER:
                raise ModelError(
                    f"{path.name} is broken or cut short: its header claims {length} bytes, "
                    f"the file has {size}"
                )
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"cannot read {path.name}: {error.strerror or error}") from error
    header = _parse(raw, path)
    metadata = header.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise ModelError(f"the header of {path.name} has metadata that is not text")
    _check_tensors(header, size - 8 - length, path)
    return header, metadata


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    """The header's JSON as a dictionary without repeated names."""
    try:
        header = json.loads(raw.decode(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the header of {path.name} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"the header of {path.name} is not an object")
    if len(header) > _MAX_TENSORS:
        raise ModelError(f"{path.name} claims over {_MAX_TENSORS} tensors")
    return header


def _check_tensors(header: Mapping[str, Any], data_bytes: int, path: Path) -> None:
    """Every tensor's dtype, shape and place; together they must be exactly the data."""
    spans = []
    for name, entry in header.items():
        try:
            spans.append(_span(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path.name}: tensor {name!r:.120} is not valid: {error}") from error
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ModelError(f"{path.name}: tensors overlap or leave holes at byte {end}")
        end = stop
    if end != data_bytes:
        raise ModelError(
            f"{path.name} is broken or cut short: its tensors need {end} bytes, it has {data_bytes}"
        )


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    """(start, stop) of a tensor's data. Raises KeyError, TypeError or ValueError."""
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype!r:.40} is not one of {', '.join(DTYPE_BYTES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
        raise ValueError(f"its shape must be a list of at most {_MAX_RANK} numbers")
    numbers = [*shape, start, stop]
    if not all(type(number) is int and 0 <= number < 1 << 60 for number in numbers):
        raise ValueError("shape and offsets must be whole numbers")
    needed = DTYPE_BYTES[dtype]
    for side in shape:
        needed *= side
    if stop - start != needed:
        raise ValueError(f"it has {stop - start} bytes, shape and dtype need {needed}")
    return start, stop
