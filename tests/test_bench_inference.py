"""Contenders of the benchmark of inference: what starts each; OpenVINO draws the same picture."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ldm_toolkit.evaluation import contender
from ldm_toolkit.evaluation.speed import Contender

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "module", "loading"),
    [
        ("diffusers", "ldm_toolkit.evaluation.contender", {"dtype": "float32", "compile": False}),
        ("diffusers-bf16", "ldm_toolkit.evaluation.contender",
         {"dtype": "bfloat16", "compile": False}),
        ("diffusers-compiled", "ldm_toolkit.evaluation.contender",
         {"dtype": "bfloat16", "compile": True}),
        ("openvino", str(EXAMPLES / "bench_openvino.py"), {"dtype": "bfloat16", "compile": False}),
        ("ours", "ldm_toolkit.evaluation.contender", {"compile": False}),
        ("ours-compiled", "ldm_toolkit.evaluation.contender", {"compile": True}),
        ("ours-openvino", "ldm_toolkit.evaluation.contender",
         {"compile": False, "backend": "openvino"}),
    ],
)  # fmt: skip
def test_what_starts_a_contender(name, module, loading, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bench_inference

    assert name in bench_inference.CONTENDERS
    asked = bench_inference.contender(name, Path("model"), 2)
    *start, told = bench_inference.command(name, asked)
    assert (start[0], start[-1]) == (sys.executable, module)
    read = Contender(**json.loads(told))
    assert (read.kind, read.loading) == (name.partition("-")[0], loading)
    assert (read.model, read.threads, read.drawing) == ("model", 2, bench_inference.DRAWING)


def test_openvino_draws_diffusers_picture(tiny_model, monkeypatch):
    if find_spec("openvino") is None:
        pytest.skip("openvino is missing: pip install 'ldm-toolkit[openvino]'")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bench_openvino

    drawing = {"guidance": 4.0, "scheduler": "ddim"}
    loading = {"dtype": "float32", "device": "cpu"}
    asked = Contender(kind="openvino", model=str(tiny_model), loading=loading, drawing=drawing)
    pictures = []
    for kind in (contender.Diffusers, bench_openvino.OpenVino):
        model = kind(asked)
        pictures.append(np.asarray(model.draw(3, 1, list)[0], float))
    assert model.about["openvino"]
    assert model._pipe.unet.forward.__module__ == "bench_openvino"
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
