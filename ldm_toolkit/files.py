"""Files that are whole or not there: write beside, fsync, rename. Level 0, no torch."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ldm_toolkit.errors import CannotWrite, ModelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "PICTURE_SUFFIXES",
    "cache_folder",
    "contained_path",
    "folder_lock",
    "fsync_directory",
    "remove_leftovers",
    "sha256_bytes",
    "sha256_file",
    "staged_directory",
    "write_atomic",
]

PICTURE_SUFFIXES = {".png": "png", ".webp": "webp", ".jpg": "jpg", ".jpeg": "jpg"}
"""Suffixes of picture files, and the format that each means."""

_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.tmp")
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}
# FAT and some network file systems
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_atomic(path: str | Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before.

    With ``overwrite=False`` an existing file stays, also when two processes race for the name.
    Raises CannotWrite.
    """
    path = Path(path)
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(beside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(beside, path)
            else:
                _rename_exclusively(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        fsync_directory(path.parent)
    except FileExistsError as error:
        raise CannotWrite(
            f"{path} exists already; choose another name or pass --overwrite"
        ) from error
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error


def remove_leftovers(folder: str | Path) -> None:
    """Remove what a killed `write_atomic` left in a folder in which nobody else is writing."""
    for path in Path(folder).glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _rename_exclusively(beside: Path, path: Path) -> None:
    """Give ``beside`` the name ``path``; FileExistsError where that is taken, unlike a rename."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(beside, path)


@contextlib.contextmanager
def staged_directory(
    final: str | Path, settled: Callable[[], Path] | None = None
) -> Iterator[Path]:
    """A folder to fill that appears as ``final`` only when the block ended without an error.

    ``settled`` is asked at the end of the block for another name, which was not known before.

    Every file is fsynced before the rename, so a power cut leaves a whole folder or none.
    An existing ``final`` is replaced. What killed processes left of earlier attempts goes.
    Raises CannotWrite.
    """
    final = Path(final)
    _check_place(final)
    _remove_dead(final)
    try:
        with _hidden_folder(final) as staging:
            try:
                yield staging
            except CannotWrite as error:  # the person knows the folder by its final name
                raise CannotWrite(str(error).replace(str(staging), str(final))) from error
            for file in staging.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
                else:
                    fsync_directory(file)
            fsync_directory(staging)
            _put_in_place(staging, final if settled is None else settled())
    except OSError as error:
        raise CannotWrite(f"cannot write {final}: {error.strerror or error}") from error


def _put_in_place(staging: Path, final: Path) -> None:
    """Give a filled folder its name; what had the name before goes."""
    placed = False
    while not placed:
        old = final.with_name(f".{final.name}.{secrets.token_hex(4)}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(final, old)
        try:
            os.rename(staging, final)
            placed = True
        except OSError as error:
            if error.errno not in _TAKEN:  # another process was quicker; it is replaced in turn
                raise
        shutil.rmtree(old, ignore_errors=True)
    fsync_directory(final.parent)


@contextlib.contextmanager
def _hidden_folder(final: Path) -> Iterator[Path]:
    """A fresh folder beside ``final``, locked as long as it is ours, gone after the block."""
    made = False
    while not made:
        lock = None
        staging = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        try:
            staging.mkdir(parents=True)
            lock = _locked(staging, wait=True)
            # Between the two calls another process could take it for a leftover.
            made = staging.exists()
            if made:
                yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _remove_dead(final: Path) -> None:
    """Remove the hidden folders that killed processes left of ``final``; live ones keep theirs."""
    # Unlike a job's folder (`remove_leftovers`), the one around `final` is anybody's: another run
    # may be filling a folder of the same name right now. It holds a lock on that folder, which the
    # system takes away from a process that dies, so what can be locked has nobody any more. The
    # process's number in the name would not tell: numbers are given out again, and containers that
    # share a disk count for themselves.
    ours = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    with contextlib.suppress(OSError):  # no such folder yet, or one that cannot be listed
        for path in list(final.parent.iterdir()):
            found = ours.fullmatch(path.name)
            if found is None:
                continue
            if found[1] == "old":
                # Where ``final`` is missing, this is all that is left of it.
                if final.exists():
                    shutil.rmtree(path, ignore_errors=True)
                continue
            lock = _locked(path, wait=False)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Of all processes and threads one at a time is in such a block, where the system has locks."""
    lock = _locked(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that locks a folder until it is closed or the process ends.

    None where another process has the lock, and on systems without such locks, where leftovers
    stay.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _check_place(final: Path) -> None:
    """The file system takes the name, and no file has it. Raises CannotWrite."""
    try:
        mode = os.stat(final).st_mode
    except (FileNotFoundError, NotADirectoryError):  # free, or told when it is made
        return
    except (OSError, ValueError) as error:  # too long; a NUL
        reason = getattr(error, "strerror", None) or error
        raise CannotWrite(f"cannot write {str(final)!r:.200}: {reason}") from error
    if not stat.S_ISDIR(mode):
        raise CannotWrite(f"cannot write {final}: a file is in the way of the folder")


def cache_folder(name: str) -> Path | None:
    """A folder of ours in the user's cache folder, made if it is not there; None without one."""
    system = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(system.get(sys.platform) or usual).expanduser() / "ldm_toolkit" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:  # without a home that can be written
        return None


def fsync_directory(folder: str | Path) -> None:
    """Make a rename inside ``folder`` last, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def contained_path(root: str | Path, name: str) -> Path:
    """``root / name``, refused unless ``name`` is a plain relative path that stays inside.

    Raises ModelError.
    """
    parts = name.replace("\\", "/").split("/")
    if (
        not name
        or "\0" in name
        or ":" in parts[0]
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise ModelError(f"{name!r} is not a plain relative path inside {Path(root).name}")
    path = Path(root, *parts)
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise ModelError(f"{name!r} leads out of {Path(root).name}")
    return path


def sha256_bytes(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
