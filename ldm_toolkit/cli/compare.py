"""``ldm-eval compare A B``: both draw the same prompts from the same seeds, and are measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ldm_toolkit.cli.evaluate_request import EvalRequest
from ldm_toolkit.cli.sides import Side, read_sides
from ldm_toolkit.cli.terminal import Stop
from ldm_toolkit.promptfile import Row

if TYPE_CHECKING:
    from ldm_toolkit.evaluation.report import Report

__all__ = ["compare"]


def compare(request: EvalRequest, stop: Stop) -> "Report":
    """Draw what is missing of both sides, measure and write compare.html.

    Raises UserError for sides that cannot be understood, before anything slow is imported.
    """
    sides = read_sides(request)
    from ldm_toolkit.cli.evaluate_subject import asked_rows, drawn_subject
    from ldm_toolkit.evaluation.comparison import compared

    rows, asked = asked_rows(request)
    subjects = []
    for letter, side in zip("ab", sides, strict=True):
        own = _own_rows(rows, side)
        folder = request.folder / f"pictures-{letter}"
        subjects.append(drawn_subject(request, stop, own, folder, side.choice, asked=asked))
    first, second = subjects
    return compared(
        first,
        second,
        names=(sides[0].text, sides[1].text),
        seeds=[int(row.options.seed or 0) for row in rows],
        judge=request.own["judge"],
        clip_model=request.own["clip_model"],
    )


def _own_rows(rows: Sequence[Row], side: Side) -> list[Row]:
    """The rows as one side draws them."""
    return [replace(row, options=replace(row.options, **side.options)) for row in rows]
