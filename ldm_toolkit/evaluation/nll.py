"""``ldm-eval nll``: how many bits a model spends on pictures; `likelihood` says what they are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np

from ldm_toolkit.evaluation.likelihood import (
    Bits,
    Likelihood,
    LikelihoodOptions,
    squared_error,
    summary,
)
from ldm_toolkit.evaluation.reconstruction import cut
from ldm_toolkit.evaluation.report import Report
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.models.components import Components

__all__ = ["likelihoods"]

_TITLES = {
    "latent": "latents, bits a dimension",
    "latent_captioned": "latents given the caption, bits a dimension",
    "saved_by_caption": "what captions save, bits a latent dimension",
    "pixel": "pixels, bits a channel",
    "pixel_captioned": "pixels given the caption, bits a channel",
    "vae_elbo": "pixels by the VAE alone, bits a channel",
    "vae_importance": "pixels by the VAE alone, importance-weighted",
}
_SHARPEST = 0.5 / 127.5  # half a level: a smaller sigma says nothing of 8 bits


def likelihoods(subject: Subject, *, timesteps: int, samples: int, sigma: float | None) -> Report:
    """Bounds of -log2 p of pictures; ``sigma`` None: the one that suits these pictures best.

    A picture's noise is a function of seed and picture, so that two models see the same. Raises
    ModelError for a model without a likelihood, NumericalError.
    """
    pipe = subject.pipe()
    components, notes = pipe.components, []
    if str(components.dtype) != "torch.float32":
        notes.append(f"computed in {components.dtype}; --dtype float32 is more exact")
    fitted = sigma is None
    if sigma is None:
        sigma = _fitted_sigma(subject, components)
    options = LikelihoodOptions(sigma=sigma, seed=subject.seed, steps=timesteps, samples=samples)
    likelihood = Likelihood(pipe, options)

    def compute(index: int) -> Sequence[float]:
        image = cut(subject.pictures.image(index), components.latent_factor)
        number = _number(subject, index)
        found = astuple(likelihood.measure(number, image, subject.pictures.caption(index)))
        return [math.nan if one is None else one for one in found]

    settings = likelihood.settings | {"dtype": str(components.dtype)}
    key = f"likelihood {sigma!r} {settings}"
    rows = _rows(subject, key, compute, "measuring likelihoods")
    found = summary([_as_bits(row) for row in rows.tolist()])
    scores = {title: found[name] for name, title in _TITLES.items() if name in found}
    settings["sigma"] = "fitted to these pictures" if fitted else "given"
    notes += [
        "upper bounds: fewer bits are better, and the true number is lower",
        "latents have a density and no levels: compare models of one VAE by them, and no others",
    ]
    return Report(scores, settings | {"pictures": len(rows)}, tuple(notes))


def _as_bits(row: Sequence[float]) -> Bits:
    found: dict[str, Any] = {}
    for one, value in zip(fields(Bits), row, strict=True):
        found[one.name] = None if math.isnan(value) else value
    return Bits(**found)


def _fitted_sigma(subject: Subject, components: Components) -> float:
    """Root mean square of the reconstructions' errors, at least half a level."""

    def compute(index: int) -> Sequence[float]:
        image = cut(subject.pictures.image(index), components.latent_factor)
        return [squared_error(_number(subject, index), image, components, subject.seed)]

    key = f"error {subject.seed} {components.dtype}"
    errors = _rows(subject, key, compute, "fitting sigma")
    return max(_SHARPEST, float(errors.mean()) ** 0.5)


def _rows(
    subject: Subject, key: str, compute: Callable[[int], Sequence[float]], label: str
) -> np.ndarray:
    """A row of numbers a picture under this model; each is kept when it is there."""
    components = subject.pipe().components
    model: list[Any] = [components.identity.sha256, components.loras, components.embeddings]
    return subject.rows(
        subject.pictures,
        f"{model} {key}",
        lambda block: np.array([compute(index) for index in block]),
        label,
        block_size=1,
    )


def _number(subject: Subject, index: int) -> int:
    """What a picture's noise is made of: the picture itself, wherever it stands."""
    return int(subject.pictures.digest(index)[:16], 16)
