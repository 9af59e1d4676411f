"""``ldm-eval speed``: seconds and memory of a model on this machine, beside diffusers if asked.

Every contender is a process of its own (`evaluation.contender`), with the same weights and threads.
They take turns, in alternate order, while the others wait: a noisy machine is noisy for all. No
torch here.
"""

import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.evaluation.intervals import Interval, bootstrap
from ldm_toolkit.evaluation.report import Report

__all__ = ["Contender", "Turns", "Worker", "command_of", "processor", "running", "speed"]

Turn = tuple["Worker", dict[str, Any]]
_RATE = "pictures a second"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What draws: ``ours``, or diffusers' own pipeline around the weights of a folder.

    ``loading`` are the keywords of LatentPipeline.from_pretrained beside the model; diffusers takes
    device and dtype of it, float32 where that says auto. ``drawing`` are those of a call that both
    know: guidance, scheduler, width, height.
    """

    kind: str
    model: str
    threads: int | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    loras: Sequence[tuple[str, float]] = ()
    drawing: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "a dog wearing hat"
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How much is measured: pictures of ``steps`` in each of ``batches``, ``rounds`` times."""

    steps: int = 20
    batches: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 3


class Worker:
    """A contender in a process of its own: a JSON object on stdin, a JSON object back.

    ``loaded`` is what it says when it is ready, ``started`` how many seconds that took. Raises
    LdmToolkitError where it ends early.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.answers: list[dict[str, Any]] = []
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        began = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, text=True
        )
        self.loaded = self._answer()
        self.started = time.perf_counter() - began

    def ask(self, **order: Any) -> dict[str, Any]:
        """Let it do something; the first is the warm-up."""
        with contextlib.suppress(BrokenPipeError):  # told below
            self._tell(json.dumps(order))
        self.answers.append(self._answer())
        return self.answers[-1]

    def end(self) -> None:
        """Let the process end."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._told.close()

    def median(self, key: str) -> float:
        """Of a figure over the rounds, without the warm-up."""
        return statistics.median(answer[key] for answer in self.answers[1:])

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self._process.wait()
        self._told.seek(0)
        lines = self._told.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines else f"exit code {self._process.returncode}"
        raise LdmToolkitError(f"{self.name} ended early: {reason}")


@contextlib.contextmanager
def running(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Worker]]:
    """The contenders' processes by name; they end with the block."""
    workers: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            workers[name] = Worker(name, command)
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def command_of(contender: Contender) -> list[str]:
    """What starts a contender's process, see `evaluation.contender`."""
    told = json.dumps(asdict(contender))
    return [sys.executable, "-m", "ldm_toolkit.evaluation.contender", told]


def speed(
    contenders: Mapping[str, Contender],
    turns: Turns,
    follow: Callable[[Sequence[Turn], int, str], Iterator[Turn]],
) -> Report:
    """Measure contenders by name; of a second one also how many times as long it takes.

    Values are medians over rounds with a bootstrap's interval. Raises LdmToolkitError.
    """
    with running({name: command_of(one) for name, one in contenders.items()}) as workers:
        first = {name: one.ask(steps=2, batch=turns.batches[0]) for name, one in workers.items()}
        warm_up = len(workers) * len(turns.batches)
        orders = _orders(list(workers.values()), turns)
        peaks: dict[str, dict[int, float]] = {name: {} for name in workers}
        answers: dict[str, dict[int, list[dict[str, Any]]]] = {
            name: {batch: [] for batch in turns.batches} for name in workers
        }
        for number, (worker, order) in enumerate(follow(orders, len(orders), "drawing")):
            found = worker.ask(**order)
            if number >= warm_up:
                answers[worker.name][order["batch"]].append(found)
            else:
                peaks[worker.name][order["batch"]] = found["peak"]
    figures = {}
    for name, worker in workers.items():
        figures[name] = _figures(answers[name], turns)
        start = {
            "import, s": worker.started - worker.loaded["load"],
            "load, s": worker.loaded["load"],
            "first step after the start, s": worker.started + first[name]["first_step"],
        }
        figures[name] |= {title: [value] for title, value in start.items()}
        if len(turns.batches) > 1:
            figures[name] |= {
                f"peak memory, {size} at once, GB": [peak] for size, peak in peaks[name].items()
            }
    drawing = next(iter(contenders.values())).drawing
    options = {name: drawing[name] for name in ("scheduler", "guidance") if name in drawing}
    return Report(_scores(figures), _settings(workers, turns) | options)


def _orders(workers: list[Worker], turns: Turns) -> list[Turn]:
    """Who draws what, one after the other: first each batch once to warm up.

    From the smallest to the largest, because a process's peak of memory only grows.
    """
    sizes = sorted(turns.batches)
    orders = [(one, {"steps": 2, "batch": batch}) for batch in sizes for one in workers]
    for number in range(turns.rounds):
        row = workers if number % 2 == 0 else workers[::-1]
        orders += [
            (one, {"steps": turns.steps, "batch": batch}) for batch in turns.batches for one in row
        ]
    return orders


def _figures(
    answers: Mapping[int, Sequence[Mapping[str, float]]], turns: Turns
) -> dict[str, list[float]]:
    """Each figure over the rounds, by its title; those of a picture from the first batch size."""
    alone = answers[turns.batches[0]]
    batch = f"{turns.batches[0]} at once" if turns.batches[0] > 1 else "guided"
    found = {
        "text encoding, s": [one["text"] for one in alone],
        f"UNet step, {batch}, s": [one["step"] for one in alone],
        "decode, s": [one["decode"] for one in alone],
        f"picture of {turns.steps} steps, s": [one["seconds"] for one in alone],
    }
    for size, rows in answers.items():
        found[f"{_RATE}, {size} at once"] = [size / one["seconds"] for one in rows]
    found["peak memory, GB"] = [max(one["peak"] for rows in answers.values() for one in rows)]
    return found


def _scores(figures: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Interval]:
    """The rows of the table: the first contender's, then each other's, then the ratios."""
    first, *others = figures
    scores = {title: _median(values) for title, values in figures[first].items()}
    for name in others:
        scores |= {f"{name}: {title}": _median(row) for title, row in figures[name].items()}
        for title, row in figures[name].items():
            own = figures[first][title]
            if title.startswith(_RATE):  # more is better here: above 1 the first is ahead, too
                scores[f"{first} / {name}: {title}"] = _ratio(own, row)
            elif min(own) > 0:  # nobody counts memory on some systems
                scores[f"{name} / {first}: {title.removesuffix(', s')}"] = _ratio(row, own)
    return scores


def _ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Of the medians; the rounds are drawn in pairs."""

    def of_medians(chosen: np.ndarray) -> float:
        one, other = ([row[k] for k in chosen] for row in (above, below))
        return statistics.median(one) / statistics.median(other)

    return bootstrap(len(above), of_medians)


def _median(values: Sequence[float]) -> Interval:
    return bootstrap(len(values), lambda chosen: statistics.median(values[k] for k in chosen))


def _settings(workers: Mapping[str, Worker], turns: Turns) -> dict[str, Any]:
    """What the numbers depend on, as the contenders themselves say."""
    settings: dict[str, Any] = {"machine": processor(), "system": platform.system()}
    for name, worker in workers.items():
        about = worker.loaded["about"]
        settings |= {f"{name} {key}" if len(workers) > 1 else key: about[key] for key in about}
    return settings | {"steps": turns.steps, "rounds": turns.rounds}


def processor() -> str:
    """The processor's name."""
    lines: Iterator[str] = iter(())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if "model name" in line)
    return next(lines, f":{platform.processor() or platform.machine()}").partition(":")[2].strip()
