"""The time that is left: the first step does not count, and no single step moves it much."""

import re
import sys
from typing import Any

import pytest

from ldm_toolkit import progress
from ldm_toolkit.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that goes only when it is told to."""

    class Clock:
        now = 1000.0

    for name in ("monotonic", "time"):
        monkeypatch.setattr(progress.time, name, lambda: Clock.now)
    monkeypatch.setattr("tqdm.std.time", lambda: Clock.now)  # its own name for the same
    return Clock


def lines(clock: Any, seconds: list[float], **options: Any) -> list[str]:
    told: list[str] = []
    with Progress(100, "training", tell=told.append, every=5.0, **options) as shown:
        for one in seconds:
            clock.now += one
            shown.update("loss=1")
    return told


def test_what_the_first_step_waited_for_is_not_extrapolated(clock: Any) -> None:
    told = lines(clock, [600.0, 3.0, 3.0, 3.0], begun=10)
    assert told == [
        "training: step 11/100, loss=1",
        "training: step 13/100, loss=1, about 4 min left",  # 87 steps of 3 seconds
    ]


def test_one_slow_step_among_many_moves_it_little(clock: Any) -> None:
    told = lines(clock, [6.0] * 40 + [60.0] + [6.0])
    left = [int(found) for one in told for found in re.findall(r"about (\d+) min left", one)]
    assert left[0] == 10
    assert max(left[-3:]) <= 7  # 58 steps of 6 seconds, and a little


def test_the_bar_tells_the_same(
    clock: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert lines(clock, [600.0, 3.0, 3.0, 3.0], begun=10) == []
    shown = capsys.readouterr().err.split("\r")
    first, second, third = ([one for one in shown if f" {n}/100 " in one][-1] for n in (11, 12, 13))
    assert "<?," in first
    assert "<04:24" in second
    assert "<04:21" in third
