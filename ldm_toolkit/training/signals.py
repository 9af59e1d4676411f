"""Signals end a training after the step in flight. Level 1: no torch."""

import signal
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

__all__ = ["Interrupted", "SignalFlag"]


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after its checkpoint was written; ``code`` is the exit code."""

    def __init__(self, code: int, folder: Path) -> None:
        super().__init__(f"stopped by a signal; the same command goes on from {folder}")
        self.code = code


class SignalFlag(AbstractContextManager):
    """Remembers SIGTERM, SIGINT and SIGUSR1; a second one interrupts at once."""

    _SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.received: int | None = None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after the others and on processes that got none themselves."""
        return 130 if self.received == signal.SIGINT else 143

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> "SignalFlag":
        self._before = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
