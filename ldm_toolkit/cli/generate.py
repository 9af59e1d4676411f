"""``ldm-gen``: a prompt in, a picture that remembers how it was made out.

Only levels 0 and 1 are imported before the command line is parsed and checked, so that --help
and every mistake answer at once. stdout is data (a path a line), stderr is for the person.
"""

import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_toolkit.cli.loading import load_pipeline, threads_for
from ldm_toolkit.cli.options import parse
from ldm_toolkit.cli.output import grid_file, picture_line, steps_folder
from ldm_toolkit.cli.plan import plan
from ldm_toolkit.cli.process import prepare_process, run_command
from ldm_toolkit.cli.profile import Profile
from ldm_toolkit.cli.request import JobRequest, Request, check
from ldm_toolkit.cli.terminal import Stop, follow, note, one_line, show, to_stdout
from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.files import staged_directory

if TYPE_CHECKING:
    from PIL import Image

    from ldm_toolkit.denoise import Step
    from ldm_toolkit.pipeline import LatentPipeline
    from ldm_toolkit.replay import Original
    from ldm_toolkit.run import Result, Run

__all__ = ["main"]

# The largest batch that a picture's recipe can ask for; a file must not exhaust the memory.
_LARGEST_BATCH = 64
# Pictures from which compiling is sooner done than drawing without: SD 1.5, 50 steps.
_PAYS_FROM = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ldm-gen`` with ``argv`` (default: the process's own) and return its exit code."""
    return run_command("ldm-gen", argv, _main)


def _main(arguments: list[str], stop: Stop, debug: bool) -> int:
    """Check the command line and do what it asks for; return the exit code."""
    request = check(parse(arguments))
    original = request.original if isinstance(request, Request) else None
    # How long the compiler took is news only to who asked for it.
    compiling = request.choice.compile or request.choice.computing != "torch"
    level = logging.INFO if compiling else logging.WARNING
    prepare_process(
        "ldm-gen",
        online=request.choice.on_hub,
        threads=threads_for(request.threads, original),
        told=None if request.quiet else level,
        debug=debug,
    )
    return _run(request, stop)


def _run(request: Request | JobRequest, stop: Stop) -> int:
    """Do what the command line asks for; return the exit code."""
    if request.dry_run:
        to_stdout(plan(request))
        return 0
    if isinstance(request, JobRequest):
        from ldm_toolkit.cli import job

        return job.run(request, stop)
    if request.show_tokens:
        _show_tokens(request)
        return 0
    return _generate(request, stop)


def _show_tokens(request: Request) -> None:
    """Print what the text encoder would read of the prompt; only the tokenizer is loaded."""
    from ldm_toolkit.models.tokenizer import model_tokenizer, read_word, with_word
    from ldm_toolkit.tokens import show_tokens

    choice = request.choice
    tokenizer = model_tokenizer(
        choice.model,
        tokenizer=choice.tokenizer,
        revision=choice.revision,
        offline=choice.offline or None,
    )
    for path, word in choice.embeddings:
        tokenizer, _ = with_word(tokenizer, *read_word(path, word))
    for row in show_tokens(request.options.prompt, tokenizer):
        to_stdout(f"{row.id}\t{one_line(row.text)}\t{row.weight:.4g}")


def _generate(request: Request, stop: Stop) -> int:
    """Load the model and make the pictures one after the other; return the exit code.

    One at a time, each is on the disk as soon as it is done, memory does not grow with -n, and
    every picture has the bits that it would have alone.
    """
    started = time.monotonic()
    profile = Profile(request.reports.profile is not None)
    if not request.quiet:
        note(f"loading {request.choice.model}")
    if request.choice.compile and request.count < _PAYS_FROM and not request.quiet:
        note("compiling takes a minute or more first; it pays in jobs of many pictures")
    pipe = _loaded(request, profile)
    code = 0
    thumbnails: list[Image.Image] = []
    first = recipe = None
    for index in range(request.count):
        before = time.monotonic()
        trace = request.reports.trace if index == 0 else None
        with profile.traced(trace, overwrite=request.destination.overwrite):
            path, result = _picture(pipe, request, index, stop, profile)
        recipe = result.recipes[0] if index == 0 else recipe
        _tell(request, path, result, time.monotonic() - before)
        if request.original is not None:
            code = _verdict(request.original, result, quiet=request.quiet)
        if request.grid:
            first = first if first is not None else path
            result.images[0].thumbnail((256, 256))
            thumbnails.append(result.images[0])
    if first is not None:
        _save_grid(request, first, thumbnails)
    if request.reports.profile is not None and recipe is not None:
        about = json.loads(recipe.to_json())
        profile.save(request.reports.profile, about, overwrite=request.destination.overwrite)
        if not request.quiet:
            show(profile.table())
    if not request.quiet:
        note(f"done in {time.monotonic() - started:.1f} s")
    return code


def _loaded(request: Request, profile: Profile) -> "LatentPipeline":
    """The model that the command line names."""
    with profile.imports(), profile.stage("weights"):
        pipe = load_pipeline(
            request.choice,
            threads=threads_for(request.threads, request.original),
            original=request.original,
            prompts=() if request.quiet else (request.options.prompt,),
            preview_vae=request.reports.preview_vae,
        )
    if pipe.components.device.type != "cpu":
        import torch

        profile.wait = torch.accelerator.synchronize
    return pipe


def _tell(request: Request, path: Path, result: "Result", seconds: float) -> None:
    """The line about a finished picture on stdout."""
    if not request.as_json:
        to_stdout(str(path))
        return
    to_stdout(picture_line(path, result.recipes[0], seconds=round(seconds, 3)))


def _save_grid(request: Request, first: Path, thumbnails: "Sequence[Image.Image]") -> None:
    """Write small copies of all pictures on one sheet, beside the first."""
    from ldm_toolkit.images import contact_sheet, save_image

    labels = [f"seed {request.seed + index}" for index in range(len(thumbnails))]
    path = grid_file(first, overwrite=request.destination.overwrite)
    columns = max(5, math.isqrt(len(thumbnails)))
    sheet = contact_sheet(thumbnails, labels, columns=columns)
    save_image(sheet, path, overwrite=request.destination.overwrite)
    if not request.quiet:
        note(f"sheet in {path}")


def _verdict(original: "Original", result: "Result", *, quiet: bool) -> int:
    """Say whether the picture is the original; return the exit code, 1 if it is not."""
    from ldm_toolkit.replay import compare

    found = compare(original, result.images[0], result.recipes[0])
    if found.identical:
        if not quiet:
            note("identical")
        return 0
    note(
        f"not identical: off by {found.max_difference} of 255 at most, "
        f"{found.mean_difference:.3g} on average; likely because: {'; '.join(found.reasons)}"
    )
    return 1


def _picture(
    pipe: "LatentPipeline", request: Request, index: int, stop: Stop, profile: Profile
) -> "tuple[Path, Result]":
    """Make and write one picture; return where it is, and the picture."""
    seed = request.seed + index
    arguments = dataclasses.asdict(request.options) | {"seed": seed}
    if request.original is not None:
        # The bits depend on the shape of the batch, and on neither place nor neighbours in it.
        size = request.original.recipe.batch_size
        arguments["batch_size"] = size if size <= _LARGEST_BATCH else None
        arguments["vae_tiling"] = request.original.recipe.vae_tiling
    arguments |= {"image": request.image, "mask": request.mask}
    with profile.stage("text"):
        run = pipe.stream(arguments.pop("prompt"), **arguments)
    path = request.destination.path(seed)
    label = "drawing" if request.count == 1 else f"picture {index + 1}/{request.count}"
    steps: Iterable[Step] = stop.between(profile.each(run))
    if not request.quiet:
        steps = follow(steps, run.total, label)
    if request.every is None:
        for _ in steps:
            pass
        return _finished(run, request, path, profile)
    # The folder gets its name when the picture has, so that an interruption leaves neither.
    # Another run may take the picture's name meanwhile: the folder is called as the picture is.
    with staged_directory(steps_folder(path), lambda: steps_folder(path)) as folder:
        _save_intermediates(steps, folder, request, profile)
        path, result = _finished(run, request, path, profile)
    if not request.quiet:
        note(f"intermediates in {steps_folder(path)}")
    return path, result


def _finished(run: "Run", request: Request, path: Path, profile: Profile) -> "tuple[Path, Result]":
    """Decode and write the picture of a run that came to its end."""
    with profile.stage("decode"):
        result = run.result
    with profile.stage("save"):
        return _write(request, result, path), result


def _write(request: Request, result: "Result", path: Path) -> Path:
    """Write the picture; when another process took the name meanwhile, under the next one."""
    from ldm_toolkit.images import save_image

    place = request.destination
    recipe = None if request.strip else result.recipes[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {path.parent}: {error.strerror}") from error
    while True:
        try:
            save_image(result.images[0], path, recipe, overwrite=place.overwrite)
        except CannotWrite as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            path = place.path(result.recipes[0].seed)  # raises for a name that the person chose
        else:
            return path


def _save_intermediates(
    steps: "Iterable[Step]", folder: Path, request: Request, profile: Profile
) -> None:
    """Write what each ``request.every``-th step and the last promise, and a contact sheet."""
    from ldm_toolkit.images import contact_sheet, save_image

    thumbnails, labels = [], []
    for step in steps:
        number = step.index + 1
        if number % (request.every or 1) and number != step.total:
            continue
        with profile.stage("intermediates"):
            picture = step.preview() if request.reports.preview_vae else step.decoded()
            save_image(picture, folder / f"step-{number:04d}.png", overwrite=True)
        picture.thumbnail((192, 192))
        thumbnails.append(picture)
        labels.append(f"step {number}")
    save_image(contact_sheet(thumbnails, labels), folder / "contact-sheet.png", overwrite=True)


if __name__ == "__main__":
    sys.exit(main())
