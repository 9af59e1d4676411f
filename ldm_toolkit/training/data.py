"""Pictures with captions from a folder or drawn on the fly."""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ldm_toolkit.errors import InputError, LdmToolkitError, ModelError
from ldm_toolkit.files import contained_path, sha256_file
from ldm_toolkit.images import open_image
from ldm_toolkit.training.config import DataConfig

__all__ = ["ImageFolder", "Source", "StorybookScenes", "open_source"]

logger = logging.getLogger(__name__)
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_CAPTION_KEYS = ("text", "caption", "prompt")
_SHOWN = 20


class Source(Protocol):
    """Pictures of one size with captions, by index."""

    fingerprint: str

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB, size x size."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of picture ``index``, at least one."""


def open_source(config: DataConfig, *, captions: int = 1, seed: int = 0) -> Source:
    """The source that ``--data`` names. Raises InputError."""
    if config.data == "storybook":
        return StorybookScenes(config.count, config.size, captions, seed)
    return ImageFolder(Path(config.data), config.size)


@dataclass(frozen=True)
class _Entry:
    path: Path
    caption: str


class ImageFolder:
    """Pictures of a folder, shrunk and centre-cropped to a square.

    Captions come from metadata.jsonl or metadata.csv (file_name and text, caption or prompt) or
    from a .txt file beside each picture. Raises InputError naming every picture without one and
    every file that cannot be read.
    """

    def __init__(self, folder: Path, size: int) -> None:
        if not folder.is_dir():
            raise InputError(f"--data {folder} is not a folder; expected pictures with captions")
        self._size = size
        problems: list[str] = []
        self._entries = _read_captions(folder, problems)
        for entry in self._entries:
            problems += _problems(entry, folder)
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise InputError(f"{len(problems)} problems in {folder}: {shown}{more}")
        if not self._entries:
            raise InputError(f"{folder} holds no pictures with captions; {_EXPECTED}")
        content = hashlib.sha256(f"folder {size}".encode())
        for entry in self._entries:
            content.update(f"{sha256_file(entry.path)} {entry.caption!r}".encode())
        self.fingerprint = content.hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB, size x size."""
        image = open_image(self._entries[index].path)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return image.resize((self._size, self._size), Image.Resampling.LANCZOS, box=box)

    def captions(self, index: int) -> tuple[str, ...]:
        """The caption of picture ``index``."""
        return (self._entries[index].caption,)


_EXPECTED = (
    "add metadata.jsonl or metadata.csv with file_name and text, or a .txt file beside each picture"
)


def _read_captions(folder: Path, problems: list[str]) -> list[_Entry]:
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    for name, rows in (("metadata.jsonl", _jsonl_rows), ("metadata.csv", _csv_rows)):
        if (folder / name).is_file():
            found = [_entry(folder, *row, problems) for row in rows(folder / name, problems)]
            entries = [entry for entry in found if entry is not None]
            unused = len(set(pictures) - {entry.path for entry in entries})
            if unused and not problems:
                logger.warning("%d pictures in %s are not named in %s", unused, folder, name)
            return entries
    beside = (_caption_beside(picture, problems) for picture in pictures)
    return [entry for entry in beside if entry is not None]


def _caption_beside(picture: Path, problems: list[str]) -> _Entry | None:
    try:
        return _Entry(picture, picture.with_suffix(".txt").read_text("utf-8-sig").strip())
    except FileNotFoundError:
        problems.append(f"{picture.name}: no caption; {_EXPECTED}")
    except (OSError, ValueError) as error:
        problems.append(f"{picture.with_suffix('.txt').name}: {error}")
    return None


def _jsonl_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path, problems), 1):
        where = f"{path.name}:{number}"
        try:
            if line.strip():
                yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: not JSON: {error}")


def _csv_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(_lines(path, problems, keepends=True))
    try:
        for row in reader:
            yield f"{path.name}:{reader.line_num}", row
    except csv.Error as error:
        problems.append(f"{path.name}:{reader.line_num}: {error}")


def _lines(path: Path, problems: list[str], keepends: bool = False) -> Sequence[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Excel writes the mark
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return []
    lines = text.split("\n")  # splitlines() would also split at characters that captions contain
    return [line + "\n" for line in lines] if keepends else lines


def _entry(folder: Path, where: str, row: Any, problems: list[str]) -> _Entry | None:
    row = row if isinstance(row, dict) else {}
    name = row.get("file_name")
    caption = next((row[key] for key in _CAPTION_KEYS if key in row), None)
    if not isinstance(name, str) or not isinstance(caption, str):
        problems.append(f"{where}: expected file_name and text, got {sorted(map(str, row))}")
        return None
    try:
        return _Entry(contained_path(folder, name), caption)
    except ModelError as error:
        problems.append(f"{where}: file_name {error}")
        return None


def _problems(entry: _Entry, folder: Path) -> list[str]:
    found = []
    name = entry.path.relative_to(folder)
    if not entry.caption.strip():
        found.append(f"{name}: empty caption")
    try:
        open_image(entry.path)
    except (LdmToolkitError, OSError) as error:
        found.append(f"{name}: {error}")
    return found


class StorybookScenes:
    """Scenes of the storybook world's training split, drawn when they are asked for."""

    def __init__(self, count: int, size: int, captions: int, seed: int) -> None:
        from ldm_toolkit.storybook import render, scenes

        self._render, self._scenes = render, scenes
        self._count, self._size, self._captions, self._seed = count, size, captions, seed
        probe = hashlib.sha256(self.image(0).tobytes()).hexdigest()
        version = f"{scenes.SPLIT_VERSION} {count} {size} {captions} {seed} {probe}"
        self.fingerprint = hashlib.sha256(f"storybook {version}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def image(self, index: int) -> Image.Image:
        """Scene ``index``, RGB, size x size."""
        return self._render.render(self._scenes.sample_scene(self._seed, index), self._size)

    def captions(self, index: int) -> tuple[str, ...]:
        """Several captions of scene ``index``."""
        scene = self._scenes.sample_scene(self._seed, index)
        return tuple(
            self._scenes.caption(scene, self._seed + 1000 * n).text for n in range(self._captions)
        )
