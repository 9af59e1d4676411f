"""``ldm-gen --format``, ``--strip-metadata`` and ``--replay``."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm_toolkit import backends, compilation
from ldm_toolkit.cli.model import _lora
from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.images import open_image, pixels_sha256, read_recipe, save_image
from ldm_toolkit.models import identity
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import Recipe
from ldm_toolkit.speed import PRESETS

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]
QUICK = ("--steps", 2, "--seed", 7)


def forge(path: Path, **changes: Any) -> Recipe:
    """Write another recipe into a picture, as a stranger can."""
    made = dataclasses.replace(read_recipe(path), **changes)
    save_image(open_image(path), path, made, overwrite=True)
    return made


# --- formats ---


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_format_gives_the_names_their_ending(format: str, ldm_gen: Command) -> None:
    done = ldm_gen("a cat", *QUICK, "--format", format)
    assert done.out == f"a-cat-7.{format}\n"
    with Image.open(done.paths[0]) as image:
        assert image.format == {"jpg": "JPEG"}.get(format, format.upper())
    assert ldm_gen("a cat", *QUICK, "--format", format).out == f"a-cat-7-2.{format}\n"


def test_the_output_s_ending_says_the_format(ldm_gen: Command) -> None:
    names = ["a.webp", "b.JPG", "c.jpeg", "d.Png"]
    kinds = []
    for name in names:
        done = ldm_gen("a cat", *QUICK, "-o", name)
        assert done.out == f"{name}\n"
        assert read_recipe(done.paths[0]).seed == 7
        with Image.open(done.paths[0]) as image:
            kinds.append(image.format)
    assert kinds == ["WEBP", "JPEG", "JPEG", "PNG"]
    assert ldm_gen("a cat", *QUICK, "-o", "e.jpeg", "--format", "jpg").out == "e.jpeg\n"


def test_several_pictures_keep_the_ending(ldm_gen: Command) -> None:
    done = ldm_gen("a cat", *QUICK, "-n", 2, "-o", "cat.webp")
    assert done.out.split() == ["cat-7.webp", "cat-8.webp"]


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_stripped_pictures_say_nothing_of_how(format: str, ldm_gen: Command) -> None:
    whole = ldm_gen("a cat", *QUICK, "-o", f"whole.{format}").paths[0]
    done = ldm_gen("a cat", *QUICK, "-o", f"bare.{format}", "--strip-metadata")
    assert done.code == 0
    with pytest.raises(InputError, match="no recipe"):
        read_recipe(done.paths[0])
    data = done.paths[0].read_bytes()
    for told in (b"Recipe", b"parameters", b"Steps", "Steps".encode("utf-16-be"), b"cat"):
        assert told not in data
    assert b"trainedAlgorithmicMedia" in data
    assert open_image(done.paths[0]).tobytes() == open_image(whole).tobytes()


# --- replay ---


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_the_same_picture_again(format: str, ldm_gen: Command, workdir: Path) -> None:
    words = ("--negative", "night", "--guidance", 3, "--height", 32, "--scheduler", "euler_a")
    first = ldm_gen("a cat", *QUICK, *words, "--format", format).paths[0]
    again = ldm_gen("--replay", first)
    assert (again.code, again.out) == (0, f"a-cat-7-2.{format}\n")
    assert "ldm-gen: identical" in again.err.splitlines()
    assert again.paths[0].read_bytes() == first.read_bytes()
    assert len(os.listdir(workdir)) == 2


def test_another_format_is_asked_for(ldm_gen: Command) -> None:
    first = ldm_gen("a cat", *QUICK, "-o", "a.webp").paths[0]
    assert ldm_gen("--replay", first, "--format", "png").out == "a-cat-7.png\n"
    assert ldm_gen("--replay", first, "-o", "b.jpg").out == "b.jpg\n"
    assert ldm_gen("--replay", first, "-o", "sub/").out == "sub/a-cat-7.webp\n"
    first.rename("c.picture")
    assert ldm_gen("--replay", "c.picture", "-o", "sub/").out == "sub/a-cat-7.png\n"


def test_how_it_was_computed_is_asked_for_again(
    ldm_gen: Command, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    asked: list[dict[str, Any]] = []

    def loaded(model: str, **options: Any) -> LatentPipeline:
        asked.append(options)
        return pipe

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    changed = dataclasses.replace(read_recipe(first), attention="sliced", compile=True)
    save_image(open_image(first), "other.png", changed, overwrite=False)
    ldm_gen("--replay", "other.png")
    ldm_gen("--replay", "other.png", "--attention", "sdpa")
    assert [(one["attention"], one["compile"]) for one in asked] == [
        ("sliced", True),
        ("sdpa", True),
    ]
    absent = dataclasses.replace(read_recipe(first), device="cuda", attention="xformers")
    save_image(open_image(first), "absent.png", absent, overwrite=False)
    told = ldm_gen("--replay", "absent.png").err
    assert "made with another device than it was" in told
    assert (asked[2]["device"], asked[2]["dtype"]) == ("auto", "float32")


@pytest.mark.parametrize(
    ("recorded", "words", "installed", "asked", "told"),
    [
        ("openvino", [], True, "openvino", ""),
        ("openvino", [], False, "torch", "needs the package openvino"),
        ("another", [], True, "torch", "backend must be one of torch, openvino, not 'another'"),
        ("openvino", ["--backend", "torch"], True, "torch", ""),
        ("openvino", ["--backend", "auto"], True, "openvino", ""),
        ("torch", ["--backend", "openvino"], True, "openvino", ""),
    ],
)
def test_the_backend_is_asked_for_again(
    recorded: str,
    words: list[str],
    installed: bool,
    asked: str,
    told: str,
    ldm_gen: Command,
    pipe: LatentPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    options: dict[str, Any] = {}

    def loaded(model: str, **given: Any) -> LatentPipeline:
        options.update(given)
        return pipe

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    monkeypatch.setattr(backends, "find_spec", lambda _: object() if installed else None)
    forge(first, backend=recorded, device="cpu")
    done = ldm_gen("--replay", first, *words)
    assert options["backend"] == asked
    assert told in done.err
    assert ("with another backend than it was" in done.err) == bool(told)


def test_what_is_torchs_is_not_taken_over_by_another_backend(
    ldm_gen: Command, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    options: dict[str, Any] = {}

    def loaded(model: str, **given: Any) -> LatentPipeline:
        options.update(given)
        return pipe

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    forge(first, attention="sliced", compile=True)
    ldm_gen("--replay", first, "--backend", "openvino")
    found = (options["backend"], options["attention"], options["compile"])
    assert found == ("openvino", "auto", False)


def test_without_a_compiler_a_compiled_picture_is_made_without(
    ldm_gen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    save_image(
        open_image(first),
        "compiled.png",
        dataclasses.replace(read_recipe(first), compile=True),
        overwrite=False,
    )

    def absent(device: object) -> None:
        raise UserError("compiling needs a C++ compiler")

    monkeypatch.setattr(compilation, "check_compiler", absent)
    done = ldm_gen("--replay", "compiled.png")
    assert done.code == 0
    assert "needs a C++ compiler; the picture is made without" in done.err


def test_a_cropped_jpeg_is_not_identical(ldm_gen: Command) -> None:
    first = ldm_gen("a cat", *QUICK, "-o", "a.jpg").paths[0]
    cropped = open_image(first).crop((0, 0, 32, 32))
    save_image(cropped, "cropped.jpg", read_recipe(first), overwrite=False)
    assert ldm_gen("--replay", "cropped.jpg").code == 1


def test_a_lossy_picture_gives_the_lossless_one(ldm_gen: Command) -> None:
    first = ldm_gen("a cat", *QUICK, "-o", "a.jpg").paths[0]
    again = ldm_gen("--replay", first, "--quiet", "-o", "a.png")
    assert (again.code, again.err) == (0, "")
    assert pixels_sha256(open_image(again.paths[0])) == read_recipe(first).pixels_sha256


@pytest.mark.parametrize("place", [0, 2])
def test_a_picture_out_of_a_batch(place: int, ldm_gen: Command, pipe: LatentPipeline) -> None:
    made = pipe(["a cat", "a dog", "a bird"], steps=2, seed=5)
    save_image(made.images[place], "batch.png", made.recipes[place], overwrite=False)
    done = ldm_gen("--replay", "batch.png", "-o", "again.png")
    assert done.code == 0, done.err
    assert Path("again.png").read_bytes() == Path("batch.png").read_bytes()


def spoil_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer/vocab.json"
    words = json.loads(file.read_text())
    words["a</w>"], words["z</w>"] = words["z</w>"], words["a</w>"]
    file.write_text(json.dumps(words))


def spoil_scheduler(folder: Path) -> None:
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_tokenizer, "likely because: model tokenizer_sha256 was '"),
        (spoil_scheduler, "likely because: scheduler_config beta_end was 0.012, is 0.02"),
    ],
)
def test_another_tokenizer_or_scheduler_is_the_reason(
    spoil: Callable[[Path], None],
    told: str,
    real_ldm_gen: Command,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    words = ("--device", "cpu", "--dtype", "float32", "--threads", 1, "--model", folder)
    first = real_ldm_gen("a dog", *QUICK, *words).paths[0]
    assert real_ldm_gen("--replay", first, *words).code == 0
    spoil(folder)
    done = real_ldm_gen("--replay", first, *words)
    assert done.code == 1
    assert told in done.err


def test_a_preset_is_what_it_was(ldm_gen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's own settings are used, not those that the name stands for by then."""
    words = ("a cat", "--seed", 7, "--steps", 6)
    first = ldm_gen(*words, "--speed", "fast").paths[0]
    exact = ldm_gen(*words, "-o", "exact.png").paths[0]
    assert open_image(first).tobytes() != open_image(exact).tobytes()
    monkeypatch.setitem(PRESETS, "fast", PRESETS["exact"])
    again = ldm_gen("--replay", first, "-o", "again.png")
    assert (again.code, "ldm-gen: identical" in again.err.splitlines()) == (0, True)
    assert again.paths[0].read_bytes() == first.read_bytes()


