"""Pictures with captions in every form that training takes them in."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Sample:
    """A picture's name, its file and its caption."""

    name: str
    data: bytes
    caption: str

    @property
    def key(self) -> str:
        """The name without its ending."""
        return self.name.partition(".")[0]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A picture that does not compress, so that every part of its file counts."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def samples(count: int) -> list[Sample]:
    """Pictures in three formats and several sizes."""
    kinds = [("png", "PNG", {}), ("jpg", "JPEG", {"quality": 90}), ("webp", "WEBP", {})]
    made = []
    for index in range(count):
        ending, kind, options = kinds[index % 3]
        data = encoded(noise(index, 64 + 8 * (index % 4), 72), kind, **options)
        made.append(Sample(f"{index:04d}.{ending}", data, f"a dog wearing hat number {index}"))
    return made


def as_files(folder: Path, made: Sequence[Sample]) -> Path:
    """The pictures alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in made:
        (folder / sample.name).write_bytes(sample.data)
    return folder


def as_jsonl(folder: Path, made: Sequence[Sample]) -> Path:
    rows = [{"file_name": sample.name, "text": sample.caption} for sample in made]
    as_files(folder, made)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def as_csv(folder: Path, made: Sequence[Sample]) -> Path:
    as_files(folder, made)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "caption"])
        rows.writerows([sample.name, sample.caption] for sample in made)
    return folder


def as_txt(folder: Path, made: Sequence[Sample]) -> Path:
    as_files(folder, made)
    for sample in made:
        (folder / f"{sample.key}.txt").write_text(f"{sample.caption}\n", "utf-8")
    return folder


def as_shards(folder: Path, made: Sequence[Sample], text: str = "txt", each: int = 4) -> Path:
    """Webdataset shards of ``each`` samples, captions in .txt or .json."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(made), each):
        members = []
        for sample in made[start : start + each]:
            caption = sample.caption if text == "txt" else json.dumps({"caption": sample.caption})
            members += [(sample.name, sample.data), (f"{sample.key}.{text}", caption.encode())]
        write_shard(folder / f"x-{start // each:03d}.tar", members)
    return folder


def write_shard(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    """A tar file of plain members, and of others without content."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
