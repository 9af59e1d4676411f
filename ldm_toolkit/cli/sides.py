"""The two sides of ``ldm-eval compare``: a model with options, in one word. No torch.

``storybook,lora=robots.safetensors:0.8,steps=20``: a model as --model takes it, then options of
ldm-gen without their dashes, with commas between. It is a line of CSV: a part in which a comma
stands goes into double quotes. What a side leaves out is as the command line says for both.
"""

import argparse
import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ldm_toolkit.cli.evaluate_request import EvalRequest
from ldm_toolkit.cli.model import ModelChoice, choose_model
from ldm_toolkit.cli.options import Parser, add_machine_options, add_picture_options
from ldm_toolkit.cli.problems import Problems
from ldm_toolkit.cli.request import given_options, leave_out_empty, note_wrong, unfit_options
from ldm_toolkit.errors import UserError, suggestion
from ldm_toolkit.recipe import GenerateOptions

__all__ = ["Side", "read_sides"]

_SHARED = ("seed", "threads", "device")  # one number each, or there is nothing to compare


@dataclass(frozen=True, kw_only=True)
class Side:
    """What draws one of each two pictures: a model, and what it sets of GenerateOptions."""

    text: str
    choice: ModelChoice
    options: Mapping[str, Any]


def read_sides(request: EvalRequest) -> list[Side]:
    """A and B. Raises UserError with everything that is wrong with both."""
    problems = Problems()
    sides: list[Side] = []
    for letter, text in zip("AB", request.operands, strict=True):
        try:
            sides.append(_side(text, request))
        except UserError as error:
            problems.errors.append(UserError(f"{letter} ({text:.200}): {error}"))
    problems.finish()
    return sides


def _side(text: str, request: EvalRequest) -> Side:
    parser = Parser(prog="ldm-eval compare", add_help=False, allow_abbrev=False)
    add_picture_options(parser.add_argument_group())
    add_machine_options(parser.add_argument_group())
    arguments = _arguments(text, [flag.removeprefix("--") for flag in parser.flags])
    namespace = parser.parse_args(arguments, _common(request.choice))
    problems = Problems()
    leave_out_empty(namespace, problems)
    options = given_options(namespace, problems)
    with problems.collected():
        choice, known = choose_model(namespace, None)
        wanted = {"prompt": "", **request.options, **options}
        unfit = unfit_options(GenerateOptions(**wanted), known, namespace.backend)
        note_wrong(unfit, problems)
    problems.finish()
    return Side(text=text, choice=choice, options=options)


def _arguments(text: str, known: list[str]) -> list[str]:
    """The words that ldm-gen would be told. Raises UserError."""
    try:
        first, *others = next(csv.reader([text], strict=True), [""])
    except csv.Error as error:
        raise UserError(f'not MODEL,option=value,...: {error}; quote as in "negative=a, b"') from (
            error
        )
    parts = [f"model={first}", *others] if first and "=" not in first else [first, *others]
    problems = []
    for part in parts:
        name = part.partition("=")[0]
        if name in _SHARED:
            problems.append(f"{name} is one for both; give --{name}")
        elif name not in known:
            problems.append(f"unknown option {name!r:.80}{suggestion(name, known)}")
    if problems:
        raise UserError("; ".join([*problems, "expected MODEL,option=value,..."]))
    return [f"--{part}" for part in parts]


def _common(choice: ModelChoice) -> argparse.Namespace:
    """What the command line says of both sides' models, as its own words."""
    told = {one.name: getattr(choice, one.name) for one in fields(choice)}
    loras = [f"{path}:{scale!r}" for path, scale in told.pop("loras")]
    embeddings = told.pop("embeddings")
    words = [str(path) if word is None else f"{path}:{word}" for path, word in embeddings]
    return argparse.Namespace(
        **told, lora=loras or None, embedding=words or None, prompt=None, strength=None
    )
