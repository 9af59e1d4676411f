"""The two contenders draw the same picture, and answer what they are asked."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_toolkit.evaluation import contender
from ldm_toolkit.evaluation.speed import Contender

DRAWING = {"guidance": 4.0, "scheduler": "ddim"}
KEYS = {"text", "first_step", "step", "decode", "seconds", "peak"}


@pytest.fixture
def asked(tiny_model: Path) -> Contender:
    loading = {"dtype": "float32", "device": "cpu"}
    return Contender(kind="ours", model=str(tiny_model), loading=loading, drawing=DRAWING)


@pytest.mark.parametrize("more", [{}, {"width": 32, "height": 64}, {"scheduler": "dpm++_2m"}])
def test_both_draw_the_same_pictures(asked: Contender, more: dict, tmp_path: Path) -> None:
    told = asdict(asked) | {"drawing": DRAWING | more}
    found = {}
    for kind in ("ours", "diffusers"):
        model = contender._KINDS[kind](Contender(**told | {"kind": kind}))
        assert model.about["dtype"] == "float32"
        answer = contender.answer(
            model, {"steps": 3, "batch": 2, "picture": str(tmp_path / f"{kind}.npy")}
        )
        assert answer.keys() == KEYS
        assert answer["peak"] > 0.05
        stamps: list[int] = []
        found[kind] = model.draw(3, 2, lambda: stamps.append(1))  # noqa: B023
        assert len(stamps) == 3
        saved = np.load(tmp_path / f"{kind}.npy")
        assert (saved == np.asarray(found[kind][0])).all()
    assert len(found["ours"]) == len(found["diffusers"]) == 2
    for own, theirs in zip(found["ours"], found["diffusers"], strict=True):
        assert own.size == theirs.size == (more.get("width", 64), more.get("height", 64))
        difference = np.abs(np.asarray(own, float) - np.asarray(theirs, float))
        assert difference.max() <= 1


def test_both_encode_the_prompt_and_the_empty_one(asked: Contender) -> None:
    own = contender.Ours(asked).encode()
    theirs = contender.Diffusers(asked).encode()
    assert torch.allclose(own, torch.cat(theirs), atol=1e-5)


def test_the_process_answers_lines_with_lines(
    asked: Contender, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = [{"steps": 1}, {"steps": 2, "batch": 2}]
    text = "".join(json.dumps(order) + "\n" for order in orders)
    monkeypatch.setattr(contender.sys, "stdin", io.StringIO(text))
    contender.main([json.dumps(asdict(asked) | {"threads": 1})])
    ready, *answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ready["about"]["threads"] == 1
    assert (ready["about"]["model"], ready["about"]["size"]) == (Path(asked.model).name, "64x64")
    assert len(ready["about"]["model_sha256"]) == 64
    assert "loras" not in ready["about"]
    assert ready["load"] > 0
    assert [answer.keys() for answer in answers] == [KEYS, KEYS]


@pytest.mark.parametrize("compile", [False, True])
def test_diffusers_is_compiled_where_that_is_asked(asked: Contender, compile: bool) -> None:
    loading = {**asked.loading, "compile": compile}
    model = contender.Diffusers(replace(asked, kind="diffusers", loading=loading))
    assert (model._pipe.unet._compiled_call_impl is not None) == compile
    assert model.about["compile"] == compile


def test_the_process_may_hold_other_kinds(
    asked: Contender, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contender.sys, "stdin", io.StringIO('{"steps": 1}\n'))
    told = asdict(asked) | {"kind": "another"}
    contender.main([json.dumps(told)], {"another": contender.Ours})
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("kind", "times"), [("ours", 1), ("diffusers", 0)])
def test_freed_memory_is_kept_as_by_our_commands_and_for_ours_alone(
    kind: str, times: int, asked: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(contender, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(contender.sys, "stdin", io.StringIO(""))
    contender.main([json.dumps(asdict(asked) | {"kind": kind})])
    assert len(kept) == times
