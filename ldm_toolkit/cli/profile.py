"""``ldm-gen --profile`` and ``--trace``: where a command's time goes."""

import builtins
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from ldm_toolkit.files import write_atomic

__all__ = ["Profile", "process_age"]

T = TypeVar("T")

_imported = time.perf_counter()
# The rows of the table, in this order.
_TITLES = {
    "start": "start",
    "import": "import",
    "weights": "weights",
    "text": "text",
    "first_step": "first step",
    "steps": "other steps",
    "decode": "decode",
    "intermediates": "intermediates",
    "save": "save",
    "trace": "trace",
    "other": "other",
}
# What each picture takes once more; of many the mean is told.
_EACH = ("text", "steps", "decode", "intermediates", "save")


def process_age() -> float:
    """Seconds since this process began; where only Linux says it, since this module's import."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): field 22, the name is 2
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, AttributeError):
        return time.perf_counter() - _imported


class Profile:
    """Wall-clock seconds of a process by stage, from its start, nothing counted twice.

    A stage inside of a stage is taken off the outer one; what lies in none is ``other``, so the sum
    is the whole. Does nothing unless ``asked``. ``wait`` is called where a stage begins and ends:
    an accelerator has to be through with what it was told.
    """

    def __init__(self, asked: bool) -> None:
        self._asked = asked
        self.seconds = {"start": process_age()} if asked else {}
        self.pictures = self.steps = 0
        self.wait: Callable[[], object] = lambda: None
        self._stages = ["other"]
        self._since = time.perf_counter()
        self._label: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block's time is that of a stage, which a trace shows by its name."""
        self._account()
        self._stages.append(name)
        try:
            with self._label(_TITLES[name]):
                yield
        finally:
            self._account()
            self._stages.pop()

    def _account(self) -> None:
        if not self._asked:
            return
        self.wait()
        now = time.perf_counter()
        stage = self._stages[-1]
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        """The block's import statements are a stage; libraries import when they are first used."""
        if not self._asked:
            yield
            return
        original, owner = builtins.__import__, threading.get_ident()

        def timed(*arguments: Any, **named: Any) -> Any:
            if self._stages[-1] == "import" or threading.get_ident() != owner:
                return original(*arguments, **named)
            with self.stage("import"):
                return original(*arguments, **named)

        builtins.__import__ = timed
        try:
            yield
        finally:
            builtins.__import__ = original

    def each(self, steps: Iterable[T]) -> Iterator[T]:
        """Pass a picture's steps on; the very first is a stage of its own: what compiles, does."""
        upcoming = iter(steps)
        self.pictures += 1
        while True:
            with self.stage("steps" if self.steps else "first_step"):
                try:
                    step = next(upcoming)
                except StopIteration:
                    return
            self.steps += 1
            yield step

    @contextlib.contextmanager
    def traced(self, path: Path | None, *, overwrite: bool) -> Iterator[None]:
        """Write what torch and the device do in the block for the viewers of chrome's traces.

        Nothing is written unless the block ends well. Raises CannotWrite.
        """
        if path is None:
            yield
            return
        from torch.profiler import profile, record_function

        with profile() as seen:
            self._label = record_function
            try:
                yield
            finally:
                self._label = contextlib.nullcontext
        with self.stage("trace"), tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "trace.json"
            seen.export_chrome_trace(str(whole))
            write_atomic(path, whole.read_bytes(), overwrite=overwrite)

    def save(self, path: Path, recipe: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write the seconds so far as JSON, with the first picture's recipe. Raises CannotWrite."""
        self._account()
        told = {
            "total": self.total,
            "stages": self._rows,
            "pictures": self.pictures,
            "steps": self.steps,
            "each_step": self._each_step,
            "each_picture": {
                name: value / self.pictures for name, value in self._rows.items() if name in _EACH
            },
            "recipe": dict(recipe),
        }
        write_atomic(path, json.dumps(told, indent=2).encode() + b"\n", overwrite=overwrite)

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def _rows(self) -> dict[str, float]:
        return {name: self.seconds[name] for name in _TITLES if name in self.seconds}

    @property
    def _each_step(self) -> float | None:
        """The mean without the first, where there are others."""
        return self.seconds["steps"] / (self.steps - 1) if self.steps > 1 else None

    def table(self) -> str:
        """The rows as text: seconds, share and, of several pictures, the mean of one."""
        lines = [f"{'':14}  seconds  share{'  a picture' if self.pictures > 1 else ''}"]
        for name, value in [*self._rows.items(), ("total", self.total)]:
            line = f"{_TITLES.get(name, name):14} {value:8.2f} {100 * value / self.total:4.0f} %"
            if self.pictures > 1 and name in _EACH:
                line += f"  {value / self.pictures:9.3f}"
            if name == "steps" and self._each_step is not None:
                line += f"  ({self.steps - 1} of {self._each_step:.3f} s)"
            lines.append(line)
        return "\n".join(lines)
