"""Jobs: many pictures into a folder, with a manifest, so that a killed job carries on.

The first line of ``manifest.jsonl`` says which job it is, every other one names a finished picture;
nothing in it depends on time, host, path or on how often the job was killed. Several processes
share a job by its groups; each writes a manifest of its own, and the last one merges them.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_toolkit.errors import CannotWrite, InputError, LdmToolkitError, NumericalError, UserError
from ldm_toolkit.files import (
    PICTURE_SUFFIXES,
    fsync_directory,
    remove_leftovers,
    write_atomic,
)
from ldm_toolkit.images import is_untouched, open_image, read_recipe, save_image
from ldm_toolkit.promptfile import USUAL_BATCH, Row
from ldm_toolkit.recipe import MAX_SEED, Recipe
from ldm_toolkit.tokens import chunk_prompt

if TYPE_CHECKING:  # a finished job needs no torch
    from ldm_toolkit.pipeline import LatentPipeline

__all__ = ["Done", "Job", "finished_job", "open_job", "run_job"]

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Job:
    """Rows whose seeds are settled, and where their pictures go."""

    rows: Sequence[Row]
    folder: Path
    header: dict[str, Any]
    batch_size: int
    format: str

    def path(self, index: int) -> Path:
        """The picture of a row."""
        return self.folder / f"{index:05d}-{self.rows[index].options.seed}.{self.format}"

    def has_all_files(self) -> bool:
        """Whether each row has a file of its name, whatever is in it."""
        return all(self.path(index).exists() for index in range(len(self.rows)))


@dataclass(frozen=True)
class Done:
    """One row that came to its end: a picture, made now or found complete, or an error."""

    index: int
    path: Path
    recipe: Recipe | None
    error: LdmToolkitError | None = None
    found: bool = False


def open_job(
    rows: Sequence[Row],
    folder: Path,
    *,
    seed: int | None,
    drawn: int,
    batch_size: int = USUAL_BATCH,
    format: str = "png",
    setting: Mapping[str, Any] | None = None,
) -> Job:
    """A new job in ``folder``, or the one that is there, to carry on.

    Row i without a seed gets ``seed`` + i; where no seed was asked for, a new job takes ``drawn``
    and an old one goes on with its own. ``setting`` is what else decides the pictures: dtype,
    LoRAs and so on, as plain data. Raises UserError saying what differs from the job that is
    there, CannotWrite.
    """
    header: dict[str, Any] = {
        "job": 1,
        "seed": seed,
        "rows": len(rows),
        "sha256": _digest(rows, setting or {}),
        "batch_size": batch_size,
        "format": format,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {folder}: {error.strerror}") from error
    manifest = folder / MANIFEST
    before = _read_header(manifest)
    if before is not None and seed is None:
        header["seed"] = before.get("seed")
    elif seed is None:
        header["seed"] = drawn
    if before is not None and before != header and not _has_pictures(folder):
        manifest.unlink(missing_ok=True)  # nothing came of that job
        before = None
    if before is not None and before != header:
        differs = [key for key in header if before.get(key) != header[key]]
        told = {"sha256": "prompt file or options", "rows": "number of rows", "seed": "seed"}
        names = ", ".join(dict.fromkeys(told.get(key, key) for key in differs))
        raise UserError(
            f"{folder} holds another job: {names} differ; take an empty folder or the same command"
        )
    settled = [_with_seed(row, int(header["seed"]) + index) for index, row in enumerate(rows)]
    if before is None:
        _start_manifest(manifest, header)
    return Job(settled, folder, header, batch_size, format)


def _has_pictures(folder: Path) -> bool:
    """Whether a job has come to a picture."""
    return any(path.suffix in PICTURE_SUFFIXES for path in folder.iterdir())


def _with_seed(row: Row, seed: int) -> Row:
    if row.options.seed is not None:
        return row
    if seed > MAX_SEED:
        raise UserError(f"the seed of the last row would pass {MAX_SEED}")
    return dataclasses.replace(row, options=dataclasses.replace(row.options, seed=seed))


def _digest(rows: Sequence[Row], setting: Mapping[str, Any]) -> str:
    """SHA-256 of what is asked for; inputs by their pixels, not by their paths."""
    total = hashlib.sha256(json.dumps(setting, sort_keys=True).encode() + b"\n")
    for row in rows:
        asked = dataclasses.asdict(row.options)
        asked |= {"image": row.image_sha256, "mask": row.mask_sha256}
        total.update(json.dumps(asked, sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _read_header(manifest: Path) -> dict[str, Any] | None:
    """The first line of the job that a folder holds; None where there is none."""
    try:
        with open(manifest, "rb") as file:
            line = file.readline(1 << 16)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {manifest}: {error.strerror}") from error
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if (
        not isinstance(header, dict)
        or header.get("job") != 1
        or type(header.get("seed")) is not int
    ):
        raise InputError(f"{manifest} is not the manifest of a job; take another folder")
    return header


def _start_manifest(manifest: Path, header: dict[str, Any]) -> None:
    """Write the first line; of several processes the first wins, and they must agree."""
    try:
        write_atomic(manifest, _line(header), overwrite=False)
    except CannotWrite as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        if _read_header(manifest) != header:
            raise UserError(f"{manifest.parent} was given to another job just now") from error


def finished_job(job: Job, sha256: str) -> list[Done] | None:
    """The rows of a job of which every picture is there and whole, else None; no model is needed.

    ``sha256`` is that of the model's weights. The manifest is whole afterwards. For a job that one
    process makes. Raises UserError for pictures of another model.
    """
    found = []
    for index in range(len(job.rows)):
        recipe = _complete(sha256, job, index)
        if recipe is None:
            return None
        found.append((index, recipe))
    manifest = job.folder / MANIFEST
    _repair(manifest, job)
    remove_leftovers(job.folder)
    listed = _listed(manifest, job)
    for index, recipe in found:
        if listed.get(index) != _entry(job, index, recipe):
            _append(manifest, job, index, recipe)
    _merge(job, 1)
    return [Done(index, job.path(index), recipe, found=True) for index, recipe in found]


def run_job(pipe: "LatentPipeline", job: Job, *, rank: int = 0, world: int = 1) -> Iterator[Done]:
    """Make the pictures that are missing, group by group; yields each row of this process.

    Rows that share everything but prompt and seed are computed together, always as
    ``batch_size`` pictures, so that a resumed job gives the same bytes. Process ``rank`` of
    ``world`` takes every world-th group.
    """
    own = job.folder / (MANIFEST if world == 1 else f"manifest-{rank}-of-{world}.jsonl")
    _repair(own, job)
    if world == 1:  # other processes of the job may be in the middle of a file
        remove_leftovers(job.folder)
    listed = _listed(own, job)
    for group in _groups(pipe, job)[rank::world]:
        missing = []
        for index in group:
            recipe = _complete(pipe.identity.sha256, job, index)
            if recipe is None:
                missing.append(index)
                continue
            if listed.get(index) != _entry(job, index, recipe):
                _append(own, job, index, recipe)
            yield Done(index, job.path(index), recipe, found=True)
        if not missing:
            continue
        try:
            recipes = _draw(pipe, job, missing)
        except NumericalError as error:  # the other groups may be fine
            yield from (Done(index, job.path(index), None, error) for index in missing)
            continue
        for index, recipe in zip(missing, recipes, strict=True):
            _append(own, job, index, recipe)
            yield Done(index, job.path(index), recipe)
    _merge(job, world)


def _groups(pipe: "LatentPipeline", job: Job) -> list[list[int]]:
    """Rows that are computed together, by index; a function of rows, options and model."""
    tokenizer = pipe.components.tokenizer
    together: dict[str, list[list[int]]] = {}
    for index, row in enumerate(job.rows):
        rest = dataclasses.asdict(row.options)
        prompt, _ = rest.pop("prompt"), rest.pop("seed")
        chunks = len(chunk_prompt(prompt, tokenizer))
        key = json.dumps([rest, chunks, row.image_sha256, row.mask_sha256], sort_keys=True)
        batches = together.setdefault(key, [[]])
        if len(batches[-1]) == job.batch_size:
            batches.append([])
        batches[-1].append(index)
    return sorted(batch for batches in together.values() for batch in batches)


def _draw(pipe: "LatentPipeline", job: Job, indices: Sequence[int]) -> list[Recipe]:
    """Make and write the pictures of some rows of one group; their recipes."""
    first = job.rows[indices[0]]
    options = dataclasses.asdict(first.options)
    del options["prompt"], options["seed"]
    result = pipe(
        [job.rows[index].options.prompt for index in indices],
        seed=[int(job.rows[index].options.seed or 0) for index in indices],
        image=open_image(first.image) if first.image is not None else None,
        mask=open_image(first.mask) if first.mask is not None else None,
        batch_size=job.batch_size,
        **options,
    )
    for index, image, recipe in zip(indices, result.images, result.recipes, strict=True):
        save_image(image, job.path(index), recipe, overwrite=True)
    return result.recipes


def _complete(sha256: str, job: Job, index: int) -> Recipe | None:
    """The recipe of a row's finished picture: what the picture itself says, pixels included.

    ``sha256`` is that of the model's weights. Raises UserError for a picture of another model.
    """
    path = job.path(index)
    if not path.exists():
        return None
    try:
        recipe = read_recipe(path)
        whole = is_untouched(path, recipe)
    except UserError:
        return None
    fits = recipe.batch_size <= job.batch_size  # less where memory ran out
    fits = fits and _is_of(recipe, job.rows[index])
    if recipe.model.get("sha256") != sha256:
        raise UserError(f"{path} was made by another model; take an empty folder for this one")
    return recipe if whole and fits else None


def _is_of(recipe: Recipe, row: Row) -> bool:
    """Whether a picture was made by what a row asks for; what it leaves open may be anything."""
    asked = dataclasses.asdict(row.options)
    inputs = (recipe.image_sha256, recipe.mask_sha256) == (row.image_sha256, row.mask_sha256)
    return inputs and all(
        value is None or value == getattr(recipe, name) for name, value in asked.items()
    )


def _repair(manifest: Path, job: Job) -> None:
    """Cut off the line that a kill left half written; the job's first line stays."""
    if not manifest.exists():
        return
    data = manifest.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == 0 and manifest.name == MANIFEST:
        write_atomic(manifest, _line(job.header))
    elif end < len(data):
        os.truncate(manifest, end)


