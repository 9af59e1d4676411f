"""``ldm-eval compare`` and ``speed`` as people run them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Outcome

from ldm_toolkit import storybook
from ldm_toolkit.cli import speed as speed_command
from ldm_toolkit.cli.evaluate_options import parse
from ldm_toolkit.cli.evaluate_request import EvalRequest, check
from ldm_toolkit.cli.sides import read_sides
from ldm_toolkit.errors import UserError
from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.evaluation.report import Report
from ldm_toolkit.images import read_recipe
from ldm_toolkit.pipeline import LatentPipeline

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; pip install '.[eval]'")

pytest_plugins = ["command"]

Command = Callable[..., Outcome]


def request(*words: object) -> EvalRequest:
    return check(parse([str(word) for word in words]))


# --- the grammar of a side ---


def test_a_side_is_a_model_with_options_of_ldm_gen(tiny_model: Path, workdir: Path) -> None:
    words = ("compare", f"{tiny_model},steps=3,clip-skip=1,dtype=float32,scheduler=Euler")
    asked = request(*words, 'storybook,"negative=night, fog",compile', "--prompts", 2)
    first, second = read_sides(asked)
    assert first.choice.model == str(tiny_model)
    assert first.choice.dtype == "float32"
    assert first.options == {"steps": 3, "clip_skip": 1, "scheduler": "euler"}
    assert second.choice.model == "storybook"
    assert second.choice.compile
    assert second.options == {"negative_prompt": "night, fog"}


def test_what_a_side_leaves_out_is_as_for_both(
    tiny_model: Path, workdir: Path, lora_file: Path
) -> None:
    asked = request(
        "compare", "steps=3", f"storybook,lora={lora_file}", "--prompts", 2, "--model", tiny_model,
        "--dtype", "float32", "--lora", f"{lora_file}:0.25", "--steps", 9, "--offline",
    )  # fmt: skip
    first, second = read_sides(asked)
    assert first.choice == asked.choice
    assert first.choice.model == str(tiny_model)
    assert second.choice.dtype == "float32"
    assert second.choice.offline
    assert second.choice.loras == ((lora_file, 0.25), (lora_file, 1.0))
    assert asked.options["steps"] == 9
    assert (first.options, second.options) == ({"steps": 3}, {})


@pytest.fixture
def lora_file(workdir: Path) -> Path:
    """A LoRA as far as its name and header go."""
    import torch
    from safetensors.torch import save_file

    path = workdir / "mine.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    return path


def test_a_training_s_folder_stands_for_its_lora(
    workdir: Path, tiny_model: Path, lora_file: Path
) -> None:
    folder = workdir / "robot-lora"
    folder.mkdir()
    inside = lora_file.rename(folder / "pytorch_lora_weights.safetensors")
    asked = request("speed", "--model", tiny_model, "--lora", f"{folder}:0.5", "--lora", folder)
    assert asked.choice.loras == ((inside, 0.5), (inside, 1.0))
    inside.unlink()
    with pytest.raises(UserError, match=r"robot-lora is no \.safetensors file"):
        request("speed", "--model", tiny_model, "--lora", folder)


BAD = {
    "unknown": (["storybook,stepz=3", "storybook"], r"A \(.*unknown option 'stepz'; did you mean"),
    "model": (["storybook", "storybok"], r"B \(storybok\): --model: .*did you mean 'storybook'"),
    "both": (["storybok,steps=x", "guidance=y"], "A .*--steps.*--model.*B .*--guidance: 'y'"),
    "seed": (["storybook,seed=3", "storybook"], "seed is one for both; give --seed"),
    "no value": (["storybook,ddim", "storybook"], "unknown option 'ddim'.*expected MODEL,option"),
    "nothing": (["storybook,", "storybook"], "unknown option ''"),
    "quotes": (['storybook,"steps=3', "storybook"], "not MODEL,option=value"),
    "scheduler": (["scheduler=ddimm", "storybook"], "did you mean 'ddim'"),
    "too many steps": (["steps=1001", "storybook"], "--steps must be .* from 1 to 1000"),
    "lora": (["storybook,lora=no.safetensors:0.8", "storybook"], "--lora: there is no file no"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_a_line(name: str, ldm_eval: Command, workdir: Path) -> None:
    words, message = BAD[name]
    done = ldm_eval("compare", *words, "--prompts", 3)
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1
    assert re.search(message, done.err), done.err
    assert not list(workdir.glob("ldm-eval-*"))


@pytest.mark.parametrize("name", ["one", "three", "no prompts"])
def test_two_sides_and_prompts_are_needed(name: str, ldm_eval: Command) -> None:
    words, message = {
        "one": (["storybook", "--prompts", 3], "compare takes A B, not 'storybook'"),
        "three": (["a", "b", "c", "--prompts", 3], "compare takes A B"),
        "no prompts": (["storybook", "steps=3"], "compare needs --prompts"),
    }[name]
    done = ldm_eval("compare", *words)
    assert done.code == 2
    assert message in done.err


# --- whole runs ---


def test_both_draw_the_same_prompts_and_seeds_once(
    ldm_eval: Command,
    tiny_model: Path,
    workdir: Path,
    loaded_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storybook, "JUDGE_FILE", workdir / "none")
    words = ("compare", "steps=1", "steps=2,guidance=3", "--model", tiny_model, "--prompts", 3)
    words += ("--seed", 5, "--json", "-o", "there")
    done = ldm_eval(*words)
    assert done.code == 0, done.err
    recipes = {
        letter: [read_recipe(p) for p in sorted(Path(f"there/pictures-{letter}").glob("*.png"))]
        for letter in "ab"
    }
    for a, b in zip(recipes["a"], recipes["b"], strict=True):
        assert (a.prompt, a.seed) == (b.prompt, b.seed)
        assert (a.steps, b.steps, a.guidance, b.guidance) == (1, 2, 7.5, 3)
    assert [one.seed for one in recipes["a"]] == [5, 6, 7]
    found = json.loads(done.out)["measures"]["compare"]
    assert found["scores"]["PSNR between the two"]["count"] == 3
    told = found["settings"]
    assert told["B"] == "steps=2,guidance=3"
    first = recipes["a"][0]
    assert (told["A steps"], told["B steps"]) == (1, 2)
    assert (told["A guidance"], told["B guidance"]) == (7.5, 3)
    assert (told["model_sha256"], told["dtype"]) == (first.model["sha256"], first.dtype)
    assert (told["scheduler"], told["size"], told["seeds"]) == ("pndm", "64x64", "5..7")
    assert not {"loras", "A loras", "negative_prompt"} & told.keys()
    assert "compare.html" in done.err
    page = Path("there/compare.html").read_text("utf-8")
    assert page.count("<img") == 6

    def loaded(*_: Any, **__: Any) -> LatentPipeline:
        raise AssertionError("the model is loaded again")

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    again = ldm_eval(*words)
    assert again.out == done.out
    assert Path("there/compare.html").read_text("utf-8") == page
    other = ldm_eval(*words[:2], "steps=3", *words[3:])
    assert other.code == 2
    assert "pictures-b holds another job" in other.err


def test_rows_of_a_prompt_file_are_overruled_by_a_side(
    ldm_eval: Command, tiny_model: Path, workdir: Path, loaded_once: None
) -> None:
    (workdir / "p.jsonl").write_text('{"prompt": "a <b>dog", "steps": 4, "seed": 1}\n')
    model = ("--model", tiny_model, "--prompts", "p.jsonl", "-o", "x")
    done = ldm_eval("compare", "guidance=1", "steps=2", *model)
    assert done.code == 0, done.err
    steps = [read_recipe(f"x/pictures-{letter}/00000-1.png").steps for letter in "ab"]
    assert steps == [4, 2]
    assert "A steps 4, B steps 2" in done.out
    assert "no adherence: nobody knows" in done.err
    assert "a &lt;b&gt;dog" in Path("x/compare.html").read_text("utf-8")


# --- speed ---


@pytest.fixture
def asked_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be measured; nothing is."""
    seen: list[Any] = []

    def fake(contenders: Any, turns: Any, follow: Any) -> Report:
        seen.extend([contenders, turns])
        return Report({"UNet step, guided, s": Interval(1, 1, 1, 3)})

    monkeypatch.setattr(speed_command, "speed", fake)
    return seen


