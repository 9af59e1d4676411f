"""Pictures of a subject's class, which share one caption and which the model draws.

A folder that was drawn here says so in ``class.json``, holds picture k of seed S + k as
``0000k.png``, and is completed after a kill; a folder of someone's own is only read.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.files import PICTURE_SUFFIXES, write_atomic
from ldm_toolkit.images import image_bytes
from ldm_toolkit.progress import follow

__all__ = ["DrawClass", "check_class", "complete_class"]

logger = logging.getLogger(__name__)
DrawClass = Callable[[Path, str, Sequence[int], int], Iterable[Image.Image]]
"""Draws with the model in a folder a picture of one prompt for each seed, so many pixels a side."""

_RECORD = "class.json"


def _pictures(folder: Path) -> list[Path]:
    shown = (path for path in folder.iterdir() if path.name[0] != ".")
    return sorted(path for path in shown if path.suffix.lower() in PICTURE_SUFFIXES)


def check_class(folder: Path, prompt: str) -> None:
    """Refuse what cannot hold pictures of a class, before anything that takes long.

    Raises InputError for a file or a damaged record, UserError for pictures of another prompt.
    """
    record = folder / _RECORD
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--class-data {folder} is not a folder; expected pictures")
    if record.is_file():
        _recorded_seed(record, prompt)


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
        return  # someone's own, or no folder, which `check_class` tells
    missing = [k for k in range(count) if not (folder / _name(k)).is_file()]
    if not missing:
        return
    drawn = draw([seed + k for k in missing])
    logger.info("drawing pictures of %r into %s, missing: %d", prompt, folder, len(missing))
    folder.mkdir(parents=True, exist_ok=True)
    told = {"prompt": prompt, "seed": seed}
    write_atomic(record, json.dumps(told, indent=2).encode())
    followed = follow(drawn, len(missing), "drawing", tell=logger.info, what="picture")
    for k, picture in zip(missing, followed, strict=True):
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
