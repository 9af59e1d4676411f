"""Pickled weights: refused unless allowed, and then nothing in them runs."""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pickle_payloads import FORMS, explode
from safetensors.torch import load_file

import ldm_toolkit
from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.load import load_components
from ldm_toolkit.models.pickles import load_pickle

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

NAMES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}


def load(model: Path, **options: Any) -> Components:
    return load_components(model, device="cpu", dtype="float32", **options)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def assert_named(error: pytest.ExceptionInfo[ModelError], path: Path) -> None:
    text = str(error.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 500


def fill(folder: Path, payload: bytes, *, pickled: bool) -> None:
    """Exchange all weights of a folder for a payload."""
    for part, names in NAMES.items():
        (folder / part / names[0]).unlink()
        (folder / part / names[pickled]).write_bytes(payload)


def test_there_are_twenty_forms() -> None:
    assert len(FORMS) == 20


@pytest.mark.parametrize("form", FORMS)
class TestPayloads:
    @pytest.fixture
    def payload(self, form: str, tmp_path: Path) -> Iterator[bytes]:
        """A payload that is known to work; at the end, it must not have run again."""
        canary = tmp_path / "canary"
        data = FORMS[form][1](str(canary))
        (tmp_path / "live").write_bytes(data)
        explode(tmp_path / "live")
        assert canary.exists(), "the payload is a dud"
        canary.unlink()
        yield data
        assert not canary.exists()

    def test_in_a_folder(self, form: str, payload: bytes, folder: Path) -> None:
        safe, pickled = NAMES["text_encoder"]
        (folder / "text_encoder" / safe).unlink()
        path = folder / "text_encoder" / (safe if "safetensors" in FORMS[form][0] else pickled)
        path.write_bytes(payload)
        for allowed in (True, False):
            with pytest.raises(ModelError) as caught:
                load(folder, allow_pickle=allowed)
            assert_named(caught, path)

    def test_as_a_file(self, form: str, payload: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"model{FORMS[form][0]}"
        path.write_bytes(payload)
        for allowed in (True, False):
            with pytest.raises(ModelError) as caught:
                load(path, allow_pickle=allowed, tokenizer=tmp_path)
            assert_named(caught, path)
        with pytest.raises(ModelError) as caught:
            load_pickle(path)
        assert_named(caught, path)

    @pytest.mark.parametrize("place", ["folder", "file"])
    def test_on_the_command_line(
        self,
        place: str,
        form: str,
        payload: bytes,
        folder: Path,
        tmp_path: Path,
        workdir: Path,
        real_ldm_gen: Callable[..., "Outcome"],
    ) -> None:
        pickled = FORMS[form][0] != ".safetensors"
        if place == "folder":
            model, weights = folder, "model.bin" if pickled else "model.safetensors"
            fill(folder, payload, pickled=pickled)
        else:
            model = tmp_path / f"model{FORMS[form][0]}"
            weights = model.name
            model.write_bytes(payload)
        words = ("a dog", "--steps", 1, "--device", "cpu", "--quiet", "--model", model)
        for allowed in (False, True):
            done = real_ldm_gen(*words, *(["--allow-pickle"] if allowed else []))
            assert not (tmp_path / "canary").exists()
            assert (done.code, done.out) == (2, ""), done.err
            assert done.err.startswith("ldm-gen: error: ")
            assert done.err.count("\n") == 1
            assert weights in done.err
            assert "pickle" in done.err or allowed or not pickled
            assert "Traceback" not in done.err
            assert len(done.err) < 1000
        assert os.listdir(workdir) == []


# --- what is allowed works ---


def to_pickles(folder: Path, *, shards: bool = False) -> None:
    """Exchange a folder's safetensors for pickles."""
    for part, (safe, pickled) in NAMES.items():
        state = load_file(folder / part / safe)
        (folder / part / safe).unlink()
        if not shards:
            torch.save(state, folder / part / pickled)
            continue
        places = {name: f"part-{index % 2}.bin" for index, name in enumerate(state)}
        for place in set(places.values()):
            torch.save(
                {n: v for n, v in state.items() if places[n] == place}, folder / part / place
            )
        index = {"metadata": {}, "weight_map": places}
        (folder / part / f"{pickled}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [False, True])
def test_tensors_are_those_of_the_safetensors(shards: bool, folder: Path, tiny_model: Path) -> None:
    to_pickles(folder, shards=shards)
    found, expected = load(folder, allow_pickle=True), load(tiny_model)
    for part in NAMES:
        one, other = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert found.identity.sha256 != expected.identity.sha256
    with pytest.raises(ModelError, match=r"unet (has only pickled weights|holds|lacks)|lacks unet"):
        load(folder)


def test_safetensors_come_first(folder: Path) -> None:
    (folder / "unet" / NAMES["unet"][1]).write_bytes(b"not read")
    assert load(folder, allow_pickle=True).identity == load(folder).identity


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([torch.ones(2)], "no dictionary"),
        ({}, "no tensors"),
        ({"a": 5}, "no tensors"),
        ({1: torch.ones(2)}, "no tensors under names"),
        ({"state_dict": 5}, "no dictionary"),
        ({"conv_in.weight": torch.ones(2)}, "missing keys"),
    ],
)
def test_pickles_that_are_no_model(data: Any, words: str, folder: Path) -> None:
    safe, pickled = NAMES["unet"]
    (folder / "unet" / safe).unlink()
    torch.save(data, folder / "unet" / pickled)
    with pytest.raises(ModelError, match=words):
        load(folder, allow_pickle=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
        lambda value: value.to(torch.int64),
        lambda value: value.to(torch.complex64),
    ],
)
def test_tensors_of_another_kind(
    spoil: Callable[[torch.Tensor], torch.Tensor], folder: Path
) -> None:
    safe, pickled = NAMES["unet"]
    state = load_file(folder / "unet" / safe)
    (folder / "unet" / safe).unlink()
    state["conv_in.weight"] = spoil(state["conv_in.weight"])
    torch.save(state, folder / "unet" / pickled)
    with pytest.raises(ModelError, match=r"1 mismatched keys|refused"):
        load(folder, allow_pickle=True)


