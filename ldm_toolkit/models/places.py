"""Files inside a stranger's folder: regular, inside it, JSON where due. Level 1: no torch."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.files import contained_path

__all__ = ["CARD", "read_card", "read_json", "refuse_code", "regular_file"]

CARD = "ldm_toolkit.json"

_MAX_JSON = 16 << 20
_MAX_FILES = 20_000


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file inside a model folder. Raises ModelError."""
    path = regular_file(folder, name)
    if path.stat().st_size > _MAX_JSON:
        raise ModelError(f"{name} is larger than {_MAX_JSON >> 20} MB; that is no configuration")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON: {error}") from error
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror or error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{name} must hold a JSON object, not {type(data).__name__}")
    return data


def read_card(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself to us, empty where it says nothing. Raises ModelError."""
    return read_json(folder, CARD) if (folder / CARD).exists() else {}


def refuse_code(folder: Path) -> None:
    """Refuse a folder with Python files in it, at any depth; links are not followed."""
    seen = 0
    for _, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > _MAX_FILES:
            raise ModelError(f"{folder} holds over {_MAX_FILES} files; that is no model folder")
        for name in files:
            if name.lower().endswith((".py", ".pyc", ".so", ".pyd")):
                raise ModelError(f"the model folder contains code ({name!r:.80}); no code is run")


def regular_file(folder: Path, name: str) -> Path:
    """The path of a regular file inside a model folder; hub-cache links to blobs are fine."""
    path = _contained(folder, name)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ModelError(f"the model folder lacks {name}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot read {name!r:.200}: {error}") from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{name} is not a regular file")
    return path


def _contained(folder: Path, name: str) -> Path:
    """``folder / name`` when it stays inside, or in the blobs of the hub cache it is part of."""
    try:
        return contained_path(folder, name)
    except ModelError:
        path = folder / name
        inside = name and ".." not in Path(name).parts and not Path(name).is_absolute()
        if inside and path.is_symlink() and _is_blob(path.resolve(), folder.resolve()):
            return path
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name!r:.200} cannot be read: {error}") from error


def _is_blob(target: Path, folder: Path) -> bool:
    """Whether a link leads from a snapshot of the hub's cache to a blob of the same cache."""
    for snapshot in (folder, folder.parent):
        if snapshot.parent.name == "snapshots":
            cache = snapshot.parent.parent
            # blobs/ of the model, or blobs/ab/ of the whole cache, where equal files are shared
            return target.parent == cache / "blobs" or (
                target.parent.parent == cache.parent / "blobs"
                and target.name.startswith(target.parent.name)
            )
    return False
