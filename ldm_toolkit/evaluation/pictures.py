"""Pictures that are measured: files of a folder or a data set, drawn ones, or rendered scenes."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ldm_toolkit import storybook
from ldm_toolkit.errors import InputError, UserError, listed
from ldm_toolkit.evaluation.adherence import Asked, held_out_prompts
from ldm_toolkit.files import PICTURE_SUFFIXES, sha256_bytes
from ldm_toolkit.images import decode_image, read_recipe
from ldm_toolkit.storybook.judge import asked as asked_by
from ldm_toolkit.storybook.render import drawing_sha256, render
from ldm_toolkit.storybook.scenes import Scene
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data.entries import Entry, FileBytes
from ldm_toolkit.training.data.folder import METADATA, read_folder
from ldm_toolkit.training.data.geometry import fit
from ldm_toolkit.training.data.places import list_data

__all__ = ["Files", "Pictures", "Renders", "open_pictures"]

STORYBOOK = "storybook"
RENDERS = 500
"""How many scenes are rendered where nothing says a number."""


class Pictures(Protocol):
    """Pictures by index, with what they should show where that is known."""

    place: str

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB. Raises InputError."""

    def caption(self, index: int) -> str | None:
        """What picture ``index`` should show, in words."""

    def asked(self, index: int) -> Asked | None:
        """What picture ``index`` should show of the storybook world."""

    def digest(self, index: int) -> str:
        """A hash of picture ``index`` and its caption, the same for equal ones anywhere."""


class Files:
    """Picture files, brought to squares of ``size`` pixels if one is given."""

    def __init__(
        self,
        place: str,
        entries: Sequence[Entry],
        size: int | None = None,
        asked: Sequence[Asked] | None = None,
    ) -> None:
        self.place, self._entries, self._size, self._asked = place, entries, size, asked
        self._digests: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB. Raises InputError."""
        entry = self._entries[index]
        image = decode_image(entry.read(), entry.name)
        return image if self._size is None else fit(image, (self._size, self._size))

    def caption(self, index: int) -> str | None:
        """The first caption in the data, else the prompt in a picture of ours."""
        entry = self._entries[index]
        if entry.captions:
            return entry.captions[0]
        if isinstance(entry.read, FileBytes):
            try:
                return read_recipe(entry.read.path).prompt
            except UserError:
                return None
        return None

    def asked(self, index: int) -> Asked | None:
        """What the picture was drawn for."""
        return self._asked[index] if self._asked is not None else None

    def digest(self, index: int) -> str:
        """Of the file's bytes, the size and the caption."""
        if index not in self._digests:  # several measures ask
            entry = self._entries[index]
            self._digests[index] = _digest(
                sha256_bytes(entry.read()), self._size, entry.captions[:1]
            )
        return self._digests[index]


class Renders:
    """Scenes of the storybook world that no training has seen, rendered when asked for."""

    def __init__(self, asked: Sequence[Asked], size: int = 512) -> None:
        self.place, self._asked, self._size = STORYBOOK, asked, size
        self._world = drawing_sha256()

    def __len__(self) -> int:
        return len(self._asked)

    def image(self, index: int) -> Image.Image:
        """Scene ``index``, RGB."""
        return render(self._asked[index].scene, self._size)

    def caption(self, index: int) -> str | None:
        """A caption of the scene."""
        return self._asked[index].prompt

    def asked(self, index: int) -> Asked | None:
        """What the caption names of the scene."""
        return self._asked[index]

    def digest(self, index: int) -> str:
        """Of the scene, the size and what the world's pictures look like."""
        return _digest(self._asked[index], self._size, self._world)


def open_pictures(
    place: str,
    *,
    count: int | None = None,
    size: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> Pictures:
    """What ``--images`` or ``--reference`` names; the first ``count`` of it.

    ``seed`` is that of rendered scenes, ``columns`` are image_column, caption_column and data_split
    of `training.config.DataConfig`. Captions are taken where there are some. Raises InputError.
    """
    if place == STORYBOOK:
        asked = held_out_prompts(count if count is not None else RENDERS, seed)
        return Renders(asked, size if size is not None else 512)
    folder = Path(place)
    if folder.is_dir() and not _has_captions(folder):
        listing = read_folder(folder, caption="")
    else:
        try:
            options: dict[str, Any] = dict(columns or {})
            listing = list_data(DataConfig(data=place, **options), needed=False)
        except InputError as error:
            raise InputError(str(error).removeprefix("--data ")) from error
    own = [f"{entry.name}: {entry.problem}" for entry in listing.entries if entry.problem]
    problems = [*map(str, listing.problems), *own]
    if problems:
        told = listed(problems)
        raise InputError(f"{len(problems)} problems in {place}: {told}; {listing.advice}")
    if not listing.entries:
        raise InputError(f"{place} holds no pictures; {listing.advice}")
    entries = listing.entries[:count]
    return Files(place, entries, size, _rendered(folder / storybook.METADATA, entries))


def _has_captions(folder: Path) -> bool:
    """Whether a folder is more than pictures with nothing beside them."""
    files = list(folder.iterdir())
    names = {path.name for path in files}
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    return (
        not pictures
        or bool(names & METADATA.keys())
        or any(path.with_suffix(".txt").name in names for path in pictures)
    )


def _rendered(metadata: Path, entries: Sequence[Entry]) -> list[Asked] | None:
    """What pictures show of which `python -m ldm_toolkit.storybook render` wrote the metadata."""
    try:
        rows = [json.loads(line) for line in metadata.read_text("utf-8").splitlines()]
        fields = [field.name for field in dataclasses.fields(Scene)]
        found = {}
        for row in rows:
            scene = Scene(**{name: row[name] for name in fields})
            wanted = asked_by(scene, frozenset(row["mentions"]))
            found[row["file_name"]] = Asked(row["text"], wanted, scene)
        return [found[entry.name] for entry in entries]
    except (OSError, ValueError, LookupError, TypeError):  # other data
        return None


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
