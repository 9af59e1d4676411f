"""Every picture of a listing is read once before training: what is bad, what is in it, how large.

A picture is decoded under the rules of `images.open_image`. What was decoded before is known by
the hash of its file, where a memory of that is kept, so that a later start only reads the files.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import PIL

from ldm_toolkit.errors import CannotWrite, InputError
from ldm_toolkit.files import sha256_bytes
from ldm_toolkit.images import decode_image, pixels_sha256
from ldm_toolkit.progress import follow
from ldm_toolkit.training.data.entries import NO_CAPTION, Entry, Listing, Problem, reason
from ldm_toolkit.values import counted

__all__ = ["Facts", "Inspection", "inspect", "refuse_bad"]

logger = logging.getLogger(__name__)
_SHOWN = 20
# Another reader may find another picture in the same file.
_RULES = f"1 {PIL.__version__}"


@dataclass(frozen=True)
class Facts:
    """What one look at a picture's file says: hashes of the file and of its pixels, its size.

    ``mask`` is the hash of its mask's file.
    """

    file: str
    pixels: str
    width: int
    height: int
    mask: str | None = None


@dataclass(frozen=True)
class Inspection:
    """The good pictures of a listing with their facts, the bad ones, and what is not used.

    ``readable`` are all pictures with facts, in their order, those with a bad caption too.
    """

    listing: Listing
    entries: tuple[Entry, ...]
    facts: tuple[Facts, ...]
    problems: tuple[Problem, ...]
    readable: tuple[tuple[Entry, Facts], ...]

    @property
    def good(self) -> tuple[tuple[Entry, Facts], ...]:
        """The good pictures with their facts."""
        return tuple(zip(self.entries, self.facts, strict=True))

    @property
    def found(self) -> int:
        """Pictures, good and bad."""
        return len(self.entries) + len(self.problems)


def inspect(listing: Listing, memory: Path | None = None, *, remember: bool = True) -> Inspection:
    """Decode every picture of a listing once; ``memory`` is a file in which that is remembered.

    Without ``remember`` the file is read only. Raises CannotWrite.
    """
    entries: list[Entry] = []
    facts: list[Facts] = []
    problems = list(listing.problems)
    readable: list[tuple[Entry, Facts]] = []
    with _Memory(memory, remember) as known:
        total = len(listing.entries)
        tell = logger.info if remember else logger.debug  # one process of several
        for entry in follow(listing.entries, total, "checking", tell=tell, what="picture"):
            wrong = [entry.problem] if entry.problem else []
            if not all(text.strip() for text in entry.captions):
                wrong.append("empty caption")
            fact = None
            try:
                fact = known.look(entry.read, entry.name)
            except InputError as error:
                wrong.append(reason(error, entry.name))
            if fact is not None and entry.mask is not None:
                try:
                    fact = _with_mask(fact, known.look(entry.mask, entry.mask.name))
                except InputError as error:
                    wrong.append(f"its mask {entry.mask.name}: {reason(error, entry.mask.name)}")
            if fact is not None:
                readable.append((entry, fact))
            if fact is None or wrong:
                problems.append(Problem(entry.name, "; ".join(wrong)))
            else:
                entries.append(entry)
                facts.append(fact)
    return Inspection(listing, tuple(entries), tuple(facts), tuple(problems), tuple(readable))


def _with_mask(fact: Facts, mask: Facts) -> Facts:
    """The facts of a picture that has this mask. Raises InputError for one of another size."""
    sizes = (mask.width, mask.height), (fact.width, fact.height)
    if sizes[0] != sizes[1]:
        told = [f"{width}x{height}" for width, height in sizes]
        raise InputError(f"is {told[0]}, the picture {told[1]}; expected the same size")
    return dataclasses.replace(fact, mask=mask.file)


def refuse_bad(inspection: Inspection, *, skip_bad: bool, max_bad: float) -> None:
    """Refuse to train with bad pictures, or when they are skipped with too many of them.

    ``max_bad`` is the share that may be bad. Raises InputError, which also says what to do.
    """
    place, bad = inspection.listing.place, inspection.problems
    allowed = skip_bad and len(bad) <= max_bad * inspection.found + 1e-6  # 0.29 * 100 < 29
    if bad and not allowed:
        shown = "; ".join(map(str, bad[:_SHOWN]))
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        advice = ""
        if any(NO_CAPTION in problem.reason for problem in bad):
            advice = f"; {inspection.listing.advice}"
        if skip_bad:
            share = f"of {inspection.found}, more than --max-bad {max_bad:g}"
        else:
            share = f"of {counted(inspection.found, 'picture')}; --skip-bad leaves them out"
        raise InputError(
            f"{counted(len(bad), 'problem')} in {place}: {shown}{more}{advice} ({share})"
        )
    if not inspection.entries:
        raise InputError(f"{place} holds no pictures with captions; {inspection.listing.advice}")


class _Memory:
    """Facts by the hash of a picture's file, appended to a file a line each.

    A line that a kill cut short, or that two processes wrote into each other, is read over.
    """

    def __init__(self, path: Path | None, remember: bool) -> None:
        self._path = path
        self._known: dict[str, Facts] = {} if path is None else _remembered(path)
        self._file = _opened(path) if path is not None and remember else None

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def look(self, read: Callable[[], bytes], name: str) -> Facts:
        """The facts of a picture's file. Raises InputError for a bad picture, CannotWrite."""
        data = read()
        digest = sha256_bytes(data)
        if digest not in self._known:
            image = decode_image(data, name)
            self._known[digest] = Facts(digest, pixels_sha256(image), image.width, image.height)
            self._write(self._known[digest])
        return self._known[digest]

    def _write(self, facts: Facts) -> None:
        if self._file is not None:
            try:
                told = [_RULES, facts.file, facts.pixels, facts.width, facts.height]
                self._file.write(json.dumps(told) + "\n")
                self._file.flush()
            except OSError as error:
                raise CannotWrite(f"cannot write {self._path}: {error.strerror}") from error


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="ascii")
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error


def _remembered(path: Path) -> dict[str, Facts]:
    known: dict[str, Facts] = {}
    if not path.is_file():
        return known
    for line in path.read_text("ascii", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            rules, file, pixels, width, height = json.loads(line)
            if rules == _RULES and isinstance(file, str) and isinstance(pixels, str):
                known[file] = Facts(file, pixels, int(width), int(height))
    return known
