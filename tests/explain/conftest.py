"""A watched run of the tiny model, and one of a model that predicts v."""

from pathlib import Path

import pytest

from ldm_toolkit.explain import picture
from ldm_toolkit.explain.observed import Observed, observe
from ldm_toolkit.pipeline import LatentPipeline

PROMPT = "a dog wearing hat"
OPTIONS = {"steps": 4, "guidance": 5.0, "seed": 3, "scheduler": "ddim"}


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests look at no detail."""
    monkeypatch.setattr(picture, "_DPI", 36)


@pytest.fixture(scope="session")
def v_pipe(tiny_v_model: Path) -> LatentPipeline:
    return LatentPipeline.from_pretrained(tiny_v_model, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def observed(pipe: LatentPipeline) -> Observed:
    return observe(pipe, PROMPT, **OPTIONS)


@pytest.fixture(scope="session")
def v_observed(v_pipe: LatentPipeline) -> Observed:
    return observe(v_pipe, PROMPT, **OPTIONS)
