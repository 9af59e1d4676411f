"""The bar, metrics.jsonl and trackers tell the same of a run."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from training_tools import Line, line_config

from ldm_toolkit import progress
from ldm_toolkit.errors import UserError
from ldm_toolkit.training import begin, loop
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.watching import Watch


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "notes"
    requires_logging_directory = False

    def __init__(self, broken=False):
        super().__init__()
        self.entries, self.configuration, self.finished = [], None, 0
        self.broken = broken

    @property
    def tracker(self):
        return self.entries

    def start(self):
        if self.broken:
            raise ConnectionError("no account\nlong explanation")

    def store_init_configuration(self, values):
        self.configuration = values

    def log(self, values, step=None, **options):
        self.entries.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def tracked():
    """Makes an Accelerator with a tracker."""

    def make(notes):
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, log_with=notes)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def lines_of(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_trackers_get_what_the_metrics_hold(tracked, tmp_path):
    notes = Notes()
    loop.train(Line(), line_config(tmp_path, steps=5), tracked(notes))
    lines = lines_of(tmp_path)
    assert (
        [step for step, _ in notes.entries] == [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    )
    for line, (_, values) in zip(lines, notes.entries, strict=True):
        for name in ("loss", "grad_norm", "lr"):
            assert values[name] == line[name]
        assert values["samples_per_second"] > 0
    assert notes.finished == 1
    assert notes.configuration["lr"] == 0.05
    assert all(type(value) in (bool, int, float, str) for value in notes.configuration.values())


def test_a_stopped_run_finishes_its_trackers(tracked, tmp_path):
    notes = Notes()

    def sample(step):
        if step > 0:
            raise KeyboardInterrupt

    config = line_config(tmp_path, sample_every=3)
    with pytest.raises(KeyboardInterrupt):
        loop.train(Line(), config, tracked(notes), sample=sample)
    assert notes.finished == 1
    assert len(notes.entries) == 3


def test_a_resumed_run_tells_the_rest(tracked, tmp_path):
    options = {"lr_schedule": "constant"}
    loop.train(Line(), line_config(tmp_path, steps=4, **options), tracked(Notes()))
    notes = Notes()
    loop.train(Line(), line_config(tmp_path, steps=6, **options), tracked(notes))
    assert [step for step, _ in notes.entries] == [5, 6]


def test_a_tracker_that_cannot_start_is_told(tracked, tmp_path):
    config = line_config(tmp_path, trackers="wandb")
    with pytest.raises(UserError, match=r"--trackers wandb cannot start: no account$"):
        loop.train(Line(), config, tracked(Notes(broken=True)))


def test_validation_is_nested_in_metrics_and_flat_in_trackers(tracked, tmp_path):
    notes = Notes()
    measured = {"pictures": 3, "raw": {"loss": 0.5, "bands": {"0-99": 0.25}}}
    with Watch(line_config(tmp_path), tracked(notes), 0) as watch:
        watch.report(1, {"loss": 1.0}, 0.5, measured)
        watch.report(2, {"loss": 1.0}, 0.5)
    assert [line.get("validation") for line in lines_of(tmp_path)] == [measured, None]
    flat = {"validation/pictures": 3, "validation/raw/loss": 0.5, "validation/raw/bands/0-99": 0.25}
    told = {"loss": 1.0, "samples_per_second": 4.0}
    assert notes.entries == [(1, told | flat), (2, told)]


def test_a_terminal_gets_a_bar_with_loss_rate_and_the_time_left(
    accelerator, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    config = line_config(tmp_path, batch_size=4, accumulate=2)
    with Watch(config, accelerator, 0) as watch:
        for step in range(1, 13):
            time.sleep(0.02)
            watch.report(step, {"loss": 0.125, "lr": 1e-4}, 0.25)
    shown = capsys.readouterr().err
    assert "loss=0.125, lr=0.0001, samples/s=32" in shown
    assert "/12 [" in shown
    assert "<" in shown  # elapsed<remaining


def test_a_log_file_gets_a_line_now_and_then(accelerator, caplog, capsys, monkeypatch, tmp_path):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO", "ldm_toolkit")
    with Watch(line_config(tmp_path, batch_size=4), accelerator, 3) as watch:
        for step in range(4, 13):
            watch.report(step, {"loss": 0.125, "lr": 1e-4}, 0.25)
    figures = "loss=0.125, lr=0.0001, samples/s=16"
    assert caplog.messages == [
        f"training: step 6/12, {figures}, about 24 s left",
        f"training: step 9/12, {figures}, about 12 s left",
    ]
    assert capsys.readouterr().err == ""


def test_only_the_first_process_writes(tmp_path):
    other = SimpleNamespace(is_main_process=False, num_processes=2, log_with=[], trackers=[])
    with Watch(line_config(tmp_path), other, 0) as watch:
        watch.report(1, {"loss": 1.0}, 0.5)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_missing_packages_are_told_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(begin, "get_available_trackers", lambda: ["tensorboard"])
    config = LoopConfig(output=str(tmp_path), threads=1, trackers="tensorboard, wandb,trackio")
    with pytest.raises(UserError, match=r"--trackers wandb, trackio: not installed; pip install"):
        begin.begin(config)


def test_trackers_by_name_reach_accelerate(monkeypatch, tmp_path):
    monkeypatch.setattr(begin, "get_available_trackers", lambda: ["tensorboard"])
    told = begin._tracking(LoopConfig(output=str(tmp_path), trackers="tensorboard"))
    assert told["log_with"] == ["tensorboard"]
    assert told["project_config"].logging_dir == str(tmp_path / "logs")
    assert begin._tracking(LoopConfig(output=str(tmp_path))) == {}


def test_tensorboard_itself(tracked, tmp_path):
    """A resumed run continues the curves of the first."""
    pytest.importorskip("tensorboard")
    AcceleratorState._reset_state(reset_partial_state=True)
    config = line_config(tmp_path, trackers="tensorboard")
    accelerator = Accelerator(cpu=True, **begin._tracking(config))
    loop.train(Line(), config, accelerator)
    assert list((tmp_path / "logs" / "ldm-toolkit").rglob("events.out.tfevents.*"))