def test_a_small_picture_that_was_decoded_in_tiles(ldm_gen: Command, pipe: LatentPipeline) -> None:
    made = pipe("a cat", steps=2, seed=5, width=128, height=128, vae_tiling=True)
    save_image(made.images[0], "tiles.png", made.recipes[0], overwrite=False)
    done = ldm_gen("--replay", "tiles.png", "-o", "again.png")
    assert done.code == 0, done.err
    assert Path("again.png").read_bytes() == Path("tiles.png").read_bytes()


def test_another_picture_is_exit_1_with_the_difference_and_reasons(ldm_gen: Command) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    bright = open_image(first).point(lambda value: min(255, value + 3))
    made = dataclasses.replace(
        read_recipe(first), pixels_sha256=pixels_sha256(bright), versions={"torch": "1.0"}
    )
    save_image(bright, "other.png", made, overwrite=False)
    done = ldm_gen("--replay", "other.png", "--quiet", "-o", "again.png")
    assert (done.code, done.out) == (1, "again.png\n")
    assert done.err.startswith("ldm-gen: not identical: off by 3 of 255 at most, ")
    assert f"versions torch was '1.0', is '{torch.__version__}" in done.err
    assert done.err.count("\n") == 1
    assert open_image("again.png").tobytes() == open_image(first).tobytes()