def _listed(manifest: Path, job: Job) -> dict[int, bytes]:
    """The lines about the job's pictures in a manifest, by row."""
    lines = {}
    if manifest.exists():
        for line in manifest.read_bytes().splitlines(keepends=True):
            try:
                index = json.loads(line)["index"]
            except (ValueError, KeyError, TypeError):  # the first line, or damage
                continue
            if type(index) is int and 0 <= index < len(job.rows) and line.endswith(b"\n"):
                lines[index] = line
    return lines


def _entry(job: Job, index: int, recipe: Recipe) -> bytes:
    """The line about a finished picture."""
    value = {
        "index": index,
        "file": job.path(index).name,
        "prompt": recipe.prompt,
        "seed": recipe.seed,
        "pixels_sha256": recipe.pixels_sha256,
    }
    return _line(value)


def _append(manifest: Path, job: Job, index: int, recipe: Recipe) -> None:
    """Name a finished picture; the line is on the disk before the next picture begins."""
    try:
        with open(manifest, "ab") as file:
            file.write(_entry(job, index, recipe))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CannotWrite(f"cannot write {manifest}: {error.strerror or error}") from error


def _merge(job: Job, world: int) -> None:
    """The manifest in the order of the rows, once every row of every process is named in one."""
    manifest = job.folder / MANIFEST
    parts = [job.folder / f"manifest-{rank}-of-{world}.jsonl" for rank in range(world)]
    lines = _listed(manifest, job)
    for part in parts if world > 1 else ():
        lines |= _listed(part, job)
    if len(lines) < len(job.rows):
        return
    ordered = [lines[index] for index in sorted(lines)]
    write_atomic(manifest, _line(job.header) + b"".join(ordered))
    for part in parts:
        part.unlink(missing_ok=True)
    fsync_directory(job.folder)
