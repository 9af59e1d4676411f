"""What the person at the terminal sees while it works, and how a signal ends it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from ldm_toolkit import progress
from ldm_toolkit.errors import CannotWrite

__all__ = [
    "Stop",
    "Stopped",
    "called",
    "follow",
    "note",
    "one_line",
    "show",
    "stoppable",
    "to_stdout",
]

T = TypeVar("T")

_program = ["ldm-gen"]  # what notes begin with


@contextlib.contextmanager
def called(program: str) -> Iterator[None]:
    """Notes begin with the name of the command that runs."""
    _program.append(program)
    try:
        yield
    finally:
        _program.pop()


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. No Exception: nothing on the way up takes it for a failure."""


class Stop:
    """What `stoppable` yields: whether a signal arrived, and the exit code that says which."""

    def __init__(self) -> None:
        self.code: int | None = None

    def between(self, steps: Iterable[T]) -> Iterator[T]:
        """Pass ``steps`` on and stop between two of them.

        A library can swallow the exception that a signal's handler raises inside of it; the code
        stays, and is looked at when a step was made and before the next one is.
        """
        for step in steps:
            self._look()
            yield step
            self._look()

    def _look(self) -> None:
        if self.code is not None:
            raise Stopped

    def arrived(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember, and leave whatever is going on."""
        self.code = 128 + number
        raise Stopped


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stopped`, so that temporary files go on the way out."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python sets signal handlers in the main thread only
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)  # the terminal was closed, and no nohup
    before = [signal.signal(number, stop.arrived) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def follow(
    steps: Iterable[T], total: int, label: str, *, every: float = 5.0, what: str = "step"
) -> Iterator[T]:
    """Pass ``steps`` on and show how far they are: a bar on a terminal, else a line now and then.

    ``every`` is the time between two lines in seconds, ``what`` is counted.
    """
    return progress.follow(steps, total, label, tell=note, every=every, what=what)


def note(text: str) -> None:
    """One line on stderr, quiet when nobody can read it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
        sys.stderr.write(f"{_program[-1]}: {one_line(text)}\n")
        sys.stderr.flush()


def show(table: str) -> None:
    """Lines of our own on stderr as they are, quiet when nobody can read them."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{table}\n")
        sys.stderr.flush()


def to_stdout(text: str) -> None:
    """Write lines of data, at once. A reader that has gone away is no error, a full disk is.

    Raises CannotWrite.
    """
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        try:
            sys.stdout.write(f"{text}\n")
        except UnicodeEncodeError:  # the encoding lacks it; the bytes are those of the file's name
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(text) + b"\n")
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more on exit and would fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise CannotWrite(f"cannot write to standard output: {error.strerror}") from error


def one_line(text: str) -> str:
    """``text`` without line breaks and without what a terminal would obey (escape codes)."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= 2000 else f"{shown[:1990]} ..."
