"""``ldm-explain``: what it prints and writes, and how it says what is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from test_cli import here

from ldm_toolkit.cli import explain, explain_request
from ldm_toolkit.cli.options import flag
from ldm_toolkit.explain import page, picture
from ldm_toolkit.images import read_recipe
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import GenerateOptions

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]
QUICK = ("--steps", 2, "--seed", 7)
NO_TORCH = """
import sys
from ldm_toolkit.cli.explain import main
code = main(sys.argv[1:])
heavy = {"torch", "diffusers", "transformers", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else code)
"""


@pytest.fixture
def ldm_explain(
    workdir: Path,
    capfd: pytest.CaptureFixture[str],
    tiny_model: Path,
    pipe: LatentPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """The command in this process, the model loaded once, pictures small."""
    from command import Outcome, process_state_kept

    monkeypatch.setattr(LatentPipeline, "from_pretrained", lambda model, **_: pipe)
    monkeypatch.setattr(picture, "_DPI", 36)

    def run(*arguments: object) -> "Outcome":
        capfd.readouterr()
        words = [str(word) for word in ("--model", tiny_model, *arguments)]
        with process_state_kept():
            code = explain.main(words)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that show --image and --other; the others are drawn in explain/test_page.py."""
    chosen = [make for make in page._MAKERS if {"autoencoder", "between_prompts"} & _named(make)]
    assert len(chosen) == 2
    monkeypatch.setattr(page, "_MAKERS", tuple(chosen))


def _named(make: Any) -> set[str]:
    return set(make.__code__.co_names)


