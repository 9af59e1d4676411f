"""Picture files in a folder, with metadata.jsonl, .csv or .parquet, or a .txt beside each."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import InputError, ModelError, install_hint
from ldm_toolkit.files import PICTURE_SUFFIXES, contained_path
from ldm_toolkit.training.data.entries import (
    CAPTION_KEYS,
    NO_CAPTION,
    Entry,
    FileBytes,
    Listing,
    first_line,
    reason,
    texts,
)

__all__ = ["METADATA", "holds_pictures", "only_pictures", "read_folder"]

_ADVICE = (
    "add metadata.jsonl, .csv or .parquet with file_name and text, or a .txt file beside each "
    "picture"
)
_OTHER_PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff"}
)
_MAX_CAPTION = 2**20
_MASK = ".mask.png"
_MASK_KEY = "mask_file_name"
_ALONE = "expected PNG, JPEG or WebP files directly in it"

Rows = Iterable[tuple[str, Any]]


def holds_pictures(folder: Path) -> bool:
    """Whether pictures of a folder, or a list of them, lie directly in it."""
    wanted = PICTURE_SUFFIXES.keys() | _OTHER_PICTURES
    return any(
        path.name in METADATA or (path.suffix.lower() in wanted and path.name[0] != ".")
        for path in folder.iterdir()
    )


def only_pictures(folder: Path) -> bool:
    """Whether a folder holds pictures and nothing else that could have captions for them."""
    if not folder.is_dir():
        return False
    shown = [path for path in folder.iterdir() if path.name[0] != "."]
    return len(shown) > 0 and all(path.suffix.lower() in PICTURE_SUFFIXES for path in shown)


def read_folder(
    folder: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption: str | None = None,
    masks: bool = False,
) -> Listing:
    """The pictures of a folder, with ``masks`` those of the pictures too.

    Without metadata file they are those directly in the folder, in the order of their names; with
    one, those that it names, in its order. ``caption`` is that of all pictures in the folder, and
    no other is looked for; with "" they have none. The mask of dog.jpg is what mask_file_name in
    the metadata names, or else dog.mask.png beside it, which is no picture of the data itself.
    Raises InputError for a metadata file that cannot be read at all.
    """
    listing = Listing(str(folder), _ADVICE if caption is None else _ALONE, masks)
    pictures = _without_masks(folder, listing)
    if caption is not None:
        _read_alone(pictures, caption, listing)
        _count_below(folder, listing)
        return listing
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if metadata is None:
        _read_beside(pictures, listing)
        _count_below(folder, listing)
    else:
        keys = image_column or "file_name", (caption_column,) if caption_column else CAPTION_KEYS
        rows = METADATA[metadata.name](metadata, listing)
        named = _read_rows(folder, rows, keys, listing)
        unused = {path for path in pictures if path.suffix.lower() in PICTURE_SUFFIXES} - named
        if unused:
            listing.unread["picture", f" that {metadata.name} does not name"] = len(unused)
    return listing


def _without_masks(folder: Path, listing: Listing) -> list[Path]:
    """The files of a folder, in the order of their names, but for those beside pictures."""
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    beside = {path.with_suffix(_MASK) for path in pictures}.intersection(files)
    if beside and not listing.masks:
        listing.unread["mask", ", for --masked-loss"] = len(beside)
    return [path for path in files if path not in beside]


def _entry(
    path: Path,
    name: str,
    captions: tuple[str, ...],
    listing: Listing,
    mask: FileBytes | None = None,
    problem: str = "",
) -> Entry:
    """A picture, with its mask: the one that is given, else the one beside it."""
    beside = path.with_suffix(_MASK)
    if mask is None and listing.masks and beside.is_file():
        mask = FileBytes(beside, name[: -len(path.name)] + beside.name)
    return Entry(name, captions, FileBytes(path, name), mask, problem)


def _read_alone(paths: Iterable[Path], caption: str, listing: Listing) -> None:
    """Pictures of one caption, or of none where it is empty."""
    for path in _readable(paths, listing):
        captions = (caption,) if caption else ()
        listing.entries.append(_entry(path, path.name, captions, listing))


def _read_beside(paths: Iterable[Path], listing: Listing) -> None:
    """Pictures whose captions are in .txt files of the same name."""
    for path in _readable(paths, listing):
        captions, problem = _caption_beside(path)
        listing.entries.append(_entry(path, path.name, captions, listing, problem=problem))


def _readable(paths: Iterable[Path], listing: Listing) -> Iterator[Path]:
    """The pictures among files; those of formats that are not read are refused."""
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in _OTHER_PICTURES:
            listing.refuse(path.name, f"{suffix} is not read; save it as PNG, JPEG or WebP")
        elif suffix in PICTURE_SUFFIXES:
            yield path


def _caption_beside(picture: Path) -> tuple[tuple[str, ...], str]:
    """The caption in the .txt beside a picture, or what is wrong with it."""
    beside = picture.with_suffix(".txt")
    try:
        if not beside.is_file():
            return (), NO_CAPTION
        if beside.stat().st_size > _MAX_CAPTION:
            return (), f"{beside.name} is larger than {_MAX_CAPTION >> 20} MB"
        return (beside.read_text("utf-8-sig").strip(),), ""
    except (OSError, ValueError) as error:
        return (), f"{beside.name}: {reason(error, beside.name)}"


def _count_below(folder: Path, listing: Listing) -> None:
    """Pictures in folders below are not used; nobody should have to find that out."""
    below = sum(
        path.suffix.lower() in PICTURE_SUFFIXES
        for place in folder.iterdir()
        if place.is_dir() and place.name[0] != "."
        for path in place.iterdir()
    )
    if below:
        listing.unread["picture", " in folders below: name them in metadata.jsonl"] = below


def _read_rows(
    folder: Path, rows: Rows, keys: tuple[str, tuple[str, ...]], listing: Listing
) -> set[Path]:
    """The pictures that the rows of a metadata file name; paths of these and of their masks."""
    seen: dict[Path, str] = {}
    masks: set[Path] = set()
    for where, row in rows:
        row = row if isinstance(row, dict) else {}
        name = row.get(keys[0])
        captions = texts(next((row[key] for key in keys[1] if key in row), None))
        missing = f"expected {keys[0]} and {keys[1][0]}, got {sorted(map(str, row))}"
        if not isinstance(name, str):
            listing.refuse(where, missing)
            continue
        try:
            path = contained_path(folder, name)
        except ModelError as error:
            listing.refuse(where, f"{keys[0]} {error}")
            continue
        try:
            mask = _named_mask(folder, row.get(_MASK_KEY)) if listing.masks else None
        except ModelError as error:
            listing.refuse(where, f"{_MASK_KEY} {error}")
            continue
        if captions is None:
            seen.setdefault(path, where)
            picture = FileBytes(path, where)
            listing.entries.append(Entry(where, (), picture, problem=missing))
            continue
        if path in seen:
            listing.refuse(
                where, f"{name} is in {seen[path]} already; give several captions as a list"
            )
            continue
        seen[path] = where
        shown = path.relative_to(folder).as_posix()
        listing.entries.append(_entry(path, shown, captions, listing, mask))
        if mask is not None:
            masks.add(mask.path)
    return masks.union(seen)


def _named_mask(folder: Path, name: Any) -> FileBytes | None:
    """The mask that a row names, if it does. Raises ModelError."""
    if name is None or name == "":
        return None
    path = contained_path(folder, str(name))
    return FileBytes(path, path.relative_to(folder).as_posix())


def _jsonl_rows(path: Path, listing: Listing) -> Rows:
    for number, line in enumerate(_text(path).split(b"\n"), 1):
        where = f"{path.name}:{number}"
        try:
            text = line.decode()
            if text.strip():
                yield where, json.loads(text)
        except UnicodeDecodeError:
            listing.refuse(where, "not UTF-8 text")
        except (ValueError, RecursionError) as error:
            listing.refuse(where, f"not JSON: {error}")


def _csv_rows(path: Path, listing: Listing) -> Rows:
    try:
        text = _text(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    reader = csv.DictReader(line + "\n" for line in text.split("\n"))
    try:
        for row in reader:
            yield f"{path.name}:{reader.line_num}", row
    except csv.Error as error:
        listing.refuse(f"{path.name}:{reader.line_num}", str(error))


def _text(path: Path) -> bytes:
    """A text file without the mark that Excel writes. Raises InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _parquet_rows(path: Path, listing: Listing) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f"{path}: reading .parquet needs pyarrow: {install_hint('train')}"
        ) from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}:{number}", row
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


METADATA: dict[str, Callable[[Path, Listing], Rows]] = {
    "metadata.jsonl": _jsonl_rows,
    "metadata.csv": _csv_rows,
    "metadata.parquet": _parquet_rows,
}
"""Names of metadata files, the first that is there counts, and how their rows are read."""
