"""The plain loop of the benchmark and ours compute the same; it would notice if they did not."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bench_training

    return bench_training


@pytest.mark.parametrize("name", ["ours", "ours-no-cache"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_both_compute_the_same_losses(
    method, name, bench, accelerator, tiny_model, pictures, tmp_path
):
    """Over several epochs of six pictures, the weights changing all the time."""
    case = bench.Case("tiny", str(tiny_model), method, 64, 4, 1, str(pictures), "no", 1)
    loops = {
        "diffusers": bench.plain_loop(case, str(tmp_path / "plain")),
        name: bench.own_loop(case, str(tmp_path / "own"), name),
    }
    losses = {name: list(itertools.islice(loop, 6)) for name, loop in loops.items()}
    assert len(set(losses["diffusers"])) == 6
    assert max(bench.compared(losses).values()) < bench.LIKE

    other = bench.own_loop(replace(case, batch=2), str(tmp_path / "other"), name)
    with pytest.raises(SystemExit, match=f"{name} computes other losses than diffusers"):
        bench.compared({**losses, name: list(itertools.islice(other, 6))})


@pytest.mark.parametrize("found", [1.001, float("nan")])
def test_losses_that_differ_end_the_script(found, bench):
    with pytest.raises(SystemExit, match="ours computes other losses than diffusers"):
        bench.compared({"diffusers": [1.0, 1.0], "ours": [1.0, found]})
