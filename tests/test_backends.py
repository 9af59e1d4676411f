"""Which backend can be had with what, said before anything is loaded."""

import pytest

from ldm_toolkit import backends
from ldm_toolkit.errors import UserError
from ldm_toolkit.pipeline import LatentPipeline

PLAIN = {"compile": False, "attention": "auto"}


@pytest.mark.parametrize(
    ("backend", "asked", "installed", "said"),
    [
        ("torch", {}, False, []),
        ("torch", {"compile": True, "attention": "sliced"}, False, []),
        ("openvino", {}, True, []),
        ("openvino", {"attention": "sdpa"}, True, []),
        (
            "openvino",
            {},
            False,
            ["pip install 'ldm-toolkit[openvino]'"],
        ),
        ("openvino", {"compile": True}, True, ["openvino compiles by itself"]),
        (
            "openvino",
            {"compile": True, "attention": "sliced"},
            False,
            ["openvino compiles by itself", "'sliced' is torch's", "needs the package"],
        ),
        ("openvnio", {"compile": True}, False, ["not 'openvnio'; did you mean 'openvino'?"]),
        (None, {}, True, ["one of torch, openvino, not None"]),
    ],
)
def test_every_problem_is_told(backend, asked, installed, said, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: object() if installed else None)
    found = backends.backend_problems(backend, **(PLAIN | asked))
    assert len(found) == len(said)
    assert all(part in problem for part, problem in zip(said, found, strict=True))


def test_a_model_is_not_loaded_then(tiny_model, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package openvino"):
        LatentPipeline.from_pretrained(tiny_model, device="cpu", backend="openvino")
