"""What goes wrong around ``ldm-gen``: one clear line, the right exit code, nothing half-written."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from samples import HOSTILE_TEXTS

from ldm_toolkit.images import open_image, pixels_sha256, read_recipe
from ldm_toolkit.pipeline import LatentPipeline

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]

# --- wrong command lines ---

# Words after ldm-gen (MODEL stands for a good model), then what the one line must mention.
WRONG: list[tuple[list[str], str]] = [
    ([], "say what to draw"),
    (["--steps", "5"], "say what to draw"),
    (["a", "dog"], "quotes"),
    (["x", "--stepz", "5"], "did you mean --steps?"),
    (["x", "--setps=5"], "did you mean --steps?"),
    (["x", "--guidence", "5"], "did you mean --guidance?"),
    (["x", "--xyzzy"], "unknown option --xyzzy"),
    (["x", "-x"], "unknown option -x"),
    (["--a-prompt=with dashes"], "unknown option --a-prompt"),
    (["-prompt"], "after --"),
    (["x", "--steps"], "expected one argument"),
    (["x", "--seed", "--steps", "5"], "expected one argument"),
    (["x", "--quiet=1"], "--quiet"),
    (["x", "--steps", ""], "--steps: '' is not a whole number"),
    (["x", "--steps", "abc"], "--steps: 'abc' is not a whole number"),
    (["x", "--steps", "2.5"], "--steps"),
    (["x", "--steps", "1e2"], "--steps"),
    (["x", "--steps", "0"], "--steps must be a whole number from 1"),
    (["x", "--steps", "-3"], "--steps"),
    (["x", "--steps", "1001"], "--steps"),
    (["x", "--steps", "1" * 5000], "--steps"),
    (["x", "--steps", "1001", "--scheduler", "ddim"], "from 1 to 1000"),
    (["x", "--steps", "60", "--scheduler", "lcm"], "lcm can do"),
    (["x", "--guidance", "nan"], "--guidance must be a number"),
    (["x", "--guidance", "inf"], "--guidance must be a number"),
    (["x", "--guidance=-inf"], "--guidance must be a number"),
    (["x", "--guidance", "-1"], "--guidance must be a number"),
    (["x", "--guidance", "7,5"], "--guidance: '7,5' is not a number"),
    (["x", "--guidance", "1e400"], "--guidance"),
    (["x", "--guidance-rescale", "2"], "--guidance-rescale must be a number from 0 to 1"),
    (["x", "--seed", "-1"], "--seed must be a whole number from 0"),
    (["x", "--seed", "9223372036854775808"], "--seed"),
    (["x", "--seed", "random"], "--seed: 'random' is not a whole number"),
    (["x", "--seed", "9223372036854775807", "-n", "2"], "--seed"),
    (["x", "--width", "63"], "--width must be a multiple of 8; the nearest is 64"),
    (["x", "--height", "1"], "--height must be a multiple of 8"),
    (["x", "--width", "0"], "--width"),
    (["x", "--dim", "100000"], "--width"),
    (["x", "--dim", "64", "--height", "64"], "--dim sets"),
    (["x", "--dim", "big"], "--dim: 'big' is not a whole number"),
    (["x", "-n", "0"], "-n: 0 is too small"),
    (["x", "-n", "-4"], "-n: -4 is too small"),
    (["x", "--num-images", "many"], "-n: 'many' is not a whole number"),
    (["x", "--scheduler", "eulr"], "did you mean 'euler'?"),
    (["x", "--scheduler", ""], "scheduler"),
    (["x", "--scheduler", "os:system"], "scheduler"),
    (["x", "--model", "storyboook"], "--model"),
    (["x", "--revision", "main"], "--revision is for models of the hub"),
    (["x", "--variant", "fp16"], "fp16"),
    (["x", "--vae", "none"], "none"),
    (["x", "--lora", "none.safetensors"], "--lora: there is no file none.safetensors"),
    (["x", "--lora", "lora.bin"], "--lora: lora.bin is no .safetensors file"),
    (["x", "--lora", "a.safetensors:0.5", "--lora", "b.pt"], "b.pt is no .safetensors file"),
    (["x", "--embedding", "none.safetensors:word"], "--embedding: there is no file"),
    (["x", "--image", "none.png"], "--image: cannot read none.png"),
    (["x", "--mask", "none.png"], "--mask needs --image"),
    (["x", "--strength", "0.5"], "--strength needs --image"),
    (["x", "--strength", "2"], "--strength must be a number from 0 to 1"),
    (["x", "--guidance-interval", "0.5"], "is not START,STOP"),
    (["x", "--guidance-interval", "0.8,0.2"], "--guidance-interval must be"),
    (["x", "--clip-skip", "-1"], "--clip-skip must be"),
    (["x", "--eta", "0.5", "--scheduler", "euler"], "--eta: euler knows no eta"),
    (["x", "-n", "1000000000"], "-n: 1e+09 is too large"),
    (["x", "--threads", "99999999999999999999"], "--threads: 1e+20 is too large"),
    (["x", "--clip-skip", "2"], "--clip-skip: the text encoder has 2 layers"),
    (["x", "--steps", "51", "--scheduler", "tcd"], "--steps: tcd can do 50 at most"),
    (["x", "--batch-size", "4"], "--batch-size is for --prompts"),
    (["--prompts", "none.txt", "-o", "out/"], "none.txt"),
    (["--prompts", "none.txt", "-o", ""], "FILE.png or FOLDER/"),
    (["--prompts", "none.txt", "-o", "a\nb"], "control character"),
    (["--prompts", "none.txt"], "--prompts needs a folder for the pictures"),
    (["a dog", "--prompts", "none.txt"], "takes the place of PROMPT; leave 'a dog' away"),
    (["--prompts", "none.txt", "-o", "out/", "-n", "3", "--grid"], "does not go with -n, --grid"),
    (["--prompts", "none.txt", "-o", "out/", "--batch-size", "0"], "--batch-size: 0 is too small"),
    (["--prompts", "none.txt", "-o", "out/", "--steps", "0"], "--steps must be"),
    (["x", "--lora", ""], "--lora is empty; say PATH or PATH:SCALE"),
    (["x", "--embedding", ""], "--embedding is empty; say PATH or PATH:WORD"),
    (["x", "--vae", ""], "--vae is empty"),
    (["x", "--tokenizer", "", "--revision", "", "--variant", ""], "--variant is empty; say a word"),
    (["x", "--image", "", "--mask", ""], "--image is empty; say a file; --mask is empty"),
    (["--prompts", "", "-o", "out/"], "--prompts is empty"),
    (["--replay", ""], "--replay is empty"),
    (["x", "--model", "/nonexistent/model"], "--model"),
    (["x", "--model", ""], "--model"),
    (["x", "--model", "."], "no model_index.json"),
    (["x", "--model", "a" * 5000], "--model"),
    (["x", "--model", "https://example.com/model"], "--model"),
    (["x", "--device", "gpu"], "--device: 'gpu' is none of auto"),
    (["x", "--device", "cuda:x"], "--device"),
    (["x", "--dtype", "float31"], "did you mean 'float32'?"),
    (["x", "--dtype", "int8"], "--dtype"),
    (["x", "--attention", "sdpaa"], "did you mean 'sdpa'?"),
    (["x", "--backend", "openvnio"], "did you mean 'openvino'?"),
    (["x", "--backend", "openvino", "--compile"], "openvino compiles by itself"),
    (["x", "--backend", "openvino", "--gate", "0.5"], "--gate must be 1 with the backend openvino"),
    (["x", "--backend", "openvino", "--attention-every", "2"], "--attention-every must be 1 with"),
    (["x", "--reuse-every", "2", "--reuse-depth", "4"], "--reuse-depth must be from 1 to 3 with"),
    (["x", "--speed", "fast", "--reuse-depth", "9"], "--reuse-depth must be from 1 to 3 with"),
    (["x", "--threads", "0"], "--threads: 0 is too small"),
    (["x", "--threads", "all"], "--threads"),
    (["x", "--save-intermediates", "0"], "--save-intermediates"),
    (["x", "--save-intermediates", "x"], "--save-intermediates"),
    (["x", "-o", ""], "FILE.png or FOLDER/"),
    (["x", "-o", "dog.gif"], ".gif cannot be written; say dog.png or dog.webp or dog.jpg, or d"),
    (["x", "-o", "dog.gif", "--format", "webp"], ".gif cannot be written; say dog.webp"),
    (["x", "-o", "dog.jpg", "--format", "png"], "--format png is another format; say dog.png"),
    (["x", "-o", "dog.png", "--format", "jpg"], "--format jpg is another format; say dog.jpg"),
    (["x", "-o", "dog", "--format", "jpg"], "no format at the end; say dog.jpg, or dog/"),
    (["x", "--format", "jpeg"], "--format: 'jpeg' is none of png, webp, jpg; did you mean 'jpg'?"),
    (["x", "--format", ""], "--format"),
    (["x", "--strip-metadata=1"], "--strip-metadata"),
    (["--replay"], "expected one argument"),
    (["--replay", "none.png"], "--replay: cannot read none.png"),
    (["--replay", "."], "--replay: . is not a file"),
    (["--replay", "/dev/zero"], "is not a file"),
    (["--replay", "none.png", "a dog"], "takes the place of PROMPT; leave 'a dog' away"),
    (["a dog", "--replay=none.png"], "takes the place of PROMPT"),
    (["--replay", "none.png", "--", "a dog"], "takes the place of PROMPT"),
    (["--replay", "none.png", "--seed", "1", "-n", "2"], "takes --seed, -n from the picture"),
    (["--replay", "none.png", "--dim", "64", "--steps=9"], "takes --steps, --dim from the picture"),
    (["x", "-o", "dog"], "say dog.png or dog.webp or dog.jpg, or dog/ for a folder"),
    (["x", "-o", "-"], "-o"),
    (["x", "-o", "a\nb.png"], "control character"),
    (["x", "-o", "a\0b.png"], "control character"),
    (["\udcff\udcfe"], "not valid Unicode"),
    (["x", "--negative", "\udcff"], "--negative is not valid Unicode"),
]
CANNOT_WRITE: list[tuple[list[str], str]] = [
    (["x", "-o", "none/dog.png"], "none does not exist; make it first"),
    (["x", "-o", "/proc/1/dog.png"], "cannot write in /proc/1"),
    (["x", "-o", "/proc/new/"], "cannot write"),
    (["x", "-o", "n" * 300 + "/"], "cannot write"),
    (["x", "-o", "n" * 300 + ".png"], "too long"),
]


def assert_refused(done: "Outcome", code: int, text: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert text in done.err
    assert done.err.startswith("ldm-gen: error: ")
    assert done.err.count("\n") == 1
    assert len(done.err) < 3000
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("words", "text"), WRONG, ids=[" ".join(w)[:60] for w, _ in WRONG])
def test_wrong_use(words: list[str], text: str, ldm_gen: Command, workdir: Path) -> None:
    assert_refused(ldm_gen(*words), 2, text)
    assert os.listdir(workdir) == []


@pytest.mark.parametrize(("words", "text"), CANNOT_WRITE)
def test_places_that_cannot_be_written(
    words: list[str], text: str, ldm_gen: Command, workdir: Path
) -> None:
    assert_refused(ldm_gen(*words), 74, text)
    assert os.listdir(workdir) == []


def test_the_table_is_as_long_as_promised() -> None:
    assert len(WRONG) + len(CANNOT_WRITE) >= 60


def test_all_problems_come_at_once(ldm_gen: Command, workdir: Path) -> None:
    done = ldm_gen(
        *("x", "--steps", 0, "--guidance", "nan", "--seed", -1, "--width", "wide", "-n", 0),
        *("--scheduler", "eulr", "--device", "gpu", "--dtype", "int8", "--threads", 0),
        *("--save-intermediates", 0, "--model", "none", "-o", "none/x.png"),
    )
    assert_refused(done, 2, "--steps")
    flags = "--guidance --seed --width -n: scheduler --device --dtype --threads --model -o:"
    for flag in flags.split():
        assert flag in done.err


def test_what_the_model_cannot_do_comes_with_the_rest(ldm_gen: Command, workdir: Path) -> None:
    done = ldm_gen(
        *("(x:200)", "--width", 255, "--steps", 0, "--clip-skip", 2, "--eta", 0.5),
        *("--scheduler", "euler", "--lora", "", "--negative", "(y:300)", "--format", "gif"),
    )
    assert_refused(done, 2, "--steps must be")
    for told in (
        "the weight of 'x' is 200",
        "--negative: the weight of 'y' is 300",
        "--width must be a multiple of 8; the nearest is 256",
        "--clip-skip: the text encoder has 2 layers",
        "--eta: euler knows no eta",
        "--lora is empty",
        "--format: 'gif'",
    ):
        assert told in done.err
        assert done.err.count(told) == 1


def test_a_job_tells_wrong_options_once_and_all_wrong_rows(ldm_gen: Command, workdir: Path) -> None:
    rows = ['{"prompt": "a", "clip_skip": 2}', '{"prompt": "b"}', '{"prompt": "c", "width": 33}']
    (workdir / "p.jsonl").write_text("\n".join(rows))
    done = ldm_gen(
        *("--prompts", "p.jsonl", "-o", "out/", "--height", 33, "--steps", 0, "--strength", 0.5)
    )
    assert_refused(done, 2, "--height must be a multiple of 8; the nearest is 32")
    assert done.err.count("height") == 1
    assert done.err.count("--steps must be") == 1
    assert "2 bad rows: p.jsonl:1: clip_skip: the text encoder has 2 layers; one must" in done.err
    assert "p.jsonl:3: width must be a multiple of 8; the nearest is 32" in done.err
    (workdir / "p.jsonl").write_text('{"prompt": "b"}')
    done = ldm_gen("--prompts", "p.jsonl", "-o", "out/", "--strength", 0.5)
    assert_refused(done, 2, "--strength: no row has an image")


def test_a_wrong_model_folder_is_found_before_loading(
    ldm_gen: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(LatentPipeline, "from_pretrained", loaded)
    (workdir / "model").mkdir()
    (workdir / "model" / "model_index.json").write_text("{")
    assert_refused(ldm_gen("x", model=workdir / "model"), 2, "model_index.json")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(ldm_gen: Command, workdir: Path) -> None:
    (workdir / "models" / "good").mkdir(parents=True)
    told = "'models' is a folder and holds no 'goood', so the hub is not asked; did you mean 'good'"
    assert_refused(ldm_gen("x", "--model", "models/goood"), 2, told)


# --- hostile names and prompts ---


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
def test_hostile_prompts_stay_in_the_folder(
    text: str, ldm_gen: Command, workdir: Path, tmp_path: Path
) -> None:
    done = ldm_gen("--steps", 1, "--seed", 1, "--quiet", "--", text)
    if done.code == 2:  # longer than the model reads
        assert_refused(done, 2, "tokens")
        assert os.listdir(workdir) == []
        return
    assert done.code == 0, done.err
    assert os.listdir(workdir) == [str(done.paths[0])]
    assert read_recipe(done.paths[0]).prompt == text
    assert os.listdir(tmp_path / "outer") == ["work"]


NAMES = [text for text in HOSTILE_TEXTS if text[:1] not in ("", "/")]  # nothing outside tmp_path


@pytest.mark.parametrize("ending", ["", ".png", "/"])
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_hostile_output_names_mean_what_they_say(
    name: str, ending: str, ldm_gen: Command, workdir: Path, tmp_path: Path
) -> None:
    done = ldm_gen("x", "--steps", 1, "--seed", 1, f"--output={name}{ending}")
    written = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    if done.code == 0:
        assert len(written) == 1
        assert written[0].samefile(done.paths[0])
        asked = Path(f"{name}{ending}")
        assert done.paths[0] in (asked, asked / "x-1.png")
    else:
        assert_refused(done, done.code, "-o")
        assert done.code in (2, 74)
        assert written == []


def test_a_link_is_never_followed(ldm_gen: Command, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (workdir / "link.png").symlink_to(tmp_path / "precious")
    (workdir / "loose.png").symlink_to(tmp_path / "nowhere")
    for name in ("link.png", "loose.png"):
        assert_refused(ldm_gen("x", "-o", name), 2, "exists already")
    assert ldm_gen("x", "--steps", 1, "-o", "link.png", "--overwrite").code == 0
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


# --- failures inside ---


def failing(error: BaseException) -> Callable[..., Any]:
    def stream(self: LatentPipeline, *_: Any, **__: Any) -> Any:
        raise error

    return stream


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RuntimeError("first\nsecond"), 1, "unexpected RuntimeError: first second; run again with"),
        (KeyError("x"), 1, "--debug"),
        (OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory; try a smaller --width"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1"), 1, "out of memory"),
        (SystemError("<f> returned NULL without setting an exception"), 1, "out of memory"),
        (SystemError("bad argument"), 1, "unexpected SystemError: bad argument"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_failures_are_one_line(
    error: BaseException,
    code: int,
    text: str,
    ldm_gen: Command,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LatentPipeline, "stream", failing(error))
    done = ldm_gen("x", "--quiet", "--save-intermediates", 1)
    assert done.code == code
    assert text in done.err
    assert done.err.count("\n") == 1
    assert os.listdir(workdir) == []


def test_debug_shows_the_traceback(ldm_gen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentPipeline, "stream", failing(RuntimeError("boom")))
    done = ldm_gen("x", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == "ldm-gen: error: unexpected RuntimeError: boom"
    assert "Traceback" not in ldm_gen("--quiet", "--", "--debug").err


@pytest.mark.parametrize("call", ["open", "fsync", "link"])
@pytest.mark.parametrize("moment", range(1, 9))
def test_a_disk_that_fills_leaves_nothing(
    call: str, moment: int, ldm_gen: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th write of the run fails; what was whole before stays, nothing else is there."""
    import builtins

    owner, original = (builtins, open) if call == "open" else (os, getattr(os, call))
    count = 0

    def failing_call(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        writing = call != "open" or "x" in (arguments[1:2] or ("r",))[0]
        count += writing
        if writing and count == moment:
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(owner, call, failing_call)
    done = ldm_gen("x", "--steps", 2, "--seed", 1, "-n", 2, "--save-intermediates", 1, "--quiet")
    monkeypatch.undo()
    if count < moment:
        assert done.code == 0
    else:
        assert done.code == 74
        assert "No space left" in done.err
        assert ".tmp" not in done.err
        assert done.err.count("\n") == 1
    whole = [path for path in workdir.rglob("*.png") if path.parent == workdir]
    assert all(read_recipe(path).pixels_sha256 == pixels_sha256(open_image(path)) for path in whole)
    assert [path for path in workdir.rglob("*") if path.name.startswith(".")] == []
    assert set(done.paths) <= {Path(path.name) for path in whole}


# --- signals and limits, in a process of its own ---


def here() -> dict[str, str]:
    """The environment in which a child finds the same package and starts no threads."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Server:
    """The process that forks commands; see fork_server.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=here(),
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, *words: object, out: str = "/dev/null", limit: int | None = None) -> "Child":
        """Start ``ldm-gen``; its stderr is a pipe, which no file size limit touches."""
        assert self.process.stdin is not None
        pipe = self.folder / f"err-{time.monotonic_ns()}"
        os.mkfifo(pipe)
        request = {"words": [str(w) for w in words], "out": out, "err": str(pipe), "limit": limit}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Child(self, int(self.answer()), os.open(pipe, os.O_RDONLY))


