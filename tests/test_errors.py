"""The tree of exceptions and its exit codes."""

import re
import tomllib
from pathlib import Path

import pytest

from ldm_toolkit import errors

REPO = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("LdmToolkitError", 1),
        ("NumericalError", 1),
        ("UserError", 2),
        ("ModelError", 2),
        ("InputError", 2),
        ("CannotWrite", 74),
    ],
)
def test_exit_codes_are_those_of_the_docstring(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.LdmToolkitError)
    assert kind.exit_code == code
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {name} " in f" {line}")
    assert str(code) in line.split(name)[1].split()[0]


def test_every_class_is_public() -> None:
    classes = {
        n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)
    }
    others = {"LIBRARY_ERRORS", "first_line", "install_hint", "is_out_of_memory"}
    others |= {"listed", "suggestion"}
    assert classes == set(errors.__all__) - others


def test_suggestion() -> None:
    assert errors.suggestion("eulr", ["euler", "ddim"]) == "; did you mean 'euler'?"
    assert errors.suggestion("xyzzy", ["euler", "ddim"]) == ""
    assert errors.suggestion("x", []) == ""


def test_hints_at_extras_name_such_as_there_are() -> None:
    """In one form everywhere; imageio's is no extra of ours."""
    assert errors.install_hint("train") == "pip install 'ldm-toolkit[train]'"
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    source = "\n".join(path.read_text() for path in sorted((REPO / "ldm_toolkit").rglob("*.py")))
    named = re.findall(r"install_hint\(['\"](.*?)['\"]\)", source)
    named += re.findall(r"pip install 'ldm-toolkit\[(\S+)\]'", source.replace("{extra}", "train"))
    assert len(named) >= 10
    assert set(named) <= extras.keys()
    assert set(re.findall(r"pip install '?([\w-]+)", source)) == {"ldm-toolkit", "imageio"}


def test_long_lists_are_cut() -> None:
    assert errors.listed("ab") == "a, b"
    assert errors.listed("abcdefg") == "a, b, c, d, e, and 2 more"
    assert errors.listed(["x" * 500]) == "x" * 160


NULL = "<built-in function load> returned NULL without setting an exception"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA: 20 GB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1"), True),
        (RuntimeError("could not create a primitive"), True),
        (SystemError(NULL), True),
        (SystemError("error return without exception set"), True),
        (RuntimeError(NULL), False),
        (RuntimeError("shapes differ"), False),
        (SystemError("bad argument to internal function"), False),
        (SystemError("<method> returned a result with an exception set"), False),
        (OSError("out of memory"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error: Exception, expected: bool) -> None:
    assert errors.is_out_of_memory(error) is expected
