"""How far a loop is: a bar on a terminal, a plain line now and then elsewhere. Level 0."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

__all__ = ["Progress", "follow"]

T = TypeVar("T")


class Progress(AbstractContextManager):
    """Shows on stderr how much of ``total`` is done, ``begun`` of it before.

    Where stderr is no terminal, ``tell`` gets a line each ``every`` seconds. ``what`` is counted.
    The time that is left is that of the steps after the first, which takes longer than others and
    may have waited for something else.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        tell: Callable[[str], object],
        begun: int = 0,
        every: float = 5.0,
        what: str = "step",
    ) -> None:
        self._label, self._what, self._tell, self._every = label, what, tell, every
        self._total, self._done = total, begun
        self._first: float | None = None  # when the first step was done
        self._timed = 0  # steps since
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=begun,
                desc=label,
                unit=what,
                file=sys.stderr,
                leave=False,
                miniters=1,
                smoothing=0,  # the mean rate, not that of the last steps
            )
        self._last = time.monotonic()

    def update(self, figures: str = "") -> None:
        """One more is done; ``figures`` stand beside it."""
        self._done += 1
        now = time.monotonic()
        if self._first is None:
            self._first = now
        else:
            self._timed += 1
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(figures, refresh=False)
            if self._timed == 0:
                self._bar.initial, self._bar.start_t = self._done, time.time()
            self._bar.update()
            return
        if now - self._last < self._every or self._done >= self._total:
            return
        self._last = now
        told = f"{self._label}: {self._what} {self._done}/{self._total}"
        told += f", {figures}" if figures else ""
        if self._timed > 0:
            left = (now - self._first) / self._timed * (self._total - self._done)
            told += f", about {_duration(left)} left"
        self._tell(told)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def follow(
    steps: Iterable[T],
    total: int,
    label: str,
    *,
    tell: Callable[[str], object],
    every: float = 5.0,
    what: str = "step",
) -> Iterator[T]:
    """Pass ``steps`` on and show how far they are, as `Progress` does."""
    with Progress(total, label, tell=tell, every=every, what=what) as progress:
        for step in steps:
            yield step
            progress.update()


def _duration(seconds: float) -> str:
    """``14 s``, ``25 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