class Child:
    """A command on its way."""

    def __init__(self, server: Server, pid: int, err: int) -> None:
        self.server, self.pid, self.err = server, pid, err

    def wait_for_start(self) -> bytes:
        """The first bytes of stderr: the model is about to load."""
        return os.read(self.err, 65536)

    def finish(self) -> tuple[int, str]:
        """Exit code (negative for a signal) and the rest of stderr."""
        text = b""
        while block := os.read(self.err, 65536):
            text += block
        os.close(self.err)
        return int(self.server.answer()), text.decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("pipes"))
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(60)


JOB = ("a dog", "--steps", 3, "--seed", 1, "-n", 3, "--save-intermediates", 1)
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def check_whole(folder: Path, *, temporary: bool) -> None:
    """Every file under its final name is a whole picture; none is left over."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden:
            assert temporary, path
        elif path.is_file():
            if path.suffix == ".jsonl":
                continue
            open_image(path)
            if path.parent == folder:
                assert read_recipe(path).pixels_sha256 == pixels_sha256(open_image(path))


def stop(child: Child, number: signal.Signals, seconds: float) -> int:
    """Send a signal some time after the start; the exit code, which must be one that fits."""
    child.wait_for_start()
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)
    code, text = child.finish()
    assert code in (0, STOPS[number]), text
    assert "Traceback" not in text
    return code


def stop_at_random_moments(
    server: Server, number: signal.Signals, count: int, model: Path, folder: Path
) -> None:
    chance = random.Random(count)
    job = (*JOB, "--model", model, "--device", "cpu")
    started = time.monotonic()
    code, text = server.start(*job, "-o", f"{folder}/whole/").finish()
    assert code == 0, text
    duration = time.monotonic() - started
    codes = []
    for attempt in range(count):
        place = folder / str(attempt)
        child = server.start(*job, "-o", f"{place}/")
        codes.append(stop(child, number, chance.uniform(0, duration)))
        if codes[-1] == 0:
            duration /= 2  # the measured run was slow, this one had ended before
        if place.exists():
            check_whole(place, temporary=number == signal.SIGKILL)
            for path in place.glob("*.png"):
                assert path.read_bytes() == (folder / "whole" / path.name).read_bytes()
    assert STOPS[number] in codes


@pytest.mark.parametrize("number", list(STOPS), ids=lambda number: number.name)
def test_a_stopped_run_leaves_whole_files(
    number: signal.Signals, server: Server, tiny_model: Path, tmp_path: Path
) -> None:
    stop_at_random_moments(server, number, 8, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", list(STOPS), ids=lambda number: number.name)
def test_a_run_stopped_at_many_moments_leaves_whole_files(
    number: signal.Signals, server: Server, tiny_model: Path, tmp_path: Path
) -> None:
    stop_at_random_moments(server, number, 60, tiny_model, tmp_path)


@pytest.mark.parametrize("limit", [1, 100, 1000, 4000])
def test_a_full_disk(limit: int, server: Server, tiny_model: Path, tmp_path: Path) -> None:
    words = ("x", "--steps", 1, "--model", tiny_model, "-o", f"{tmp_path}/")
    code, text = server.start(*words, limit=limit).finish()
    assert code == 74
    assert text.splitlines()[-1].startswith("ldm-gen: error: cannot write ")
    assert "Traceback" not in text
    assert os.listdir(tmp_path) == []


def test_standard_output_on_a_full_disk(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    words = ("x", "--steps", 1, "--model", tiny_model, "-o", f"{tmp_path}/")
    code, text = server.start(*words, out="/dev/full").finish()
    assert code == 74
    assert "cannot write to standard output" in text
    check_whole(tmp_path, temporary=False)
    assert len(os.listdir(tmp_path)) == 1


def test_a_real_process_stops_on_ctrl_c(tiny_model: Path, tmp_path: Path) -> None:
    """Once without the fork: the interpreter's own start and end are part of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ldm_toolkit.cli.generate", *map(str, JOB), "--model", tiny_model],
        cwd=tmp_path,
        env=here(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would this child of one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "ldm-gen: stopped\n")
    assert os.listdir(tmp_path) == []
