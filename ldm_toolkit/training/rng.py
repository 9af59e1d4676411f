"""Randomness as a function of (seed, stream, position): there is no generator state to lose."""

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
import torch

__all__ = ["AlternatingIndex", "BucketIndex", "PermutationIndex", "generator", "uniform"]

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


class BucketIndex:
    """Maps a position in the run to an index of the data set, batches of one bucket each.

    ``buckets`` says of each sample in which it is; ``batch`` is the number of samples of a step
    over all processes. The positions k * batch to (k + 1) * batch - 1 hold one bucket. An epoch
    shows every sample; where those of a bucket do not fill its last batch, the first ones of its
    order come again, so that nothing is left out.
    """

    def __init__(self, seed: int, buckets: Sequence[Hashable], batch: int) -> None:
        numbers = {bucket: number for number, bucket in enumerate(dict.fromkeys(buckets))}
        of_sample = np.array([numbers[bucket] for bucket in buckets], dtype=np.int64)
        self._members = [np.flatnonzero(of_sample == number) for number in numbers.values()]
        self._seed, self._batch = seed, batch
        self._length = batch * sum(-(-len(members) // batch) for members in self._members)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Positions of an epoch, a multiple of the batch."""
        return self._length

    def __call__(self, position: int) -> int:
        """The data index at ``position`` of the run."""
        epoch, offset = divmod(position, self._length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._ordered(epoch)
        return int(self._order[offset])

    def _ordered(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(_mix(self._seed, "buckets", epoch))
        batches = []
        for members in self._members:
            rows = -(-len(members) // self._batch)
            batches.append(np.resize(rng.permutation(members), (rows, self._batch)))
        return rng.permutation(np.concatenate(batches)).reshape(-1)