def test_speed_measures_the_model_as_it_would_draw(
    ldm_eval: Command, asked_of: list[Any], tiny_model: Path, lora_file: Path
) -> None:
    done = ldm_eval(
        "speed", "--model", tiny_model, "--lora", f"{lora_file}:0.5", "--dtype", "float32",
        "--steps", 7, "--dim", 32, "--threads", 1, "--batches", "2,1,2", "--rounds", 5,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "speed: UNet step, guided, s" in done.out
    contenders, turns = asked_of
    (ours,) = contenders.values()
    assert (ours.kind, ours.model, ours.threads) == ("ours", str(tiny_model), 1)
    assert ours.loras == [(str(lora_file), 0.5)]
    assert ours.loading["dtype"] == "float32"
    assert ours.drawing == {"guidance": 7.5, "scheduler": "ddim", "width": 32, "height": 32}
    assert (turns.steps, turns.batches, turns.rounds) == (7, (2, 1), 5)


def test_diffusers_gets_the_same_weights_and_call_in_its_own_precision(
    ldm_eval: Command, asked_of: list[Any], tiny_model: Path
) -> None:
    words = ("--model", tiny_model, "--dtype", "bfloat16", "--scheduler", "dpm++_2m")
    assert ldm_eval("speed", "--against", "diffusers", *words).code == 0
    ours, theirs = asked_of[0]["ours"], asked_of[0]["diffusers"]
    assert Path(theirs.model) == tiny_model
    assert theirs.drawing == ours.drawing == {"guidance": 7.5, "scheduler": "dpm++_2m"}
    assert "dtype" not in theirs.loading
    assert theirs.seed == ours.seed


def test_what_speed_cannot_measure_is_a_line(
    ldm_eval: Command, asked_of: list[Any], lora_file: Path
) -> None:
    done = ldm_eval("speed", "--batches", "1,x", "--guidance-rescale", 1, "--against", "onnx")
    assert done.code == 2
    for message in (
        "--batches: '1,x'",
        "does not measure guidance_rescale",
        "'onnx' is not diffusers",
    ):
        assert message in done.err
    done = ldm_eval("speed", "--against", "diffusers", "--lora", lora_file)
    assert "leave --lora away" in done.err
    assert not asked_of


@pytest.mark.slow
def test_speed_in_processes_of_their_own(ldm_eval: Command, tiny_model: Path) -> None:
    words = ("--model", tiny_model, "--steps", 2, "--batches", "1,2", "--rounds", 1)
    done = ldm_eval("speed", "--against", "diffusers", *words, "--threads", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["measures"]["speed"]
    assert all(one["value"] > 0 for one in found["scores"].values())
    assert "diffusers / ours: UNet step, guided" in found["scores"]
    assert found["settings"]["diffusers dtype"] == "float32"


def test_sides_raise_before_anything_is_drawn(tiny_model: Path, workdir: Path) -> None:
    asked = request("compare", "a=1", "b=2", "--prompts", 2, "--model", tiny_model)
    with pytest.raises(UserError, match=r"A \(a=1\).*B \(b=2\)"):
        read_sides(asked)
