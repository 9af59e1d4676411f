"""Jobs: resumed, split over processes, refused where they do not belong together."""

import collections
import dataclasses
import gc
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from samples import folder_bytes, mirror

from ldm_toolkit import jobs
from ldm_toolkit.errors import InputError, NumericalError, UserError
from ldm_toolkit.images import open_image, pixels_sha256, read_recipe
from ldm_toolkit.jobs import finished_job, open_job, run_job
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.promptfile import Row, read_rows
from ldm_toolkit.recipe import GenerateOptions
from ldm_toolkit.tokens import chunk_prompt

TABLE = [
    {"prompt": "a dog", "steps": 2},
    {"prompt": "a cat", "steps": 3},
    {"prompt": "a dog wearing a hat", "steps": 2, "seed": 77},
    {"prompt": "a red car", "steps": 2, "width": 72},
    {"prompt": "a house", "steps": 2, "guidance": 1.0},
    {"prompt": "a tree", "steps": 2},
    {"prompt": "a boat", "steps": 3, "scheduler": "euler_a"},
]


@pytest.fixture
def rows() -> list[Row]:
    return [Row(GenerateOptions(**values)) for values in TABLE]


def run(pipe: LatentPipeline, rows: list[Row], folder: Path, **options: Any) -> list[jobs.Done]:
    split = {key: options.pop(key) for key in ("rank", "world") if key in options}
    job = open_job(rows, folder, **({"seed": 5, "drawn": 0, "batch_size": 2} | options))
    return list(run_job(pipe, job, **split))


def test_a_whole_job(pipe: LatentPipeline, rows: list[Row], tmp_path: Path) -> None:
    done = run(pipe, rows, tmp_path / "out")
    assert sorted(one.index for one in done) == list(range(7))
    header, *lines = [
        json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    ]
    assert header["seed"] == 5
    assert [line["index"] for line in lines] == list(range(7))
    assert [line["seed"] for line in lines] == [5, 6, 77, 8, 9, 10, 11]
    for line, row in zip(lines, TABLE, strict=True):
        path = tmp_path / "out" / line["file"]
        recipe = read_recipe(path)
        assert path.name == f"{line['index']:05d}-{line['seed']}.png"
        assert line["pixels_sha256"] == pixels_sha256(open_image(path)) == recipe.pixels_sha256
        assert {key: getattr(recipe, key) for key in row} == row
        assert recipe.batch_size == 2
    assert str(tmp_path) not in (tmp_path / "out/manifest.jsonl").read_text()


