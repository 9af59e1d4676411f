"""``--profile`` and ``--trace``: every second counted once, files whole or not there."""

import builtins
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ldm_toolkit.cli import generate, profile
from ldm_toolkit.cli.profile import Profile
from ldm_toolkit.errors import UserError

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]
STAGES = ["start", "import", "weights", "text", "first_step", "steps", "decode", "save", "other"]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: it stands unless a test moves it. The process is five seconds old."""
    now = [100.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(profile, "process_age", lambda: 5.0)
    return now


# --- counting ---


def test_a_stage_inside_is_taken_off_the_outer_one(ticking: list[float]) -> None:
    found = Profile(True)
    ticking[0] += 1
    with found.stage("weights"):
        ticking[0] += 2
        with found.stage("import"):
            ticking[0] += 4
        ticking[0] += 8
    ticking[0] += 16
    with contextlib.suppress(UserError), found.stage("save"):
        ticking[0] += 32
        raise UserError("no")
    assert found.seconds == {"start": 5, "other": 17, "weights": 10, "import": 4, "save": 32}
    assert found.total == 68


def test_the_first_step_of_all_pictures_is_apart(ticking: list[float]) -> None:
    def run() -> object:
        for seconds in (10, 1, 1):
            ticking[0] += seconds
            yield seconds

    found = Profile(True)
    for _ in range(2):
        for _ in found.each(run()):
            ticking[0] += 0.5
    assert (found.pictures, found.steps) == (2, 6)
    assert found.seconds == {"start": 5, "first_step": 10, "steps": 14, "other": 3}
    rows = {line[:12].strip(): line for line in found.table().splitlines()}
    assert "5 of 2.800 s" in rows["other steps"]
    assert rows["other steps"].split()[:6] == ["other", "steps", "14.00", "44", "%", "7.000"]
    assert rows["total"].split() == ["total", "32.00", "100", "%"]


def test_import_statements_wherever_they_are(
    ticking: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(profile, "_test_clock", ticking, raising=False)
    tick = "import ldm_toolkit.cli.profile as p; p._test_clock[0] += 3\n"
    (tmp_path / "slow_one.py").write_text(tick + "import slow_two\n")
    (tmp_path / "slow_two.py").write_text(tick)
    original = builtins.__import__
    found = Profile(True)
    with contextlib.suppress(UserError), found.imports(), found.stage("weights"):
        ticking[0] += 1
        import slow_one  # noqa: F401

        raise UserError("no")
    assert builtins.__import__ is original
    assert found.seconds["import"] == 6
    assert found.seconds["weights"] == 1


def test_nothing_is_done_unasked(ticking: list[float]) -> None:
    found, original = Profile(False), builtins.__import__
    with found.imports(), found.stage("weights"):
        ticking[0] += 1
        assert builtins.__import__ is original
    assert found.seconds == {}


def test_an_accelerator_is_waited_for_at_both_ends() -> None:
    found, waited = Profile(True), []
    found.wait = lambda: waited.append(found.seconds.get("decode"))
    with found.stage("decode"):
        assert len(waited) == 1
    assert len(waited) == 2


def test_a_process_knows_its_age() -> None:
    """At least what it slept, at most what passed outside; a clock tick is 10 ms."""
    code = "import time; time.sleep(0.3)\nfrom ldm_toolkit.cli.profile import process_age\n"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(process_age())"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    least = 0.3 if sys.platform == "linux" else 0.0
    assert least <= float(done.stdout) <= time.perf_counter() - began + 0.02


# --- the command ---


def test_table_json_and_trace(ldm_gen: Command, workdir: Path) -> None:
    done = ldm_gen(
        "a dog", "-n", 2, "--steps", 3, "--seed", 1, "--scheduler", "ddim",
        "--profile", "where.json", "--trace", "trace.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [path.name for path in done.paths] == ["a-dog-1.png", "a-dog-2.png"]
    told = json.loads((workdir / "where.json").read_text())
    assert [name for name in told["stages"] if name != "trace"] == STAGES
    assert sum(told["stages"].values()) == pytest.approx(told["total"])
    assert all(value >= 0 for value in told["stages"].values())
    assert (told["pictures"], told["steps"]) == (2, 6)
    assert told["each_step"] == pytest.approx(told["stages"]["steps"] / 5)
    assert told["each_picture"]["decode"] == pytest.approx(told["stages"]["decode"] / 2)
    assert (told["recipe"]["seed"], told["recipe"]["steps"]) == (1, 3)
    titles = ["first step", "other steps", "decode", "save", "total", "a picture"]
    assert all(title in done.err for title in titles)

    events = json.loads((workdir / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") != "gpu_user_annotation"]
    labels = ("text", "first step", "decode", "save")  # of the first picture alone
    assert [names.count(name) for name in labels] == [1, 1, 1, 1]
    assert names.count("other steps") in (2, 3)  # the last one finds that there are no more
    assert "aten::conv2d" in names
    assert sorted(path.name for path in workdir.iterdir() if path.name.startswith(".")) == []


def test_of_one_picture_with_intermediates(ldm_gen: Command, workdir: Path) -> None:
    done = ldm_gen("a dog", "--steps", 2, "--save-intermediates", 1, "--profile", "where.json")
    told = json.loads((workdir / "where.json").read_text())
    assert told["stages"].keys() == {*STAGES, "intermediates"}
    assert "a picture" not in done.err


def test_a_run_that_fails_leaves_neither(
    ldm_gen: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise UserError("no luck")

    monkeypatch.setattr(generate, "_finished", failing)
    done = ldm_gen("a dog", "--steps", 1, "--profile", "where.json", "--trace", "trace.json")
    assert (done.code, done.err.count("no luck")) == (2, 1)
    assert list(workdir.iterdir()) == []


REFUSED = {
    "no .json": (("--profile", "where.txt"), "--profile 'where.txt': say FILE.json"),
    "the prompt swallowed": (("--trace", "a dog"), "--trace 'a dog': say FILE.json"),
    "empty": (("--trace", ""), "--trace is empty; say FILE.json"),
    "there": (("--profile", "there.json"), "there.json exists already; choose another name"),
    "no folder": (("--trace", "no/where.json"), "--trace: cannot write no/where.json"),
    "one file": (("--profile", "x.json", "--trace", "x.json"), "two files; name another one"),
    "no picture": (("--profile", "x.json", "--dry-run"), "--profile is for pictures"),
    "no drawing": (("--trace", "x.json", "--show-tokens"), "--trace is for pictures"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_loading(case: str, real_ldm_gen: Command, workdir: Path) -> None:
    words, message = REFUSED[case]
    (workdir / "there.json").write_text("mine")
    done = real_ldm_gen("a dog", *words, "--model", "storybook")
    assert done.code in (2, 74)
    assert message in done.err
    assert "loading" not in done.err
    assert [path.name for path in workdir.iterdir()] == ["there.json"]
    assert (workdir / "there.json").read_text() == "mine"


def test_a_job_refuses_them(real_ldm_gen: Command, workdir: Path) -> None:
    (workdir / "rows.txt").write_text("a dog\n")
    words = itertools.chain.from_iterable((f"--{name}", "x.json") for name in ("profile", "trace"))
    done = real_ldm_gen("--prompts", "rows.txt", "-o", "out/", *words)
    assert done.code == 2
    assert "--prompts does not go with --profile, --trace" in done.err


def test_an_existing_file_goes_with_overwrite(ldm_gen: Command, workdir: Path) -> None:
    (workdir / "where.json").write_text("old")
    assert ldm_gen("a dog", "--steps", 1, "--profile", "where.json", "--overwrite").code == 0
    assert json.loads((workdir / "where.json").read_text())["steps"] == 1


def test_a_process_that_ends_does_not_look_for_garbage() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # the last one to be called
from ldm_toolkit.cli.process import prepare_process
prepare_process("x", online=False, threads=None, told=None, debug=False)
print(gc.get_freeze_count())
"""
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=paths
    )
    assert done.stdout.split() == ["0", "True"]
