"""Signals end a training after the step in flight. Level 1: no torch."""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType

__all__ = ["Interrupted", "SignalFlag"]


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; ``code`` is the exit code, ``words`` what resuming adds to the words
    of the command.
    """

    def __init__(self, code: int, told: str, words: tuple[str, ...] = ()) -> None:
        super().__init__(told)
        self.code, self.words = code, words


class SignalFlag(AbstractContextManager):
    """Remembers SIGTERM, SIGINT and SIGUSR1; a second one interrupts at once.

    Only the main thread gets signals: in another one nothing is remembered.
    """

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
            self.received = number
            raise Interrupted(
                self.exit_code,
                "stopped at once by a second signal; the same command goes on from the newest "
                "checkpoint",
            )
        self.received = number

    def __enter__(self) -> "SignalFlag":
        main = threading.current_thread() is threading.main_thread()
        signals = self._SIGNALS if main else ()
        self._before = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
