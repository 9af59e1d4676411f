"""The help of the training commands: a group a dataclass, its texts out of the docstrings. Level 1.

jsonargparse reads the options; only how it shows them is changed here.
"""

import dataclasses
import inspect
import re
from argparse import SUPPRESS, Action
from typing import Any

import jsonargparse

__all__ = ["build_parser", "dashed"]

_EPILOG = (
    "Every option may stand in a YAML file for --config, which --print-config writes; the command "
    "line overrides it. Exit codes: 0 done, 1 failed, 2 wrong use or bad input, 74 cannot write, "
    "130 and 143 stopped by a signal, after a checkpoint. finetune_unet.py and finetune_vae.py "
    "without any words run a demonstration of a few minutes."
)


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """Flags with dashes, and defaults only where there are any."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = super()._format_action_invocation(action)
        return re.sub(r"--[\w+-]+", lambda found: dashed(found[0]), shown)

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        if action.dest == "help" or action.default in (None, "", SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def dashed(name: str) -> str:
    """A field's name as it is typed: ``batch_size`` -> ``batch-size``."""
    return name.replace("_", "-")


def build_parser(kind: Any, name: str) -> jsonargparse.ArgumentParser:
    """The parser of a dataclass of options for the command ``name``."""
    needed = [
        f"--{dashed(one.name)} {one.name.upper()}"
        for one in dataclasses.fields(kind)
        if one.default is one.default_factory is dataclasses.MISSING
    ]
    parser = jsonargparse.ArgumentParser(
        prog=name,
        usage=f"{name} {' '.join(needed)} [options]",
        description=(kind.__doc__ or "").strip().splitlines()[0],
        epilog=_EPILOG,
        formatter_class=_Formatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options.")
    parser.add_class_arguments(kind, None)
    _explain(kind, parser)
    _group(kind, parser)
    return parser


def _explain(kind: type, parser: jsonargparse.ArgumentParser) -> None:
    """Hand the attribute texts of the docstrings, base classes included, to the help."""
    texts: dict[str, str] = {}
    for base in kind.__mro__:
        attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            texts.setdefault(name, " ".join(text.split()))
    for action in parser._actions:
        if action.dest in texts:
            action.help = texts[action.dest].replace("%", "%%")


def _group(kind: type, parser: jsonargparse.ArgumentParser) -> None:
    """Show the options of each dataclass under its first line, the command's own first."""
    everything = parser._action_groups[-1]
    left = {action.dest: action for action in everything._group_actions}
    for base in kind.__mro__:
        own = [left.pop(name) for name in inspect.get_annotations(base) if name in left]
        if own:
            told = (base.__doc__ or "").strip().splitlines()[0].rstrip(".")
            title = "Options of this command alone" if base is kind else told
            parser.add_argument_group(title)._group_actions.extend(own)
    everything._group_actions[:] = left.values()  # none: every field has its dataclass