def test_edited_pixels_are_said(ldm_gen: Command) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    edited = open_image(first)
    edited.putpixel((0, 0), tuple(255 - value for value in edited.getpixel((0, 0))))
    save_image(edited, first, read_recipe(first), overwrite=True)
    done = ldm_gen("--replay", first)
    assert done.code == 1
    assert "edited or saved again" in done.err


def test_other_weights_are_said_before_the_work(
    ldm_gen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    forge(first, model={"name": "x", "revision": "", "sha256": "f" * 64})

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("computing")

    monkeypatch.setattr(LatentPipeline, "stream", broken)
    done = ldm_gen("--replay", first)
    assert done.code == 1
    lines = done.err.splitlines()
    said = next(n for n, line in enumerate(lines) if "expect another one" in line)
    assert "ffffffffffff)" in lines[said]
    assert said < next(n for n, line in enumerate(lines) if "computing" in line)


def test_the_recorded_machine_is_taken_where_it_is_there(
    ldm_gen: Command, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    asked: list[dict[str, Any]] = []

    def loaded(model: str, **options: Any) -> LatentPipeline:
        asked.append({name: options[name] for name in ("device", "dtype")})
        return pipe

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    assert ldm_gen("--replay", first).code == 0
    assert ldm_gen("--replay", first, "--device=cpu", "--dtype=bf16").code == 0
    forge(first, device="no such thing", dtype="complex5")
    done = ldm_gen("--replay", first)
    assert asked == [
        {"device": "cpu", "dtype": "float32"},
        {"device": "cpu", "dtype": "bf16"},
        {"device": "auto", "dtype": "auto"},
    ]
    assert "another device than it was" in done.err
    assert "another dtype than it was" in done.err


def test_a_stranger_s_numbers_cost_nothing(
    ldm_gen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,536 threads or pictures at once are the file's wish, not the person's."""
    first = ldm_gen("a cat", *QUICK).paths[0]
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert ldm_gen("--replay", first, "--threads", 1).code == 0
    forge(first, threads=65_536, batch_size=65_536)
    assert ldm_gen("--replay", first).code == 0
    assert max(threads) <= (os.cpu_count() or 1)


def test_only_bundled_models_are_taken_by_name(
    ldm_gen: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    for name in ("tiny", str(tiny_model), "../evil", "https://x/y", "a/b\x1b[2J"):
        forge(first, model={"name": name, "revision": "", "sha256": "0" * 64})
        done = ldm_gen("--replay", first, model=None)
        assert (done.code, done.out) == (2, "")
        assert "name its folder with --model" in done.err
        assert "\x1b" not in done.err
    monkeypatch.setattr(identity, "bundled_models", lambda: {"tiny": tiny_model})
    forge(first, model={"name": "tiny", "revision": "", "sha256": "0" * 64})
    assert ldm_gen("--replay", first, model=None).code == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "os:system"},
        {"scheduler": "nonsense"},
        {"seed": 2**63},
        {"width": 63},
        {"steps": 51, "scheduler": "lcm"},
    ],
    ids=str,
)
def test_recipes_that_cannot_be_made(changes: dict[str, Any], ldm_gen: Command) -> None:
    first = ldm_gen("a cat", *QUICK).paths[0]
    forge(first, **changes)
    done = ldm_gen("--replay", first)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert os.listdir() == [str(first)]


def test_pictures_without_a_recipe_are_refused(ldm_gen: Command) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    done = ldm_gen("--replay", "plain.png")
    assert done.code == 2
    assert done.err.startswith("ldm-gen: error: --replay: plain.png holds no recipe; ")
    assert done.err.count("\n") == 1


def test_a_lora_without_a_scale_has_that_of_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a.lora_A.weight": torch.ones(2)}, file)
    recorded = [
        {"sha256": "0" * 64, "scale": 0.1},
        {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "scale": 0.8},
    ]
    problems: list[str] = []
    assert _lora(str(file), recorded, problems) == (file, 0.8)
    assert _lora(f"{file}:0.5", recorded, problems) == (file, 0.5)
    assert _lora(str(file), recorded[:1], problems) == (file, 1.0)
    assert _lora(str(file), [], problems) == (file, 1.0)
    assert not problems
