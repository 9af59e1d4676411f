"""What measures look at: pictures, what they are compared with, the model, this process's share."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ldm_toolkit.errors import CannotWrite, UserError
from ldm_toolkit.evaluation.extractors import Extractor
from ldm_toolkit.evaluation.pictures import Pictures
from ldm_toolkit.files import write_atomic

if TYPE_CHECKING:
    from ldm_toolkit.pipeline import LatentPipeline

__all__ = ["Follow", "Share", "Subject"]

_BLOCK = 32
_PATIENCE = timedelta(days=7)  # of a process for slower ones


class Follow(Protocol):
    """Passes steps on and shows the person how far they are."""

    def __call__(self, steps: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        """The steps, one after the other."""


def _silent(steps: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    yield from steps


@dataclass(frozen=True)
class Share:
    """Which process of how many this is; they share a disk."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come to this line."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState(cpu=True, timeout=_PATIENCE).wait_for_everyone()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a measure of pictures gets.

    ``pipe`` loads the model when it is first called; ``device`` is where other networks compute.
    ``drawing`` says how the model drew the pictures, as plain data, empty where they were there;
    ``per_prompt`` of them are of each prompt, first one of all prompts, then the second. Files go
    into ``folder``.
    """

    pictures: Pictures
    folder: Path
    pipe: Callable[[], "LatentPipeline"]
    reference: Pictures | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)
    per_prompt: int = 1
    seed: int = 0
    device: str = "auto"
    share: Share = Share()
    follow: Follow = _silent

    def as_dict(self) -> dict[str, Any]:
        """What was looked at, as plain data for the scores."""
        told: dict[str, Any] = {
            "pictures": {"place": self.pictures.place, "count": len(self.pictures)},
            "seed": self.seed,
        }
        if self.drawing:
            told["pictures"] |= {"per_prompt": self.per_prompt, "drawing": dict(self.drawing)}
        return told

    def compared(self) -> Pictures:
        """The reference. Raises UserError where there is none."""
        if self.reference is None:
            raise UserError("there is no --reference to compare with")
        return self.reference

    def features(self, pictures: Pictures, extractor: Extractor, label: str) -> np.ndarray:
        """(N, F): what a network knows of each picture; see `rows`."""

        def compute(block: Sequence[int]) -> np.ndarray:
            return extractor.compute([pictures.image(index) for index in block])

        return self.rows(pictures, extractor.key, compute, label)

    def rows(
        self,
        pictures: Pictures,
        key: str,
        compute: Callable[[Sequence[int]], np.ndarray],
        label: str,
        block_size: int = _BLOCK,
    ) -> np.ndarray:
        """(N, K): a row of numbers a picture, by ``compute`` from indices to (B, K).

        Computed in blocks that the processes share, each kept in the folder under the hash of its
        pictures and of ``key``, which has to name everything else that decides the numbers: what
        was interrupted goes on, and equal pictures are looked at once. Raises CannotWrite.
        """
        names = []
        starts = range(0, len(pictures), block_size)
        for number, start in enumerate(self.follow(starts, len(starts), label)):
            block = range(start, min(start + block_size, len(pictures)))
            path = self._file(key, [pictures.digest(index) for index in block])
            names.append(path)
            if number % self.share.world == self.share.rank and _read(path, len(block)) is None:
                _write(path, compute(block))
        self.share.wait()
        found = [_read(path, 1) for path in names]
        return np.concatenate([one for one in found if one is not None])

    def _file(self, key: str, digests: Sequence[str]) -> Path:
        content = hashlib.sha256("\n".join([key, *digests]).encode()).hexdigest()
        return self.folder / "features" / f"{content[:40]}.npy"


def _read(path: Path, count: int) -> np.ndarray | None:
    """The numbers of a block, None where they are still to be computed."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) >= count else None


def _write(path: Path, numbers: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, numbers, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make {path.parent}: {error.strerror}") from error
    write_atomic(path, buffer.getvalue())