def test_a_row_has_the_bits_that_it_has_alone(
    pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    run(pipe, rows, tmp_path / "out")
    alone = pipe("a tree", steps=2, seed=10, batch_size=2)
    image = open_image(tmp_path / "out/00005-10.png")
    assert image.tobytes() == alone.images[0].tobytes()


def test_interrupted_anywhere_it_ends_with_the_same_folder(
    pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    run(pipe, rows, tmp_path / "whole")
    expected = folder_bytes(tmp_path / "whole")
    for stop in range(7):
        folder = tmp_path / str(stop)
        job = open_job(rows, folder, seed=None, drawn=5, batch_size=2)
        steps = run_job(pipe, job)
        for _ in range(stop):
            next(steps)
        steps.close()
        job = open_job(rows, folder, seed=None, drawn=999, batch_size=2)
        done = list(run_job(pipe, job))
        assert sum(one.found for one in done) >= stop
        before = json.loads(expected["manifest.jsonl"].splitlines()[0]) | {"seed": 5}
        found = folder_bytes(folder)
        assert json.loads(found["manifest.jsonl"].splitlines()[0]) == before
        assert found == expected


def cut_manifest(folder: Path, damage: str) -> None:
    """Leave of a manifest what a kill leaves, where the damage is one of its own."""
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    if damage == "half a line":
        manifest.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    elif damage == "no line":
        manifest.write_bytes(b"".join(lines[:3]))


@pytest.mark.parametrize("damage", ["half a line", "no line", "half a picture", "other picture"])
def test_what_a_kill_leaves_is_mended(
    damage: str, pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(pipe, rows, folder)
    expected = folder_bytes(folder)
    cut_manifest(folder, damage)
    if damage == "half a picture":
        path = folder / "00001-6.png"
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "other picture":
        (folder / "00001-6.png").write_bytes((folder / "00000-5.png").read_bytes())
    done = run(pipe, rows, folder)
    assert sum(not one.found for one in done) == (1 if "picture" in damage else 0)
    assert folder_bytes(folder) == expected


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_a_changed_picture_is_made_again(
    format: str, pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(pipe, rows, folder, format=format)
    expected = folder_bytes(folder)
    assert all(one.found for one in run(pipe, rows, folder, format=format))
    path = folder / f"00001-6.{format}"
    before = read_recipe(path)
    mirror(path)
    assert read_recipe(path) == before
    job = open_job(rows, folder, seed=5, drawn=0, batch_size=2, format=format)
    assert finished_job(job, pipe.identity.sha256) is None
    done = run(pipe, rows, folder, format=format)
    assert [one.index for one in done if not one.found] == [1]
    assert folder_bytes(folder) == expected


STRANGE = {
    "foreign rows": b'{"index": -1}\n{"index": 99}\n{"index": true}\n{"index": "0"}\n[0]\n\xff\n',
    "a row of another job": b'{"file": "00004-1.png", "index": 4, "prompt": "x", "seed": 1}\n',
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("strange", STRANGE)
def test_lines_that_are_not_of_the_job(
    strange: str, finished: bool, pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(pipe, rows, folder)
    expected = folder_bytes(folder)
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-2]) + STRANGE[strange])
    if not finished:
        (folder / "00005-10.png").unlink()
    job = open_job(rows, folder, seed=5, drawn=0, batch_size=2)
    if finished:
        assert finished_job(job, pipe.identity.sha256) is not None
    else:
        assert sum(not one.found for one in run_job(pipe, job)) == 1
    assert folder_bytes(folder) == expected


def test_a_first_line_that_lost_its_end(
    pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(pipe, rows, folder)
    expected = folder_bytes(folder)
    manifest = folder / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().splitlines()[0])
    steps = run_job(pipe, open_job(rows, folder, seed=5, drawn=0, batch_size=2))
    next(steps)
    steps.close()
    assert manifest.read_bytes().splitlines() == expected["manifest.jsonl"].splitlines()[:2]
    run(pipe, rows, folder)
    assert folder_bytes(folder) == expected


def test_a_process_killed_in_its_first_line(
    pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    run(pipe, rows, tmp_path / "one")
    folder = tmp_path / "two"
    run(pipe, rows, folder, rank=0, world=2)
    own = folder / "manifest-0-of-2.jsonl"
    own.write_bytes(own.read_bytes()[:20])
    run(pipe, rows, folder, rank=0, world=2)
    run(pipe, rows, folder, rank=1, world=2)
    assert folder_bytes(folder) == folder_bytes(tmp_path / "one")


@pytest.mark.parametrize("damage", ["none", "half a line", "no line", "leftover"])
def test_a_finished_job_needs_no_model(
    damage: str, pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(pipe, rows, folder)
    expected = folder_bytes(folder)
    cut_manifest(folder, damage)
    if damage == "leftover":
        (folder / f".{'a' * 16}.tmp").write_bytes(b"half")
    job = open_job(rows, folder, seed=5, drawn=0, batch_size=2)
    assert job.has_all_files()
    done = finished_job(job, pipe.identity.sha256)
    assert done is not None
    assert [(one.index, one.found) for one in done] == [(index, True) for index in range(7)]
    assert [one.recipe for one in done] == [read_recipe(one.path) for one in done]
    assert folder_bytes(folder) == expected
    with pytest.raises(UserError, match="made by another model"):
        finished_job(job, "0" * 64)


@pytest.mark.parametrize("damage", ["no picture", "half a picture", "other picture"])
def test_a_job_with_a_picture_to_draw_is_not_finished(
    damage: str, pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(pipe, rows, folder)
    path = folder / "00001-6.png"
    if damage == "no picture":
        path.unlink()
    elif damage == "half a picture":
        path.write_bytes(path.read_bytes()[:-300])
    else:
        path.write_bytes((folder / "00000-5.png").read_bytes())
    before = folder_bytes(folder)
    job = open_job(rows, folder, seed=5, drawn=0, batch_size=2)
    assert job.has_all_files() == (damage != "no picture")
    assert finished_job(job, pipe.identity.sha256) is None
    assert folder_bytes(folder) == before


def test_several_processes_make_the_same_folder(
    pipe: LatentPipeline, rows: list[Row], tmp_path: Path
) -> None:
    run(pipe, rows, tmp_path / "one")
    shares = [
        {one.index for one in run(pipe, rows, tmp_path / "three", rank=rank, world=3)}
        for rank in (2, 0, 1)
    ]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert all(shares)
    assert folder_bytes(tmp_path / "three") == folder_bytes(tmp_path / "one")
    assert run(pipe, rows, tmp_path / "three", rank=1, world=3)  # once more changes nothing
    assert folder_bytes(tmp_path / "three") == folder_bytes(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 4}, "batch_size differ"),
        ({"seed": 6}, "seed differ"),
        ({"format": "webp"}, "format differ"),
        ({"prompt": "another"}, "prompt file or options differ"),
        ({"more": True}, "number of rows"),
    ],
)
def test_another_job_in_the_same_folder(
    change: dict, told: str, rows: list[Row], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"seed": 5, "drawn": 0, "batch_size": 2}
    open_job(rows, tmp_path, **options)
    (tmp_path / "00000-5.png").write_bytes(b"a picture")  # a job without one makes way
    if "prompt" in change:
        rows[2] = Row(dataclasses.replace(rows[2].options, prompt=change.pop("prompt")))
    if change.pop("more", False):
        rows.append(rows[0])
    with pytest.raises(UserError, match=told):
        open_job(rows, tmp_path, **(options | change))


def test_a_folder_with_something_else(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match="not the manifest of a job"):
        open_job(rows, tmp_path, seed=1, drawn=0)


def test_pictures_of_another_model_are_not_taken(
    pipe: LatentPipeline, model_factory: Callable[..., Path], rows: list[Row], tmp_path: Path
) -> None:
    run(pipe, rows, tmp_path)
    other = LatentPipeline.from_pretrained(model_factory(seed=1), device="cpu", dtype="float32")
    with pytest.raises(UserError, match="made by another model"):
        run(other, rows, tmp_path)


def test_a_failing_group_leaves_the_others(
    pipe: LatentPipeline, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected"
    run(pipe, rows, expected)
    call = LatentPipeline.__call__

    def failing(self: LatentPipeline, prompt: list[str], **options: Any) -> Any:
        if "a house" in prompt:
            raise NumericalError("NaN")
        return call(self, prompt, **options)

    with monkeypatch.context() as patched:
        patched.setattr(LatentPipeline, "__call__", failing)
        done = run(pipe, rows, tmp_path / "out")
    assert [(one.index, str(one.error)) for one in done if one.error] == [(4, "NaN")]
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    run(pipe, rows, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == folder_bytes(expected)


def test_images_and_masks(pipe: LatentPipeline, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    lines = [
        {"prompt": "a dog", "image": "red.png", "steps": 4},
        {"prompt": "a cat", "image": "red.png", "mask": "white.png", "steps": 4},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    done = run(pipe, read_rows(file, {}), tmp_path / "out")
    assert [one.recipe.strength for one in done if one.recipe] == [0.75, 1.0]


# --- many rows ---

MANY = 10_000
STATM = Path("/proc/self/statm")


def test_many_rows_are_planned_in_one_pass(
    pipe: LatentPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prompt is read once, nothing is drawn, and groups are as full as they can be."""
    kinds = [(2 + (index % 4 == 0), 1 + (index % 10 == 0)) for index in range(MANY)]
    prompts = [
        f"a dog {index}" + " a" * 75 * (chunks - 1) for index, (_, chunks) in enumerate(kinds)
    ]
    rows = [
        Row(GenerateOptions(prompt=prompt, steps=steps))
        for prompt, (steps, _) in zip(prompts, kinds, strict=True)
    ]
    read: list[str] = []

    def counting(prompt: str, tokenizer: Any) -> Any:
        read.append(prompt)
        return chunk_prompt(prompt, tokenizer)

    monkeypatch.setattr(jobs, "chunk_prompt", counting)
    monkeypatch.setattr(LatentPipeline, "_run", None)
    job = open_job(rows, tmp_path, seed=1, drawn=0, batch_size=8)
    groups = jobs._groups(pipe, job)
    assert read == prompts
    assert sorted(index for group in groups for index in group) == list(range(MANY))
    assert all(len({kinds[index] for index in group}) == 1 for group in groups)
    assert max(map(len, groups)) == 8
    assert len(groups) == sum(-(-count // 8) for count in collections.Counter(kinds).values())
    assert len({job.path(index) for index in range(MANY)}) == MANY
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


def resident() -> int:
    """The memory that this process has now, in bytes."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="reads the memory where Linux tells it")
def test_memory_and_time_of_a_picture_do_not_grow(
    model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    """10,000 different prompts. A kept picture of 32 x 32 would be 4 KB; 2 KB each are allowed."""
    folder = model_factory(unet_channels=(16,))
    pipe = LatentPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    same: dict[str, Any] = {"steps": 1, "guidance": 1.0, "scheduler": "ddim"}
    same |= {"width": 32, "height": 32}
    rows = [Row(GenerateOptions(prompt=f"a dog {index}", **same)) for index in range(MANY)]
    job = open_job(rows, tmp_path / "out", seed=0, drawn=0, batch_size=8)
    memory, seconds = {}, {}
    made = 0
    for done in run_job(pipe, job):
        assert done.error is None
        assert not done.found
        made += 1
        if made % 2000 == 0:
            memory[made], seconds[made] = resident(), time.process_time()
    assert made == MANY
    assert (tmp_path / "out/manifest.jsonl").read_bytes().count(b"\n") == MANY + 1
    shutil.rmtree(tmp_path / "out")
    assert memory[MANY] - memory[2000] < 16 << 20, memory
    early, late = seconds[4000] - seconds[2000], seconds[MANY] - seconds[8000]
    assert late < 1.5 * early, seconds
