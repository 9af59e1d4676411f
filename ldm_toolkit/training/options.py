"""From the command line and YAML to a configuration. Level 1: no torch, so help is instant."""

import dataclasses
import inspect
import logging
import os
import re
import shlex
import sys
from argparse import Action
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TypeVar

import jsonargparse

from ldm_toolkit.errors import CannotWrite, LdmToolkitError, UserError, suggestion
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.signals import Interrupted

__all__ = ["Demonstration", "command", "parse"]

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=LoopConfig)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """What a command does when it is given no arguments: the words that it takes for them.

    ``about`` says for people what happens and how long it takes.
    """

    about: str
    words: tuple[str, ...]


def parse(kind: type[Config], arguments: Sequence[str]) -> Config:
    """Options from the command line and ``--config FILE.yaml``. Raises UserError, SystemExit."""
    name = Path(sys.argv[0]).name
    parser = jsonargparse.ArgumentParser(
        prog=name, description=(kind.__doc__ or "").strip().splitlines()[0], exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_class_arguments(kind, None)
    known = [action.dest for action in parser._actions]
    _explain(kind, parser._actions)
    parser._action_groups[-1].title = "options of the training"
    switches = {one.name for one in dataclasses.fields(kind) if one.type is bool}
    words = _switched_on([_underscored(word) for word in arguments], switches)
    for word in words:
        option = word[2:].split("=", 1)[0].removesuffix("+")
        if word.startswith("--") and option not in [*known, "print_config"]:
            raise UserError(f"unknown option --{option}{suggestion(option, known)}; see --help")
    try:
        options = parser.parse_args(words)
    except jsonargparse.ArgumentError as error:
        raise UserError(_readable(str(error), known)) from error
    values = {k: v for k, v in options.as_dict().items() if k != "config"}
    return kind(**values)


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


def _explain(kind: type, actions: Sequence[Action]) -> None:
    """Hand the attribute texts of the docstrings, base classes included, to the help."""
    texts: dict[str, str] = {}
    for base in kind.__mro__:
        attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            texts.setdefault(name, " ".join(text.split()))
    for action in actions:
        if action.dest in texts:
            action.help = texts[action.dest].replace("%", "%%")


def _readable(message: str, known: Sequence[str]) -> str:
    message = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split()))
    unknown = re.search(r"Option '([\w.-]+)' is not accepted", message)
    if unknown:
        name = unknown[1]
        return f"unknown option {name} in the configuration file{suggestion(name, known)}"
    return f"{message}; see --help"


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
            run(parse(kind, _arguments(demonstration)))
        except OSError as error:  # a full disk, a folder without permission
            raise CannotWrite(str(error)) from error
    except Interrupted as error:
        again = shlex.join([*sys.argv, *error.words])
        sys.stderr.write(f"\n{name}: {error}:\n  {again}\n")
        raise SystemExit(error.code) from None
    except LdmToolkitError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
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
