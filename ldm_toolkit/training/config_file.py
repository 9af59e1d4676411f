"""Files of options before they are parsed: what would crash the parser is told first. Level 1."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ldm_toolkit.errors import InputError

__all__ = ["check_config_files"]

_MOST_BYTES = 1 << 20
_MOST_DEPTH = 20
_MOST_DIGITS = 300


def check_config_files(words: Sequence[str]) -> None:
    """Look at each ``--config FILE`` of a command line. Raises InputError.

    Parsers of YAML recurse into what is nested and copy what is repeated by reference: some bytes
    of a stranger's file could take all memory, or the process.
    """
    following = [*words, ""][1:]
    for word, after in zip(words, following, strict=True):
        if word == "--config":
            _check(Path(after))
        elif word.startswith("--config="):
            _check(Path(word.partition("=")[2]))


def _check(path: Path) -> None:
    if not path.is_file():
        return  # the parser has its own words for that
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"--config {path} is larger than {_MOST_BYTES} bytes: no file of options")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path} is not UTF-8 text: save it as UTF-8") from error
    if not text.strip():
        raise InputError(f"--config {path} is empty: expected options such as steps: 100")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if depth == 0 and isinstance(event, yaml.SequenceStartEvent | yaml.ScalarEvent):
                raise InputError(f"--config {path} holds no options: expected such as steps: 100")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_DEPTH or isinstance(event, yaml.AliasEvent):
                raise InputError(f"--config {path} is nested too deep or repeats by reference")
            value = event.value if isinstance(event, yaml.ScalarEvent) else ""
            if len(value) > _MOST_DIGITS and value.isdigit():
                raise InputError(f"--config {path} has a number of {len(value)} digits")
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise InputError(f"--config {path} is not YAML: {told:.200}") from error
