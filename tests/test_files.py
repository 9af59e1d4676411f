"""Whole or not there."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ldm_toolkit import files
from ldm_toolkit.errors import CannotWrite, ModelError

TRAVERSALS = [
    "../x", "a/../../x", "/etc/passwd", "..\\x", "C:/x", "C:\\x", "\\\\host\\x", "", ".", "..",
    "a//b", "a/", "/", "a/./b", "a\0b", "./a",
]  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_replace(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", b"one", overwrite=False)
    files.write_atomic(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_existing_file_stays_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(CannotWrite, match="exists already") as caught:
        files.write_atomic(tmp_path / "a", b"other", overwrite=False)
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failing_disk_leaves_what_was_there(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"before")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if call == "open":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(CannotWrite, match="No space left"):
        files.write_atomic(tmp_path / "a", b"after")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    code = (
        "import sys; from ldm_toolkit.files import write_atomic; from ldm_toolkit.errors import *\n"
        "try: write_atomic('a', sys.argv[1].encode() * 100_000, overwrite=False)\n"
        "except CannotWrite: sys.exit(7)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(n)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for n in range(4)
    ]
    codes = [worker.wait() for worker in workers]
    assert sorted(codes) == [0, 7, 7, 7]
    assert (tmp_path / "a").read_bytes() == str(codes.index(0)).encode() * 100_000
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with files.staged_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text("2")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "deep" / "b").read_text() == "2"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_folder_leaves_the_old_one(kind: type, tmp_path: Path) -> None:
    with files.staged_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("old")

    def interrupted() -> None:
        with files.staged_directory(tmp_path / "out") as folder:
            (folder / "a").write_text("new")
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_what_fails_inside_is_told_by_the_final_name(tmp_path: Path) -> None:
    def full() -> None:
        with files.staged_directory(tmp_path / "out") as folder:
            files.write_atomic(folder / "gone" / "a", b"1")

    with pytest.raises(CannotWrite) as caught:
        full()
    assert str(caught.value).startswith(f"cannot write {tmp_path}/out/gone/a: ")


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with files.staged_directory(tmp_path / "out") as folder:
            (folder / text).write_text(text)
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_paths_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        files.contained_path(tmp_path, name)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out"):
        files.contained_path(tmp_path / "root", "link")
    assert files.contained_path(tmp_path / "root", "a/b").parent.name == "a"


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "a") == files.sha256_bytes(b"abc") == known


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    ours = [f".{'0123456789abcdef'}.tmp", f".{'a' * 16}.tmp"]
    others = [".hidden.tmp", "a.tmp", f".{'a' * 16}.png", f".{'A' * 16}.tmp", "dog.png"]
    for name in ours + others:
        (tmp_path / name).write_bytes(b"x")
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_leftovers_have_the_names_that_writing_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as after a SIGKILL
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "dog.png", b"x")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


FILLING = """
import time
from ldm_toolkit.files import staged_directory
with staged_directory("out") as folder:
    (folder / "a").write_text("theirs")
    print("filling", flush=True)
    time.sleep(600)
"""


def test_folders_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", FILLING],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "filling\n"
        with files.staged_directory(tmp_path / "out") as folder:
            (folder / "a").write_text("ours")
        (hidden,) = (name for name in names(tmp_path) if name != "out")
        assert (tmp_path / hidden / "a").read_text() == "theirs"
    finally:
        child.kill()
        child.communicate()
    assert names(tmp_path) == sorted([hidden, "out"])
    with files.staged_directory(tmp_path / "other"):
        pass
    assert names(tmp_path) == sorted([hidden, "other", "out"])
    with files.staged_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("ours again")
    assert names(tmp_path) == ["other", "out"]
    assert (tmp_path / "out" / "a").read_text() == "ours again"


def test_two_that_fill_the_same_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with files.staged_directory(tmp_path / "out") as first:
        (first / "a").write_text("1")
        with files.staged_directory(tmp_path / "out") as second:
            (second / "a").write_text("2")
        assert (first / "a").read_text() == "1"
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_that_another_puts_in_place_meanwhile(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, quicker = tmp_path / "out", os.rename, []
    if before:
        out.mkdir()

    def late(source: Path, target: Path) -> None:
        if target == out and not quicker:
            quicker.append(source)
            out.mkdir()
            (out / "theirs").write_text("2")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with files.staged_directory(out) as folder:
        (folder / "ours").write_text("1")
    assert quicker
    assert names(out) == ["ours"]
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(files.fcntl is None, reason="no such locks here")
def test_a_folders_lock_is_of_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    found: list[int] = []

    def use(number: int) -> None:
        with files.folder_lock(tmp_path):
            inside.append(number)
            time.sleep(0.01)
            found.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert found == [1] * 8


def test_only_leftovers_of_the_same_name_are_removed(tmp_path: Path) -> None:
    ours = [".a.b*.01234567.tmp", ".a.b*.89abcdef.old"]
    others = [".a.bc.01234567.tmp", ".a.b*.0123456.tmp", ".a.b*.0123456G.tmp", "a.b*.01234567.tmp"]
    for name in ours + others:
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / ".a.b*.00000000.tmp").write_text("a file")
    (tmp_path / ".a.b*.11111111.tmp").symlink_to(tmp_path / others[0])
    others += [".a.b*.00000000.tmp", ".a.b*.11111111.tmp"]
    with files.staged_directory(tmp_path / "a.b*"):
        assert not (tmp_path / ours[0]).exists()
        # All that is left of a folder that was killed between its two renames.
        assert (tmp_path / ours[1]).exists()
    with files.staged_directory(tmp_path / "a.b*"):
        pass
    assert names(tmp_path) == sorted([*others, "a.b*"])
    assert (tmp_path / others[0] / "deep").is_dir()


def test_a_folder_lost_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = files._locked
    lost: list[Path] = []

    def late(folder: Path, *, wait: bool) -> int | None:
        if wait and not lost:
            lost.append(folder)
            folder.rmdir()  # as another process does that takes it for a leftover
        return lock(folder, wait=wait)

    monkeypatch.setattr(files, "_locked", late)
    with files.staged_directory(tmp_path / "out") as folder:
        assert [folder] != lost
        (folder / "a").write_text("1")
    assert names(tmp_path) == ["out"]


def test_without_locks_leftovers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".out.01234567.tmp").mkdir()
    with files.staged_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == [".out.01234567.tmp", "out"]


def test_a_file_in_the_way_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with (
        pytest.raises(CannotWrite, match="a file is in the way"),
        files.staged_directory(tmp_path / "a"),
    ):
        pass
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 250, "file/x", "file/x/y"])
def test_names_that_no_folder_can_have(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(CannotWrite, match="cannot write") as caught,
        files.staged_directory(tmp_path / name),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)
    assert names(tmp_path) == ["file"]


def test_a_staged_folder_may_get_its_name_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first/theirs").write_text("x")
    with files.staged_directory(tmp_path / "first", lambda: tmp_path / "second") as folder:
        (folder / "ours").write_text("y")
    assert (tmp_path / "first/theirs").read_text() == "x"
    assert (tmp_path / "second/ours").read_text() == "y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
