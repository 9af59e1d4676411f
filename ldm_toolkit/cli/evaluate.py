"""``ldm-eval``: scores of pictures and models, with their error bars.

Only levels 0 and 1 are imported before the command line is parsed and checked. stdout is data (the
table, or JSON), stderr is for the person. A new measure is a row of `cli.measures.MEASURES`.
"""

import importlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ldm_toolkit.cli.evaluate_options import parse
from ldm_toolkit.cli.evaluate_request import EvalRequest, check
from ldm_toolkit.cli.job import share
from ldm_toolkit.cli.measures import MEASURES
from ldm_toolkit.cli.process import prepare_process, run_command
from ldm_toolkit.cli.terminal import Stop, note, to_stdout
from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.evaluation.report import Report, table
from ldm_toolkit.files import write_atomic

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ldm-eval`` with ``argv`` (default: the process's own) and return its exit code."""
    return run_command("ldm-eval", argv, _main)


def _main(arguments: list[str], stop: Stop, debug: bool) -> int:
    """Check the command line and measure; return the exit code."""
    request = check(parse(arguments))
    prepare_process(
        "ldm-eval",
        online=request.on_hub,
        threads=request.threads,
        told=None if request.quiet else logging.WARNING,
        debug=debug,
    )
    first = share()[0] == 0
    if not first:
        request = replace(request, quiet=True)  # one process tells the person for all
    reports, about = _measured(request, stop)
    if first:
        _tell(request, reports, about)
    return 0


def _measured(request: EvalRequest, stop: Stop) -> tuple[dict[str, Report], dict[str, Any]]:
    """What each measure finds, by name, and what it looked at, as plain data."""
    from ldm_toolkit.hardware import take_own_gpu

    take_own_gpu()
    first = request.measures[0]
    if MEASURES[first].alone:
        return {first: _function(first)(request, stop)}, {}
    from ldm_toolkit.cli.evaluate_subject import subject_of

    subject = subject_of(request, stop)
    found = {}
    for name in request.measures:
        own = {one.name: request.own[one.name] for one in MEASURES[name].options}
        report = _function(name)(subject, **own)
        found[name] = replace(report, settings={**report.settings, **_sizing(request)})
    return found, subject.as_dict()


def _sizing(request: EvalRequest) -> dict[str, Any]:
    """How pictures that were there were brought to --size: scores of other sizes are others."""
    if request.size is None:
        return {}
    files = {request.images, request.reference} - {None, "storybook"}
    filter = {"size_filter": "Lanczos, middle cut"} if files else {}
    return {"size": f"{request.size}x{request.size}", **filter}


def _function(measure: str) -> Any:
    """The function of a row."""
    module, _, name = MEASURES[measure].function.partition(":")
    return getattr(importlib.import_module(module), name)


def _tell(request: EvalRequest, reports: Mapping[str, Report], about: Mapping[str, Any]) -> None:
    """Write scores.json and print the scores."""
    from ldm_toolkit.hardware import versions

    told = {name: one.as_dict() for name, one in reports.items()}
    told = {"measures": told, **about, "versions": dict(versions())}
    text = json.dumps(told, indent=2, ensure_ascii=False)
    path = request.folder / "scores.json"
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {path.parent}: {error.strerror}") from error
    write_atomic(path, text.encode())
    to_stdout(text if request.as_json else table(reports))
    if request.quiet:
        return
    for name, report in reports.items():
        for line in (*report.notes, *report.files):
            note(f"{name}: {line}")
    note(f"scores in {path}")


if __name__ == "__main__":
    sys.exit(main())
