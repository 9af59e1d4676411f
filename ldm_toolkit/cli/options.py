"""The options of ``ldm-gen``: one definition each, the picture's own out of GenerateOptions."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.metadata
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ldm_toolkit import schedulers
from ldm_toolkit.backends import BACKENDS
from ldm_toolkit.cli.output_options import add_output_options
from ldm_toolkit.cli.terminal import to_stdout
from ldm_toolkit.errors import UserError, install_hint
from ldm_toolkit.models import identity
from ldm_toolkit.promptfile import USUAL_BATCH, kind_of
from ldm_toolkit.recipe import GenerateOptions

__all__ = [
    "ATTENTION",
    "DTYPES",
    "Parser",
    "Print",
    "add_machine_options",
    "add_picture_options",
    "build_parser",
    "flag",
    "list_schedulers",
    "parse",
    "versions",
]

_EXAMPLES = """\
examples:
  ldm-gen "a dog wearing hat" --seed 42            the picture's name is printed
  ldm-gen "a red car" -n 4 --seed 1 -o cars/       four pictures, seeds 1 to 4, in cars/
  ldm-gen "a cat" --negative "night" --steps 30 --scheduler dpm++_2m
  ldm-gen "a fox" --format webp -o foxes/          lossless too, and smaller than PNG
  ldm-gen --replay a-fox-7.png                     make it again: is it the same, and if not, why
  ldm-gen --prompts prompts.txt --seed 1 -o many/  a job; the same command carries it on
  ldm-gen "a bear" --save-intermediates 10         how it comes out of the noise
  ldm-gen "a fox" --profile fox.json               where the time went
  ldm-gen "a cat with a crown" --image cat.png --strength 0.6    a picture drawn over
  ldm-gen "a house" --model ./my-model -o house.png     a model folder of your own
  ldm-gen -- "--a prompt that begins with a dash"

exit codes: 0 done, 1 failed or a --replay that is not identical, 2 wrong use or bad input,
74 cannot write, 129, 130, 143 stopped
"""

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "peft", "compel")

# What other programs call our options.
_MEANT = {"--size": ["--dim (or --width, --height)"]}
# Flags whose name is not the field's own.
_FLAGS = {"negative_prompt": "--negative"}

ATTENTION = ("auto", "sdpa", "sliced", "xformers")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, with advice."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of usage and exit."""
        if "required: PROMPT" in message:
            message = f'say what to draw: {self.prog} "a dog wearing hat" (--help shows more)'
        raise UserError(message.removeprefix("argument "))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help goes where data goes, with its care for encodings and full disks."""
        if message:
            to_stdout(message.rstrip("\n"))

    @property
    def flags(self) -> list[str]:
        """Every option, with its dashes."""
        return list(self._option_string_actions)

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Name every unknown option, with the known one that it resembles."""
        known = self.flags
        problems = []
        for word in arguments:
            if word == "--":
                break
            name = word.split("=", 1)[0]
            short = not word.startswith("--") and word[:2] in known
            if not word.startswith("-") or word == "-" or name in known or short:
                continue
            if " " in name or re.fullmatch(r"-\d+|-\d*\.\d+", word):
                continue  # argparse takes these as values
            close = _MEANT.get(name) or difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists them all"
            problems.append(f"unknown option {name}; {hint}")
        if problems:
            raise UserError(
                f"{'; '.join(problems)} (a prompt that begins with '-' goes after --, "
                "another value behind =)"
            )


