"""What ``--data`` names: a folder of pictures, shards, tables, or a data set of the hub."""

from pathlib import Path

from ldm_toolkit.errors import InputError
from ldm_toolkit.models.hub import on_hub
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data.entries import Listing
from ldm_toolkit.training.data.folder import holds_pictures, read_folder
from ldm_toolkit.training.data.shards import expand_braces, read_shards
from ldm_toolkit.training.data.tables import Columns, read_hub, read_saved, read_tables
from ldm_toolkit.training.inputs import EXPECTED_DATA

__all__ = ["list_data"]

_TABLES = (".parquet", ".arrow")
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def list_data(
    config: DataConfig, caption: str | None = None, *, masks: bool = False, needed: bool = True
) -> Listing:
    """The pictures that ``--data`` names, in their order, none decoded yet.

    ``caption`` is that of all pictures of a folder: see `read_folder`; with ``masks`` at least one
    picture must have one. Unless ``needed`` shards and tables may lack captions. Raises InputError.
    """
    listing = _list_data(config, caption, masks, needed)
    if masks and listing.entries and not any(entry.mask for entry in listing.entries):
        raise InputError(
            f"--masked-loss: no picture of {listing.place} has a mask; expected NAME.mask.png "
            "beside NAME.png or NAME.jpg in a folder, or mask_file_name in its metadata"
        )
    return listing


def _list_data(config: DataConfig, caption: str | None, masks: bool, needed: bool) -> Listing:
    place, path = config.data, Path(config.data)
    columns = Columns(config.image_column, config.caption_column, needed)
    if not place.strip():
        raise InputError(f"--data is empty; {EXPECTED_DATA}")
    try:
        if caption is not None and not path.is_dir():
            raise InputError(f"--data {place} is not a folder; expected pictures in one")
        if caption is not None:
            return read_folder(path, caption=caption, masks=masks)
        if path.is_dir():
            return _list_folder(path, config, columns, masks)
        if place.lower().endswith(_COMPRESSED):
            raise InputError(f"--data {place} is compressed and cannot be read by index; unpack it")
        if place.lower().endswith(".tar"):
            names = [place] if path.is_file() else expand_braces(place)
            shards = [Path(name) for name in names]
            return read_shards(place, shards, caption_column=columns.caption, needed=columns.needed)
        if path.suffix.lower() in _TABLES and path.is_file():
            return read_tables(place, [path], columns)
    except (OSError, ValueError) as error:  # no permission; a NUL in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--data {place!r:.200} cannot be read: {why}") from error
    if on_hub(place):
        return read_hub(place, config.data_split, config.data_subset, config.data_revision, columns)
    raise InputError(f"--data {place} is not a folder; {EXPECTED_DATA}")


def _list_folder(folder: Path, config: DataConfig, columns: Columns, masks: bool) -> Listing:
    if holds_pictures(folder):
        return read_folder(
            folder, image_column=columns.image, caption_column=columns.caption, masks=masks
        )
    if (folder / "state.json").is_file():
        return read_saved(folder, columns)
    shards = sorted(folder.glob("*.tar"))
    tables = _of_split(sorted(p for p in folder.rglob("*") if p.suffix in _TABLES), config)
    if shards and tables:
        raise InputError(
            f"--data {folder} holds .tar and {tables[0].suffix}; name the files of one"
        )
    if shards:
        return read_shards(
            str(folder), shards, caption_column=columns.caption, needed=columns.needed
        )
    inner = folder / config.data_split
    if inner.is_dir():  # as the hub lays folders of pictures out, and save_to_disk several splits
        return _list_folder(inner, config, columns, masks)
    if tables:
        return read_tables(str(folder), tables, columns)
    return read_folder(folder)


def _of_split(tables: list[Path], config: DataConfig) -> list[Path]:
    """The tables of a split, where their names say of which they are."""
    split = config.data_split
    named = [path for path in tables if path.name.startswith((f"{split}-", f"{split}."))]
    return named or tables
