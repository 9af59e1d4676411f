"""Pictures that are measured: files of a folder or a data set, drawn ones, or rendered scenes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from ldm_toolkit.errors import InputError, UserError, listed
from ldm_toolkit.evaluation.adherence import Asked, held_out_prompts
from ldm_toolkit.files import sha256_bytes
from ldm_toolkit.images import decode_image, read_recipe
from ldm_toolkit.jobs import MANIFEST
from ldm_toolkit.storybook.render import render
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data.entries import Entry, FileBytes
from ldm_toolkit.training.data.folder import only_pictures, read_folder
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
        file = sha256_bytes(self._entries[index].read())
        return _digest(file, self._size, self._entries[index].captions[:1])


class Renders:
    """Scenes of the storybook world that no training has seen, rendered when asked for."""

    def __init__(self, asked: Sequence[Asked], size: int = 512) -> None:
        self.place, self._asked, self._size = STORYBOOK, asked, size
        probe = render(asked[0].scene, 64).tobytes()
        self._world = sha256_bytes(probe)

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
    place: str, *, count: int | None = None, size: int | None = None, seed: int = 0
) -> Pictures:
    """What ``--images`` or ``--reference`` names; the first ``count`` of it.

    ``seed`` is that of rendered scenes. Captions are taken where there are some. Raises InputError.
    """
    if place == STORYBOOK:
        asked = held_out_prompts(count if count is not None else RENDERS, seed)
        return Renders(asked, size if size is not None else 512)
    folder = Path(place)
    if only_pictures(folder) or (folder / MANIFEST).is_file():
        listing = read_folder(folder, caption="")
    else:
        listing = list_data(DataConfig(data=place))
    if listing.problems:
        told = listed(map(str, listing.problems))
        raise InputError(f"{len(listing.problems)} problems in {place}: {told}; {listing.advice}")
    if not listing.entries:
        raise InputError(f"{place} holds no pictures; {listing.advice}")
    return Files(place, listing.entries[:count], size)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
