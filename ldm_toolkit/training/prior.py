"""Pictures that share one caption: a subject's, and those of its class, which the model draws.

A folder that was drawn here says so in ``class.json``, holds picture k of seed S + k as
``0000k.png``, and is completed after a kill; a folder of someone's own is only read.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm_toolkit.errors import InputError, LdmToolkitError, UserError
from ldm_toolkit.files import PICTURE_SUFFIXES, sha256_file, write_atomic
from ldm_toolkit.images import image_bytes, open_image

__all__ = ["DrawClass", "PromptedFolder", "complete_class", "only_pictures"]

logger = logging.getLogger(__name__)
DrawClass = Callable[[Path, str, Sequence[int], int], Iterable[Image.Image]]
"""Draws with the model in a folder a picture of one prompt for each seed, so many pixels a side."""

_RECORD = "class.json"
_SHOWN = 20


class PromptedFolder:
    """All pictures of a folder with one caption, shrunk and centre-cropped to a square.

    ``option`` named the folder. Raises InputError naming every file that cannot be read.
    """

    def __init__(self, folder: Path, size: int, prompt: str, option: str) -> None:
        if not folder.is_dir():
            raise InputError(f"{option} {folder} is not a folder; expected pictures")
        self._size, self._prompt, self._paths = size, prompt, _pictures(folder)
        problems = [told for path in self._paths if (told := _problem(path)) is not None]
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise InputError(f"{len(problems)} problems in {folder}: {shown}{more}")
        if not self._paths:
            raise InputError(f"{option} {folder} holds no pictures")
        content = hashlib.sha256(f"prompted {size}".encode())  # captions are hashed with the text
        for path in self._paths:
            content.update(sha256_file(path).encode())
        self.fingerprint = content.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB, size x size."""
        image = open_image(self._paths[index])
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return image.resize((self._size, self._size), Image.Resampling.LANCZOS, box=box)

    def captions(self, index: int) -> tuple[str, ...]:
        """The prompt, which all pictures share."""
        return (self._prompt,)


def only_pictures(folder: Path) -> bool:
    """Whether a folder holds pictures and nothing else that could have captions for them."""
    if not folder.is_dir():
        return False
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return len(shown) > 0 and all(path.suffix.lower() in PICTURE_SUFFIXES for path in shown)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def _problem(path: Path) -> str | None:
    try:
        open_image(path)
    except (LdmToolkitError, OSError) as error:
        return f"{path.name}: {error}"
    return None


def complete_class(
    folder: Path,
    prompt: str,
    count: int,
    seed: int,
    draw: Callable[[Sequence[int]], Iterable[Image.Image]],
) -> None:
    """See to it that a folder holds pictures of a class: ``count``, where they are drawn here.

    ``draw`` makes a picture for each seed. A folder with pictures of another origin stays as it is;
    one that was drawn here gets what it lacks, of the seed that it began with. Raises UserError for
    pictures of another prompt, CannotWrite.
    """
    record = folder / _RECORD
    if record.is_file():
        seed = _recorded_seed(record, prompt)
    elif folder.exists() and (not folder.is_dir() or _pictures(folder)):
        return  # someone's own, or no folder, which is told where it is read
    missing = [k for k in range(count) if not (folder / _name(k)).is_file()]
    if not missing:
        return
    drawn = draw([seed + k for k in missing])
    logger.info("drawing pictures of %r into %s, missing: %d", prompt, folder, len(missing))
    folder.mkdir(parents=True, exist_ok=True)
    told = {"prompt": prompt, "seed": seed}
    write_atomic(record, json.dumps(told, indent=2).encode())
    for k, picture in zip(missing, tqdm(drawn, total=len(missing), unit="picture"), strict=True):
        write_atomic(folder / _name(k), image_bytes(picture))


def _name(number: int) -> str:
    return f"{number:05d}.png"


def _recorded_seed(record: Path, prompt: str) -> int:
    """The seed of the pictures that were drawn before. Raises UserError."""
    try:
        told = json.loads(record.read_text("utf-8"))
        before, seed = str(told["prompt"]), int(told["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{record} is damaged ({error}); remove it, or the whole folder"
        ) from error
    if before != prompt:
        raise UserError(
            f"--class-data {record.parent} holds pictures of {before!r:.120}, not of the class "
            f"prompt {prompt!r:.120}; pass another folder or remove this one"
        )
    return seed
