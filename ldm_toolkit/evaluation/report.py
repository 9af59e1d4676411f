"""What a measure finds: scores with error bars, and everything that makes them comparable.

Level 1: no torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_toolkit.evaluation.intervals import Interval

__all__ = ["FEWEST", "Report", "table"]

FEWEST = 20
"""Pictures on each side of a Fréchet distance, at least."""


@dataclass(frozen=True)
class Report:
    """What a measure found.

    ``scores`` are the rows of the table, by name. ``settings`` is plain data without which the
    scores mean nothing: network and its hash, resize filter, counts. ``notes`` are lines for the
    person, ``files`` what was written beside the scores.
    """

    scores: Mapping[str, Interval]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        scores = {name: one.as_dict() for name, one in self.scores.items()}
        return {"scores": scores, "settings": dict(self.settings), "notes": list(self.notes)}


def table(reports: Mapping[str, Report]) -> str:
    """Scores as text: a line each with value, 95 % interval and number of samples.

    Below them a line a measure with what makes its scores comparable.
    """
    rows = [("measure", "value", "95 % interval", "samples")]
    for measure, report in reports.items():
        for name, one in report.scores.items():
            title = name if name.startswith(measure) else f"{measure}: {name}"
            rows.append((title, _number(one.value), _bounds(one), str(one.count)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [_line(row, widths) for row in rows]
    for measure, report in reports.items():
        told = (f"{name.replace('_', ' ')} {_short(one)}" for name, one in report.settings.items())
        if report.settings:
            lines.append(f"{measure} with {', '.join(told)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    """A setting; of hashes as much as tells them from others."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def _line(cells: Iterable[str], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])


def _bounds(one: Interval) -> str:
    return "" if one.low == one.high else f"{_number(one.low)} .. {_number(one.high)}"


def _number(value: float) -> str:
    return f"{value:.4g}"
