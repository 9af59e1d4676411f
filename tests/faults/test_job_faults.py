"""Jobs that are killed: whole pictures, and the same folder in the end."""

import random
import signal
import time
from pathlib import Path

import pytest
from samples import folder_bytes
from test_generate_faults import STOPS, Server, check_whole, server, stop  # noqa: F401 - a fixture

ROWS = 20


def carry_on_after_kills(
    server: Server,  # noqa: F811
    number: signal.Signals,
    count: int,
    model: Path,
    folder: Path,
) -> None:
    """Kill a job of 20 rows at seeded moments; the same command ends with the same folder."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"a dog {row}" for row in range(ROWS)))
    words = ("--prompts", prompts, "--seed", 1, "--steps", 2, "--batch-size", 2)
    words = (*words, "--model", model, "--device", "cpu")
    started = time.monotonic()
    code, text = server.start(*words, "-o", f"{folder}/whole/").finish()
    assert code == 0, text
    duration = time.monotonic() - started
    expected = folder_bytes(folder / "whole")
    assert len(expected) == ROWS + 1
    chance = random.Random(count)
    codes = []
    for attempt in range(count):
        place = folder / str(attempt)
        child = server.start(*words, "-o", f"{place}/")
        codes.append(stop(child, number, chance.uniform(0, duration)))
        if codes[-1] == 0:
            duration /= 2  # the measured run was slow, this one had ended before
        if place.exists():
            check_whole(place, temporary=number == signal.SIGKILL)
        code, text = server.start(*words, "-o", f"{place}/").finish()
        assert code == 0, text
        assert folder_bytes(place) == expected
    assert STOPS[number] in codes


@pytest.mark.parametrize("number", list(STOPS), ids=lambda number: number.name)
def test_a_killed_job_is_carried_on(
    number: signal.Signals,
    server: Server,  # noqa: F811
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    carry_on_after_kills(server, number, 3, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", list(STOPS), ids=lambda number: number.name)
def test_a_job_killed_at_many_moments_is_carried_on(
    number: signal.Signals,
    server: Server,  # noqa: F811
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    carry_on_after_kills(server, number, 20, tiny_model, tmp_path)
