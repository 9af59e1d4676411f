"""The benchmark of speed: its sets of prompts, its cells, its verdicts, and a run of all of it."""

import contextlib
import json
import math
import re

import numpy as np
import pytest
import torch

from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.options import GenerateOptions
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.storybook import scenes

EXAMPLES = __file__.rpartition("tests")[0] + "examples"
TINY = ["--size", "64", "--steps", "4", "--prompts", "3", "--rounds", "2", "--threads", "1",
        "--solver-prompts", "2", "--device", "cpu", "--dtype", "float32"]  # fmt: skip
SHOWN = ["balanced", "fast", "unipc-20+interval-0.6+reuse-2-d1"]


@pytest.fixture
def cells(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import bench_cells

    return bench_cells


@pytest.fixture
def scores(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import bench_scores

    return bench_scores


@pytest.fixture
def bench(monkeypatch, tiny_model):
    """The script with few solvers of few steps, and diffusers always twice as slow as a second."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import bench_speed

    class Slow:
        def ask(self, **order):
            return {"seconds": 2.0, "step": 2.0 / order["steps"]}

    @contextlib.contextmanager
    def running(commands):
        yield dict.fromkeys(commands, Slow())

    monkeypatch.setattr(bench_speed, "running", running)
    monkeypatch.setattr(bench_speed, "SOLVERS", ("ddim", "heun"))
    monkeypatch.setattr(bench_speed, "SOLVER_STEPS", (2, 5))
    monkeypatch.setattr(bench_speed, "SOLUTION_STEPS", 20)
    monkeypatch.setattr(bench_speed, "random_sd15", lambda folder: tiny_model)
    return bench_speed


def test_the_sets_share_no_composition_and_no_prompt(cells):
    tune, report = (cells.prompts_of(name, 120) for name in ("tune", "report"))
    for key in (lambda one: one.scene.composition, lambda one: one.prompt.lower()):
        assert not {key(one) for one in tune} & {key(one) for one in report}
    assert all(scenes.is_held_out(one.scene.composition) for one in tune + report)
    assert cells.prompts_of("tune", 7) == tune[:7]
    least = {one.scene.composition for one in report}
    assert len(least) > 60  # not a few again and again
    seeds = [set(range(first, first + 2000)) for first in cells.FIRST_SEED.values()]
    assert not seeds[0] & seeds[1]


def test_a_cell_goes_on_where_it_was(cells, tmp_path):
    cell = cells.Cell(tmp_path, "fast", {"steps": 50})
    cell.add([{"psnr": 1.5}])
    cell.add([{"psnr": 2.5}])
    again = cells.Cell(tmp_path, "fast", {"steps": 50})
    assert again.rows == [{"psnr": 1.5}, {"psnr": 2.5}]
    assert cells.Cell(tmp_path, "fast", {"steps": 20}).rows == []
    assert json.loads(cell.path.read_text())["about"] == {"steps": 50}
    assert [path.name for path in tmp_path.iterdir()] == [cell.path.name]


def test_psnr(cells):
    found, reference = np.array([0, 10, 255], np.uint8), np.array([5, 5, 250], np.uint8)
    assert cells.psnr(found, reference, 255) == pytest.approx(20 * math.log10(255 / 5))
    assert cells.psnr(found, found, 255) == 100


def rows(*told):
    return [
        {"right": {str(k): one for k, one in enumerate(right)}, "log_probability": sure,
         "psnr": 30.0 + number, "seconds": 2.0}
        for number, (right, sure) in enumerate(told)
    ]  # fmt: skip


def test_what_a_setting_costs_is_counted_by_prompt(scores):
    exact = rows(([1, 1, 1, 1], -0.1), ([1, 0], -1.0), ([1], -0.2))
    own = rows(([1, 1, 0, 1], -0.4), ([0, 0], -4.0), ([1], -0.2))
    found = scores.quality_of(own, exact)
    assert found.right.value == pytest.approx((0.75 + 0 + 1) / 3)
    assert found.loss.value == pytest.approx((0.25 + 0.5 + 0) / 3)
    assert found.loss.high == pytest.approx(0.5)  # one prompt alone, three times
    assert found.everything.value == pytest.approx(1 / 3)
    assert found.everything_loss.value == pytest.approx(1 / 3)
    assert found.drop.value == pytest.approx((0.3 + 3.0) / 3)
    assert (found.psnr.value, found.seconds) == (31.0, 2.0)
    assert scores.quality_of(exact, exact).loss == Interval(0, 0, 0, 3)


def test_the_ratio_is_of_neighbours(scores):
    """A machine that is ten times as slow in a round is so for both."""
    told = [
        {"seconds": 1.0 * slow, "exact_seconds": 3.0 * slow, "step": slow, "psnr": 20.0}
        for slow in (1, 10, 1)
    ]
    found = scores.pace_of(told)
    assert found.ratio == Interval(3.0, 3.0, 3.0, 3)
    assert (found.seconds, found.step, found.psnr) == (1.0, 1.0, 20.0)


@pytest.mark.parametrize(
    ("ratio", "loss", "high", "kept"),
    [
        (2.0, 0.005, 0.015, True),
        (1.9, 0.0, 0.0, False),
        (3.0, 0.006, 0.008, False),
        (3.0, 0.001, 0.016, False),
        (3.0, -0.01, 0.001, True),
    ],
)
def test_a_promise_is_kept_in_all_or_not(scores, ratio, loss, high, kept):
    target = scores.Target(ratio=2, loss=0.5, bound=1.5)
    told, found = scores.verdict(
        target, Interval(ratio, ratio, ratio, 3), Interval(loss, -0.02, high, 400)
    )
    assert found == kept
    assert told.startswith("met" if kept else "not met")
    assert f"{ratio:.2f}x exact" in told
    assert "400 prompts" in told


def test_the_frontier_has_what_no_other_beats(scores):
    found = {
        "exact": (1.0, 0.0), "good": (2.0, 0.1), "worse": (1.9, 0.2), "slower": (1.5, 0.1),
        "twin": (2.0, 0.1), "fast": (4.0, 2.0), "gain": (0.9, -0.1),
    }  # fmt: skip
    assert scores.frontier(found) == ["fast", "good", "twin", "exact", "gain"]


def test_the_fewest_steps_that_come_as_near(scores):
    likeness = {"a": {50: 30.0, 10: 25.0, 20: 30.0}, "b": {5: 31.0, 50: 40.0}, "c": {50: 29.9}}
    assert scores.reached(likeness, 30.0) == {"a": 20, "b": 5, "c": None}


def test_every_setting_is_one_of_the_packages_options(bench):
    found = {name: bench.setting_of(name) for name in bench.SETTINGS}
    assert len({repr(sorted(one.items())) for one in found.values()}) == len(found)
    for one in found.values():
        GenerateOptions(prompt="a dog", **one)
    assert bench.setting_of("unipc-20+interval-0.8") == {
        "scheduler": "unipc", "steps": 20, "guidance_interval": (0.0, 0.8),
    }  # fmt: skip
    with pytest.raises(SystemExit, match="no part is called b1"):
        bench.main(["--settings", "fast+b1"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 200),
        (["--set", "report"], 2000),
        (["--set", "report", "--device", "cpu"], 400),
        (["--set", "report", "--prompts", "7"], 7),
        (["--device", "cuda"], 200),
    ],
    ids=str,
)
def test_prompts_are_as_many_as_the_device_can_draw(bench, words, expected, monkeypatch):
    monkeypatch.setattr(bench, "choose_device", on_a_gpu)
    assert bench._options(words).prompts == expected


def on_a_gpu(name):
    return torch.device("cuda" if name == "auto" else name)


@pytest.mark.parametrize(
    ("device", "prompts", "enough", "goal"),
    [("cpu", 400, True, True), ("auto", 400, False, False), ("auto", 2000, True, False)],
)
def test_the_contract_is_that_of_the_device(
    bench, scores, device, prompts, enough, goal, monkeypatch, capsys
):
    monkeypatch.setattr(bench, "choose_device", on_a_gpu)
    words = ["--set", "report", "--device", device, "--prompts", str(prompts)]
    nothing, twice = Interval(0, 0, 0, prompts), Interval(2, 2, 2, 3)
    quality = scores.Quality(
        right=nothing, everything=nothing, loss=nothing, everything_loss=nothing, drop=nothing,
        psnr=None, seconds=1.0,
    )  # fmt: skip
    pace = scores.Pace(seconds=1.0, step=0.1, ratio=twice, psnr=None)
    bench.contract({"fast": quality}, {"fast": pace, bench.DIFFUSERS: pace}, bench._options(words))
    told = capsys.readouterr().out
    assert ("A trial" not in told) == enough
    assert "- fast: 1.00x diffusers' default" in told
    assert ("the goal on a CPU is 12x" in told) == goal


def test_steps_of_a_setting_shrink_with_those_of_exact(cells):
    def steps(setting, usual):
        return cells.Sitting(None, None, usual, {}).options(setting)["steps"]

    assert [steps({}, 50), steps({"steps": 20}, 50), steps({"steps": 20}, 10)] == [50, 20, 4]
    assert steps({"steps": 10}, 2) == 1


def test_all_of_it_and_once_more(bench, cells, tiny_model, tmp_path, monkeypatch, capsys):
    """Ended after some pictures and given again it goes on; a third time it only prints."""
    words = ["--model", str(tiny_model), *TINY, "--settings", *SHOWN, "--sd15-steps", "3"]
    drawn = []
    own = cells.Sitting.judge_next

    def ended(self, cell, *rest):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(cell.path.name)
        own(self, cell, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cells.Sitting, "judge_next", ended)
        with pytest.raises(KeyboardInterrupt):
            bench.main([*words, "--output", str(tmp_path / "a")])
    bench.main([*words, "--output", str(tmp_path / "a")])
    bench.main([*words, "--output", str(tmp_path / "b"), "--only", "adherence"])
    capsys.readouterr()
    for first, second in zip(*(adherence_cells(tmp_path / one) for one in "ab"), strict=True):
        assert first == second  # the interrupted one has the same answers
    for name in ("judge_next", "pace_next", "pace_beside", "solve_next"):
        monkeypatch.setattr(cells.Sitting, name, None)
    bench.main([*words, "--output", str(tmp_path / "a")])
    told = capsys.readouterr().out
    for name in ("exact", *SHOWN):
        assert len(re.findall(rf"^\| {re.escape(name)} \|", told, re.MULTILINE)) >= 3
    assert len(re.findall(r"^\| diffusers \| 2\.00 \|", told, re.MULTILINE)) == 2
    assert re.search(r"^\| heun \| -?[\d.]+ \(3\) \| -?[\d.]+ \(9\) \|", told, re.MULTILINE)
    assert re.search(r"is reached by ddim in 5, heun", told)
    assert re.search(r"^- balanced: (not )?met: [\d.]+x exact", told, re.MULTILINE)
    assert re.search(r"^- fast: [\d.]+x diffusers' default", told, re.MULTILINE)
    assert "A trial" in told
    assert told.count("## ") == 5


def adherence_cells(folder):
    """Rows of every adherence cell without their seconds."""
    found = []
    for file in sorted((folder / "adherence-tune").glob("*.json")):
        told = json.loads(file.read_text())["rows"]
        assert len(told) == 3
        found.append([{name: row[name] for name in row if name != "seconds"} for row in told])
    assert len(found) == 4
    return found


def test_a_pictures_row_is_of_that_prompt_and_seed(bench, cells, tiny_model, tmp_path):
    """Prompt k of a set has seed FIRST_SEED + k, whatever was drawn before."""
    words = ["--model", str(tiny_model), *TINY, "--settings", "exact", "--only", "adherence"]
    bench.main([*words, "--output", str(tmp_path), "--batch-size", "2", "--set", "report"])
    (folder,) = (path for path in (tmp_path / "adherence-report").iterdir() if path.is_dir())
    asked = cells.prompts_of("report", 3)[2]
    pipe = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32")
    torch.set_num_threads(1)
    expected = pipe(asked.prompt, seed=2, steps=4, width=64, height=64, batch_size=2).images[0]
    found = cells.open_image(folder / "00002.png")
    assert found.tobytes() == expected.tobytes()
