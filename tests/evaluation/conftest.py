"""What tests of measures need: a tiny judge, a subject around pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_toolkit import storybook
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.storybook.judge import Judge, JudgeNet


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of random weights."""
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        Judge(JudgeNet("residual", (8, 16)), threshold=0.3).save(path)
    return path


@pytest.fixture
def judge_bundled(judge_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny judge in the place of the package's."""
    monkeypatch.setattr(storybook, "JUDGE_FILE", judge_file)
    return judge_file


@pytest.fixture
def subject(tmp_path: Path, pipe: LatentPipeline) -> Callable[..., Subject]:
    """``subject(pictures, reference=...)`` in a folder of the test."""

    def make(pictures: Any, **others: Any) -> Subject:
        return Subject(
            **({"pictures": pictures, "folder": tmp_path, "pipe": lambda: pipe} | others)
        )

    return make
