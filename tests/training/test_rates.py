"""The learning rate is a function of the step; diffusers' shapes are diffusers' own numbers."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from training_tools import Line, line_config, metric

from ldm_toolkit.training import loop
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.rates import learning_rate, warn_of_other_steps, warn_of_warmup

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


def test_the_warm_up_fits_the_run_where_none_is_asked_for():
    for steps, warmup in ((1, 0), (9, 0), (20, 2), (499, 49), (500, 50), (100_000, 50)):
        assert LoopConfig(output="o", steps=steps).warmup_steps == warmup
    assert LoopConfig(output="o", steps=20, warmup=0).warmup_steps == 0
    few = LoopConfig(output="o", steps=20, lr_schedule="constant")
    assert [learning_rate(few, step) for step in range(3)] == [0.5 * few.lr, few.lr, few.lr]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"warmup": 100, "steps": 20}, "ends at 2e-05 where --lr is 0.0001: pass a smaller"),
        ({"warmup": 20, "steps": 20}, "--warmup 20 takes the whole run of 20 steps"),
        ({"warmup": 19, "steps": 20}, None),
        ({"steps": 1}, None),
        ({"steps": 20}, None),
    ],
)
def test_a_warm_up_without_end_is_told(options, told, caplog):
    warn_of_warmup(LoopConfig(output="o", **options))
    assert (told is None and not caplog.messages) or told in caplog.text


@pytest.mark.parametrize(
    ("options", "before", "step", "told"),
    [
        ({"lr_schedule": "cosine", "warmup": 0}, 50, 50, "rate of 5e-05 in step 51, not 0"),
        ({"lr_schedule": "linear", "warmup": 0}, 200, 50, "rate of 5e-05 in step 51, not 7.5e-05"),
        ({"lr_schedule": "cosine", "warmup": 30}, 200, 20, "in step 200, not"),
        ({"lr_schedule": "polynomial", "warmup": 0}, 50, 50, "in step 51, not 1e-07"),
        ({"lr_schedule": "constant"}, 50, 50, None),
        ({"lr_schedule": "constant"}, 20, 5, "rate of 6e-05 in step 6, not 0.0001"),  # warm-up
        ({"lr_schedule": "constant", "warmup": 9}, 20, 5, None),
        ({"lr_schedule": "cosine"}, 100, 50, None),  # the same
        ({"lr_schedule": "cosine"}, 400, 100, None),  # no step is left
    ],
)
def test_other_steps_that_change_the_rates_are_told(options, before, step, told, caplog):
    warn_of_other_steps(LoopConfig(output="o", steps=100, **options), before, step)
    assert len(caplog.messages) == (told is not None)
    assert told is None or told in caplog.text


def test_a_resumed_run_with_other_steps_says_what_that_does(accelerator, tmp_path, caplog):
    loop.train(Line(), line_config(tmp_path, steps=8), accelerator)
    loop.train(Line(), line_config(tmp_path, steps=8), accelerator)
    assert "was 8 before" not in caplog.text
    loop.train(Line(), line_config(tmp_path, steps=12), accelerator)
    assert "--steps 12 was 8 before: --lr-schedule cosine goes by the new number" in caplog.text
    assert caplog.text.count("before:") == 1


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
