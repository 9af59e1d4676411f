"""From the words of ``ldm-eval`` to an `EvalRequest`, everything checked before torch."""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ldm_toolkit import storybook
from ldm_toolkit.cli.evaluate_options import own_options
from ldm_toolkit.cli.measures import FEATURES, MEASURES, Option
from ldm_toolkit.cli.model import ModelChoice, choose_model
from ldm_toolkit.cli.options import flag
from ldm_toolkit.cli.problems import Problems
from ldm_toolkit.cli.request import (
    MOST_THREADS,
    given_options,
    job_folder,
    leave_out_empty,
    note_wrong,
    unfit_options,
)
from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.evaluation.report import FEWEST
from ldm_toolkit.models.hub import on_hub
from ldm_toolkit.promptfile import Row, read_rows
from ldm_toolkit.recipe import GenerateOptions
from ldm_toolkit.training.inputs import data_problems

__all__ = ["EvalRequest", "check"]

_SIDES = frozenset({"--width", "--height", "--dim"})
_MOST_PROMPTS = 1_000_000
_COLUMNS = ("image_column", "caption_column", "data_split")
_INCEPTION = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """A command line of ``ldm-eval`` that was understood and found right.

    ``options`` are the fields of GenerateOptions that were given, the seed always. Pictures come
    from ``images``, or are drawn: ``held_out`` captions of the storybook world, or ``rows``.
    ``columns`` are options of data sets as training has them, ``own`` the values of the measures'
    own options.
    """

    measures: tuple[str, ...]
    operands: tuple[str, ...]
    own: Mapping[str, Any]
    images: str | None
    held_out: int | None
    rows: Sequence[Row]
    reference: str | None
    columns: Mapping[str, str]
    count: int | None
    size: int | None
    options: Mapping[str, Any]
    choice: ModelChoice
    per_prompt: int
    batch_size: int
    threads: int | None
    folder: Path
    as_json: bool
    quiet: bool

    @property
    def seed(self) -> int:
        """That of the first picture, and of everything else that is drawn by lot."""
        return int(self.options["seed"])

    @property
    def on_hub(self) -> bool:
        """Whether anything may need the network."""
        places = [place for place in (self.images, self.reference) if place is not None]
        places += [operand.partition(",")[0] for operand in self.operands]
        return self.choice.on_hub or any(on_hub(place) for place in places)


def check(arguments: argparse.Namespace) -> EvalRequest:
    """Look at every value, the model's files and the place of the output; report all problems.

    Raises UserError, or CannotWrite when only the output is at fault.
    """
    problems = Problems()
    folder = arguments.output or _usual_folder(arguments)
    leave_out_empty(arguments, problems)
    with problems.collected():
        folder = job_folder(arguments.output if arguments.output is not None else folder)
    own = {one.name: _own_value(one, arguments, problems) for one in own_options(MEASURES)}
    threads = problems.number("--threads", arguments.threads, int, least=1, most=MOST_THREADS)
    batch_size = problems.number("--batch-size", arguments.batch_size, int, least=1, most=1024)
    per_prompt = problems.number("--per-prompt", arguments.per_prompt, int, least=1, most=1000)
    count = problems.number("--count", arguments.count, int, least=1)
    size = problems.number("--size", arguments.size, int, least=8, most=8192)
    options = {"seed": 0, **given_options(arguments, problems)}
    with problems.collected():
        _check_needs(arguments)
    with problems.collected():
        _check_effects(arguments)
    choice, rows, held_out = None, [], None
    with problems.collected():
        choice, known = choose_model(arguments, None)
        drawn = GenerateOptions(**{"prompt": "", **options})
        note_wrong(unfit_options(drawn, known, arguments.backend), problems)
        if arguments.prompts is not None and arguments.prompts.isdecimal():
            held_out = int(arguments.prompts)
            if not 1 <= held_out <= _MOST_PROMPTS:
                raise UserError(f"--prompts: a number is from 1 to {_MOST_PROMPTS}")
        elif arguments.prompts is not None:
            rows = _rows(arguments.prompts, options, known, arguments.backend)
        _check_enough(arguments, (held_out or len(rows)) * (per_prompt or 1))
    columns = {name: getattr(arguments, name) for name in _COLUMNS}
    problems.finish()
    if choice is None:
        raise UserError("the command line could not be read")
    return EvalRequest(
        measures=tuple(arguments.measures),
        operands=tuple(arguments.operands),
        own=own,
        images=arguments.images,
        held_out=held_out,
        rows=rows,
        reference=arguments.reference,
        columns={name: value for name, value in columns.items() if value is not None},
        count=count,
        size=size,
        options=options,
        choice=choice,
        per_prompt=per_prompt or 1,
        batch_size=batch_size or 1,
        threads=threads,
        folder=Path(folder),
        as_json=arguments.json,
        quiet=arguments.quiet,
    )


def _rows(path: str, options: Mapping[str, Any], known: Any, backend: str) -> list[Row]:
    """The rows of a prompt file; row i without a seed of its own has --seed + i."""
    rest = {name: value for name, value in options.items() if name != "seed"}
    rows = read_rows(path, rest, lambda asked: unfit_options(asked, known, backend))
    return [
        row
        if row.options.seed is not None
        else replace(row, options=replace(row.options, seed=options["seed"] + index))
        for index, row in enumerate(rows)
    ]


