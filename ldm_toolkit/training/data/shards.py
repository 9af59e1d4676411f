"""Webdataset shards: tar files whose members are read where they lie, and never unpickled.

Members of a sample follow each other and share their name up to the first dot: ``0001.jpg``,
``0001.txt``, ``0001.json``. Readers of webdataset decode members by their ending, pickles
included, so that a shard of strangers runs code; here pictures, .txt and .json are read, nothing
else, and nothing is unpacked to disk.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ldm_toolkit.errors import InputError
from ldm_toolkit.files import PICTURE_SUFFIXES
from ldm_toolkit.images import MAX_BYTES
from ldm_toolkit.training.data.entries import (
    CAPTION_KEYS,
    NO_CAPTION,
    Entry,
    Listing,
    first_line,
    texts,
)

__all__ = ["expand_braces", "read_shards"]

_ADVICE = "add a .txt, or a .json with text, beside each picture in the shards"
_MAX_TEXT = 2**20
_MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
# What tarfile raises on damaged and hostile headers.
_DAMAGE = (
    tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, RecursionError, EOFError,
    TypeError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class _Slice:
    """Reads a member of a shard where it lies."""

    shard: Path
    name: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        """The bytes of the member. Raises InputError."""
        if self.size > MAX_BYTES:
            raise InputError(f"{self.name} is larger than {MAX_BYTES >> 20} MB")
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror or error}") from error
        if len(data) < self.size:
            raise InputError(f"{self.name} is cut off: the shard ends before it")
        return data


@dataclass
class _Sample:
    """Members of one key: those that are read, by ending, and what is wrong with the others."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` -> the three names, ``{x,y}`` -> both. Raises InputError for too many."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, names = found.groups()
    if names is not None:
        parts = names.split(",")
    else:
        if int(last) - int(first) >= _MOST_SHARDS:
            raise InputError(f"--data {pattern} names more than {_MOST_SHARDS} shards")
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    rests = expand_braces(pattern[found.end() :])
    if len(parts) * len(rests) > _MOST_SHARDS:
        raise InputError(f"--data {pattern} names more than {_MOST_SHARDS} shards")
    return [pattern[: found.start()] + part + rest for part in parts for rest in rests]


def read_shards(
    place: str,
    shards: Sequence[Path],
    *,
    caption_column: str | None = None,
    needed: bool = True,
) -> Listing:
    """The samples of shards, in the order in which they lie there; only headers and texts are read.

    A caption is the sample's .txt, else the text, caption or prompt of its .json; with
    ``caption_column`` that of the .json; unless ``needed`` there may be none. Raises InputError
    where a shard is missing.
    """
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise InputError(f"--data {place}: no such shard: {', '.join(missing[:5]) or place}")
    keys = (caption_column,) if caption_column else CAPTION_KEYS
    listing = Listing(place, _ADVICE)
    for shard in shards:
        seen: set[str] = set()
        with open(shard, "rb") as file:
            for sample in _samples(_members(shard, file, listing), listing):
                name = f"{shard.name}:{sample.key}"
                if sample.key in seen:
                    sample.problems.append("is in the shard already, further up")
                seen.add(sample.key)
                _take(name, shard, file, sample, keys, listing, needed=needed)
    return listing


def _members(shard: Path, file: IO[bytes], listing: Listing) -> Iterator[tarfile.TarInfo]:
    """The headers of a shard; where they break off, a problem, since samples may be lost."""
    try:
        # Without compression: a member of a compressed file cannot be read where it lies.
        with tarfile.open(fileobj=file, mode="r:") as archive:
            reached = -1
            while (member := archive.next()) is not None:
                if archive.offset <= reached or member.size < 0:
                    raise tarfile.ReadError("its headers lead backwards")
                reached = archive.offset
                # tarfile would keep the headers of the whole shard.
                archive.members.clear()  # type: ignore[attr-defined]
                yield member
            file.seek(archive.offset)
            # tarfile takes a broken header for the end; the true one is a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends before its end mark, or a header is broken")
    except _DAMAGE as error:
        listing.refuse(shard.name, f"is damaged: {first_line(error)}; samples may be missing")


def _samples(members: Iterable[tarfile.TarInfo], listing: Listing) -> Iterator[_Sample]:
    """Neighbouring members of one key together."""
    sample: _Sample | None = None
    for member in members:
        name = member.name.removeprefix("./")
        folder, _, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if member.isdir() or not stem or not dot or re.fullmatch("__.*__", stem):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        _add(sample, name, ending.lower(), member, listing)
    if sample is not None:
        yield sample


def _add(
    sample: _Sample, name: str, ending: str, member: tarfile.TarInfo, listing: Listing
) -> None:
    """Take a member that is read into its sample; note what the others are."""
    parts = name.replace("\\", "/").split("/")
    if not member.isreg() or member.issparse():
        sample.problems.append(f".{ending} is a link, a device or a sparse file, not a plain one")
    elif any(part in ("", "..") for part in parts) or ":" in parts[0] or "\0" in name:
        sample.problems.append("its name leads out of the shard")
    elif f".{ending}" not in PICTURE_SUFFIXES and ending not in ("txt", "json"):
        listing.unread["member", f" .{ending[:40]}, not decoded"] += 1
    elif ending in sample.members:
        sample.problems.append(f"has two members .{ending}")
    else:
        sample.members[ending] = member


def _take(
    name: str,
    shard: Path,
    file: IO[bytes],
    sample: _Sample,
    keys: tuple[str, ...],
    listing: Listing,
    *,
    needed: bool,
) -> None:
    """An entry of the listing out of a sample, or a problem."""
    pictures = [ending for ending in sample.members if f".{ending}" in PICTURE_SUFFIXES]
    problems = list(dict.fromkeys(sample.problems))
    if not pictures and not problems:
        problems.append("no picture: expected .jpg, .png or .webp")
    if len(pictures) > 1:
        problems.append(f"several pictures: {', '.join(pictures)}")
    captions, wrong = None, NO_CAPTION
    try:
        captions = _captions(file, sample, keys)
        if captions is None and not needed:
            captions = ()
    except (OSError, ValueError, RecursionError) as error:
        wrong = first_line(error)
    if problems:
        listing.refuse(name, "; ".join([*problems, *([wrong] if wrong != NO_CAPTION else [])]))
        return
    member = sample.members[pictures[0]]
    where = f"{name}.{pictures[0]}"
    piece = _Slice(shard, where, member.offset_data, member.size)
    if captions is None:
        listing.entries.append(Entry(name, (), piece, problem=wrong))
    else:
        listing.entries.append(Entry(where, captions, piece))


def _captions(file: IO[bytes], sample: _Sample, keys: tuple[str, ...]) -> tuple[str, ...] | None:
    """Captions of a sample. Raises ValueError for a member that does not hold what it should."""
    if "txt" in sample.members and keys == CAPTION_KEYS:
        return (_text(file, sample.members["txt"]).strip(),)
    if "json" not in sample.members:
        return None
    try:
        row = json.loads(_text(file, sample.members["json"]))
    except RecursionError:
        raise ValueError(".json nests too deep") from None
    if not isinstance(row, dict):
        raise ValueError(f".json holds {type(row).__name__}, not an object")
    return texts(next((row[key] for key in keys if key in row), None))


def _text(file: IO[bytes], member: tarfile.TarInfo) -> str:
    ending = member.name.rpartition(".")[2]
    if member.size > _MAX_TEXT:
        raise ValueError(f".{ending} is larger than {_MAX_TEXT >> 20} MB")
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise ValueError(f".{ending} is cut off")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f".{ending} is not UTF-8 text") from None
