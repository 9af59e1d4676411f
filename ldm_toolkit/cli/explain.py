"""``ldm-explain``: how a prompt becomes a picture, as one page of pictures with captions.

Only levels 0 and 1 are imported before the command line is parsed and checked. stdout is data (the
page's path), stderr is for the person.
"""

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_toolkit.cli.explain_request import ExplainRequest, check, parse
from ldm_toolkit.cli.loading import load_pipeline
from ldm_toolkit.cli.process import prepare_process, run_command
from ldm_toolkit.cli.terminal import Stop, follow, note, to_stdout
from ldm_toolkit.files import staged_directory

if TYPE_CHECKING:
    from ldm_toolkit.denoise import Step
    from ldm_toolkit.explain.picture import Picture
    from ldm_toolkit.run import Run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ldm-explain`` with ``argv`` (default: the process's own) and return its exit code."""
    return run_command("ldm-explain", argv, _main)


def _main(arguments: list[str], stop: Stop, debug: bool) -> int:
    """Check the command line and make the page; return the exit code."""
    request = check(parse(arguments))
    prepare_process(
        "ldm-explain",
        online=request.choice.on_hub,
        threads=request.threads,
        told=None if request.quiet else logging.WARNING,
        debug=debug,
    )
    started = time.monotonic()
    if not request.quiet:
        note(f"loading {request.choice.model}")
    with staged_directory(request.folder) as folder:
        page = _write(request, folder, stop)
    to_stdout(str(request.folder / page))
    if not request.quiet:
        note(f"done in {time.monotonic() - started:.1f} s")
    return 0


def _write(request: ExplainRequest, folder: Path, stop: Stop) -> str:
    """Fill the folder; return the page's name."""
    from ldm_toolkit.explain.observed import observe
    from ldm_toolkit.explain.page import COUNT, PAGE, Subject, pictures, write_page

    told = () if request.quiet else (request.prompt,)
    pipeline = load_pipeline(request.choice, threads=request.threads, prompts=told)

    def watched(run: "Run") -> "Iterable[Step]":
        steps = stop.between(run)
        return steps if request.quiet else follow(steps, run.total, "drawing")

    observed = observe(pipeline, request.prompt, follow=watched, **request.options)
    subject = Subject(pipeline, observed, request.other, request.image)
    drawn: Iterable[Picture] = stop.between(pictures(subject))
    if not request.quiet:
        drawn = follow(drawn, COUNT, "explaining", what="picture")
    write_page(folder, subject, drawn)
    return PAGE


if __name__ == "__main__":
    sys.exit(main())