def _check_needs(arguments: argparse.Namespace) -> None:
    """Whether there are the pictures that the measures look at. Raises UserError."""
    names = arguments.measures
    needs = frozenset().union(*(MEASURES[name].needs for name in names))
    problems = []
    if not MEASURES[names[0]].alone:
        given = [name for name in ("images", "prompts") if getattr(arguments, name) is not None]
        if len(given) != 1:
            problems.append(
                "say which pictures: either --images FOLDER, or --prompts N or FILE for pictures "
                "that the model draws"
            )
    if "reference" in needs and arguments.reference is None:
        problems.append(
            "--reference is missing: a folder or a data set to compare with, or storybook for "
            "renders of that world"
        )
    for name in ("images", "reference"):
        place = getattr(arguments, name)
        problems += data_problems(f"--{name}", place) if place is not None else []
    if "drawn" in needs and arguments.prompts is None:
        problems.append(f"{names[0]} needs --prompts N or FILE")
    if "features" in needs:
        problems += _features_problems(arguments)
    if "judge" in needs:
        problems += _judge_problems()
    if "clip" in names and arguments.clip_model is None:
        problems.append(
            "clip needs --clip-model FOLDER, a CLIP model as transformers saves it, such as "
            "https://huggingface.co/openai/clip-vit-large-patch14: hf download "
            "openai/clip-vit-large-patch14 --local-dir clip"
        )
    if problems:
        raise UserError("; ".join(problems))


def _check_effects(arguments: argparse.Namespace) -> None:
    """Whether all that was given has an effect on what is measured. Raises UserError.

    Seed, model and machine are left out: measures of pictures that are there use them too.
    """
    measures = arguments.measures
    drawing = [
        flag(field.name)
        for field in fields(GenerateOptions)
        if field.name != "seed" and getattr(arguments, field.name) is not None
    ]
    drawing += ["--dim"] if arguments.dim is not None else []
    several = ["--per-prompt"] if arguments.per_prompt != "1" else []
    several += ["--batch-size"] if arguments.batch_size != "1" else []
    places = [name for name in ("images", "reference") if getattr(arguments, name) is not None]
    looking = [
        f"--{name.replace('_', '-')}"
        for name in ("count", "size", *_COLUMNS)
        if getattr(arguments, name) is not None
    ]
    problems = []
    if MEASURES[measures[0]].alone:
        idle = [f"--{name}" for name in places] + looking
        if "drawn" not in MEASURES[measures[0]].needs:
            idle += ["--prompts"] * (arguments.prompts is not None) + several
        if idle:
            problems.append(f"{measures[0]} takes no {', '.join(idle)}")
    elif arguments.prompts is None and arguments.images is not None and drawing + several:
        resizing = "; --size resizes those of --images" if {*drawing} & _SIDES else ""
        problems.append(
            f"{_are(drawing + several)} for pictures that are drawn (--prompts){resizing}"
        )
    elif not places and looking and arguments.prompts is not None:
        sizing = "; --width and --height are of drawn ones" if "--size" in looking else ""
        problems.append(f"{_are(looking)} for pictures of --images and --reference{sizing}")
    problems += _others_options(arguments)
    if problems:
        raise UserError("; ".join(problems))


def _check_enough(arguments: argparse.Namespace, drawn: int) -> None:
    """Tell before hours of drawing that there will be too few pictures. Raises UserError."""
    if "fid" in arguments.measures and 0 < drawn < FEWEST:
        raise UserError(
            f"fid needs at least {FEWEST} pictures on both sides (thousands say more), not {drawn}"
        )


def _others_options(arguments: argparse.Namespace) -> list[str]:
    """A line about each option that was given and is of other measures."""
    problems = []
    used = own_options(arguments.measures)
    for option in own_options(MEASURES):
        value = getattr(arguments, option.name)
        usual = None if option.default is None else str(option.default)
        given = value if option.kind is bool else value != usual
        if given and option not in used:
            users = [name for name, row in MEASURES.items() if option in row.options]
            problems.append(f"{option.flag} is for {', '.join(users)}")
    return problems


def _are(flags: Sequence[str]) -> str:
    return f"{', '.join(flags)} {'is' if len(flags) == 1 else 'are'}"


def _features_problems(arguments: argparse.Namespace) -> list[str]:
    """A line about a network of features that cannot be had, or nothing."""
    named = arguments.features
    if named == "judge":
        return _judge_problems()
    if named == "inception":
        lacking = arguments.inception_weights is None
        return [f"--features inception needs --inception-weights FILE: {_INCEPTION}"] * lacking
    if not os.path.isfile(named):
        return [
            f"--features: {named!r:.200} is neither {' nor '.join(FEATURES)} nor a judge's file"
        ]
    return []


def _judge_problems() -> list[str]:
    """A line about the bundled judge where it is not there, or nothing."""
    if storybook.JUDGE_FILE.is_file():
        return []
    return [
        f"the judge of this package, {storybook.JUDGE_FILE}, is not there: train one with "
        "examples/train_judge.py and put it there (or name it with --features, for fid and kid)"
    ]


def _own_value(option: Option, arguments: argparse.Namespace, problems: Problems) -> Any:
    """The value of a measure's option, checked; None with a problem noted."""
    value = getattr(arguments, option.name)
    if option.kind in (int, float):
        return problems.number(option.flag, value, option.kind, option.least, option.most)
    if option.path is not None and value is not None:
        there = os.path.isdir(value) if option.path == "folder" else os.path.isfile(value)
        if not there:
            problems.errors.append(InputError(f"{option.flag}: there is no {option.path} {value}"))
        return Path(value)
    return value


def _usual_folder(arguments: argparse.Namespace) -> str:
    """A name by what decides the pictures, so that the same command finds what it has done."""
    left_out = {"words", "output", "json", "quiet", "debug", "measures"}
    told = {name: value for name, value in vars(arguments).items() if name not in left_out}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"ldm-eval-{digest[:8]}/"