class Print(argparse.Action):
    """An option that prints something and ends, such as --list-models."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        text: Callable[[], str],
        help: str | None = None,
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        """Print and exit."""
        to_stdout(self.text())
        parser.exit()


def build_parser(*, promptless: bool = False) -> argparse.ArgumentParser:
    """The parser of ``ldm-gen``. Values stay text: `check` reads them, to report all at once.

    ``promptless``: the prompts are in a picture or a file, not on the command line.
    """
    parser = Parser(
        prog="ldm-gen",
        usage="ldm-gen PROMPT [options]\n"
        "       ldm-gen --prompts FILE -o FOLDER/ [options]\n"
        "       ldm-gen --replay PICTURE [options]",
        description="Draw a picture from a text prompt with a latent diffusion model. Works "
        "offline: the model 'storybook' comes with the package.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    if promptless:
        parser.set_defaults(prompt=None)
    else:
        parser.add_argument("prompt", metavar="PROMPT", help="what to draw, in quotes")
    add_picture_options(parser.add_argument_group("the picture"))
    _add_starting_options(parser.add_argument_group("from a picture"))
    _add_many_options(parser.add_argument_group("many pictures, or one again"))
    add_machine_options(parser.add_argument_group("model and machine"))
    add_output_options(parser.add_argument_group("output"))
    _add_information(parser.add_argument_group("information"))
    return parser


def add_picture_options(group: argparse._ArgumentGroup, **usual: Any) -> None:
    """What a picture is to be: the fields of GenerateOptions but for prompt and strength.

    ``usual`` are defaults that the command has of its own, for the help.
    """
    for field in dataclasses.fields(GenerateOptions):
        if field.name not in ("prompt", "strength"):
            _add_field(group, field, usual.get(field.name, field.default))
    group.add_argument("--dim", metavar="PIXELS", help="--width and --height in one")


def _add_starting_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", metavar="FILE", help="a picture to start from, see --strength")
    group.add_argument(
        "--mask", metavar="FILE", help="where --image is drawn anew: white; black stays"
    )
    fields = {field.name: field for field in dataclasses.fields(GenerateOptions)}
    _add_field(group, fields["strength"], None)


def _add_many_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "--num-images",
        dest="count",
        metavar="N",
        default="1",
        help="how many pictures, with the seeds S, S+1, ... (default: 1)",
    )
    group.add_argument("--grid", action="store_true", help="also write a sheet of all pictures")
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="in place of PROMPT: a job. A .txt (a prompt a line), .jsonl, .csv or .parquet file "
        "(columns are called as the options: prompt, negative, steps, seed, ..., also image and "
        "mask), or - for stdin; into -o FOLDER/, carried on by the same command",
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        help="pictures of --prompts computed at once; worth it on GPUs, see ldm-eval speed "
        f"(default: {USUAL_BATCH})",
    )
    group.add_argument(
        "--replay",
        metavar="PICTURE",
        help="in place of PROMPT: make a picture of ldm-gen again from the recipe inside it, in "
        "the same format, and say whether it is identical, or how far off and why",
    )


def _add_field(
    group: argparse._ArgumentGroup, field: "dataclasses.Field[Any]", default: object
) -> None:
    """The option of a field of GenerateOptions."""
    group.add_argument(
        flag(field.name),
        dest=field.name,
        metavar=_metavar(field.name),
        help=field.metadata["help"].replace("%", "%%") + _default(default),
    )


def add_machine_options(group: argparse._ArgumentGroup) -> None:
    """Which model draws, with what goes onto it, and where it computes."""
    _add_model(group)
    group.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        metavar="DTYPE",
        help=f"{', '.join(DTYPES)} (default: auto, what the hardware computes fast)",
    )
    group.add_argument(
        "--attention",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(ATTENTION)} (default: auto, which is sdpa; sliced needs less memory)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the model for this machine: a minute or more before the first step, a few "
        "per cent less for each step after it; pays in jobs of many pictures",
    )
    group.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help=f"auto, {', '.join(BACKENDS)}: what computes the UNet; openvino is faster on CPUs and "
        f"needs its package: {install_hint('openvino')} (default: auto, which is torch, or what "
        "computed the picture of --replay)",
    )
    group.add_argument("--threads", metavar="N", help="processor threads (default: torch's choice)")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="a bundled name, a folder in the diffusers layout, a .safetensors checkpoint, or "
        f"OWNER/NAME on the hub (default: {identity.DEFAULT_MODEL})",
    )
    group.add_argument(
        "--lora",
        action="append",
        metavar="PATH[:SCALE]",
        help="a LoRA on top of the model, a .safetensors file or a training's folder (default "
        "scale: 1); may be given again",
    )
    group.add_argument(
        "--embedding",
        action="append",
        metavar="PATH[:WORD]",
        help="a textual inversion and the word that prompts use for it; may be given again",
    )
    group.add_argument("--vae", metavar="FOLDER", help="another VAE than the model's")
    group.add_argument(
        "--tokenizer", metavar="FOLDER", help="the tokenizer, which checkpoint files lack"
    )
    group.add_argument("--variant", metavar="NAME", help="weights of a variant, such as fp16")
    group.add_argument("--revision", metavar="REV", help="of a hub model: branch, tag or commit")
    group.add_argument(
        "--offline",
        action="store_true",
        help="never use the network: a hub model must be in the hub's cache already",
    )
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .bin and .ckpt too, with torch's weights-only loader",
    )


def _add_information(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    group.add_argument(
        "--list-models", action=Print, text=_list_models, help="names of the bundled models"
    )
    group.add_argument(
        "--list-schedulers", action=Print, text=list_schedulers, help="names for --scheduler"
    )
    group.add_argument(
        "--show-tokens",
        action="store_true",
        help="print what the model reads of PROMPT instead of drawing it: id, token and weight, "
        "a line a token; tokens beyond 75 go into further chunks",
    )
    group.add_argument("--version", action=Print, text=versions, help="versions in use")
    group.add_argument("--debug", action="store_true", help="tracebacks and library warnings")


def flag(name: str) -> str:
    """The flag of a field of GenerateOptions: ``negative_prompt`` -> ``--negative``."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def _metavar(name: str) -> str:
    kinds = {"negative_prompt": "TEXT", "scheduler": "NAME", "speed": "NAME"}
    kinds |= {"width": "PIXELS", "height": "PIXELS", "guidance_interval": "START,STOP"}
    return kinds.get(name, "N" if kind_of(name) is int else "X")


def _default(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(f"{number:g}" for number in value)
    return "" if value is None or value == "" else f" (default: {value})"


def _list_models() -> str:
    return "\n".join(identity.bundled_models())


def list_schedulers() -> str:
    """Every scheduler's name and one line about it."""
    return "\n".join(f"{name}\t{about}" for name, about in schedulers.describe())


def versions() -> str:
    """One line: ours, and what of the libraries that load, compute and attach is installed."""
    found = []
    for name in ("ldm-toolkit", *_LIBRARIES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join([*found, f"Python {sys.version.split()[0]}"])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Take the words apart; no value is looked at yet. Raises UserError."""
    ours = itertools.takewhile(lambda word: word != "--", arguments)
    words = {word.split("=", 1)[0] for word in ours}
    elsewhere = next((name for name in ("--replay", "--prompts") if name in words), None)
    parser = build_parser(promptless=elsewhere is not None)
    if isinstance(parser, Parser):
        parser.refuse_unknown(arguments)
    namespace, extra = parser.parse_known_args(arguments)
    if extra and elsewhere is not None:
        raise UserError(f"{elsewhere} takes the place of PROMPT; leave {extra[-1]!r:.80} away")
    if extra:
        raise UserError(
            f"{len(extra)} word(s) too many, the first is {extra[0]!r}; put the prompt in "
            'quotes: ldm-gen "a dog wearing hat"'
        )
    return namespace
