"""Prompt files: a row a picture, every mistake found before a model loads. Level 1: no torch."""

import csv
import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit import schedulers
from ldm_toolkit.errors import (
    InputError,
    LdmToolkitError,
    UserError,
    install_hint,
    suggestion,
)
from ldm_toolkit.recipe import GenerateOptions
from ldm_toolkit.values import counted, without_repeats

__all__ = [
    "COLUMNS",
    "USUAL_BATCH",
    "Row",
    "kind_of",
    "read_rows",
    "size_problems",
    "sound_options",
]

_MAX_BYTES = 64 << 20
_MAX_PROMPT = 32_000
_SHOWN = 20
_UNKNOWN = "unknown column"
_ALIASES = {
    "negative": "negative_prompt",
    "text": "prompt",
    "caption": "prompt",
    "guidance_scale": "guidance",  # diffusers' names and the web UIs'
    "num_inference_steps": "steps",
    "cfg_scale": "guidance",
    "sampler": "scheduler",
}
COLUMNS = (*(field.name for field in dataclasses.fields(GenerateOptions)), "image", "mask")
_SIDES = "dim"  # the option that sets width and height
_KNOWN = (*COLUMNS, _SIDES)
# On a CPU a batch gains nothing: storybook on a thread of an EPYC draws 0.124, 0.134, 0.134, 0.130
# pictures of 5 steps a second at 1, 2, 4, 8 at once, each give or take 0.025
# (`ldm-eval speed --model storybook --steps 5 --rounds 2 --threads 1`). No GPU was measured.
# Rows that share nothing are computed in batches that are full of themselves, so a larger number
# has to be worth that, too.
USUAL_BATCH = 1
"""Pictures of a job that are computed at once where the person says nothing."""


@dataclass(frozen=True)
class Row:
    """What one picture of a job is to be: options, the files and pixel hashes of its inputs."""

    options: GenerateOptions
    image: Path | None = None
    mask: Path | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None


def kind_of(name: str) -> type:
    """int, float, str or tuple: what a field of GenerateOptions holds when it is given."""
    hint = typing.get_type_hints(GenerateOptions)[name]
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    kind: type = members[0] if members else hint
    return typing.get_origin(kind) or kind


