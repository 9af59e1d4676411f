"""Tables with pictures in a column: parquet and arrow files, data sets of the hub.

The library ``datasets`` reads them: rows stay on disk and are read by index. Its loaders run no
code of a data set; of those for the hub only the ones that hold pictures are let in.
"""

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import InputError, ModelError, install_hint, suggestion
from ldm_toolkit.files import contained_path
from ldm_toolkit.images import picture_bytes
from ldm_toolkit.training.data.entries import (
    CAPTION_KEYS,
    NO_CAPTION,
    Entry,
    Listing,
    first_line,
    texts,
)

__all__ = ["Columns", "read_hub", "read_saved", "read_tables"]

_IMAGE_KEYS = ("image", "jpg", "jpeg", "png", "webp", "img", "picture")
# Not "webdataset": that one decodes members of any kind.
_HUB_LOADERS = frozenset({"parquet", "arrow", "imagefolder"})
_ADVICE = "name the column of the captions with --caption-column"


@dataclass(frozen=True)
class Columns:
    """Names of columns where a person gave them; whether every picture must have a caption."""

    image: str | None = None
    caption: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class _Cell:
    """Reads the picture of a row: its bytes in the table, or a file that it names."""

    table: Any
    row: int
    name: str
    roots: tuple[Path, ...]

    def __call__(self) -> bytes:
        """The bytes of the picture's file. Raises InputError."""
        with _explained(self.name):
            value = next(iter(self.table[self.row].values()))
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return picture_bytes(self._file(value))
        raise InputError(f"{self.name} holds no picture")

    def _file(self, path: str) -> Path:
        """A file that a table names, which has to lie with the table."""
        for root in self.roots:
            with contextlib.suppress(ModelError, OSError, ValueError):
                found = Path(path) if Path(path).is_absolute() else contained_path(root, path)
                if found.resolve().is_relative_to(root) and found.is_file():
                    return found
        raise InputError(f"{self.name} names the file {path:.80}, which does not lie with the data")


def read_tables(place: str, files: Sequence[Path], columns: Columns) -> Listing:
    """The rows of parquet or arrow files, in the order of the files. Raises InputError."""
    datasets = _datasets()
    kinds = {file.suffix.lower().removeprefix(".") for file in files}
    if len(kinds) != 1:
        raise InputError(f"--data {place} holds parquet and arrow files; name the files of one")
    with _explained(f"--data {place}"):
        # Not load_dataset, which tells the hub about it.
        if kinds == {"parquet"}:
            _check_ends(files)
            table = datasets.Dataset.from_parquet([glob.escape(str(file)) for file in files])
        else:
            table = datasets.concatenate_datasets([_arrow(file) for file in files])
    roots = tuple(dict.fromkeys(file.parent.resolve() for file in files))
    return _listing(place, table, columns, roots)


def _check_ends(files: Sequence[Path]) -> None:
    """Look at the end of each parquet file, without which it is none. Raises InputError.

    The library would log what is wrong with it, twice, and not say in which file.
    """
    from pyarrow.parquet import read_metadata

    for file in files:
        with _explained(str(file)):
            read_metadata(file)


def _arrow(file: Path) -> Any:
    """An arrow file of either kind, left on disk, every offset in it checked."""
    import datasets
    import pyarrow

    try:
        reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
    except pyarrow.ArrowInvalid:
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
    table = reader.read_all()
    table.validate(full=True)
    return datasets.Dataset(table)


def read_saved(folder: Path, columns: Columns) -> Listing:
    """A folder that `datasets` saved with ``save_to_disk``. Raises InputError."""
    datasets = _datasets()
    with _explained(str(folder)):
        table = datasets.load_from_disk(str(folder))
        table.data.validate(full=True)
    return _listing(str(folder), table, columns, (folder.resolve(),))


def read_hub(
    name: str, split: str, subset: str | None, revision: str | None, columns: Columns
) -> Listing:
    """A data set of the hub, brought into the cache of ``datasets``. Raises InputError."""
    from huggingface_hub.constants import HF_HUB_CACHE

    datasets = _datasets()
    with _explained(f"there is no folder {name} here, and the data set {name} of the hub"):
        builder = datasets.load_dataset_builder(name, subset, revision=revision)
        loader = type(builder).__module__.rpartition(".")[2]
        if loader not in _HUB_LOADERS:
            known = ", ".join(sorted(_HUB_LOADERS))
            raise InputError(
                f"the data set {name} is of kind {loader}; expected {known}, or shards that lie in "
                "a folder here"
            )
        if builder.info.splits and split not in builder.info.splits:
            known = ", ".join(builder.info.splits)
            raise InputError(f"the data set {name} has no split {split!r}, but {known}")
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    cache = (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return _listing(name, table, columns, tuple(Path(root).resolve() for root in cache))


def _listing(place: str, table: Any, columns: Columns, roots: tuple[Path, ...]) -> Listing:
    """Entries of a table's rows. Raises InputError where a column is not there."""
    datasets = _datasets()
    names = list(table.column_names)
    pictures = [n for n in names if type(table.features[n]).__name__ == "Image"]
    image = _column("--image-column", columns.image, (*_IMAGE_KEYS, *pictures), names, place)
    caption = None
    if columns.needed or columns.caption is not None or set(CAPTION_KEYS) & set(names):
        caption = _column("--caption-column", columns.caption, CAPTION_KEYS, names, place)
    with _explained(place):
        table = table.with_format(None)
        table = table.select_columns([image] if caption is None else [image, caption])
        if image in pictures:  # the library would open the picture, under rules of its own
            table = table.cast_column(image, datasets.Image(decode=False))
        captions = [""] * len(table)
        if caption is not None:
            captions = table.select_columns([caption])[:][caption]
    listing = Listing(place, _ADVICE)
    cells = table.select_columns([image])
    for row, value in enumerate(captions):
        if not isinstance(value, str | list | None):
            raise InputError(
                f"--data {place}: column {caption} holds {type(value).__name__}, not text; pass "
                f"--caption-column with one of {', '.join(names)}"
            )
        found, name = texts(value) if caption is not None else (), f"row {row}"
        read = _Cell(cells, row, name, roots)
        problem = NO_CAPTION if found is None and columns.needed else ""
        listing.entries.append(Entry(name, found or (), read, problem=problem))
    return listing


def _column(
    option: str, given: str | None, guesses: Sequence[str], names: Sequence[str], place: str
) -> str:
    """The column that was named, or the first guess that is there. Raises InputError."""
    if given is not None and given not in names:
        has = f"{place} has the columns {', '.join(names)}"
        raise InputError(f"{option} {given}: {has}{suggestion(given, names)}")
    found = given if given is not None else next((n for n in guesses if n in names), None)
    if found is None:
        raise InputError(f"pass {option} with one of the columns of {place}: {', '.join(names)}")
    return found


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "parquet and arrow files and data sets of the hub need the library datasets: "
            + install_hint("train")
        ) from None
    return datasets


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """Errors of the libraries, which are of many classes, as one line about ``place``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise InputError(f"{place} cannot be read: {first_line(reason)}") from error
