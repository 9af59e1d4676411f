"""From words to a `Request`: every value looked at before anything slow is imported."""

import argparse
import dataclasses
import functools
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_toolkit import schedulers
from ldm_toolkit.cli.model import Known, ModelChoice, choose_model, fit_problems
from ldm_toolkit.cli.options import flag
from ldm_toolkit.cli.output import Destination, destination
from ldm_toolkit.cli.output_options import FORMATS
from ldm_toolkit.cli.problems import Problems
from ldm_toolkit.cli.reports import Reports, check_reports
from ldm_toolkit.errors import UserError, suggestion
from ldm_toolkit.files import PICTURE_SUFFIXES
from ldm_toolkit.promptfile import USUAL_BATCH, Row, kind_of, read_rows, sound_options
from ldm_toolkit.recipe import MAX_SEED, GenerateOptions, ModelDefaults
from ldm_toolkit.tokens import parse_weights

if TYPE_CHECKING:
    from PIL import Image

    from ldm_toolkit.replay import Original

__all__ = [
    "MOST_THREADS",
    "JobRequest",
    "Request",
    "check",
    "given_options",
    "job_folder",
    "leave_out_empty",
    "note_wrong",
    "unfit_options",
]

_MOST_IMAGES = 10_000  # more of them are a job
MOST_THREADS = 4096
# Options that name something, which an unset variable of a shell leaves empty.
_NAMING = {
    "model": "a name, a folder or a file",
    "lora": "PATH or PATH:SCALE",
    "embedding": "PATH or PATH:WORD",
    "vae": "a folder",
    "tokenizer": "a folder",
    "variant": "a word such as fp16",
    "revision": "a branch, tag or commit",
    "image": "a file",
    "mask": "a file",
    "prompts": "a file",
    "replay": "a picture",
    "preview_vae": "a folder or a file",
    "profile": "FILE.json",
    "trace": "FILE.json",
    "images": "a folder or a data set",
    "reference": "a folder or a data set",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A command line that was understood and found right.

    ``original`` is the picture of a replay; where device, dtype or threads were not given, those
    of its recipe are meant. ``defaults`` are None where only loading the model tells them.
    """

    options: GenerateOptions
    seed: int
    count: int
    choice: ModelChoice
    defaults: ModelDefaults | None
    threads: int | None
    every: int | None
    reports: Reports
    show_tokens: bool
    quiet: bool
    strip: bool
    grid: bool
    as_json: bool
    dry_run: bool
    destination: Destination
    image: "Image.Image | None"
    mask: "Image.Image | None"
    original: "Original | None"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A prompt file that was understood and found right, with where its pictures go."""

    rows: Sequence[Row]
    folder: Path
    seed: int | None
    batch_size: int
    format: str
    choice: ModelChoice
    defaults: ModelDefaults | None
    threads: int | None
    quiet: bool
    as_json: bool
    dry_run: bool


def check(arguments: argparse.Namespace) -> Request | JobRequest:
    """Look at every value, the model's files and the place of the output; report all problems.

    Raises UserError, or CannotWrite when only the output is at fault.
    """
    problems = Problems()
    leave_out_empty(arguments, problems)
    if arguments.prompts is None and arguments.replay is None and arguments.prompt is None:
        arguments.prompt = ""
    if arguments.prompts is not None:
        return _check_job(arguments, problems)
    count = problems.number("-n", arguments.count, int, least=1, most=_MOST_IMAGES) or 1
    threads = problems.number("--threads", arguments.threads, int, least=1, most=MOST_THREADS)
    every = problems.number("--save-intermediates", arguments.every, int, least=1)
    image = problems.picture("--image", arguments.image)
    mask = problems.picture("--mask", arguments.mask)
    original, options = _asked(arguments, problems, {"image": image, "mask": mask})
    if arguments.batch_size is not None:
        problems.errors.append(UserError("--batch-size is for --prompts"))
    if options is not None and options.seed is None:
        # Drawn here, because names and the seeds of the other pictures follow from it.
        options = dataclasses.replace(options, seed=secrets.randbelow(2**32))
    choice, known = None, None
    with problems.collected():
        choice, known = choose_model(arguments, original)
    if options is not None:
        note_wrong(unfit_options(options, known, arguments.backend), problems)
    reports = check_reports(arguments, problems)
    place = None
    with problems.collected():
        place = _destination(arguments, options, count, with_steps=every is not None)
    problems.finish()
    if options is None or options.seed is None or place is None or choice is None:
        raise UserError("the command line could not be read")
    return Request(
        options=options,
        seed=options.seed,
        count=count,
        choice=choice,
        defaults=known.defaults if known is not None else None,
        threads=threads,
        every=every,
        reports=reports,
        show_tokens=arguments.show_tokens,
        quiet=arguments.quiet,
        strip=arguments.strip,
        grid=arguments.grid,
        as_json=arguments.json,
        dry_run=arguments.dry_run,
        destination=place,
        image=image,
        mask=mask,
        original=original,
    )


def _asked(
    arguments: argparse.Namespace, problems: Problems, inputs: "dict[str, Image.Image | None]"
) -> "tuple[Original | None, GenerateOptions | None]":
    """What is to be drawn: from the command line, or from the picture of a replay."""
    if arguments.replay is None:
        if arguments.image is None:
            for name in ("mask", "strength"):
                if getattr(arguments, name) is not None:
                    problems.errors.append(UserError(f"--{name} needs --image"))
        return None, GenerateOptions(**{"prompt": "", **given_options(arguments, problems)})
    with problems.collected():
        _check_replay_alone(arguments)
    with problems.collected():
        original, options = _replayed(arguments.replay)
        _check_inputs(original, inputs)
        return original, options
    return None, None


def _check_job(arguments: argparse.Namespace, problems: Problems) -> JobRequest:
    """The whole prompt file and everything else that a job needs."""
    given = _not_of_jobs(arguments)
    if given:
        problems.errors.append(UserError(f"--prompts does not go with {', '.join(given)}"))
    folder = Path()
    if arguments.output is None:
        problems.errors.append(UserError("--prompts needs a folder for the pictures: -o FOLDER/"))
    else:
        with problems.collected():
            folder = job_folder(arguments.output)
    format = arguments.format if arguments.format is not None else "png"
    with problems.collected():
        _check_format(format)
    threads = problems.number("--threads", arguments.threads, int, least=1, most=MOST_THREADS)
    batch_size = problems.number("--batch-size", arguments.batch_size, int, least=1, most=1024)
    choice, known = None, None
    with problems.collected():
        choice, known = choose_model(arguments, None)
    defaults = given_options(arguments, problems)
    seed = defaults.pop("seed", None)
    # What is wrong with the options is told once, and not again for every row.
    unfit = functools.partial(unfit_options, known=known, backend=arguments.backend)
    wrong = unfit(GenerateOptions(**{"prompt": "", **defaults}))
    note_wrong(wrong, problems)
    defaults = {name: value for name, value in defaults.items() if name not in wrong}
    rows: list[Row] = []
    with problems.collected():
        rows = read_rows(arguments.prompts, defaults, unfit)
        if "strength" in defaults and not any(row.image for row in rows):
            raise UserError("--strength: no row has an image")
    problems.finish()
    if choice is None:
        raise UserError("the command line could not be read")
    return JobRequest(
        rows=rows,
        folder=folder,
        seed=seed,
        batch_size=batch_size if batch_size is not None else USUAL_BATCH,
        format=format,
        choice=choice,
        defaults=known.defaults if known is not None else None,
        threads=threads,
        quiet=arguments.quiet,
        as_json=arguments.json,
        dry_run=arguments.dry_run,
    )


def _not_of_jobs(arguments: argparse.Namespace) -> list[str]:
    """What was given and is for single pictures."""
    refused = {
        "-n": arguments.count != "1",
        "--replay": arguments.replay is not None,
        "--image": arguments.image is not None,
        "--mask": arguments.mask is not None,
        "--save-intermediates": arguments.every is not None,
        "--preview-vae": arguments.preview_vae is not None,
        "--profile": arguments.profile is not None,
        "--trace": arguments.trace is not None,
        "--strip-metadata": arguments.strip,
        "--overwrite": arguments.overwrite,
        "--grid": arguments.grid,
        "--show-tokens": arguments.show_tokens,
    }
    return [name for name, there in refused.items() if there]


def leave_out_empty(arguments: argparse.Namespace, problems: Problems) -> None:
    """Note names that are empty, and go on as if they had not been given."""
    for name, wanted in _NAMING.items():
        value = getattr(arguments, name, None)
        if value == "" or (isinstance(value, list) and "" in value):
            problems.errors.append(UserError(f"{flag(name)} is empty; say {wanted}"))
            setattr(arguments, name, [one for one in value if one] or None)


def unfit_options(options: GenerateOptions, known: Known | None, backend: str) -> dict[str, str]:
    """What of the options model or backend cannot do, and prompts that cannot be read, by field."""
    problems = fit_problems(options, known, backend)
    for name in ("prompt", "negative_prompt"):
        try:
            parse_weights(getattr(options, name))
        except UserError as error:
            problems[name] = str(error) if name == "prompt" else f"{name}: {error}"
    return problems


def note_wrong(wrong: Mapping[str, str], problems: Problems) -> None:
    """Note what is wrong with options, under the names that the person typed."""
    for name, line in wrong.items():
        typed = line if name == "prompt" else flag(name) + line.removeprefix(name)
        problems.errors.append(UserError(typed))


def job_folder(output: str) -> Path:
    """The checked -o of a job, which is always a folder."""
    named = output if output.endswith("/") or not output else f"{output}/"
    return destination(named, "", count=1, overwrite=True, with_steps=False).folder


def _check_format(format: str) -> None:
    if format not in FORMATS:
        hint = suggestion(format, FORMATS)
        raise UserError(f"--format: {format!r:.80} is none of {', '.join(FORMATS)}{hint}")


def _destination(
    arguments: argparse.Namespace, options: GenerateOptions | None, count: int, *, with_steps: bool
) -> Destination:
    """The checked -o and --format, with a place for each of ``count`` pictures.

    A picture made again is written as the one that it is compared with.
    """
    if arguments.format is not None:
        _check_format(arguments.format)
    replayed = Path(arguments.replay).suffix.lower() if arguments.replay is not None else ""
    place = destination(
        arguments.output,
        options.prompt if options is not None else "",
        format=arguments.format,
        usual=PICTURE_SUFFIXES.get(replayed, "png"),
        count=count,
        overwrite=arguments.overwrite,
        with_steps=with_steps,
    )
    if options is not None and options.seed is not None:
        if options.seed + count - 1 > MAX_SEED:
            raise UserError(f"--seed: the last of {count} pictures would pass {MAX_SEED}")
        for index in range(count):
            place.path(options.seed + index)
    return place


def _check_replay_alone(arguments: argparse.Namespace) -> None:
    """Refuse what the recipe of a replayed picture says already."""
    given = [
        flag(field.name)
        for field in dataclasses.fields(GenerateOptions)
        if getattr(arguments, field.name) is not None
    ]
    given += ["--dim"] if arguments.dim is not None else []
    given += ["-n"] if arguments.count != "1" else []
    if given:
        raise UserError(f"--replay takes {', '.join(given)} from the picture; leave them away")


def _replayed(path: str) -> "tuple[Original, GenerateOptions]":
    """A picture to be made again and what it asks for."""
    from ldm_toolkit.replay import options_of, read_original

    try:
        original = read_original(path)
        return original, options_of(original.recipe)
    except UserError as error:
        raise type(error)(f"--replay: {error}") from error


def _check_inputs(original: "Original", given: "dict[str, Image.Image | None]") -> None:
    """Raises UserError unless the inputs that the recipe names, and no others, are there."""
    from ldm_toolkit.images import pixels_sha256

    problems = []
    if original.recipe.latents_sha256 is not None:
        problems.append("--replay: the picture was made from latents that only Python can give")
    for name, picture in given.items():
        wanted = getattr(original.recipe, f"{name}_sha256")
        if wanted is None and picture is not None:
            problems.append(f"--replay: the picture was made without --{name}; leave it away")
        elif wanted is not None and picture is None:
            problems.append(
                f"--replay: the picture was made with an input; give it with --{name} FILE "
                f"(its pixels have the SHA-256 {wanted:.12}...)"
            )
        elif picture is not None and pixels_sha256(picture) != wanted:
            problems.append(
                f"--{name}: its pixels are not those of the input that made the picture "
                f"(SHA-256 {wanted:.12}...)"
            )
    if problems:
        raise UserError("; ".join(problems))


def given_options(arguments: argparse.Namespace, problems: Problems) -> dict[str, Any]:
    """The fields of GenerateOptions that were given, as values; without those that are wrong."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(GenerateOptions):
        text = getattr(arguments, field.name)
        kind = kind_of(field.name)
        if kind is str:
            value = text
        elif kind is tuple:
            value = problems.pair(flag(field.name), text)
        else:
            value = problems.number(flag(field.name), text, kind)
        if value is not None:
            given[field.name] = value
    if arguments.dim is not None:
        if arguments.width is not None or arguments.height is not None:
            problems.errors.append(UserError("--dim sets --width and --height; leave those away"))
        side = problems.number("--dim", arguments.dim, int)
        if side is not None:
            given |= {"width": side, "height": side}
    if arguments.scheduler is not None:
        with problems.collected():
            del given["scheduler"]
            given["scheduler"] = schedulers.resolve_name(arguments.scheduler, classes=True)
    sound, wrong = sound_options(given)
    note_wrong(wrong, problems)
    return sound
