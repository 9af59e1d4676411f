"""Who draws when, and what becomes of the answers; contenders here only tell what they were asked.

Nothing here measures time.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.evaluation import speed as module
from ldm_toolkit.evaluation.speed import Contender, Turns, Worker, command_of, running, speed

# Answers with seconds that follow from the order, and notes each order in a file of all.
TALKER = """
import json, sys
name, slow, log = sys.argv[1], float(sys.argv[2]), sys.argv[3]
print(json.dumps({"load": 0.01, "about": {"dtype": name}}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    with open(log, "a") as file:
        file.write(f"{name} {order['steps']}x{order['batch']}\\n")
    if order["batch"] == 7:
        sys.exit("no memory for seven")
    step = slow * order["batch"]
    told = {"text": slow, "step": step, "decode": slow, "seconds": step * order["steps"],
            "first_step": step, "peak": slow * order["batch"]}
    print(json.dumps(told), flush=True)
"""
Follow = Callable[..., object]


@pytest.fixture
def talkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Contenders called by their kind; ``theirs`` is three times as slow. The file of orders."""
    log = tmp_path / "orders"

    def command(contender: Contender) -> list[str]:
        slow = "3" if contender.kind == "theirs" else "1"
        return [sys.executable, "-c", TALKER, contender.kind, slow, str(log)]

    monkeypatch.setattr(module, "command_of", command)
    return log


def follow(turns, total, label):
    assert len(turns) == total
    yield from turns


BOTH = {kind: Contender(kind=kind, model="x") for kind in ("ours", "theirs")}


def test_they_take_turns_in_alternate_order_after_a_warm_up(talkers: Path) -> None:
    speed(BOTH, Turns(steps=5, batches=(1, 2), rounds=2), follow)
    told = talkers.read_text().splitlines()
    assert told[:2] == ["ours 2x1", "theirs 2x1"]
    assert told[2:6] == ["ours 2x1", "theirs 2x1", "ours 2x2", "theirs 2x2"]
    assert told[6:10] == ["ours 5x1", "theirs 5x1", "ours 5x2", "theirs 5x2"]
    assert told[10:] == ["theirs 5x1", "ours 5x1", "theirs 5x2", "ours 5x2"]


def test_figures_ratios_and_settings(talkers: Path) -> None:
    found = speed(BOTH, Turns(steps=5, batches=(1, 2), rounds=2), follow)
    values = {title: one.value for title, one in found.scores.items()}
    assert values["UNet step, guided, s"] == 1
    assert values["picture of 5 steps, s"] == 5
    assert values["pictures a second, 2 at once"] == pytest.approx(2 / 10)
    assert values["ours / theirs: pictures a second, 1 at once"] == pytest.approx(3)
    assert values["theirs: picture of 5 steps, s"] == 15
    assert values["theirs / ours: UNet step, guided"] == 3
    assert values["theirs / ours: peak memory, GB"] == 3
    peaks = [
        values[f"{name}peak memory, {n} at once, GB"] for name in ("", "theirs: ") for n in (1, 2)
    ]
    assert peaks == [1, 2, 3, 6]
    assert found.scores["picture of 5 steps, s"].count == 2
    assert found.settings["theirs dtype"] == "theirs"
    assert (found.settings["steps"], found.settings["rounds"]) == (5, 2)
    alone = speed({"ours": BOTH["ours"]}, Turns(steps=5, batches=(3,), rounds=1), follow)
    assert "UNet step, 3 at once, s" in alone.scores
    assert not any("/ ours" in title for title in alone.scores)
    assert alone.settings["dtype"] == "ours"
    asked = Contender(kind="ours", model="x", drawing={"guidance": 2.0, "scheduler": "ddim"})
    drawn = speed({"ours": asked}, Turns(batches=(1,), rounds=1), follow).settings
    assert (drawn["guidance"], drawn["scheduler"]) == (2.0, "ddim")


def test_memory_is_told_of_growing_batches(talkers: Path) -> None:
    found = speed({"ours": BOTH["ours"]}, Turns(steps=5, batches=(4, 1), rounds=1), follow).scores
    told = [line.split()[1] for line in talkers.read_text().splitlines()]
    assert told == ["2x4", "2x1", "2x4", "5x4", "5x1"]
    assert [found[f"peak memory, {n} at once, GB"].value for n in (1, 4)] == [1, 4]


def test_as_many_steps_as_the_warm_up_has(talkers: Path) -> None:
    """The warm-up is not counted, though its orders look like the others."""
    found = speed({"ours": BOTH["ours"]}, Turns(steps=2, batches=(1,), rounds=3), follow)
    assert found.scores["text encoding, s"].count == 3


def test_a_contender_that_dies_says_why(talkers: Path) -> None:
    with pytest.raises(LdmToolkitError, match="ours ended early: no memory for seven"):
        speed({"ours": BOTH["ours"]}, Turns(batches=(1, 7)), follow)


def test_processes_end_with_the_block(talkers: Path) -> None:
    with running({"ours": module.command_of(BOTH["ours"])}) as workers:
        worker: Worker = workers["ours"]
        worker.ask(steps=1, batch=1)
        worker.ask(steps=4, batch=2)
        assert worker.median("seconds") == 8
    assert worker._process.returncode == 0


def test_the_command_tells_all_of_a_contender() -> None:
    asked = Contender(
        kind="ours", model="storybook", loading={"dtype": "float32"}, loras=[("a b.safetensors", 2)]
    )
    *start, told = command_of(asked)
    assert start == [sys.executable, "-m", "ldm_toolkit.evaluation.contender"]
    assert Contender(**json.loads(told)).loras == [["a b.safetensors", 2]]
