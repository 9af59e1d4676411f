"""Runs ``ldm-gen`` and ``ldm-eval`` inside the test process and puts back what they change."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_toolkit.cli import evaluate, generate
from ldm_toolkit.pipeline import LatentPipeline


@dataclass(frozen=True)
class Outcome:
    """What a command left on its way out."""

    code: int
    out: str
    err: str

    @property
    def paths(self) -> list[Path]:
        """The pictures that stdout names."""
        return [Path(line) for line in self.out.splitlines()]


@contextlib.contextmanager
def process_state_kept() -> Iterator[None]:
    """Restore environment, logging and threads: a command line may set them, a test run not."""
    root, ours = logging.getLogger(), logging.getLogger("ldm_toolkit")
    before = dict(os.environ), list(root.handlers), root.level, ours.level, torch.get_num_threads()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        root.handlers[:] = before[1]
        root.setLevel(before[2])
        ours.setLevel(before[3])
        torch.set_num_threads(before[4])


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, two levels deep, so that ``..`` stays inside tmp_path."""
    folder = tmp_path / "outer" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def _runner(
    main: Callable[[list[str]], int], capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        with process_state_kept():
            code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def real_ldm_gen(workdir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``real_ldm_gen("a dog", "--model", folder)``: the command in this process, as it is."""
    return _runner(generate.main, capfd)


@pytest.fixture
def ldm_eval(workdir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``ldm_eval("fid", "--images", folder)``: the command in this process, as it is."""
    return _runner(evaluate.main, capfd)


@pytest.fixture
def loaded_once(pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever model a command names, it is the tiny one, loaded once."""

    def loaded(model: str, **_: Any) -> LatentPipeline:
        return pipe

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)


@pytest.fixture
def ldm_gen(
    real_ldm_gen: Callable[..., Outcome], tiny_model: Path, loaded_once: None
) -> Callable[..., Outcome]:
    """``ldm_gen("a dog", "--steps", 2)``: the command in this process, the model loaded once."""

    def run(*arguments: object, model: Path | None = tiny_model) -> Outcome:
        named = () if model is None else ("--model", model)
        return real_ldm_gen(*named, *arguments)

    return run
