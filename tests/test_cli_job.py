"""``ldm-gen --prompts`` and the options that say what is done rather than how it looks."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from samples import folder_bytes
from test_cli import here

from ldm_toolkit.images import open_image, pixels_sha256, read_recipe
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import GenerateOptions

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]
NO_TORCH = """
import sys
from ldm_toolkit.cli.generate import main
code = main(sys.argv[1:])
sys.exit("torch was imported" if "torch" in sys.modules else code)
"""
PROMPTS = ["a dog", "a cat", "a red car", "a house", "a tree"]


@pytest.fixture
def prompts(workdir: Path) -> Path:
    file = workdir / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n")
    return file


class TestJob:
    def test_a_file_of_prompts(self, ldm_gen: Command, prompts: Path, workdir: Path) -> None:
        done = ldm_gen("--prompts", prompts, "--seed", 3, "--steps", 2, "-o", "out/")
        assert done.code == 0, done.err
        assert [path.name for path in done.paths] == [f"{n:05d}-{3 + n}.png" for n in range(5)]
        for number, path in enumerate(done.paths):
            recipe = read_recipe(path)
            assert (recipe.prompt, recipe.seed, recipe.steps) == (PROMPTS[number], 3 + number, 2)
            assert recipe.pixels_sha256 == pixels_sha256(open_image(path))
        assert (workdir / "out" / "manifest.jsonl").read_text().count("\n") == 6

    def test_the_same_command_again_makes_nothing_twice(
        self, ldm_gen: Command, prompts: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("--prompts", prompts, "--steps", 2, "-o", "out/", "--batch-size", 2)
        first = ldm_gen(*words)
        before = folder_bytes(workdir / "out")
        monkeypatch.setattr(LatentPipeline, "_run", None)
        again = ldm_gen(*words)
        assert again.code == 0, again.err
        assert sorted(again.out.splitlines()) == sorted(first.out.splitlines())
        assert folder_bytes(workdir / "out") == before
        other = ldm_gen(*words, "--guidance", 3)
        assert other.code == 2
        assert "holds another job: prompt file or options differ" in other.err

    def test_a_finished_job_loads_nothing(
        self,
        ldm_gen: Command,
        prompts: Path,
        workdir: Path,
        tiny_model: Path,
        model_factory: Callable[..., Path],
    ) -> None:
        words = ("--prompts", prompts, "--steps", 1, "--seed", 1, "-o", "out/")
        first = ldm_gen(*words)
        before = folder_bytes(workdir / "out")

        def again(model: Path) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", NO_TORCH, *map(str, words), "--model", str(model)]
            return subprocess.run(command, env=here(), capture_output=True, text=True)

        done = again(tiny_model)
        assert done.returncode == 0, done.stderr
        assert done.stdout == first.out
        assert "5 pictures were there already" in done.stderr
        assert folder_bytes(workdir / "out") == before
        other = again(model_factory(seed=1))
        assert other.returncode == 2
        assert "was made by another model" in other.stderr

    def test_a_job_whose_files_are_there_but_not_whole_is_drawn(
        self, ldm_gen: Command, prompts: Path, workdir: Path
    ) -> None:
        words = ("--prompts", prompts, "--steps", 1, "--seed", 1, "-o", "out/")
        ldm_gen(*words)
        before = folder_bytes(workdir / "out")
        (workdir / "out" / "00001-2.png").write_bytes(b"half a picture")
        done = ldm_gen(*words)
        assert done.code == 0, done.err
        assert "4 pictures were there already" in done.err
        assert folder_bytes(workdir / "out") == before

    def test_json_lines(self, ldm_gen: Command, prompts: Path) -> None:
        done = ldm_gen("--prompts", prompts, "--seed", 1, "--steps", 1, "-o", "out/", "--json")
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert [line["seed"] for line in lines] == [1, 2, 3, 4, 5]
        assert [line["recipe"]["prompt"] for line in lines] == PROMPTS

    def test_bad_rows_are_told_before_the_model_loads(
        self, ldm_gen: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LatentPipeline, "from_pretrained", None)
        (workdir / "p.jsonl").write_text('{"prompt": "a", "width": 65}\n{"prompt": ""}\n')
        done = ldm_gen("--prompts", "p.jsonl", "-o", "out/")
        assert done.code == 2
        assert (
            "2 bad rows: p.jsonl:1: width must be a multiple of 8; the nearest is 64; p.jsonl:2:"
            in done.err
        )
        assert not (workdir / "out").exists()

    def test_a_seed_of_ones_own_is_kept_by_the_job(
        self, ldm_gen: Command, prompts: Path, workdir: Path
    ) -> None:
        """Without --seed the job draws one, and the same command goes on with it."""
        words = ("--prompts", prompts, "--steps", 1, "-o", "out/")
        first = ldm_gen(*words)
        (workdir / "out" / first.paths[2].name).unlink()
        before = folder_bytes(workdir / "out")
        again = ldm_gen(*words)
        assert [path.name for path in again.paths] == [path.name for path in first.paths]
        assert before.items() <= folder_bytes(workdir / "out").items()


class TestJobsThatDiffer:
    def test_another_dtype_is_another_job(
        self, ldm_gen: Command, prompts: Path, workdir: Path
    ) -> None:
        words = ("--prompts", prompts, "--steps", 1, "--seed", 1, "-o", "out/")
        assert ldm_gen(*words).code == 0
        (workdir / "out" / "00001-2.png").unlink()
        done = ldm_gen(*words, "--dtype", "bf16")
        assert done.code == 2
        assert "holds another job" in done.err

    @pytest.mark.parametrize(
        ("row", "told"),
        [
            ('{"prompt": "a", "clip_skip": 60}', "p.jsonl:2: clip_skip: the text encoder"),
            ('{"prompt": "a", "scheduler": "euler", "eta": 0.5}', "p.jsonl:2: eta: euler"),
            ('{"prompt": "a", "steps": 51, "scheduler": "lcm"}', "p.jsonl:2: steps: lcm can do 50"),
            ('{"prompt": "(a:500)"}', "p.jsonl:2: the weight of"),
            ('{"prompt": "a", "prompt": "b"}', "p.jsonl:2: not JSON: a name occurs twice"),
        ],
    )
    def test_rows_that_the_model_cannot_draw_leave_nothing(
        self, row: str, told: str, ldm_gen: Command, workdir: Path
    ) -> None:
        (workdir / "p.jsonl").write_text('{"prompt": "good"}\n' + row + "\n")
        done = ldm_gen("--prompts", "p.jsonl", "-o", "out/")
        assert done.code == 2
        assert told in done.err
        assert not (workdir / "out").exists()

    def test_a_job_that_came_to_nothing_makes_way(
        self, ldm_gen: Command, prompts: Path, workdir: Path
    ) -> None:
        (workdir / "out").mkdir()
        (workdir / "out" / "manifest.jsonl").write_text('{"job": 1, "seed": 5, "rows": 9}\n')
        done = ldm_gen("--prompts", prompts, "--steps", 1, "--seed", 1, "-o", "out/")
        assert done.code == 0, done.err

    @pytest.mark.parametrize("damage", ["garbage", "", "5", '{"index": "x"}', "[]"])
    def test_a_damaged_manifest_is_mended(
        self, damage: str, ldm_gen: Command, prompts: Path, workdir: Path
    ) -> None:
        words = ("--prompts", prompts, "--steps", 1, "--seed", 1, "-o", "out/")
        ldm_gen(*words)
        expected = folder_bytes(workdir / "out")
        lines = expected["manifest.jsonl"].decode().splitlines()
        lines[2] = damage
        (workdir / "out" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        done = ldm_gen(*words)
        assert done.code == 0, done.err
        assert folder_bytes(workdir / "out") == expected

    @pytest.mark.parametrize(
        ("rank", "world"), [("", "2"), ("abc", "2"), ("0", "0"), ("5", "2"), ("-1", "2")]
    )
    def test_an_environment_that_makes_no_sense(
        self,
        rank: str,
        world: str,
        ldm_gen: Command,
        prompts: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        done = ldm_gen("--prompts", prompts, "--steps", 1, "-o", "out/")
        assert done.code == 2
        assert "RANK and WORLD_SIZE" in done.err


JOB = "from ldm_toolkit.cli.generate import main; import sys; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_several_processes_make_the_same_folder(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", JOB, "--prompts", str(prompts), "--seed", "1", "--steps", "2"]
    words += ["--model", str(tiny_model), "--threads", "1", "--quiet", "-o"]
    subprocess.run([*words, f"{tmp_path}/one/"], env=here(), check=True)
    ranks = [
        subprocess.Popen(
            [*words, f"{tmp_path}/three/"],
            env=here() | {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"},
        )
        for rank in range(3)
    ]
    assert [process.wait() for process in ranks] == [0, 0, 0]
    assert folder_bytes(tmp_path / "three") == folder_bytes(tmp_path / "one")


class TestOptions:
    def test_dry_run_does_nothing(
        self, ldm_gen: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LatentPipeline, "from_pretrained", None)
        done = ldm_gen("a dog", "--dry-run", "--seed", 4, "-n", 2, "--steps", 9)
        plan = json.loads(done.out)
        assert plan["options"]["steps"] == 9
        assert plan["pictures"] == ["a-dog-4.png", "a-dog-5.png"]
        assert list(workdir.iterdir()) == []

    @pytest.mark.parametrize(
        "words",
        [
            (),
            ("--scheduler", "euler", "--height", 32, "--guidance-rescale", 0.5),
            ("--image", "in.png"),
            ("--image", "in.png", "--mask", "in.png", "--width", 56),
        ],
    )
    def test_dry_run_tells_what_the_recipe_will_hold(
        self, words: tuple[object, ...], ldm_gen: Command, workdir: Path
    ) -> None:
        Image.new("RGB", (50, 41), "red").save(workdir / "in.png")
        words = ("a dog", "--seed", 4, "--steps", 3, *words)
        planned = json.loads(ldm_gen(*words, "--dry-run").out)["options"]
        recipe = json.loads(ldm_gen(*words, "--json").out)["recipe"]
        assert planned == {name: recipe[name] for name in planned}
        assert len(planned) == len(dataclasses.fields(GenerateOptions))

    def test_dry_run_of_a_job(self, ldm_gen: Command, workdir: Path) -> None:
        Image.new("RGB", (50, 41), "red").save(workdir / "in.png")
        rows = ['{"prompt": "a"}', '{"prompt": "b", "image": "in.png"}', '{"prompt": "c"}']
        (workdir / "p.jsonl").write_text("\n".join(rows))
        words = ("--prompts", "p.jsonl", "-o", "out/", "--steps", 3, "--dry-run")
        planned = json.loads(ldm_gen(*words, "--seed", 5).out)["rows"]
        assert [row["seed"] for row in planned] == [5, 6, 7]
        assert [(row["width"], row["height"]) for row in planned] == [(64, 64), (48, 40), (64, 64)]
        assert [row["strength"] for row in planned] == [None, 0.75, None]
        assert {row["scheduler"] for row in planned} == {"pndm"}
        planned = json.loads(ldm_gen(*words).out)["rows"]
        assert [row["seed"] for row in planned] == [None] * 3
        assert not (workdir / "out").exists()

    def test_dry_run_of_a_hub_model_leaves_open_what_only_that_tells(
        self, ldm_gen: Command
    ) -> None:
        done = ldm_gen("a dog", "--dry-run", "--model", "owner/name", model=None)
        planned = json.loads(done.out)
        assert (planned["model"], planned["options"]["width"]) == ("owner/name", None)

    def test_foreign_files_among_intermediates_stay(self, ldm_gen: Command, workdir: Path) -> None:
        words = ("a dog", "--seed", 4, "--steps", 1, "--save-intermediates", 1, "-o", "y.png")
        assert ldm_gen(*words).code == 0
        assert ldm_gen(*words, "--overwrite").code == 0
        (workdir / "y-steps" / "thesis.txt").write_text("mine")
        done = ldm_gen(*words, "--overwrite")
        assert done.code == 2
        assert "holds something else than intermediates" in done.err
        assert (workdir / "y-steps" / "thesis.txt").read_text() == "mine"

    def test_json(self, ldm_gen: Command) -> None:
        done = ldm_gen("a dog", "--json", "--seed", 4, "--steps", 1)
        line = json.loads(done.out)
        assert line["path"] == "a-dog-4.png"
        assert line["seed"] == 4
        assert line["seconds"] > 0
        assert line["recipe"] == json.loads(read_recipe("a-dog-4.png").to_json())

    def test_grid(self, ldm_gen: Command, workdir: Path) -> None:
        for name in ("a-dog-4-grid.png", "a-dog-4-2-grid.png"):
            done = ldm_gen("a dog", "--grid", "--seed", 4, "-n", 2, "--steps", 1)
            assert done.code == 0, done.err
            assert (workdir / name).is_file()
            assert len(done.paths) == 2

    def test_a_picture_drawn_over_and_replayed(self, ldm_gen: Command, workdir: Path) -> None:
        Image.new("RGB", (64, 64), "red").save(workdir / "red.png")
        Image.new("RGB", (64, 64), "white").save(workdir / "white.png")
        inputs = ("--image", "red.png", "--mask", "white.png")
        done = ldm_gen("a dog", *inputs, "--strength", 0.6, "--steps", 5, "--seed", 1)
        assert done.code == 0, done.err
        recipe = read_recipe(done.paths[0])
        assert recipe.strength == 0.6
        assert recipe.image_sha256 == pixels_sha256(open_image("red.png"))
        again = ldm_gen("--replay", done.paths[0], *inputs, "-o", "again.png")
        assert again.code == 0, again.err
        assert "identical" in again.err
        for words, told in (
            ((), "give it with --image"),
            (("--image", "red.png"), "give it with --mask"),
            (("--image", "white.png", "--mask", "white.png"), "not those of the input"),
        ):
            refused = ldm_gen("--replay", done.paths[0], *words)
            assert refused.code == 2
            assert told in refused.err


def test_without_its_manifest_a_picture_of_other_options_is_made_again(
    ldm_gen: Command, workdir: Path
) -> None:
    (workdir / "p.txt").write_text("a dog\na cat\n")
    words = ("--prompts", "p.txt", "--seed", 5, "-o", "out/")
    assert ldm_gen(*words, "--steps", 2).code == 0
    before = (workdir / "out/00000-5.png").read_bytes()
    (workdir / "out/manifest.jsonl").unlink()
    assert ldm_gen(*words, "--steps", 3).code == 0
    assert (workdir / "out/00000-5.png").read_bytes() != before
    (workdir / "out/manifest.jsonl").unlink()
    assert ldm_gen(*words, "--steps", 2).code == 0
    assert (workdir / "out/00000-5.png").read_bytes() == before