@pytest.mark.usefixtures("few_pictures")
def test_a_page(ldm_explain: Command, workdir: Path) -> None:
    Image.effect_noise((100, 80), 60).convert("RGB").save("mine.png")
    done = ldm_explain(
        "a dog wearing hat", *QUICK, "--guidance", 3, "--scheduler", "Euler a", "--image",
        "mine.png", "--other", "a red car", "-o", "out/",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == f"{Path('out') / 'index.html'}\n"
    names = {path.name for path in (workdir / "out").iterdir()}
    assert names == {"index.html", "autoencoder.png", "between-prompts.png"}
    assert all(explain_request._OURS.fullmatch(name) for name in names)
    text = (workdir / "out" / "index.html").read_text("utf-8")
    assert "euler_a, 2 steps, guidance 3, seed 7, 64 x 64" in text
    assert "a red car" in text
    assert all(line.startswith("ldm-explain: ") for line in done.err.splitlines())
    assert sorted(path.name for path in workdir.iterdir()) == ["mine.png", "out"]


@pytest.mark.usefixtures("few_pictures")
def test_a_page_is_not_replaced_unless_asked_for(ldm_explain: Command, workdir: Path) -> None:
    first = ldm_explain("a dog", *QUICK, "--quiet")
    assert (first.code, first.err) == (0, "")
    assert first.paths == [Path("a-dog-explained/index.html")]
    before = first.paths[0].read_bytes()
    again = ldm_explain("a dog", "--steps", 1, "--seed", 8)
    assert again.code == 74
    assert "a-dog-explained exists already" in again.err
    assert first.paths[0].read_bytes() == before
    assert ldm_explain("a dog", "--steps", 1, "--seed", 8, "--overwrite").code == 0
    assert first.paths[0].read_bytes() != before
    (workdir / "a-dog-explained" / "notes.txt").write_text("mine")
    kept = ldm_explain("a dog", *QUICK, "--overwrite")
    assert kept.code == 74
    assert "holds something else than a page, such as 'notes.txt'" in kept.err
    assert (workdir / "a-dog-explained" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("few_pictures")
def test_equal_commands_write_equal_pages_without_metadata(
    ldm_explain: Command, workdir: Path
) -> None:
    for name in ("one", "two"):
        assert ldm_explain("a dog", *QUICK, "-o", name).code == 0
    for path in (workdir / "one").iterdir():
        assert path.read_bytes() == (workdir / "two" / path.name).read_bytes()
    with pytest.raises(Exception, match="holds no recipe"):
        read_recipe(workdir / "one" / "autoencoder.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'say what to draw: ldm-explain "a dog wearing hat"'),
        (["a", "dog"], "1 word(s) too many, the first is 'dog'"),
        (["a dog", "--setps", "3"], "unknown option --setps; did you mean --steps?"),
        (["a dog", "--steps", "0"], "--steps must be a whole number from 1"),
        (["a dog", "--size", "64"], "unknown option --size; did you mean --dim (or --width, --hei"),
        (["a dog", "--steps", "x"], "--steps: 'x' is not a whole number"),
        (["a dog", "--scheduler", "eulr"], "no scheduler is called 'eulr'"),
        (["a dog", "--image", "none.png"], "--image: cannot read none.png"),
        (["a dog", "--other", "a dog"], "--other is the prompt itself"),
        (["a dog", "--other", "(a:1000)"], "--other: the weight of 'a' is 1000"),
        (["((((a:9):9):9):9)"], "the weight of 'a'"),
        (["a dog", "-o", "."], "is no name of a folder"),
        (["a dog", "--model", "none"], "--model:"),
        (["a dog", "--threads", "0"], "--threads: 0 is too small"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str], message: str, ldm_explain: Command, workdir: Path
) -> None:
    done = ldm_explain(*arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("ldm-explain: error: ")
    assert done.out == ""
    assert list(workdir.iterdir()) == []


def test_all_mistakes_at_once(ldm_explain: Command) -> None:
    done = ldm_explain("a dog", "--steps", 0, "--image", "none.png", "--guidance", "x")
    for part in ("--steps", "--image", "--guidance"):
        assert part in done.err


@pytest.mark.parametrize("place", ["file", "strange", "page"])
def test_a_place_that_is_taken_hides_no_other_mistake(
    place: str, ldm_explain: Command, workdir: Path
) -> None:
    (workdir / "file").write_text("mine")
    for folder, name in (("strange", "notes.txt"), ("page", "index.html")):
        (workdir / folder).mkdir()
        (workdir / folder / name).write_text("mine")
    assert ldm_explain("a dog", "-o", place).code == 74
    both = ldm_explain("a dog", "-o", place, "--device", "gpu", "--steps", 0)
    assert both.code == 2
    for part in (f"{place} ", "--device: 'gpu' is none of", "--steps must be"):
        assert part in both.err
    assert len(both.err.splitlines()) == 1


def test_missing_matplotlib_is_told_before_the_model_loads(
    ldm_explain: Command, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    monkeypatch.setattr(explain_request.importlib.util, "find_spec", lambda name: None)
    done = ldm_explain("a dog")
    assert done.code == 2
    assert "pip install 'ldm-toolkit[explain]'" in done.err
    assert list(workdir.iterdir()) == []


def test_missing_matplotlib_is_told_to_who_imports_it() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from ldm_toolkit.errors import UserError\n"
        "try:\n    import ldm_toolkit.explain\n"
        "except UserError as error:\n    sys.exit(0 if 'ldm-toolkit[explain]' in str(error) else 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=here(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--version"], 0), (["x", "--steps", "0"], 2)]
)
def test_answers_without_torch(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *arguments], env=here(), capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr


def test_help_teaches_every_option(ldm_explain: Command) -> None:
    done = ldm_explain("--help")
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert f"denoising steps; more is slower and finer (default: {explain_request.STEPS})" in text
    for option in (
        "--image",
        "--other",
        "--seed",
        "--guidance",
        "--scheduler",
        "--output",
        "--dim",
    ):
        assert option in text
    for name in GenerateOptions.__dataclass_fields__:
        assert name in ("prompt", "strength") or flag(name) in text


def test_a_failure_leaves_nothing(
    ldm_explain: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(subject: Any) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(page, "_MAKERS", (page._MAKERS[0], failing))
    done = ldm_explain("a dog", *QUICK)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("ldm-explain: error: unexpected RuntimeError: boom")
    assert os.listdir(workdir) == []
