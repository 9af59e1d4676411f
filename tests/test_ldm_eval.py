"""``ldm-eval`` as people run it: mistakes, several measures in one go, going on after a kill."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from ldm_toolkit import storybook
from ldm_toolkit.cli import evaluate, measures
from ldm_toolkit.cli.evaluate_options import parse
from ldm_toolkit.cli.evaluate_request import check
from ldm_toolkit.cli.measures import MEASURES, Measure, Option
from ldm_toolkit.evaluation.adherence import held_out_prompts
from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.evaluation.report import Report
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.storybook.judge import Judge, JudgeNet

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

REPO = Path(__file__).resolve().parent.parent
DRAWN = ("--prompts", 3, "--steps", 1, "--model")
Command = Callable[..., "Outcome"]


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of random weights."""
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        Judge(JudgeNet("residual", (8, 16))).save(path)
    return path


@pytest.fixture
def bundled(judge_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That judge in the place of the package's."""
    monkeypatch.setattr(storybook, "JUDGE_FILE", judge_file)
    return judge_file


def pictures(folder: Path, count: int, seed: int, side: int = 16) -> Path:
    """A folder of blots."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        blots = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blots).resize((side, side)).save(folder / f"{index:02d}.png")
    return folder


def scores(outcome: "Outcome") -> dict[str, Any]:
    """The JSON that --json prints."""
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


# --- mistakes ---


BAD = {
    "nothing": ("", "say what to measure: fid, kid"),
    "unknown": ("fidd --images x", "unknown measure 'fidd'; .*did you mean 'fid'"),
    "option": ("fid --image x", "unknown option --image; did you mean --images"),
    "no pictures": ("recon", "say which pictures: either --images"),
    "both": ("recon --images x --prompts 3", "either --images"),
    "reference": ("fid --images x --features {judge}", "--reference is missing"),
    "inception": (
        "fid --images x --reference y --features inception",
        r"--inception-weights FILE: https://\S+/pt_inception-2015-12-05-6726825d\.pth",
    ),
    "no such weights": (
        "fid --images x --reference y --features inception --inception-weights none.pth",
        "--inception-weights: there is no file none.pth",
    ),
    "features": ("kid --images x --reference y --features jugde", "'jugde' is neither judge nor"),
    "clip": ("clip --images x", "clip needs --clip-model FOLDER.*huggingface.co/openai/clip"),
    "clip folder": ("clip --images x --clip-model no", "--clip-model: there is no folder no"),
    "judge": ("adherence --prompts 3", r"none\.safetensors, is not there: train one"),
    "model": ("recon --images x --model storybok", "did you mean 'storybook'"),
    "steps": ("recon --prompts 3 --steps many --guidance x", "--steps.*--guidance"),
    "several": ("fid --prompts 0 --count 0 --per-prompt x", "--per-prompt.*--count.*--reference"),
    "prompts": ("recon --prompts none.txt", "none.txt is no file"),
    "empty": ("recon --images=", "--images is empty"),
    "place": (
        "fid --images nowhere --reference 9 --features {judge}",
        "--images nowhere is not a folder.*--reference 9 is not a folder",
    ),
    "output": ("recon --images storybook -o pyproject.toml/x", "is not a folder"),
    "sides of pictures that are there": (
        "nll --images storybook --width 256 --height 256",
        r"--width, --height are for pictures that are drawn \(--prompts\); --size resizes those of",
    ),
    "drawing of pictures that are there": (
        "recon --images storybook --steps 3 --scheduler ddim --per-prompt 2",
        r"--steps, --scheduler, --per-prompt are for pictures that are drawn \(--prompts\)$",
    ),
    "size of drawn pictures": (
        "recon --prompts 3 --size 256",
        "--size is for pictures of --images and --reference; --width and --height are of drawn",
    ),
    "options of other measures": (
        "recon --images storybook --samples 3 --sigma 0.5",
        "--samples is for nll; --sigma is for nll",
    ),
    "pictures that are not looked at": (
        "speed --images storybook --count 3 --prompts 4",
        "speed takes no --images, --count, --prompts",
    ),
    "sigma is none": ("nll --images storybook --sigma nan", "--sigma: 'nan' is not a number"),
    "sigma is small": ("nll --images storybook --sigma 0", "--sigma: 0.0 is too small, at least"),
    "too few for a distance": (
        "fid --reference storybook --prompts 19 --features {judge}",
        "fid needs at least 20 pictures on both sides .* not 19",
    ),
    "sigma is large": ("nll --images storybook --sigma inf", "--sigma: inf is too large, 10 is"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_a_line(
    name: str, ldm_eval: Command, judge_file: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storybook, "JUDGE_FILE", workdir / "none.safetensors")
    (workdir / "pyproject.toml").write_text("")
    words, message = BAD[name]
    done = ldm_eval(*words.format(judge=judge_file).split())
    assert done.code == (74 if name == "output" else 2), done.err
    assert done.err.startswith("ldm-eval: error: ")
    assert len(done.err.splitlines()) == 1
    assert re.search(message, done.err), done.err
    assert done.out == ""
    assert not list(workdir.glob("ldm-eval-*"))


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from ldm_toolkit.cli.evaluate import main\n"
        "codes = main(['--help']), main(['fid', '--steps', 'x'])\n"
        "sys.exit(str(codes) if codes != (0, 2) or 'torch' in sys.modules else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, row in MEASURES.items():
        assert f"\n  {name} " in done.stdout
        assert all(option.flag in done.stdout for option in row.options)


def test_seed_model_and_machine_go_with_pictures_that_are_there(
    workdir: Path, tiny_model: Path
) -> None:
    place = str(pictures(workdir / "p", 1, 0))
    words = ["nll", "--images", place, "--seed", "3", "--model", str(tiny_model), "--dtype"]
    asked = check(parse([*words, "float32", "--size", "32", "--sigma", "0.5", "--count", "1"]))
    assert (asked.seed, asked.size, asked.own["sigma"]) == (3, 32, 0.5)


# --- the table of measures ---


def test_functions_of_the_table_are_there() -> None:
    for name in MEASURES:
        assert callable(evaluate._function(name))


def _tried(subject: Subject, *, depth: int) -> Report:
    return Report({"tried": Interval(depth, 0, 9, len(subject.pictures))})


def _alone(request: Any, stop: Any) -> Report:
    return Report({"alone": Interval(len(request.operands), 0, 9, 1)}, notes=("a note",))


def test_a_row_makes_a_measure(
    ldm_eval: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = Option("--depth", "how deep", int, default=4, least=1)
    tried = Measure("a try", f"{__name__}:_tried", options=(depth,))
    alone = Measure("two", f"{__name__}:_alone", alone=True, operands=("A", "B"))
    monkeypatch.setitem(measures.MEASURES, "tried", tried)
    monkeypatch.setitem(measures.MEASURES, "alone", alone)
    place = pictures(workdir / "p", 2, 0)
    found = scores(ldm_eval("tried", "--images", place, "--json"))
    assert found["measures"]["tried"]["scores"]["tried"]["value"] == 4
    assert found["pictures"] == {"place": str(place), "count": 2}
    sized = scores(ldm_eval("tried", "--images", place, "--size", 8, "--json"))
    assert sized["measures"]["tried"]["settings"] == {
        "size": "8x8",
        "size_filter": "Lanczos, middle cut",
    }
    rendered = ldm_eval("tried", "--images", "storybook", "--count", 1, "--size", 64)
    assert rendered.out.splitlines()[-1] == "tried with size 64x64"
    done = ldm_eval("tried", "--images", place, "--depth", 7)
    assert done.out.splitlines()[1].split()[:2] == ["tried", "7"]
    assert "--depth: 0 is too small" in ldm_eval("tried", "--images", place, "--depth", 0).err
    two = ldm_eval("alone", "x", "y")
    assert two.out.splitlines()[1].split()[:2] == ["alone", "2"]
    assert "ldm-eval: alone: a note" in two.err
    assert "takes A B, not 'x'" in ldm_eval("alone", "x").err
    assert "alone is measured alone" in ldm_eval("tried", "alone").err


# --- whole runs ---


def test_several_measures_of_one_folder(
    ldm_eval: Command, judge_file: Path, workdir: Path, loaded_once: None
) -> None:
    mine, others = pictures(workdir / "a", 24, 1), pictures(workdir / "b", 22, 2)
    words = ("fid", "kid", "recon", "--images", mine, "--reference", others, "--features")
    done = ldm_eval(*words, judge_file, "-o", "found")
    assert done.code == 0, done.err
    told = json.loads((workdir / "found" / "scores.json").read_text())
    assert list(told["measures"]) == ["fid", "kid", "recon"]
    judge = Judge.load(judge_file)
    a, b = (
        judge.features([Image.open(path) for path in sorted(place.iterdir())]).double().numpy()
        for place in (mine, others)
    )
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    means = a.mean(0) - b.mean(0)
    expected = means @ means + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert told["measures"]["fid"]["scores"]["fid"]["value"] == pytest.approx(expected, rel=1e-3)
    assert told["versions"]["torch"] == torch.__version__
    assert done.out.splitlines()[0].split()[0] == "measure"
    assert [line.split()[0] for line in done.out.splitlines()[1:3]] == ["fid", "kid"]
    assert "scores in found/scores.json" in done.err


def test_drawn_pictures_are_judged_and_not_drawn_twice(
    ldm_eval: Command,
    tiny_model: Path,
    bundled: Path,
    loaded_once: None,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("adherence", *DRAWN, tiny_model, "--neighbours", 2, "--json")
    first = scores(ldm_eval(*words))
    (folder,) = workdir.glob("ldm-eval-*")
    names = sorted(path.name for path in (folder / "pictures").glob("*.png"))
    assert names == ["00000-0.png", "00001-1.png", "00002-2.png"]
    drawing = first["pictures"]["drawing"]
    assert (drawing["steps"], drawing["guidance"], drawing["scheduler"]) == (1, 7.5, "pndm")
    assert "prompt" not in drawing
    manifest = (folder / "pictures" / "manifest.jsonl").read_text().splitlines()[1:]
    prompts = [one.prompt for one in held_out_prompts(3, 0)]
    assert [json.loads(line)["prompt"] for line in manifest] == prompts
    assert first["measures"]["adherence"]["scores"]["everything right"]["count"] == 3
    assert (folder / "nearest.png").is_file()

    def loaded(*_: Any, **__: Any) -> LatentPipeline:
        raise AssertionError("the model is loaded again")

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    assert scores(ldm_eval(*words)) == first


def test_what_a_kill_left_goes_on(
    ldm_eval: Command,
    tiny_model: Path,
    bundled: Path,
    loaded_once: None,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while it draws, and once more while it looks: nothing is done twice."""
    from ldm_toolkit import jobs

    words = ("adherence", *DRAWN, tiny_model, "--neighbours", 0, "--json", "-o", "there")
    draw, drawn = jobs._draw, []

    def dying(pipe: Any, job: Any, indices: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw(pipe, job, indices)

    monkeypatch.setattr(jobs, "_draw", dying)
    assert ldm_eval(*words).code == 130
    assert len(list((workdir / "there" / "pictures").glob("*.png"))) == 2
    assert not (workdir / "there" / "scores.json").exists()
    monkeypatch.setattr(jobs, "_draw", draw)
    with monkeypatch.context() as blind:
        blind.setattr(Judge, "features", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert ldm_eval(*words).code == 130
    times = {p: p.stat().st_mtime_ns for p in (workdir / "there" / "pictures").glob("*.png")}
    found = scores(ldm_eval(*words))
    assert times == {p: p.stat().st_mtime_ns for p in times}
    whole = scores(ldm_eval(*words[:-1], "whole"))
    for one in (found, whole):
        one["pictures"].pop("place")
    assert found == whole


def test_several_pictures_a_prompt_begin_as_one_does(
    ldm_eval: Command, tiny_model: Path, bundled: Path, loaded_once: None
) -> None:
    words = ("adherence", *DRAWN, tiny_model, "--neighbours", 0, "--json")
    one = scores(ldm_eval(*words))["measures"]["adherence"]["scores"]
    two = scores(ldm_eval(*words, "--per-prompt", 2))["measures"]["adherence"]["scores"]
    assert two.pop("diversity")["count"] == 3
    assert two == one


def test_a_prompt_file_and_another_model_in_the_same_folder(
    ldm_eval: Command, tiny_model: Path, judge_file: Path, loaded_once: None, workdir: Path
) -> None:
    (workdir / "p.jsonl").write_text(
        '{"prompt": "a dog"}\n{"prompt": "a cat", "seed": 9, "steps": 2}\n'
    )
    words = ("recon", "--prompts", "p.jsonl", "--model", tiny_model, "--steps", 1, "-o", "x")
    done = ldm_eval(*words, "--features", judge_file, "--seed", 4)
    assert done.code == 0, done.err
    assert {path.name for path in (workdir / "x" / "pictures").glob("*.png")} == {
        "00000-4.png",
        "00001-9.png",
    }
    other = ldm_eval(*words, "--features", judge_file, "--seed", 4, "--guidance", 2)
    assert other.code == 2
    assert "holds another job" in other.err


@pytest.mark.slow
def test_two_processes_find_what_one_finds(
    ldm_eval: Command, judge_file: Path, workdir: Path, tiny_model: Path
) -> None:
    """Over gloo: pictures drawn, features and scores, each process with its share."""
    reference = pictures(workdir / "b", 40, 2)
    (workdir / "p.txt").write_text("a dog\na cat\na house\na bird\n" * 6)
    words = ["fid", "--prompts", "p.txt", "--model", tiny_model, "--steps", 1, "--reference"]
    words += [reference, "--features", judge_file, "--json", "--threads", 1, "-o"]
    alone = scores(ldm_eval(*words, "one"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
              "2", "-m", "ldm_toolkit.cli.evaluate"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [*launch, *map(str, words), "two"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together = json.loads(done.stdout)
    assert together["measures"] == alone["measures"]
    names = [path.name for path in (workdir / "one" / "pictures").glob("*.png")]
    assert len(names) == 24
    for name in names:
        pair = [(workdir / place / "pictures" / name).read_bytes() for place in ("one", "two")]
        assert pair[0] == pair[1]
