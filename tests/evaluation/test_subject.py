"""Rows of numbers a picture: in order, kept, resumed after a kill, shared by processes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from albums import Album, noise

from ldm_toolkit.errors import UserError
from ldm_toolkit.evaluation.subject import Share, Subject

COUNT = 70  # three blocks


class Counting:
    """A row of two numbers a picture, and which indices were asked for."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.dies_at = dies_at

    def __call__(self, block: Sequence[int]) -> np.ndarray:
        if self.dies_at in block:
            raise KeyboardInterrupt
        self.seen += block
        return np.array([[index, -index] for index in block], dtype=np.float32)


@pytest.fixture
def album() -> Album:
    return Album(noise(COUNT, size=8))


def test_rows_are_in_order_and_computed_once(subject: Callable[..., Subject], album: Album) -> None:
    first, again, other = Counting(), Counting(), Counting()
    one = subject(album)
    rows = one.rows(album, "key", first, "x")
    assert rows.tolist() == [[i, -i] for i in range(COUNT)]
    assert first.seen == list(range(COUNT))
    assert one.rows(album, "key", again, "x").tolist() == rows.tolist()
    assert again.seen == []
    one.rows(album, "another key", other, "x")
    assert other.seen == first.seen


def test_what_a_kill_left_goes_on(subject: Callable[..., Subject], album: Album) -> None:
    killed, after = Counting(dies_at=40), Counting()
    with pytest.raises(KeyboardInterrupt):
        subject(album).rows(album, "key", killed, "x")
    rows = subject(album).rows(album, "key", after, "x")
    assert rows[:, 0].tolist() == list(range(COUNT))
    assert killed.seen + after.seen == list(range(COUNT))


def test_a_changed_picture_is_looked_at_again_and_damage_is_none(
    subject: Callable[..., Subject], album: Album, tmp_path: Path
) -> None:
    subject(album).rows(album, "key", Counting(), "x")
    album.images = [*album.images[:69], noise(1, seed=9, size=8)[0]]
    changed = Counting()
    subject(album).rows(album, "key", changed, "x")
    assert changed.seen == list(range(64, 70))
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    damaged = Counting()
    assert len(subject(album).rows(album, "key", damaged, "x")) == COUNT
    assert damaged.seen == list(range(COUNT))


def test_processes_share_the_blocks(
    subject: Callable[..., Subject], album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = Counting()

    def wait(share: Share) -> None:
        if share.rank == 0:  # meanwhile the other process has done its part
            other = subject(album, share=Share(1, 2))
            other.rows(album, "key", others, "x")

    monkeypatch.setattr(Share, "wait", wait)
    own = Counting()
    rows = subject(album, share=Share(0, 2)).rows(album, "key", own, "x")
    assert rows[:, 0].tolist() == list(range(COUNT))
    assert own.seen == [*range(32), *range(64, 70)]
    assert others.seen == list(range(32, 64))


def test_nothing_to_compare_with(subject: Callable[..., Subject], album: Album) -> None:
    with pytest.raises(UserError, match="no --reference"):
        subject(album).compared()
