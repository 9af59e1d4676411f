"""The command line: what it prints, where it writes, how little it imports."""

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from samples import HOSTILE_TEXTS

from ldm_toolkit import hardware, schedulers
from ldm_toolkit.cli import loading, options, terminal
from ldm_toolkit.cli.output import destination, slug, steps_folder
from ldm_toolkit.errors import CannotWrite, UserError
from ldm_toolkit.images import open_image, pixels_sha256, read_recipe
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import MAX_SEED, GenerateOptions

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]
QUICK = ("--steps", 2, "--seed", 7)


def here() -> dict[str, str]:
    """The environment in which a child finds the same package."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=here(), capture_output=True, text=True, **options
    )


# --- starting up ---

NO_TORCH = """
import sys
from ldm_toolkit.cli.generate import main
code = main(sys.argv[1:])
heavy = {"torch", "diffusers", "transformers", "numpy", "PIL"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["--list-models"], 0),
        (["--list-schedulers"], 0),
        (["x", "--steps", "0"], 2),
        (["--prompts", "none.txt", "-o", "out/"], 2),
        (["x", "--dry-run", "--seed", "1"], 0),
    ],
)
def test_answers_without_torch(arguments: list[str], code: int) -> None:
    done = python("-c", NO_TORCH, *arguments)
    assert done.returncode == code, done.stderr


