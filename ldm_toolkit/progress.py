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
        self._total, self._begun, self._done = total, begun, begun
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=begun, desc=label, unit=what, file=sys.stderr, leave=False
            )
        self._start = self._last = time.monotonic()

    def update(self, figures: str = "") -> None:
        """One more is done; ``figures`` stand beside it."""
        self._done += 1
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last < self._every or self._done >= self._total:
            return
        self._last = now
        left = (now - self._start) / (self._done - self._begun) * (self._total - self._done)
        beside = f", {figures}" if figures else ""
        self._tell(
            f"{self._label}: {self._what} {self._done}/{self._total}{beside}, "
            f"about {_duration(left)} left"
        )

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
