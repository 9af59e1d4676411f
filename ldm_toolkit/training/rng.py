"""Randomness as a function of (seed, stream, position): there is no generator state to lose."""

import hashlib

import numpy as np
import torch

__all__ = ["AlternatingIndex", "PermutationIndex", "generator", "uniform"]

_BELOW_ONE = 1.0 - 2.0**-53


def _mix(*parts: int | str) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, position: int) -> torch.Generator:
    """A fresh CPU generator that belongs to one sample at one place of the run."""
    return torch.Generator().manual_seed(_mix(seed, stream, position))


def uniform(seed: int, stream: str, position: int) -> float:
    """A number in [0, 1) that belongs to one sample at one place of the run."""
    return min(_mix(seed, stream, position) / 2.0**63, _BELOW_ONE)  # the quotient may round to 1


class PermutationIndex:
    """Maps a position in the run to an index of the data set: each epoch a new permutation."""

    def __init__(self, seed: int, length: int, stream: str = "order") -> None:
        self._seed, self._length, self._stream = seed, length, stream
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, position: int) -> int:
        """The data index at ``position`` of the run."""
        epoch, offset = divmod(position, self._length)
        if epoch != self._epoch:
            rng = np.random.default_rng(_mix(self._seed, self._stream, epoch))
            self._epoch, self._order = epoch, rng.permutation(self._length)
        return int(self._order[offset])


class AlternatingIndex:
    """Maps a position in the run to an index of two sets in a row: even ones to the first set, odd
    ones to the second. Each set has its own epochs, so their lengths need not be alike.
    """

    def __init__(self, seed: int, first: int, second: int) -> None:
        self._start = first
        self._sets = (
            PermutationIndex(seed, first),
            PermutationIndex(seed, second, "order of second"),
        )

    def __call__(self, position: int) -> int:
        """The data index at ``position`` of the run."""
        pair, odd = divmod(position, 2)
        return self._start + self._sets[1](pair) if odd else self._sets[0](pair)
