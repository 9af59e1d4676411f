"""``ldm-eval fid`` and ``kid``: how far pictures are from others, in the features of a network."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm_toolkit.errors import InputError
from ldm_toolkit.evaluation.extractors import Extractor, open_extractor
from ldm_toolkit.evaluation.features import frechet_distance, kernel_distance, torchmetrics_version
from ldm_toolkit.evaluation.intervals import Interval, around, jackknife
from ldm_toolkit.evaluation.report import FEWEST, Report
from ldm_toolkit.evaluation.subject import Subject

__all__ = ["fid", "frechet", "kid"]

_GROUPS = 10
_SUBSET = 1000


def fid(subject: Subject, *, features: str, inception_weights: Path | None) -> Report:
    """The Fréchet distance between pictures and reference (Heusel et al. 2017)."""
    first, second, settings = _both(
        subject, open_extractor(features, inception_weights, subject.device)
    )
    return Report({"fid": frechet(second, first)}, settings, _few(first, second))


def kid(subject: Subject, *, features: str, inception_weights: Path | None) -> Report:
    """The kernel distance between pictures and reference (Bińkowski et al. 2018).

    From subsets of half of the pictures, 1,000 at most. The spread of halves is that of the whole
    (Shao & Wu 1989); that of smaller parts is scaled to it.
    """
    first, second, settings = _both(
        subject, open_extractor(features, inception_weights, subject.device)
    )
    count = min(len(first), len(second))
    size = min(_SUBSET, count // 2)
    value, spread = kernel_distance(
        torch.from_numpy(second), torch.from_numpy(first), subject.seed, size
    )
    deviation = spread * math.sqrt(size / (count - size))
    settings |= {"subsets": 100, "subset_size": size, "subset_deviation": spread}
    return Report({"kid": around(value, deviation, len(first))}, settings)


def frechet(first: np.ndarray, second: np.ndarray) -> Interval:
    """The distance of two sets of features (N, F), (M, F), with a jackknife over tenths of both.

    Raises InputError for too few pictures.
    """
    if min(len(first), len(second)) < FEWEST:
        raise InputError(
            f"a Fréchet distance needs at least {FEWEST} pictures on both sides (thousands say "
            f"more), not {len(second)} and {len(first)}"
        )

    def without(group: int | None) -> float:
        one, other = _kept(first, group), _kept(second, group)
        return frechet_distance(torch.from_numpy(one), torch.from_numpy(other))

    return jackknife(len(second), without, groups=_GROUPS)


def _kept(rows: np.ndarray, group: int | None) -> np.ndarray:
    return rows if group is None else rows[np.arange(len(rows)) % _GROUPS != group]


def _both(subject: Subject, extractor: Extractor) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Features of pictures and reference, and what makes their distance comparable."""
    version, reference = torchmetrics_version(), subject.compared()
    first = subject.features(subject.pictures, extractor, "looking at the pictures")
    second = subject.features(reference, extractor, "looking at the reference")
    if min(len(first), len(second)) < 4:
        raise InputError(
            "a distance needs more pictures: at least 4 on both sides, not "
            f"{len(first)} and {len(second)}"
        )
    settings = extractor.settings | {
        "pictures": len(first),
        "reference": reference.place,
        "reference_pictures": len(second),
        "torchmetrics": version,
    }
    return first, second, settings


def _few(first: np.ndarray, second: np.ndarray) -> tuple[str, ...]:
    """A line where there are fewer pictures than features."""
    width = first.shape[1]
    if min(len(first), len(second)) > width:
        return ()
    return (
        f"{len(first)} and {len(second)} pictures are few for {width} features: the distance is "
        "far too large; compare it only with distances of as many pictures, or use kid",
    )
