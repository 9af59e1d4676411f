"""Pictures that are kept out of the training, to see what it has learned."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from ldm_toolkit.errors import UserError
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.rng import PermutationIndex

__all__ = ["Part", "a_few", "hold_out"]

Config = UNetConfig | VAEConfig


class Part:
    """Some pictures of a source, in the order of ``indices``."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices
        text = f"part {source.fingerprint} {list(indices)}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of picture ``index`` of the part."""
        return self._source.size(self._indices[index])

    def name(self, index: int) -> str:
        """Its name."""
        return self._source.name(self._indices[index])

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` of the part."""
        return self._source.image(self._indices[index])

    def captions(self, index: int) -> tuple[str, ...]:
        """Its captions."""
        return self._source.captions(self._indices[index])

    def mask(self, index: int) -> Image.Image | None:
        """Its mask."""
        return self._source.mask(self._indices[index])


def hold_out(
    config: Config, source: Source, open_other: Callable[[Config], Source]
) -> tuple[Source, Source | None]:
    """What is trained on and what is validated on, if anything.

    ``open_other`` opens the data of a configuration, here ``--validation-data``. Raises UserError
    where ``--validation-count`` would leave nothing, InputError.
    """
    if config.validation_data is not None:
        other = replace(config, data=config.validation_data, validation_data=None, validate_every=0)
        return source, open_other(other)
    count, length = config.validation_count, len(source)
    if count == 0:
        return source, None
    if count >= length:
        raise UserError(
            f"--validation-count {count} leaves nothing to train on: there are {length} pictures"
        )
    held = _chosen(length, count)
    chosen = frozenset(held)
    kept = [index for index in range(length) if index not in chosen]
    return Part(source, kept), Part(source, held)


def a_few(source: Source, count: int = 8) -> Source:
    """Up to ``count`` pictures of a source, always the same."""
    return Part(source, _chosen(len(source), min(count, len(source))))


def _chosen(length: int, count: int) -> list[int]:
    """Not those at the end, which often are of one kind; the same ones whatever the run's seed."""
    shuffled = PermutationIndex(0, length)
    return sorted(shuffled(place) for place in range(count))
