"""The words of ``ldm-explain``: its options, and every value looked at before torch is imported."""

import argparse
import importlib.util
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_toolkit.cli.model import ModelChoice, choose_model
from ldm_toolkit.cli.options import (
    Parser,
    Print,
    add_machine_options,
    add_picture_options,
    list_schedulers,
    versions,
)
from ldm_toolkit.cli.output import slug
from ldm_toolkit.cli.problems import Problems
from ldm_toolkit.cli.request import (
    MOST_THREADS,
    given_options,
    job_folder,
    leave_out_empty,
    note_wrong,
    unfit_options,
)
from ldm_toolkit.errors import CannotWrite, UserError, install_hint
from ldm_toolkit.recipe import GenerateOptions
from ldm_toolkit.tokens import parse_weights

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ExplainRequest", "check", "parse"]

STEPS = 20
"""Denoising steps of each picture, fewer than ldm-gen's: a page draws some twenty of them."""

_OTHERS = ("a red car in the snow", "a small bird in a forest")
_OURS = re.compile(r"index\.html|[a-z-]+\.png")

_EXAMPLES = """\
examples:
  ldm-explain "a dog wearing hat" --seed 42        the page's name is printed; open it in a browser
  ldm-explain "a red car" --scheduler dpm++_2m --steps 12 -o car/
  ldm-explain "a house" --image photo.jpg          the autoencoder and the noise on your own picture
  ldm-explain "a cat" --model ./my-model --other "a dog"

The page shows, each with a caption: tokens and embedding, attention of each word, the autoencoder,
the noise schedule and the solvers' timesteps, noise added and taken away, a run step by step,
guidance, ways between seeds and prompts, and what the networks are trained on. It opens offline;
the same pictures lie beside it as PNG files. In Python: ldm_toolkit.explain.

exit codes: 0 done, 1 failed, 2 wrong use or bad input, 74 cannot write, 129, 130, 143 stopped
"""


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """A command line of ``ldm-explain`` that was understood and found right.

    ``options`` are those of a call of a pipeline, the seed always; ``other`` is the second prompt.
    """

    prompt: str
    other: str
    options: Mapping[str, Any]
    image: "Image.Image | None"
    choice: ModelChoice
    threads: int | None
    folder: Path
    quiet: bool


def build_parser() -> Parser:
    """The parser of ``ldm-explain``. Values stay text: `check` reads them."""
    parser = Parser(
        prog="ldm-explain",
        usage="ldm-explain PROMPT [options]",
        description="Explain in pictures how a latent diffusion model draws a prompt: one page "
        "that opens offline.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw, in quotes")
    parser.set_defaults(strength=None)  # what ldm-gen takes and this does not
    subject = parser.add_argument_group("what is shown")
    subject.add_argument(
        "--image",
        metavar="FILE",
        help="the picture that goes through the autoencoder and the noise, cut to the size of the "
        "drawn one (default: the drawn one)",
    )
    subject.add_argument(
        "--other",
        metavar="PROMPT",
        help=f'the end of the way from prompt to prompt (default: "{_OTHERS[0]}")',
    )
    add_picture_options(parser.add_argument_group("how pictures are drawn"), steps=STEPS)
    add_machine_options(parser.add_argument_group("model and machine"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="FOLDER/",
        help="for index.html and the pictures (default: PROMPT-explained/ in the current folder)",
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace a page that is in the folder"
    )
    output.add_argument("--quiet", action="store_true", help="no progress; errors only")
    output.add_argument("-h", "--help", action="help", help="show this and exit")
    output.add_argument(
        "--list-schedulers", action=Print, text=list_schedulers, help="names for --scheduler"
    )
    output.add_argument("--version", action=Print, text=versions, help="versions in use")
    output.add_argument("--debug", action="store_true", help="tracebacks and library warnings")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Take the words apart; no value is looked at yet. Raises UserError."""
    parser = build_parser()
    parser.refuse_unknown(arguments)
    namespace, extra = parser.parse_known_args(arguments)
    if extra:
        raise UserError(
            f"{len(extra)} word(s) too many, the first is {extra[0]!r:.80}; put the prompt in "
            'quotes: ldm-explain "a dog wearing hat"'
        )
    return namespace


def check(arguments: argparse.Namespace) -> ExplainRequest:
    """Look at every value, the model's files and the place of the output; report all problems.

    Raises UserError, or CannotWrite when only the output is at fault.
    """
    problems = Problems()
    leave_out_empty(arguments, problems)
    if importlib.util.find_spec("matplotlib") is None:
        problems.errors.append(
            UserError(
                "the pictures are drawn with matplotlib, which is not installed: "
                f"{install_hint('explain')}"
            )
        )
    threads = problems.number("--threads", arguments.threads, int, least=1, most=MOST_THREADS)
    image = problems.picture("--image", arguments.image)
    options = {"steps": STEPS, **given_options(arguments, problems)}
    prompt = options.pop("prompt", "")
    if options.get("seed") is None:
        options["seed"] = secrets.randbelow(2**32)
    other = arguments.other
    if other is None:
        other = _OTHERS[prompt == _OTHERS[0]]
    choice, known = None, None
    with problems.collected():
        choice, known = choose_model(arguments, None)
        asked = GenerateOptions(**{"prompt": prompt, **options})
        note_wrong(unfit_options(asked, known, arguments.backend), problems)
    with problems.collected():
        _check_other(other, prompt)
    folder = None
    with problems.collected():
        folder = _folder(arguments.output, prompt, overwrite=arguments.overwrite)
    problems.finish()
    if choice is None or folder is None:
        raise UserError("the command line could not be read")
    return ExplainRequest(
        prompt=prompt,
        other=other,
        options=options,
        image=image,
        choice=choice,
        threads=threads,
        folder=folder,
        quiet=arguments.quiet,
    )


def _check_other(other: str, prompt: str) -> None:
    """Raises UserError for a second prompt that is the first or cannot be read."""
    if other == prompt:
        raise UserError("--other is the prompt itself; say another one")
    try:
        parse_weights(GenerateOptions(prompt=other).prompt)
    except UserError as error:
        raise UserError(f"--other: {error}") from error


def _folder(output: str | None, prompt: str, *, overwrite: bool) -> Path:
    """The checked -o: a folder that is not there, is empty, or holds a page to be replaced."""
    folder = job_folder(output if output is not None else f"{slug(prompt)}-explained/")
    if not folder.name:
        raise UserError(f"-o: {folder} is no name of a folder; say one, such as page/")
    there = sorted(os.listdir(folder)) if folder.is_dir() else []
    strange = [name for name in there if not _OURS.fullmatch(name)]
    if strange:
        raise CannotWrite(
            f"-o: {folder} holds something else than a page, such as {strange[0]!r:.80}; choose "
            "another one"
        )
    if there and not overwrite:
        raise CannotWrite(f"-o: {folder} exists already; choose another one or pass --overwrite")
    return folder
