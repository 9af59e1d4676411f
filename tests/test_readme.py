"""The README runs: its commands and its Python, on a tiny model under the bundled one's name."""

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from ldm_toolkit.cli import explain_request
from ldm_toolkit.models import identity
from ldm_toolkit.speed import PRESETS
from ldm_toolkit.storybook import __main__ as storybook
from ldm_toolkit.training.config import UNetConfig, VAEConfig

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
FIRST = 'pip install . && ldm-gen "a dog wearing hat" --steps 50 --guidance 7.5 --seed 42'
SECOND = 'pip install ".[test]" && pytest'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


PYTHON = blocks("python")
COMMANDS = [
    command.strip()
    for block in blocks("bash")
    for line in block.splitlines()
    for command in line.split("&&")
]


@pytest.fixture
def storybook_is_tiny(
    ldm_gen: Callable[..., "Outcome"], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., "Outcome"]:
    """``ldm_gen`` where the bundled model is a tiny one, at 64 pixels."""
    monkeypatch.setattr(
        identity, "bundled_models", lambda: {"storybook": tiny_model, "tiny": tiny_model}
    )
    return ldm_gen


def test_the_two_commands_stand_there_in_their_form() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert lines[0] == FIRST
    assert lines.count(FIRST) == lines.count(SECOND) == 1


def test_blocks_were_found_and_all_are_of_a_kind_that_runs() -> None:
    assert len(PYTHON) >= 4
    assert len(COMMANDS) >= 12
    fences = re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)
    assert set(fences) <= {"python", "bash", ""}
    assert fences.count("") == len(PYTHON) + len(blocks("bash")), "a block without a language"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ldm-gen ")])
def test_ldm_gen_commands(
    command: str, storybook_is_tiny: Callable[..., "Outcome"], workdir: Path
) -> None:
    # What the commands name as theirs to read.
    first = ("a dog", "--steps", "2", "--seed", "1", "-o", "a-dog-wearing-hat-42.png")
    assert storybook_is_tiny(*first, model=None).code == 0
    Image.new("L", (64, 64), 255).save(workdir / "mask.png")
    (workdir / "prompts.txt").write_text("a dog\na cat\n")
    done = storybook_is_tiny(*shlex.split(command)[1:], model=None)
    assert done.code == 0, done.err
    assert done.out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ldm-eval ")])
def test_ldm_eval_commands(
    command: str,
    ldm_eval: Callable[..., "Outcome"],
    storybook_is_tiny: Callable[..., "Outcome"],
) -> None:
    few = [{"20": "2", "4": "1"}.get(word, word) for word in shlex.split(command)[1:]]
    done = ldm_eval(*few)
    assert done.code == 0, done.err
    assert done.out.startswith("measure ")


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("ldm-")])
def test_other_commands(command: str, workdir: Path) -> None:
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        with open(REPO / "pyproject.toml", "rb") as file:
            extras = tomllib.load(file)["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", words[2])) <= set(extras)
    elif words[0] == "ldm-explain":
        # Its page is made in test_cli_explain; here what is asked for has to be right.
        request = explain_request.check(explain_request.parse(words[1:]))
        assert f"`{request.folder}/`" in README
    elif words[:2] == ["accelerate", "launch"]:
        assert (REPO / words[2]).is_file()
        config = VAEConfig if "vae" in words[2] else UNetConfig
        known = {field.name.replace("_", "-") for field in dataclasses.fields(config)}
        assert {word[2:] for word in words if word.startswith("--")} <= known
    elif words[:3] == ["python", "-m", "ldm_toolkit.storybook"]:
        few = [{"1000": "3"}.get(word, word) for word in words[3:]]
        assert storybook.main([*few, "--size", "64"]) == 0
        assert any(workdir.rglob("*.png"))
    else:
        assert words == ["pytest"]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks(
    number: int, storybook_is_tiny: Callable[..., "Outcome"], workdir: Path
) -> None:
    block = PYTHON[number].replace("=512", "=64")
    exec(compile(block, f"README.md python block {number + 1}", "exec"), {})
    assert any(workdir.glob("*.png"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "exact"])
def test_presets_hold_what_it_says(name: str) -> None:
    def told(value: object) -> str:
        return ",".join(f"{one:g}" for one in (value if isinstance(value, tuple) else (value,)))

    exact, preset = (dataclasses.asdict(PRESETS[one]) for one in ("exact", name))
    words = [
        f"--{one.replace('_', '-')} {told(value)}"
        for one, value in preset.items()
        if value != exact[one]
    ]
    assert f"`{name}` is `{' '.join(words)}`" in " ".join(README.split())


def test_links_lead_somewhere() -> None:
    targets = [name for name in re.findall(r"\]\(([^)]+)\)", README) if "://" not in name]
    assert targets
    missing = [name for name in targets if not (REPO / name).exists()]
    assert missing == []
