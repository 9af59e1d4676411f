"""``ldm-gen --prompts``: a file of prompts into a folder, carried on after a kill."""

import os
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ldm_toolkit.cli.loading import load_pipeline
from ldm_toolkit.cli.output import picture_line
from ldm_toolkit.cli.request import JobRequest
from ldm_toolkit.cli.terminal import Stop, follow, note, to_stdout
from ldm_toolkit.errors import UserError
from ldm_toolkit.values import counted

if TYPE_CHECKING:
    from ldm_toolkit.jobs import Done, Job

__all__ = ["run", "share"]


def run(request: JobRequest, stop: Stop) -> int:
    """Make the pictures that are missing; return the exit code, 1 if some failed.

    Under torchrun or accelerate the processes share the rows.
    """
    from ldm_toolkit.jobs import finished_job, open_job

    rank, world = share()
    started = time.monotonic()
    job = open_job(
        request.rows,
        request.folder,
        seed=request.seed,
        drawn=secrets.randbelow(2**32) if world == 1 else 0,
        batch_size=request.batch_size,
        format=request.format,
        setting=request.choice.setting(request.threads),
    )
    rows: Any = None
    if world == 1 and job.has_all_files():
        if not request.quiet:
            note("every picture is there; checking them")
        rows = finished_job(job, request.choice.weights_sha256())
    if rows is None:
        rows = _drawn(request, job, rank, world)
    done: Any = stop.between(rows)
    if not request.quiet:
        done = follow(done, -(-len(job.rows) // world), "pictures", what="picture")
    failed = found = 0
    for one in done:
        if one.error is not None:
            failed += 1
            note(f"row {one.index + 1}: {one.error}")
            continue
        found += one.found
        if request.as_json:
            to_stdout(picture_line(one.path, one.recipe, found=one.found))
        else:
            to_stdout(str(one.path))
    if not request.quiet:
        were = "was" if found == 1 else "were"
        there = f"{counted(found, 'picture')} {were} there already; " if found else ""
        note(f"{there}done in {time.monotonic() - started:.1f} s")
    if failed:
        note(
            f"{failed} of {counted(len(job.rows), 'picture')} failed; the same command tries them "
            "again"
        )
    return 1 if failed else 0


def _drawn(request: JobRequest, job: "Job", rank: int, world: int) -> "Iterator[Done]":
    """Load the model; the rows as they are drawn or found."""
    from ldm_toolkit.hardware import take_own_gpu, threads_per_process
    from ldm_toolkit.jobs import run_job

    if not request.quiet:
        note(f"loading {request.choice.model}")
    take_own_gpu()
    threads = request.threads
    if threads is None and world > 1:
        threads = threads_per_process(world)
    told = rank == 0 and not request.quiet
    prompts = [row.options.prompt for row in request.rows] if told else ()
    pipe = load_pipeline(request.choice, threads=threads, prompts=prompts)
    return run_job(pipe, job, rank=rank, world=world)


def share() -> tuple[int, int]:
    """Which process of how many this is, as torchrun and accelerate say. Raises UserError."""
    texts = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if None in texts:
        return 0, 1
    try:
        rank, world = (int(text or "") for text in texts)
    except ValueError:
        rank, world = 0, 0
    if not 0 <= rank < world:
        raise UserError(f"RANK and WORLD_SIZE in the environment are {texts}; unset them")
    return rank, world
