"""From the command line and YAML to a configuration. Level 1: no torch, so help is instant."""

import dataclasses
import logging
import os
import re
import shlex
import sys
import typing
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse

from ldm_toolkit.allocation import keep_freed_memory
from ldm_toolkit.errors import CannotWrite, LdmToolkitError, UserError, suggestion
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.config_file import check_config_files
from ldm_toolkit.training.help import build_parser, dashed
from ldm_toolkit.training.inputs import check_inputs
from ldm_toolkit.training.signals import Interrupted

__all__ = ["Demonstration", "command", "parse"]

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=LoopConfig)

# The option that a message of jsonargparse or argparse is about.
_KEY = re.compile(r'Parser key "(\w+)"|argument --(\w+)')


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """What a command does when it is given no arguments: the words that it takes for them.

    ``about`` says for people what happens and how long it takes.
    """

    about: str
    words: tuple[str, ...]


def parse(kind: type[Config], arguments: Sequence[str]) -> Config:
    """Options from the command line and ``--config FILE.yaml``. Raises UserError, SystemExit."""
    parser = build_parser(kind, Path(sys.argv[0]).name)
    if {"-h", "--help"} & set(arguments):  # argparse would not tell of a full stdout
        sys.stdout.write(parser.format_help())
        raise SystemExit(0)
    known = [action.dest for action in parser._actions]
    switches = {one.name for one in dataclasses.fields(kind) if one.type is bool}
    words = _switched_on([_underscored(word) for word in arguments], switches)
    check_config_files(words)
    problems = _unknown(words, [*known, "print_config"])
    if problems:
        raise UserError(f"{'; '.join(problems)}; see --help")
    options, absent = _read(parser, words, problems, known)
    if options is None:
        raise UserError("; ".join(problems))
    if options.get("check_data"):  # which writes nothing
        absent.discard("output")
    if absent:
        needed = " and ".join(f"--{dashed(name)}" for name in known if name in absent)
        problems.append(f"{needed} must be given; see --help")
    values = options.as_dict()
    texts = {one.name for one in dataclasses.fields(kind) if one.type == str | None}
    values |= {k: v for k, v in _as_written(words, texts).items() if values[k] is None}
    try:
        config = kind(**{name: value for name, value in values.items() if name != "config"})
    except UserError as error:
        raise UserError("; ".join([*problems, str(error)])) from error
    if problems:
        raise UserError("; ".join(problems))
    return config


