"""What a place holds: pictures with captions that can be read by index, and what is wrong."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import InputError
from ldm_toolkit.images import picture_bytes

__all__ = [
    "CAPTION_KEYS",
    "NO_CAPTION",
    "Entry",
    "FileBytes",
    "Listing",
    "Problem",
    "first_line",
    "reason",
    "texts",
]

CAPTION_KEYS = ("text", "caption", "prompt", "captions")
"""Names under which captions are looked for, the first that is there counts."""

NO_CAPTION = "no caption"
"""The reason that a listing's advice answers."""


@dataclass(frozen=True)
class Entry:
    """A picture: how people find it, its captions, its file's bytes when they are asked for.

    There are no captions where none is needed. ``mask`` reads the picture that is white where this
    one counts. With a ``problem`` it cannot be trained on, and is read for what else is wrong.
    """

    name: str
    captions: tuple[str, ...]
    read: Callable[[], bytes]
    mask: "FileBytes | None" = None
    problem: str = ""


@dataclass(frozen=True)
class Problem:
    """A picture that cannot be trained on, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class Listing:
    """What was found in a place, before any picture was decoded.

    ``advice`` says how captions are given there; ``unread`` counts what is there and not used,
    by its name for one and what is said of it.
    ``masks``: whether the pictures' masks are looked for.
    """

    place: str
    advice: str
    masks: bool = False
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)

    def refuse(self, name: str, why: str) -> None:
        """Note that a picture cannot be trained on."""
        self.problems.append(Problem(name, why))


@dataclass(frozen=True)
class FileBytes:
    """Reads a picture file; errors call it ``name``."""

    path: Path
    name: str

    def __call__(self) -> bytes:
        """The bytes of the file. Raises InputError."""
        try:
            return picture_bytes(self.path)
        except InputError as error:
            raise InputError(str(error).replace(str(self.path), self.name)) from error


def texts(value: Any) -> tuple[str, ...] | None:
    """One caption or a list of several; None where it is neither."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return tuple(value)
    return None


def first_line(error: Exception) -> str:
    """The first line of an error of another library, with its type when there is no text."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def reason(error: Exception, name: str) -> str:
    """What an error says of ``name``, without the name, which stands before it anyway."""
    text = getattr(error, "strerror", None) or str(error)
    return text.removeprefix(f"cannot read {name}: ").removeprefix(f"{name} ")