def test_help_is_fast() -> None:
    """Processor time, because a test machine may be busy with other things."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python("-m", "ldm_toolkit.cli.generate", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_words_that_the_bundled_model_never_saw_are_told_once(
    ldm_gen: Command, tmp_path: Path
) -> None:
    small = ["--steps", "1", "--dim", "64", "--seed", "1", "-o", str(tmp_path / "x.png")]
    done = ldm_gen("a Zebra wearing hat, zebra (llama:1.2)", *small, "-n", "2", model="storybook")
    assert done.code == 0
    assert done.err.count("never saw 'zebra', 'llama': ") == 1
    for prompt, more in (("a dog wearing hat", []), ("a zebra", ["--quiet"])):
        done = ldm_gen(prompt, *small, "--overwrite", *more, model="storybook")
        assert "never saw" not in done.err


@pytest.mark.parametrize("lora", [False, True])
def test_parts_of_known_words_are_unknown_and_who_fine_tunes_knows_better(
    lora: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "_loaded", lambda *_: object())
    loras = (("robot-lora", 1.0),) if lora else ()
    choice: Any = SimpleNamespace(model="storybook", loras=loras, embeddings=())
    loading.load_pipeline(choice, threads=None, prompts=["an ant with a cape on the beach"])
    assert ("never saw 'ant', 'cape'" in capsys.readouterr().err) != lora


def test_help_teaches_every_option(ldm_gen: Command) -> None:
    done = ldm_gen("--help", model=None)
    assert done.code == 0
    assert done.err == ""
    assert 'ldm-gen "a dog wearing hat"' in done.out
    text = " ".join(done.out.split())
    for field in dataclasses.fields(GenerateOptions):
        if field.name != "prompt":
            assert options.flag(field.name) in text
            assert " ".join(field.metadata["help"].split()) in text
    for flag in (
        "--dim",
        "--num-images",
        "--model",
        "--device",
        "--dtype",
        "--attention",
        "--compile",
        "--backend",
        "--threads",
        "--format",
        "--image",
        "--mask",
        "--lora",
        "--embedding",
        "--vae",
        "--tokenizer",
        "--variant",
        "--revision",
        "--offline",
        "--allow-pickle",
        "--prompts",
        "--batch-size",
        "--grid",
        "--json",
        "--dry-run",
    ):
        assert flag in text


def test_help_keeps_together_what_belongs_together(ldm_gen: Command) -> None:
    text = ldm_gen("--help", model=None).out
    found = re.findall(r"^(\w[^\n]*):\n((?:  .*\n)+)", text, flags=re.MULTILINE)
    groups = {title: re.findall(r"^  (-[\w-]+)", body, flags=re.MULTILINE) for title, body in found}
    assert groups["the picture"][:3] == ["--negative", "--steps", "--guidance"]
    assert groups["the picture"][-1] == "--dim"
    assert groups["from a picture"] == ["--image", "--mask", "--strength"]
    assert groups["many pictures, or one again"] == [
        "-n",
        "--grid",
        "--prompts",
        "--batch-size",
        "--replay",
    ]
    assert groups["model and machine"][0] == "--model"
    assert groups["output"][0] == "-o"


def test_the_examples_of_help_are_right(ldm_gen: Command, pipe: LatentPipeline) -> None:
    lines = re.findall(r"^  ldm-gen (.*)", options.build_parser().epilog or "", flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(re.split(r"\s{2,}", line)[0])
        options.parse(words)


def test_lists(ldm_gen: Command) -> None:
    listed = ldm_gen("--list-schedulers", model=None)
    assert [line.split("\t")[0] for line in listed.out.splitlines()] == list(schedulers.names())
    models = ldm_gen("--list-models", model=None)
    assert models.code == 0
    assert re.fullmatch(r"([\w-]+\n)+|\n", models.out)


def test_versions_are_of_what_is_installed(
    ldm_gen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ldm_gen("--version", model=None)
    names = ["ldm-toolkit", "torch", "diffusers", "transformers", "accelerate", "safetensors"]
    names += ["peft", "compel"]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    assert done.out == ", ".join([*versions, f"Python {sys.version.split()[0]}"]) + "\n"
    version = importlib.metadata.version

    def without_peft(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_peft)
    done = ldm_gen("--version", model=None)
    assert (done.code, done.out.count("peft"), done.out.count("compel")) == (0, 0, 1)


def test_attention_names_are_those_of_the_hardware_module() -> None:
    assert ("auto", *hardware.ATTENTION) == options.ATTENTION


def test_dtypes_are_those_of_the_hardware_module() -> None:
    assert ("auto", *hardware.DTYPES) == options.DTYPES


# --- pictures ---


def test_one_picture(ldm_gen: Command, workdir: Path, pipe: LatentPipeline) -> None:
    done = ldm_gen("a dog wearing hat", "--steps", 3, "--guidance", 2, "--seed", 42)
    assert (done.code, done.out) == (0, "a-dog-wearing-hat-42.png\n")
    assert os.listdir(workdir) == ["a-dog-wearing-hat-42.png"]
    recipe = read_recipe(done.paths[0])
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance) == (
        "a dog wearing hat",
        42,
        3,
        2.0,
    )
    same = pipe("a dog wearing hat", steps=3, guidance=2, seed=42)
    assert pixels_sha256(open_image(done.paths[0])) == pixels_sha256(same.images[0])
    assert recipe == same.recipes[0]


def test_the_same_again_takes_the_next_name_and_has_the_same_bytes(
    ldm_gen: Command, workdir: Path
) -> None:
    runs = [ldm_gen("a dog", *QUICK) for _ in range(3)]
    assert [run.out for run in runs] == ["a-dog-7.png\n", "a-dog-7-2.png\n", "a-dog-7-3.png\n"]
    assert len({(workdir / name).read_bytes() for name in os.listdir(workdir)}) == 1
    again = ldm_gen("a dog", *QUICK, "--overwrite")
    assert again.out == "a-dog-7.png\n"
    assert len(os.listdir(workdir)) == 3


def test_several_pictures_have_consecutive_seeds_and_stand_alone(ldm_gen: Command) -> None:
    several = ldm_gen("a dog", "--steps", 2, "--seed", 5, "-n", 3)
    assert several.out.split() == ["a-dog-5.png", "a-dog-6.png", "a-dog-7.png"]
    alone = ldm_gen("a dog", *QUICK, "-o", "alone.png")
    assert several.paths[2].read_bytes() == alone.paths[0].read_bytes()


def test_a_seed_is_drawn_when_none_is_given(ldm_gen: Command) -> None:
    first, second = (ldm_gen("a dog", "--steps", 1).paths[0] for _ in range(2))
    assert first != second
    assert first.name == f"a-dog-{read_recipe(first).seed}.png"


def test_all_options_reach_the_recipe(ldm_gen: Command) -> None:
    done = ldm_gen(
        "a cat",
        "--negative=-night, rain",
        *("--steps", 2, "--guidance", "3.5", "--seed", 0, "--width", 64, "--height", 32),
        *("--scheduler", "Euler a", "--guidance-rescale", 0.5),
    )
    recipe = read_recipe(done.paths[0])
    assert recipe.negative_prompt == "-night, rain"
    assert (recipe.seed, recipe.width, recipe.height) == (0, 64, 32)
    assert (recipe.scheduler, recipe.guidance_rescale) == ("euler_a", 0.5)
    assert open_image(done.paths[0]).size == (64, 32)


@pytest.mark.parametrize("name", schedulers.names())
def test_every_scheduler_ends_in_a_file(name: str, ldm_gen: Command) -> None:
    done = ldm_gen("a cat", "--steps", 3, "--seed", 1, "--scheduler", name)
    assert done.code == 0, done.err
    assert read_recipe(done.paths[0]).scheduler == name


def test_dim_sets_both(ldm_gen: Command) -> None:
    done = ldm_gen("a cat", *QUICK, "--dim", 32)
    assert open_image(done.paths[0]).size == (32, 32)


@pytest.mark.parametrize(
    "words",
    [
        ("--steps", "1", "--", "-a prompt"),
        ("--steps", "1", "--", "--help"),
        ("", "--steps", "1"),
        ("--steps", "1", ""),
        ("--steps=1", "- dash and space"),
        ("--seed", "3", "a dog", "--steps", "1"),
    ],
)
def test_unusual_prompts(words: tuple[str, ...], ldm_gen: Command) -> None:
    done = ldm_gen(*words)
    assert done.code == 0, done.err
    prompts = {word for word in words if word not in {"--", "--steps", "--seed", "1", "3"}}
    assert read_recipe(done.paths[0]).prompt in prompts


def test_threads_are_set(ldm_gen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert ldm_gen("a cat", *QUICK, "--threads", 2).code == 0
    assert asked[0] == 2


def test_no_network(ldm_gen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a socket was used")

    seen: dict[str, str | None] = {}
    stream = LatentPipeline.stream

    def spy(self: LatentPipeline, *args: object, **kwargs: object) -> object:
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIFFUSERS_DISABLE_REMOTE_CODE")
        seen.update({name: os.environ.get(name) for name in names})
        return stream(self, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(LatentPipeline, "stream", spy)
    assert ldm_gen("a cat", *QUICK).code == 0
    assert set(seen.values()) == {"1"}


# --- where the output goes ---


def test_output_folder_file_and_existing_folder(ldm_gen: Command, workdir: Path) -> None:
    (workdir / "there").mkdir()
    outs = [ldm_gen("a cat", *QUICK, "-o", where).out for where in ("new/deep/", "there", "x.PNG")]
    assert outs == ["new/deep/a-cat-7.png\n", "there/a-cat-7.png\n", "x.PNG\n"]
    assert all((workdir / out.strip()).is_file() for out in outs)


def test_output_file_and_several_pictures(ldm_gen: Command) -> None:
    done = ldm_gen("a cat", "--steps", 1, "--seed", 1, "-n", 2, "-o", "cat.v2.png")
    assert done.out.split() == ["cat.v2-1.png", "cat.v2-2.png"]


def test_an_existing_file_stays(ldm_gen: Command, workdir: Path) -> None:
    (workdir / "cat.png").write_bytes(b"mine")
    refused = ldm_gen("a cat", *QUICK, "-o", "cat.png")
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (workdir / "cat.png").read_bytes() == b"mine"
    assert ldm_gen("a cat", *QUICK, "-o", "cat.png", "--overwrite").code == 0
    assert read_recipe(workdir / "cat.png").seed == 7


def test_a_name_lost_to_another_process_becomes_the_next(
    ldm_gen: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = LatentPipeline.stream

    def racing(self: LatentPipeline, *args: object, **kwargs: object) -> object:
        run = stream(self, *args, **kwargs)
        decode = run._room.decode

        def slow(latents: object) -> object:
            (workdir / "a-cat-7.png").write_bytes(b"theirs")
            return decode(latents)

        run._room.decode = slow
        return run

    monkeypatch.setattr(LatentPipeline, "stream", racing)
    assert ldm_gen("a cat", *QUICK).out == "a-cat-7-2.png\n"
    assert (workdir / "a-cat-7.png").read_bytes() == b"theirs"


def test_intermediates(ldm_gen: Command, workdir: Path) -> None:
    done = ldm_gen("a cat", "--steps", 5, "--seed", 7, "--scheduler=ddim", "--save-intermediates=2")
    assert done.out == "a-cat-7.png\n"
    folder = steps_folder(workdir / "a-cat-7.png")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["contact-sheet.png", "step-0002.png", "step-0004.png", "step-0005.png"]
    assert all(open_image(path).width >= 64 for path in folder.iterdir())
    again = ldm_gen("a cat", "--steps", 1, "--seed", 7, "--save-intermediates", 1)
    assert again.out == "a-cat-7-2.png\n"
    assert (workdir / "a-cat-7-2-steps").is_dir()
    plain = ldm_gen("a cat", "--steps", 5, "--seed", 7, "--scheduler=ddim", "-o", "plain.png")
    assert plain.paths[0].read_bytes() == done.paths[0].read_bytes()


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize(
    "words",
    [("ddim", 4), ("heun", 3), ("pndm", 3), ("euler", 4), ("dpm++_2m", 4)],
    ids=lambda w: w[0],
)
def test_the_last_step_is_among_them_and_is_the_picture(
    words: tuple[str, int], every: int, ldm_gen: Command, workdir: Path
) -> None:
    """Whatever a scheduler makes of the number of steps."""
    name, steps = words
    asked = ("--steps", steps, "--scheduler", name, "--save-intermediates", every)
    done = ldm_gen("a cat", "--seed", 7, *asked)
    assert done.code == 0, done.err
    files = sorted(steps_folder(done.paths[0]).glob("step-*.png"))
    numbers = [int(path.stem.removeprefix("step-")) for path in files]
    total = {"heun": 2 * steps - 1, "pndm": steps + 1}.get(name, steps)
    assert numbers == [n for n in range(1, total + 1) if n % every == 0 or n == total]
    last, picture = (np.asarray(open_image(p), dtype=int) for p in (files[-1], done.paths[0]))
    if name != "pndm":  # which averages over steps
        assert np.abs(last - picture).mean() < 1


def test_intermediates_of_a_killed_run_go_with_the_next(ldm_gen: Command, workdir: Path) -> None:
    left = workdir / ".a-cat-7-steps.0123abcd.tmp"
    left.mkdir()
    (left / "step-0001.png").write_bytes(b"half a picture")
    done = ldm_gen("a cat", *QUICK, "--save-intermediates", 1)
    assert done.out == "a-cat-7.png\n"
    assert sorted(os.listdir(workdir)) == ["a-cat-7-steps", "a-cat-7.png"]


# --- what a person sees ---


def test_progress_is_on_stderr_and_quiet_is_quiet(ldm_gen: Command) -> None:
    loud, quiet = ldm_gen("a cat", *QUICK), ldm_gen("a cat", *QUICK, "--quiet")
    assert loud.err.splitlines()[0].startswith("ldm-gen: loading ")
    assert all(line.startswith("ldm-gen: ") for line in loud.err.splitlines())
    assert quiet.err == ""
    assert quiet.out == "a-cat-7-2.png\n"


def test_plain_progress_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(terminal.follow(range(10), 10, "drawing")) == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ldm-gen: drawing: step 3/10, about 14 s left"
    assert len(lines) == 3


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(terminal.follow(range(10), 10, "drawing")) == list(range(10))
    assert "drawing:   0%" in capsys.readouterr().err


def test_a_signal_that_a_library_swallowed_ends_it_before_the_next_step() -> None:
    stop, made = terminal.Stop(), []

    def steps() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    followed = stop.between(steps())
    assert [next(followed), next(followed)] == [0, 1]
    with contextlib.suppress(terminal.Stopped):  # as a library may
        stop.arrived(signal.SIGTERM, None)
    with pytest.raises(terminal.Stopped):
        next(followed)
    assert made == [0, 1]
    assert stop.code == 128 + signal.SIGTERM


def test_lines_are_lines() -> None:
    assert terminal.one_line("a\nb\x1b[31m\tc  d\u202e") == "a b\ufffd[31m c d\ufffd"
    assert len(terminal.one_line("x" * 10_000)) < 2100


def test_a_reader_that_went_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ldm_toolkit.cli.generate", "--list-schedulers"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=here())
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    command = f'"$0" -m ldm_toolkit.cli.generate x --steps 0 {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, env=here())
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


# --- names ---


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
def test_slugs_are_harmless(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_-]*", name)
    assert len(name) <= 61
    assert name not in {"con", "nul", "aux", "com1", "lpt9"}


def test_slugs_are_readable() -> None:
    assert slug("A dog, wearing a HAT!") == "a-dog-wearing-a-hat"
    assert slug("Café  señor_x") == "cafe-senor_x"
    assert slug("狗") == "image"
    assert slug("con") == "con_"


def test_destination_refuses_what_cannot_be_meant(workdir: Path) -> None:
    (workdir / "file").write_text("x")
    options = {"count": 1, "overwrite": False, "with_steps": False}
    for wrong in ("", "dog", "dog.gif", "dog.tiff", ".png", "a\0.png", "-"):
        with pytest.raises(UserError, match="-o"):
            destination(wrong, "x", **options)
    for wrong in ("file/x.png", "file/", "none/x.png", "x" * 300 + "/", "/proc/1/x.png"):
        with pytest.raises(CannotWrite, match="-o"):
            destination(wrong, "x", **options)
    assert os.listdir(workdir) == ["file"]


def test_seeds_of_the_last_picture_are_checked(ldm_gen: Command) -> None:
    assert ldm_gen("x", "--steps", 1, "--seed", MAX_SEED, "-n", 1).code == 0
    assert "--seed" in ldm_gen("x", "--steps", 1, "--seed", MAX_SEED, "-n", 2).err