def _unknown(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """A line about each option that there is not."""
    names = [word[2:].split("=", 1)[0].removesuffix("+") for word in words if word[:2] == "--"]
    return [
        f"unknown option --{dashed(name)}{suggestion(dashed(name), map(dashed, known))}"
        for name in names
        if name not in known
    ]


def _read(
    parser: jsonargparse.ArgumentParser,
    words: Sequence[str],
    problems: list[str],
    known: Sequence[str],
) -> tuple[jsonargparse.Namespace | None, set[str]]:
    """The options without those that cannot be read, which are noted; None where that ends it.

    Also the names of those that must be given and are not; their values are empty.
    """
    absent: set[str] = set()
    while True:
        try:
            return parser.parse_args([*words, *(f"--{name}=" for name in absent)]), absent
        except jsonargparse.ArgumentError as error:
            message = " ".join(str(error).split())
            if "arguments are required" in message:
                absent |= set(message.rpartition(": ")[2].split(", "))
                continue
            problems.append(_readable(message, parser, known))
            named = _KEY.search(message)
            rest = _without(words, named[1] or named[2]) if named else words
            if len(rest) == len(words):  # in the file, where the next cannot be looked for
                return None, absent
            words = rest


def _without(words: Sequence[str], name: str) -> list[str]:
    """The command line without an option and its value."""
    kept, after = [], False
    for word in words:
        if after and not word.startswith("--"):
            after = False
            continue
        after = word == f"--{name}"
        if not after and not word.startswith(f"--{name}="):
            kept.append(word)
    return kept


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, mark, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + mark + value


def _switched_on(words: Sequence[str], switches: Container[str]) -> list[str]:
    """``--check_data`` that no value follows means true."""
    following = [*words, "--"][1:]
    return [
        f"{word}=true" if word[2:] in switches and after.startswith("-") else word
        for word, after in zip(words, following, strict=True)
    ]


def _as_written(words: Sequence[str], texts: Container[str]) -> dict[str, str]:
    """The last value of each text option: ``--token null`` is that word, which YAML would lose."""
    written = {}
    for word, after in zip(words, [*words, ""][1:], strict=False):
        name, mark, value = word[2:].partition("=")
        if word[:2] == "--" and name in texts:
            written[name] = value if mark else after
    return written


def _readable(message: str, parser: jsonargparse.ArgumentParser, known: Sequence[str]) -> str:
    """jsonargparse's message in the words of this command."""
    unknown = re.search(r"Option '([\w.-]+)' is not accepted", message)
    if unknown:
        name = unknown[1]
        return f"unknown option {name} in the configuration file{suggestion(name, known)}"
    named, given = _KEY.search(message), re.search(r".*(?:Got|Given) value: (.*)", message)
    action = next((one for one in parser._actions if named and one.dest == named[1]), None)
    expected = _expected(getattr(action, "_typehint", None) or getattr(action, "type", None))
    if action is not None and given and expected:
        choices = typing.get_args(getattr(action, "_typehint", None))
        hint = suggestion(given[1], [one for one in choices if isinstance(one, str)])
        return f"--{dashed(action.dest)} must be {expected}, not {given[1]:.80}{hint}"
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    plain = re.sub(r'Parser key "(\w+)": ', lambda found: f"--{dashed(found[1])}: ", plain)
    return f"{plain}; see --help"


def _expected(kind: Any) -> str:
    """What values of a type are called, or nothing."""
    inner = [one for one in typing.get_args(kind) if one is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(inner)}"
    if typing.get_origin(kind) is list:
        return 'a list such as ["a dog", "a cat"]'
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return _expected(inner[0]) if len(inner) == 1 else names.get(kind, "")


def _parsed(kind: type[Config], words: Sequence[str]) -> Config:
    """As `parse`; help and configurations are on stdout afterwards. Raises CannotWrite too."""
    try:
        try:
            return parse(kind, words)
        finally:
            sys.stdout.flush()
    except FileNotFoundError:  # the current folder
        raise
    except OSError as error:
        sys.stdout = None  # type: ignore[assignment]  # Python would try once more at the end
        raise CannotWrite(f"cannot write to standard output: {error.strerror}") from error


def _quiet() -> None:
    """No bars of other libraries in a log file."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def command(
    kind: type[Config], run: Callable[[Config], None], demonstration: Demonstration | None = None
) -> None:
    """Run a training command for the process: one clear line and an exit code for every error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    name = Path(sys.argv[0]).name
    try:
        try:
            config = _parsed(kind, _arguments(demonstration))
            check_inputs(config)
            _quiet()
            keep_freed_memory()
            run(config)
        except OSError as error:  # a full disk, a folder without permission
            place = error.filename if error.filename is not None else "the current folder"
            raise CannotWrite(f"cannot use {place}: {error.strerror or error}") from error
    except Interrupted as error:
        launcher = "accelerate launch " if "ACCELERATE_MIXED_PRECISION" in os.environ else "python "
        again = launcher + shlex.join([*sys.argv, *error.words])
        sys.stderr.write(f"\n{name}: {error}:\n  {again}\n")
        raise SystemExit(error.code) from None
    except LdmToolkitError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{name}: stopped before the first step\n")
        raise SystemExit(130) from None


def _arguments(demonstration: Demonstration | None) -> Sequence[str]:
    """The process's, or those of the demonstration where there are none."""
    words = sys.argv[1:]
    if words or demonstration is None:
        return words
    if os.environ.get("RANK", "0") == "0":
        logger.info(
            "No arguments: this is the demonstration, as with %s\nIt %s.\n"
            "Pictures of your own: the same command with --data FOLDER --output FOLDER; see --help",
            shlex.join(demonstration.words),
            demonstration.about,
        )
    return demonstration.words
