"""Where pictures go: names from prompts, the meaning of -o, checks before any work is done."""

import json
import os
import re
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import CannotWrite, UserError
from ldm_toolkit.files import PICTURE_SUFFIXES
from ldm_toolkit.recipe import Recipe

__all__ = ["Destination", "destination", "grid_file", "picture_line", "slug", "steps_folder"]

_PORTS = (f"{port}{number}" for port in ("com", "lpt") for number in range(10))
_RESERVED = {"con", "prn", "aux", "nul", *_PORTS}


def slug(text: str, limit: int = 60) -> str:
    """A file name's stem out of any text: [a-z0-9_-], at most ``limit`` bytes, never empty.

    Accents are dropped (é -> e); other scripts leave nothing, which becomes ``image``. Neither
    hidden, nor an option, nor a name that Windows reserves.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9_]+", "-", plain.lower())[:limit].strip("-_")
    if not name:
        return "image"
    return f"{name}_" if name in _RESERVED else name


def steps_folder(picture: Path) -> Path:
    """The folder for the intermediates of ``picture``: ``dog.png`` -> ``dog-steps``."""
    return picture.with_name(f"{picture.stem}-steps")


def _check_steps_folder(folder: Path) -> None:
    """A folder is replaced only when all in it is ours. Raises UserError."""
    if not os.path.lexists(folder):
        return
    ours = re.compile(r"step-\d+\.png|contact-sheet\.png")
    if not folder.is_dir() or any(not ours.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(f"{folder} holds something else than intermediates; move it away first")


def grid_file(picture: Path, *, overwrite: bool) -> Path:
    """The file for the sheet beside ``picture``: ``dog.png`` -> ``dog-grid.png``, or -grid-2."""
    path = picture.with_name(f"{picture.stem}-grid{picture.suffix}")
    number = 1
    while not overwrite and os.path.lexists(path):
        number += 1
        path = picture.with_name(f"{picture.stem}-grid-{number}{picture.suffix}")
    return path


def picture_line(path: Path, recipe: Recipe, **about: Any) -> str:
    """The line of JSON about a finished picture."""
    line = {"path": str(path), "seed": recipe.seed, **about, "recipe": json.loads(recipe.to_json())}
    return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A checked -o: the folder and, where the person named a file, its stem."""

    folder: Path
    stem: str | None
    suffix: str
    prompt: str
    several: bool
    overwrite: bool
    with_steps: bool

    def path(self, seed: int) -> Path:
        """The file for the picture of ``seed``.

        A name made by us steps aside (-2, -3, ...) for what exists; a name given by the person
        does not. Raises UserError for that.
        """
        if self.stem is not None:
            stem = f"{self.stem}-{seed}" if self.several else self.stem
            path = self.folder / f"{stem}{self.suffix}"
            if self.overwrite and self.with_steps:
                _check_steps_folder(steps_folder(path))
            taken = None if self.overwrite else self._taken(path)
            if taken is not None:
                raise UserError(f"{taken} exists already; choose another -o or pass --overwrite")
            return path
        stem = f"{slug(self.prompt)}-{seed}"
        path = self.folder / f"{stem}{self.suffix}"
        if self.overwrite and self.with_steps:
            _check_steps_folder(steps_folder(path))
        number = 1
        while not self.overwrite and self._taken(path) is not None:
            number += 1
            path = self.folder / f"{stem}-{number}{self.suffix}"
        return path

    def _taken(self, path: Path) -> Path | None:
        """What stands in the way of ``path``; a link that leads nowhere counts too."""
        ours = [path, steps_folder(path)] if self.with_steps else [path]
        return next((name for name in ours if os.path.lexists(name)), None)


def destination(
    output: str | None,
    prompt: str,
    *,
    format: str | None = None,
    usual: str = "png",
    count: int,
    overwrite: bool,
    with_steps: bool,
) -> Destination:
    """Read -o (nothing, ``FOLDER/``, an existing folder, or ``FILE.png``) and check it.

    ``format`` is png, webp or jpg; None for what -o ends in, or ``usual``. Nothing is created yet.
    Raises UserError for a name that cannot be meant, CannotWrite for a place that cannot be
    written.
    """
    folder, stem, suffix = Path(), None, f".{format or usual}"
    if output is not None:
        if not output:
            raise UserError("-o: say FILE.png or FOLDER/")
        if re.search(r"[\0-\x1f\x7f]", output):
            raise UserError("-o: a line break or control character in the name")
        try:
            is_folder = output.endswith(("/", os.sep)) or os.path.isdir(output)
        except OSError as error:
            raise CannotWrite(f"-o {output}: {error.strerror}") from error
        if is_folder:
            folder = Path(output)
        else:
            file = _named_file(output, format)
            _check_name(file)
            folder, stem, suffix = file.parent, file.stem, file.suffix
    _check_writable(folder, may_create=stem is None)
    return Destination(
        folder=folder,
        stem=stem,
        suffix=suffix,
        prompt=prompt,
        several=count > 1,
        overwrite=overwrite,
        with_steps=with_steps,
    )


def _named_file(output: str, format: str | None) -> Path:
    """The file that the person named, if it is one that can be written in ``format``."""
    path = Path(output)
    stem = path.stem.lstrip(".") or "picture"
    meant = PICTURE_SUFFIXES.get(path.suffix.lower())
    if meant is None:
        endings = [format] if format is not None else list(dict.fromkeys(PICTURE_SUFFIXES.values()))
        named = " or ".join(f"{stem}.{ending}" for ending in endings)
        wrong = f"{path.suffix} cannot be written" if path.suffix else "no format at the end"
        raise UserError(f"-o {output}: {wrong}; say {named}, or {stem}/ for a folder")
    if format not in (None, meant):
        raise UserError(f"-o {output}: --format {format} is another format; say {stem}.{format}")
    return path


def _check_name(file: Path) -> None:
    """Find out now that the file system takes this name; a wrong folder is told apart later."""
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except OSError as error:  # too long, or characters that it does not know
        raise CannotWrite(f"-o: cannot write {file}: {error.strerror}") from error


def _check_writable(folder: Path, *, may_create: bool) -> None:
    """Find out now, not after a minute's work, that ``folder`` takes files."""
    try:
        if may_create:
            while not folder.exists():
                if folder.is_symlink():
                    raise CannotWrite(f"-o: {folder} is a link that leads nowhere")
                folder = folder.parent
        if not folder.is_dir():
            wrong = "is not a folder" if folder.exists() else "does not exist; make it first"
            raise CannotWrite(f"-o: {folder} {wrong}")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CannotWrite(f"-o: cannot write in {folder}: {error.strerror or error}") from error
