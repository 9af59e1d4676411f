"""What the measures of an `EvalRequest` look at: pictures opened, or drawn as a job."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_toolkit.cli.evaluate_request import EvalRequest
from ldm_toolkit.cli.job import share
from ldm_toolkit.cli.loading import load_pipeline
from ldm_toolkit.cli.model import ModelChoice
from ldm_toolkit.cli.terminal import Stop, follow, note
from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.evaluation.adherence import Asked, held_out_prompts
from ldm_toolkit.evaluation.pictures import Files, Pictures, open_pictures
from ldm_toolkit.evaluation.subject import Follow, Share, Subject
from ldm_toolkit.hardware import threads_per_process
from ldm_toolkit.images import read_recipe
from ldm_toolkit.jobs import finished_job, open_job, run_job
from ldm_toolkit.promptfile import Row
from ldm_toolkit.recipe import GenerateOptions
from ldm_toolkit.training.data.entries import Entry, FileBytes

if TYPE_CHECKING:
    from ldm_toolkit.pipeline import LatentPipeline

__all__ = ["asked_rows", "draw", "drawn_subject", "follow_of", "subject_of"]


def subject_of(request: EvalRequest, stop: Stop) -> Subject:
    """Pictures, reference and model of a request; pictures are drawn now."""
    drawing: dict[str, Any] = {}
    if request.images is not None:
        pictures = open_pictures(
            request.images,
            count=request.count,
            size=request.size,
            seed=request.seed,
            columns=request.columns,
        )
    else:
        rows, asked = asked_rows(request)
        pictures, drawing = draw(
            request, stop, rows, request.folder / "pictures", request.choice, asked=asked
        )
    reference = None
    if request.reference is not None:
        reference = open_pictures(
            request.reference,
            count=request.count if request.count is not None else _as_many(request, pictures),
            size=request.size,
            seed=request.seed + 1,  # other scenes than those of the pictures
            columns=request.columns,
        )
    return _subject(
        request,
        stop,
        request.choice,
        pictures=pictures,
        reference=reference,
        drawing=drawing,
        per_prompt=request.per_prompt if request.images is None else 1,
    )


def drawn_subject(
    request: EvalRequest,
    stop: Stop,
    rows: Sequence[Row],
    folder: Path,
    choice: ModelChoice,
    *,
    asked: Sequence[Asked] | None = None,
) -> Subject:
    """Pictures that `draw` makes now, to be measured with files in the request's own folder."""
    pictures, drawing = draw(request, stop, rows, folder, choice, asked=asked)
    return _subject(
        request, stop, choice, pictures=pictures, drawing=drawing, per_prompt=request.per_prompt
    )


def _subject(request: EvalRequest, stop: Stop, choice: ModelChoice, **pictures: Any) -> Subject:
    """Pictures, and what is the same of all that a request measures."""
    rank, world = share()
    return Subject(
        folder=request.folder,
        pipe=functools.cache(lambda: _load(request, choice, world)),
        seed=request.seed,
        device=choice.device,
        share=Share(rank, world),
        follow=follow_of(request, stop),
        **pictures,
    )


def asked_rows(request: EvalRequest) -> tuple[list[Row], list[Asked] | None]:
    """The rows of --prompts, and what those of the storybook world ask for.

    With --per-prompt first one row of each prompt, then the second: the first ones are what they
    are without.
    """
    asked: list[Asked] | None = None
    if request.held_out is None:
        rows = list(request.rows)
    else:
        asked = held_out_prompts(request.held_out, request.seed)
        rest = {name: value for name, value in request.options.items() if name != "seed"}
        rows = [
            Row(GenerateOptions(prompt=one.prompt, seed=request.seed + index, **rest))
            for index, one in enumerate(asked)
        ]
        asked = asked * request.per_prompt
    shifts = [number * len(rows) for number in range(request.per_prompt)]
    return [_shifted(row, shift) for shift in shifts for row in rows], asked


def _shifted(row: Row, shift: int) -> Row:
    """A row with another seed."""
    seed = int(row.options.seed or 0) + shift
    return replace(row, options=replace(row.options, seed=seed))


def draw(
    request: EvalRequest,
    stop: Stop,
    rows: Sequence[Row],
    folder: Path,
    choice: ModelChoice,
    *,
    asked: Sequence[Asked] | None = None,
) -> tuple[Pictures, dict[str, Any]]:
    """The pictures of ``rows``, each with a seed, by ``choice``, as a job in ``folder``.

    Those that are there stay; processes share the rest. Also how they were drawn, as plain data.
    Raises LdmToolkitError where a picture failed.
    """
    rank, world = share()
    job = open_job(
        rows,
        folder,
        seed=request.seed,
        drawn=0,
        batch_size=request.batch_size,
        setting=choice.setting(request.threads),
    )
    done: Any = None
    if world == 1 and job.has_all_files():
        done = finished_job(job, choice.weights_sha256())
    if done is None:
        done = run_job(_load(request, choice, world), job, rank=rank, world=world)
    failed = []
    for one in follow_of(request, stop, "picture")(done, -(-len(rows) // world), "drawing"):
        if one.error is not None:
            failed.append(one.error)
    if failed:
        raise LdmToolkitError(
            f"{len(failed)} of {len(rows)} pictures failed ({failed[0]}); the same command tries "
            "them again"
        )
    Share(rank, world).wait()
    paths = [job.path(index) for index in range(len(rows))]
    entries = [
        Entry(path.name, (row.options.prompt,), FileBytes(path, str(path)))
        for path, row in zip(paths, rows, strict=True)
    ]
    return Files(str(folder), entries, asked=asked), _drawing(paths)


def follow_of(request: EvalRequest, stop: Stop, what: str = "block") -> Follow:
    """How the person sees how far something is; a signal ends it between two steps.

    ``what`` is counted: pictures are looked at in blocks.
    """

    def shown(steps: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        steps = stop.between(steps)
        yield from steps if request.quiet else follow(steps, total, label, what=what)

    return shown


def _as_many(request: EvalRequest, pictures: Pictures) -> int | None:
    """How many scenes are rendered to compare with; folders are taken whole."""
    return len(pictures) if request.reference == "storybook" else None


def _load(request: EvalRequest, choice: ModelChoice, world: int) -> "LatentPipeline":
    if not request.quiet:
        note(f"loading {choice.model}")
    threads = request.threads
    if threads is None and world > 1:
        threads = threads_per_process(world)
    return load_pipeline(choice, threads=threads)


def _drawing(paths: Iterable[Path]) -> dict[str, Any]:
    """What the recipes of pictures say of all of them; prompts, seeds and hashes are left out.

    What is not the same in all is "several".
    """
    own = ("prompt", "seed", "pixels_sha256", "encoded_sha256")
    shared: dict[str, Any] = {}
    for path in paths:
        told = json.loads(read_recipe(path).to_json())
        for name in told.keys() - set(own):
            value = told[name]
            shared[name] = value if shared.get(name, value) == value else "several"
    return dict(sorted(shared.items()))
