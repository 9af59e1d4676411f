"""What training takes pictures and captions from: by index, in the size that is trained."""

import hashlib
from pathlib import Path
from typing import Protocol

from PIL import Image

from ldm_toolkit.errors import InputError
from ldm_toolkit.images import decode_image
from ldm_toolkit.training.data.folder import read_folder
from ldm_toolkit.training.data.geometry import Geometry, fit
from ldm_toolkit.training.data.inspection import Inspection, inspect, refuse_bad

__all__ = ["ImageFolder", "Pictures", "Source"]


class Source(Protocol):
    """Pictures with captions, by index."""

    fingerprint: str

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of picture ``index``."""

    def name(self, index: int) -> str:
        """What people know picture ``index`` by: its file's name, or where it is in a table."""

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB, of that size."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of picture ``index``; none only where the data was opened without."""

    def mask(self, index: int) -> Image.Image | None:
        """The mask of picture ``index``, L, of its size, if it has one: white counts."""


class Pictures:
    """The good pictures of an inspection, shrunk and cropped in the middle.

    The fingerprint is that of the files, the captions, the masks and the sizes, wherever they came
    from.
    """

    def __init__(self, inspection: Inspection, geometry: Geometry) -> None:
        self._entries = inspection.entries
        self._sizes = [geometry.nearest(fact.width, fact.height) for fact in inspection.facts]
        content = hashlib.sha256(f"folder {geometry.key}".encode())
        for entry, fact in zip(self._entries, inspection.facts, strict=True):
            captions = " ".join(map(repr, entry.captions))
            mask = f" mask {fact.mask}" if fact.mask is not None else ""
            content.update(f"{fact.file} {captions}{mask}".encode())
        self.fingerprint = content.hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of picture ``index``."""
        return self._sizes[index]

    def name(self, index: int) -> str:
        """The name of picture ``index``."""
        return self._entries[index].name

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB, of that size."""
        entry = self._entries[index]
        return fit(decode_image(entry.read(), entry.name), self._sizes[index])

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of picture ``index``."""
        return self._entries[index].captions

    def mask(self, index: int) -> Image.Image | None:
        """The mask of picture ``index``, L, cut as the picture is, if it has one."""
        read = self._entries[index].mask
        if read is None:
            return None
        levels = decode_image(read(), read.name).convert("L")
        return fit(levels, self._sizes[index], Image.Resampling.BILINEAR)  # no ringing at edges


class ImageFolder(Pictures):
    """Pictures of a folder as squares. Raises InputError naming every picture that is bad."""

    def __init__(self, folder: Path, size: int) -> None:
        if not folder.is_dir():
            raise InputError(f"--data {folder} is not a folder; expected pictures with captions")
        inspection = inspect(read_folder(folder))
        refuse_bad(inspection, skip_bad=False, max_bad=0.0)
        super().__init__(inspection, Geometry.square(size))