def sound_options(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that GenerateOptions takes, and what is wrong with the others, by field."""
    sound, wrong = {}, {}
    for name, value in values.items():
        try:
            GenerateOptions(**{"prompt": "", name: value})
            sound[name] = value
        except UserError as error:
            wrong[name] = str(error)
    return sound, wrong


def size_problems(options: GenerateOptions, multiple: int = 8) -> dict[str, str]:
    """What is wrong with sides that the model cannot draw, by field."""
    found = {}
    for name in ("width", "height"):
        value = getattr(options, name)
        if value is not None and value % multiple:
            nearest = max(1, round(value / multiple)) * multiple
            found[name] = f"{name} must be a multiple of {multiple}; the nearest is {nearest}"
    return found


def read_rows(
    path: str | Path,
    defaults: Mapping[str, Any],
    unfit: Callable[[GenerateOptions], Mapping[str, str]] = size_problems,
) -> list[Row]:
    """The rows of a .txt (a prompt a line), .jsonl, .csv or .parquet file; "-" is stdin.

    ``defaults`` are fields of GenerateOptions that hold where a row says nothing; ``unfit`` tells
    what the model cannot do, by field. Files in the columns image and mask are relative to the
    prompt file. Raises InputError naming every bad row.
    """
    found: list[Row] = []
    problems: list[str] = []
    known: dict[Path, str] = {}
    for where, values in _records(path, problems):
        try:
            found.append(_row(values, defaults, Path(path).parent, known, unfit))
        except UserError as error:
            problems.append(f"{where}: {error}")
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        if any(_UNKNOWN in problem for problem in problems):
            more += f" (columns are {', '.join(_KNOWN)})"
        raise InputError(f"{counted(len(problems), 'bad row')}: {shown}{more}")
    if not found:
        raise InputError(f"{path} holds no prompt")
    return found


Records = Iterator[tuple[str, dict[str, Any]]]


def _records(path: str | Path, problems: list[str]) -> Records:
    """(file:line, values by column) of each row that can be read; None where it has no value."""
    suffix = Path(path).suffix.lower()
    name = Path(path).name
    if suffix == ".parquet":
        yield from _parquet(Path(path), problems)
        return
    lines = _lines(path, name, problems)
    if str(path) == "-":
        name = "stdin"
        suffix = ".jsonl" if next((t.startswith("{") for _, t in lines if t), False) else ".txt"
    if suffix == ".txt":
        yield from ((f"{name}:{n}", {"prompt": text}) for n, text in lines if text)
    elif suffix == ".jsonl":
        yield from _jsonl(lines, name, problems)
    elif suffix == ".csv":
        yield from _csv(lines, name, problems)
    else:
        raise InputError(f"{path}: expected a .txt, .jsonl, .csv or .parquet file, or - for stdin")


def _lines(path: str | Path, name: str, problems: list[str]) -> list[tuple[int, str]]:
    """Numbered lines without their ends. Raises InputError for a file that is no UTF-8 text."""
    try:
        if str(path) == "-" and sys.stdin is None:
            raise InputError("standard input is closed; there are no prompts in it")
        data = sys.stdin.buffer.read(_MAX_BYTES + 1) if str(path) == "-" else _read(Path(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MB")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:40:2].count(0) > 10:
        raise InputError(f"{path} is UTF-16; save it as UTF-8")
    lines = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError:
            problems.append(f"{name}:{number}: not UTF-8 text")
            continue
        if "\0" in text:
            problems.append(f"{name}:{number}: holds a NUL character")
            continue
        lines.append((number, text))
    return lines


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is no file; expected one of .txt, .jsonl, .csv or .parquet")
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES + 1)


def _jsonl(lines: list[tuple[int, str]], name: str, problems: list[str]) -> Records:
    for number, text in lines:
        where = f"{name}:{number}"
        if not text:
            continue
        try:
            values = json.loads(text, object_pairs_hook=without_repeats)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: not JSON: {error}")
            continue
        if not isinstance(values, dict):
            problems.append(f"{where}: expected an object, found {type(values).__name__}")
            continue
        yield where, values


def _csv(lines: list[tuple[int, str]], name: str, problems: list[str]) -> Records:
    numbers = [number for number, _ in lines]
    reader = csv.reader([text + "\n" for _, text in lines], strict=True)
    header: list[str] | None = None
    left_out: set[str] = set()
    try:
        for cells in reader:
            where = f"{name}:{numbers[reader.line_num - 1]}"
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if "prompt" not in map(_field, header):
                    raise InputError(f"{where}: the first line must name the columns, with prompt")
                columns = [cell for cell in header if cell]
                if len(set(columns)) != len(columns):
                    raise InputError(f"{where}: a column occurs twice")
                left_out = _unknown_columns(columns, where, problems)
            elif len(cells) != len(header):
                told = f"{counted(len(cells), 'cell')} under {counted(len(header), 'column')}"
                problems.append(f"{where}: {told}")
            else:
                # A spreadsheet adds columns that have neither a name nor a value.
                pairs = [(k, c) for k, c in zip(header, cells, strict=True) if k or c.strip()]
                yield where, {k: _parsed(k, c) for k, c in pairs if k not in left_out}
    except csv.Error as error:
        problems.append(f"{name}:{numbers[max(0, reader.line_num - 1)]}: {error}")


def _parsed(name: str, cell: str) -> Any:
    """A cell as the type that its column holds, None where it is empty; else as it is."""
    name = _field(name)
    if not cell.strip():
        return None
    if name not in _KNOWN or name in ("image", "mask"):
        return cell.strip()
    kind = int if name == _SIDES else kind_of(name)
    try:
        if kind is tuple:
            return tuple(float(part) for part in cell.split(","))
        return cell if kind is str else kind(cell)
    except ValueError:
        return cell  # GenerateOptions says what it should be


def _unknown_columns(names: Iterable[str], where: str, problems: list[str]) -> set[str]:
    """The columns of a table that there are not; told once, and not again in every row."""
    unknown = {name for name in names if _field(name) not in _KNOWN}
    problems += [f"{where}: {_unknown(name)}" for name in names if name in unknown]
    return unknown


def _unknown(name: str) -> str:
    return f"{_UNKNOWN} {name!r:.80}{suggestion(name, _KNOWN)}"


def _field(column: str) -> str:
    """What a column means, which may be called as its option is typed: ``clip-skip``."""
    name = column.replace("-", "_")
    return _ALIASES.get(name, name)


def _parquet(path: Path, problems: list[str]) -> Records:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise InputError(
            f"{path}: reading .parquet needs pyarrow: {install_hint('train')}"
        ) from None
    try:
        table = read_table(path)
        rows = table.to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    left_out = _unknown_columns(table.column_names, path.name, problems)
    for number, values in enumerate(rows, 1):
        yield f"{path.name}:{number}", {k: v for k, v in values.items() if k not in left_out}


def _row(
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    folder: Path,
    known: dict[Path, str],
    unfit: Callable[[GenerateOptions], Mapping[str, str]],
) -> Row:
    """One row, checked. Raises UserError with everything that is wrong."""
    problems: list[str] = []
    named = _named(values, problems)
    names: tuple[str, ...] = ("image", "mask")
    files = {name: named.pop(name) for name in names if name in named}
    if "image" not in files:
        if "mask" in files or "strength" in named:
            problems.append("mask and strength need an image")
        defaults = {name: value for name, value in defaults.items() if name != "strength"}
    inputs = _inputs(files, folder, known, problems)
    sound, wrong = sound_options(named)
    if isinstance(sound.get("scheduler"), str):
        try:
            sound["scheduler"] = schedulers.resolve_name(sound["scheduler"])
        except UserError as error:
            wrong["scheduler"] = str(error)
            del sound["scheduler"]
    options = GenerateOptions(**{"prompt": "", **defaults, **sound})
    problems += [*wrong.values(), *unfit(options).values()]
    if problems:
        raise UserError("; ".join(problems))
    return Row(options, **inputs)


def _named(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The values that a row gives by field; what cannot be one is noted and left out."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = _field(key)
        if not key:
            problems.append(f"{value!r:.80} stands in a column without a name")
        elif name not in _KNOWN:
            problems.append(_unknown(key))
        elif value is not None and name in named:
            problems.append(f"{name} is given twice")
        elif value is not None:
            named[name] = value
    side = named.pop(_SIDES, None)
    if side is not None and {"width", "height"} & named.keys():
        problems.append("dim sets width and height: leave those away")
    elif side is not None:
        named |= {"width": side, "height": side}
    prompt = str(named.get("prompt", ""))
    if not prompt.strip():
        problems.append("no prompt")
    elif len(prompt) > _MAX_PROMPT:
        problems.append(f"the prompt has more than {_MAX_PROMPT} characters")
        del named["prompt"]
    return named


def _inputs(
    files: Mapping[str, Any], folder: Path, known: dict[Path, str], problems: list[str]
) -> dict[str, Any]:
    """The files of a row and the hashes of their pixels, by the fields of Row."""
    inputs: dict[str, Any] = {}
    for name, text in files.items():
        if not isinstance(text, str):
            problems.append(f"{name} must be the name of a file, not {text!r:.80}")
            continue
        path = folder / text
        try:
            if path not in known:
                known[path] = _pixels_sha256(path)
            inputs |= {name: path, f"{name}_sha256": known[path]}
        except LdmToolkitError as error:
            problems.append(str(error))
    return inputs


def _pixels_sha256(path: Path) -> str:
    from ldm_toolkit.images import open_image, pixels_sha256  # needs Pillow, most files do not

    return pixels_sha256(open_image(path))
