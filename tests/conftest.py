"""Fixtures shared by all tests: tiny models, one thread."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from _marks import skip_unasked
from tiny_models import make_model

from ldm_toolkit.pipeline import LatentPipeline


def pytest_configure(config: pytest.Config) -> None:
    """Drop diffusers' hundreds of thousands of numpy warnings; recording them doubles the time."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:diffusers")
    config.addinivalue_line("filterwarnings", "ignore:__array_wrap__ must:DeprecationWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked slow or gpu unless they are asked for."""
    skip_unasked(config, items)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models are slower on several threads, and bits must not depend on the machine.

    Before each test: what begins a training takes all cores.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process says what is shown; the next test decides anew."""
    loggers = logging.getLogger(), logging.getLogger("ldm_toolkit")
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def model_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny model once for each set of arguments; never write into the folder."""
    made: dict[tuple, Path] = {}

    def factory(**arguments: object) -> Path:
        key = tuple(sorted(arguments.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("model") / "tiny"
            made[key] = make_model(folder, **arguments)
        return made[key]

    return factory


@pytest.fixture(scope="session")
def tiny_model(model_factory: Callable[..., Path]) -> Path:
    """The folder of a tiny epsilon-prediction model, 64 x 64 pixels."""
    return model_factory()


@pytest.fixture(scope="session")
def tiny_v_model(model_factory: Callable[..., Path]) -> Path:
    """The folder of a tiny v-prediction model."""
    return model_factory(prediction_type="v_prediction")


@pytest.fixture(scope="session")
def wide_model(model_factory: Callable[..., Path]) -> Path:
    """The folder of a tiny model whose text encoder is as wide as Stable Diffusion 1.x's."""
    return model_factory(text_width=768)


@pytest.fixture(scope="session")
def pipe(tiny_model: Path) -> LatentPipeline:
    """The tiny model loaded in float32 on the CPU."""
    return LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32")
