"""The measure around the bounds: what it reports, keeps and says of itself."""

from collections.abc import Callable
from dataclasses import fields

import pytest
from albums import Album, noise

from ldm_toolkit.evaluation import likelihood, nll
from ldm_toolkit.evaluation.likelihood import Bits, Likelihood, LikelihoodOptions
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.pipeline import LatentPipeline

CAPTIONS = ["a dog", "a red cat", "a blue house"]
FEW = {"timesteps": 3, "samples": 2}


def test_scores_are_means_of_the_bounds(
    subject: Callable[..., Subject], pipe: LatentPipeline
) -> None:
    album = Album(noise(3, size=70), CAPTIONS)  # cut to 64 pixels
    found = nll.likelihoods(subject(album), **FEW, sigma=0.2)
    options = LikelihoodOptions(sigma=0.2, steps=3, samples=2)
    rows = [
        Likelihood(pipe, options).measure(
            int(album.digest(k)[:16], 16), album.image(k).crop((3, 3, 67, 67)), CAPTIONS[k]
        )
        for k in range(3)
    ]
    titles = {one.name: nll._TITLES[one.name] for one in fields(Bits)}
    for name, title in titles.items():
        expected = sum(getattr(row, name) for row in rows) / 3
        assert found.scores[title].value == pytest.approx(expected, rel=1e-6)
        assert found.scores[title].count == 3
    assert "sigma 0.2" in found.settings["decoder"]
    assert (found.settings["sigma"], found.settings["timesteps"]) == ("given", 3)
    assert any("upper bounds" in line for line in found.notes)


def test_without_captions_nothing_is_conditional(subject: Callable[..., Subject]) -> None:
    found = nll.likelihoods(subject(Album(noise(2, size=64))), **FEW, sigma=0.2)
    assert len(found.scores) == 4
    assert not any("caption" in title for title in found.scores)


def test_sigma_is_fitted_and_what_is_done_is_kept(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = subject(Album(noise(2, size=64)))
    first = nll.likelihoods(one, **FEW, sigma=None)
    error = nll._fitted_sigma(one, one.pipe().components)
    assert first.settings["sigma"] == "fitted to these pictures"
    assert f"sigma {error:.4g}" in first.settings["decoder"]

    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(likelihood.Likelihood, "measure", fails)
    monkeypatch.setattr(nll, "squared_error", fails)
    assert nll.likelihoods(one, **FEW, sigma=None) == first
    # Two pictures more: those that are there are not measured again.
    more = subject(Album(noise(2, size=64) + noise(1, seed=5, size=64)))
    with pytest.raises(AssertionError):
        nll.likelihoods(more, **FEW, sigma=error)
    with pytest.raises(AssertionError):
        nll.likelihoods(one, timesteps=4, samples=2, sigma=error)
