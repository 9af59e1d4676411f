"""What the package promises as a whole: its names, its levels, its style."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ldm_toolkit

REPO = Path(__file__).resolve().parent.parent
PACKAGE = Path(ldm_toolkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


# --- names ---


def test_public_names_are_few_and_there() -> None:
    assert len(ldm_toolkit.__all__) <= 12
    assert sorted(ldm_toolkit.__all__) == list(ldm_toolkit.__all__)
    assert set(ldm_toolkit.__all__) <= set(dir(ldm_toolkit))
    for name in ldm_toolkit.__all__:
        assert getattr(ldm_toolkit, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ldm_toolkit.no_such_name


def test_version_is_that_of_the_project() -> None:
    assert ldm_toolkit.__version__ == PYPROJECT["project"]["version"]
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{ldm_toolkit.__version__}]" in changelog


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Also each module of levels 0 and 1, which import-linter sees only as far as it is written."""
    forbidden = [c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "instant"]
    names = forbidden[0]["source_modules"]
    heavy = forbidden[0]["forbidden_modules"]
    code = (
        f"import importlib, sys\n"
        f"for name in {['ldm_toolkit', *names]}: importlib.import_module(name)\n"
        f"found = set({heavy}) & set(sys.modules)\n"
        f"sys.exit(str(found) if found else 0)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_module_stands_in_the_import_rules() -> None:
    levels = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "levels")
    text = " ".join(levels["layers"]).replace("(", "").replace(")", "")
    listed = {word for word in text.split() if word not in {"|", ":"}}
    for path in MODULES:
        name = module_name(path)
        if path.name != "__init__.py":
            parents = {name.rsplit(".", depth)[0] for depth in range(name.count("."))}
            assert {name, *parents} & listed, f"{name} is missing in [tool.importlinter]"


# --- style ---


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_documented_and_fit_a_sitting(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "no docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    public = tree(path).body
    for node in public:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_functions_are_short_and_annotated(path: Path) -> None:
    for function in functions(path):
        where = f"{function.name}, line {function.lineno}"
        assert (function.end_lineno or 0) - function.lineno < 60, f"{where}: too long"
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        assert len(positional) <= 9, f"{where}: too many arguments"
        for argument in [*positional, *arguments.kwonlyargs]:
            assert argument.annotation or argument.arg in {"self", "cls"}, (
                f"{where}: {argument.arg}"
            )
        assert function.returns or function.name == "__init__", f"{where}: no return type"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_assert_print_or_bare_except(path: Path) -> None:
    for node in ast.walk(tree(path)):
        line = getattr(node, "lineno", 0)
        assert not isinstance(node, ast.Assert), f"assert in line {line}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"print in line {line}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {line}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_all_names_what_is_there(path: Path) -> None:
    defined: set[str] = set()
    exported: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            defined |= set(names)
            if "__all__" in names and node.value is not None:
                exported = ast.literal_eval(node.value)
    assert set(exported) <= defined


def test_tracked_files_stay_small() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("no git repository here")
    sizes = [
        (REPO / n).stat().st_size for n in done.stdout.split("\0") if n and (REPO / n).is_file()
    ]
    assert max(sizes) <= 35 * 2**20
    assert sum(sizes) <= 60 * 2**20


def test_pictures_that_are_drawn_here_are_ignored_and_those_of_the_readme_are_not() -> None:
    names = ["a-dog-wearing-hat-42.png", "assets/dog-hat.png"]
    command = ["git", "check-ignore", "--no-index", *names]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        pytest.skip("no git repository here")
    assert done.stdout.split() == names[:1]
