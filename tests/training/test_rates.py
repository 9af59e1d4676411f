"""The learning rate is a function of the step; diffusers' shapes are diffusers' own numbers."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from training_tools import Line, line_config, metric

from ldm_toolkit.training import loop
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.rates import learning_rate

SHAPES = {
    "constant_with_warmup": {},
    "cosine_with_restarts": {"lr_cycles": 3},
    "polynomial": {"lr_power": 2.0},
}


def settings(name: str, **options) -> LoopConfig:
    common = {"output": "o", "steps": 60, "warmup": 7, "lr": 3e-3, "lr_schedule": name}
    return LoopConfig(**(common | SHAPES[name] | options))


@pytest.mark.parametrize("name", SHAPES)
def test_diffusers_shapes_are_what_its_scheduler_sets(name):
    config = settings(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=config.warmup,
        num_training_steps=config.steps,
        num_cycles=config.lr_cycles,
        power=config.lr_power,
    )
    for step in range(config.steps):
        assert learning_rate(config, step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", SHAPES)
def test_the_rate_depends_on_nothing_but_options_and_step(name):
    config = settings(name)
    forwards = [learning_rate(config, step) for step in range(60)]
    learning_rate(settings(name, lr=1.0, warmup=0), 5)
    assert [learning_rate(config, step) for step in reversed(range(60))] == forwards[::-1]
    assert max(forwards) == pytest.approx(config.lr)
    assert min(forwards) >= 0


def test_restarts_start_again():
    rates = [learning_rate(settings("cosine_with_restarts", warmup=0), step) for step in range(60)]
    jumps = [step for step in range(1, 60) if rates[step] > rates[step - 1]]
    assert jumps == [20, 40]


def test_a_power_falls_faster():
    straight, square = (settings("polynomial", warmup=0, lr_power=p) for p in (1.0, 2.0))
    assert learning_rate(straight, 30) == pytest.approx(1.5e-3, rel=1e-3)
    assert learning_rate(square, 30) == pytest.approx(0.75e-3, rel=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_a_resumed_run_goes_on_with_the_schedule(name, accelerator, tmp_path):
    config = line_config(tmp_path, lr_schedule=name, **SHAPES[name])
    expected = [learning_rate(config, step) for step in range(12)]

    def sample(step: int) -> None:
        if step > 0:
            raise KeyboardInterrupt

    stopped = line_config(tmp_path, lr_schedule=name, sample_every=4, **SHAPES[name])
    with pytest.raises(KeyboardInterrupt):
        loop.train(Line(), stopped, accelerator, sample=sample)
    loop.train(Line(), config, accelerator)
    assert metric(tmp_path, "lr") == pytest.approx(expected)