def test_an_old_torch_reads_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    assert set(load_pickle(tmp_path / "x.bin")) == {"a"}
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ModelError, match=r"2\.10 is needed"):
        load_pickle(tmp_path / "x.bin")


# --- one place ---

UNSAFE_MODULES = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "runpy"}
UNSAFE_OPTIONS = {"trust_remote_code", "custom_pipeline", "pickle_module"}


def findings(source: str) -> set[str]:
    """What in a module could run code out of a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = getattr(node, "module", None) or ""
            names = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            found |= {n for n in names if n.split(".")[0] in UNSAFE_MODULES or n == "torch.load"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            found |= {name} & {"torch.load", "numpy.load", "np.load", "torch.jit"}
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_OPTIONS:
            found.add(node.arg)
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__"):
            found.add(node.id)
    return found


def test_pickles_are_read_in_one_place_only() -> None:
    package = Path(ldm_toolkit.__file__).parent
    sources = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    found = {name: findings(path.read_text()) for name, path in sources.items()}
    assert {name: what for name, what in found.items() if what} == {
        "evaluation/subject.py": {"np.load"},  # blocks of features
        "fastpath/openvino.py": {"torch.jit"},  # the class of the warnings that tracing gives
        "models/pickles.py": {"torch.load"},
        "training/perceptual.py": {"pickle"},  # the error that torch raises at damaged weights
    }
    assert sources["training/perceptual.py"].read_text().count("pickle.") == 2
    assert sources["models/pickles.py"].read_text().count("weights_only=True") == 1
    loads = re.findall(r"np\.load\(.*", sources["evaluation/subject.py"].read_text())
    assert loads == ["np.load(path, allow_pickle=False)"]
    assert findings("import pickle\nnp.load(x)\nf(trust_remote_code=True)") == {
        "pickle",
        "np.load",
        "trust_remote_code",
    }
