"""Safetensors files with broken promises: a typed error before any loader reads them."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.headers import check_safetensors

VALID = save({"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4).half()})
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "length 0": packed(b""),
    "length 2^63": packed({"a": ENTRY}, length=2**63),
    "length 2^64-1": packed({"a": ENTRY}, length=2**64 - 1),
    "length beyond": packed({"a": ENTRY}, length=1000),
    "no UTF-8": packed(b'{"\xff\xfe": 1}'),
    "no JSON": packed(b"{{{{"),
    "list": packed([]),
    "deep": packed(b"[" * 200_000),
    "repeated": packed(b'{"a": 1, "a": 2}'),
    "entry number": packed({"a": 5}),
    "entry empty": packed({"a": {}}),
    "dtype unknown": packed({"a": ENTRY | {"dtype": "F128"}}),
    "dtype list": packed({"a": ENTRY | {"dtype": ["F32"]}}),
    "rank 9": packed({"a": ENTRY | {"shape": [1] * 8 + [2]}}),
    "negative side": packed({"a": ENTRY | {"shape": [-2]}}),
    "float side": packed({"a": ENTRY | {"shape": [2.0]}}),
    "boolean side": packed({"a": ENTRY | {"shape": [True, 2]}}),
    "overflow": packed({"a": ENTRY | {"shape": [2**62, 2**62]}}),
    "offsets backwards": packed({"a": ENTRY | {"data_offsets": [8, 0]}}),
    "offsets negative": packed({"a": ENTRY | {"data_offsets": [-8, 0]}}),
    "offsets three": packed({"a": ENTRY | {"data_offsets": [0, 4, 8]}}),
    "hole": packed({"a": ENTRY | {"data_offsets": [8, 16]}}, b"\0" * 16),
    "overlap": packed({"a": ENTRY, "b": ENTRY}),
    "rest": packed({"a": ENTRY}, b"\0" * 9),
    "short": packed({"a": ENTRY}, b"\0" * 7),
    "metadata number": packed({"__metadata__": {"a": 5}, "a": ENTRY}),
    "metadata list": packed({"__metadata__": [], "a": ENTRY}),
    "many": packed({str(n): ENTRY for n in range(50_001)}),
    "pickle": b"\x80\x04\x95" + b"x" * 50,
    "zip": b"PK\x03\x04" + b"x" * 50,
}


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    return path


def test_valid(tmp_path: Path) -> None:
    assert set(check_safetensors(write(tmp_path, VALID))) == {"a", "b"}
    empty = save({"a": torch.zeros(0, 3), "b": torch.tensor(1.0)}, metadata={"format": "pt"})
    assert set(check_safetensors(write(tmp_path, empty))) == {"a", "b"}


@pytest.mark.parametrize("case", BROKEN)
def test_broken(case: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        check_safetensors(write(tmp_path, BROKEN[case]))
    assert "model.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("sixteenth", range(16))
def test_cut_short(sixteenth: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        check_safetensors(write(tmp_path, VALID[: len(VALID) * sixteenth // 16]))


def test_mutations_are_refused_or_harmless(tmp_path: Path) -> None:
    """What passes our check also loads: safetensors' own reader agrees."""
    draw = random.Random(0)
    for _ in range(480):
        data = bytearray(VALID)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            names = set(check_safetensors(write(tmp_path, bytes(data))))
        except ModelError:
            continue
        try:
            assert set(load(bytes(data))) == names
        except SafetensorError:
            pytest.fail(f"our check passed what the reader refuses: {bytes(data[:200])!r}")
