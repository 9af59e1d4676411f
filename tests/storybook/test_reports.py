"""The scripts that tell how good the bundled model is, on tiny models and made-up records."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm_toolkit.evaluation.intervals import share
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import Judge, JudgeNet

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "storybook"


@pytest.fixture
def script(monkeypatch):
    """``script(name)``: a module of examples/storybook/; ``run`` its main with a command line."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name):
        return importlib.import_module(name)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return load(name).main()

    load.run = run
    yield load
    for name in [one for one, module in sys.modules.items() if _is_ours(module)]:
        del sys.modules[name]


def _is_ours(module):
    return Path(getattr(module, "__file__", None) or "").parent == SCRIPTS


# --- what a text asks for ---


def test_the_threshold_accepts_what_it_should(script):
    largest = script("threshold").largest
    sure = torch.linspace(0, 1, 1000, dtype=torch.float64)
    found = largest(sure, 0.995)
    assert float((sure >= found).double().mean()) >= 0.995
    assert float((sure >= found + 2e-3).double().mean()) < 0.995
    assert largest(torch.tensor([0.9, 0.8, 0.99995]), 1.0) == 0.8
    assert largest(torch.full((60,), 1.0), 0.995) == 0.9999


def test_a_judges_weights_keep_their_bits_under_another_threshold(script, tiny_model, tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "judge.safetensors"
    Judge(JudgeNet("residual", (8, 16))).save(file)
    before, sure = load_file(file), Judge.load(file)
    script.run("threshold", "--judge", file, "--model", tiny_model, "--renders", 30,
               "--decoded", 2)  # fmt: skip
    after = load_file(file)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype == torch.float16
        assert value.view(torch.int16).equal(after[name].view(torch.int16))
    threshold = script("threshold")
    drawn = [scenes.sample_scene(threshold.SEED, k, "all") for k in range(30)]
    pictures = [threshold.render(one, 256) for one in drawn]
    found = Judge.load(file)
    assert found.threshold != sure.threshold
    assert all(one.valid for one in found.verdicts(pictures))


def test_the_judges_report(script, tiny_model, tmp_path, capsys):
    """Its numbers are those of the judge on the very pictures."""
    torch.manual_seed(1)
    file = tmp_path / "judge.safetensors"
    Judge(JudgeNet("residual", (8, 16)), threshold=0.25).save(file)
    script.run("judge_report", "--judge", file, "--model", tiny_model, "--renders", 12,
               "--decoded", 2, "--bad", 4)  # fmt: skip
    told = capsys.readouterr().out
    report, judge = script("judge_report"), Judge.load(file)
    drawn = [scenes.sample_scene(report.SEED, k, "test") for k in range(12)]
    verdicts = judge.verdicts([report.render(one, 256) for one in drawn])
    hits = sum(v.values["size"] == s.size for v, s in zip(verdicts, drawn, strict=True))
    assert f"| size | {report.percent(share(hits, 12))} | " in told
    assert "threshold 0.25, SHA-256" in told
    for kind in (*report.SPOILED, "half denoised"):
        assert f"\n| {kind} | " in told
    shown, seen = drawn[0].subject, verdicts[0].values["subject"]
    row = next(one for one in told.splitlines() if one.startswith(f"| {shown} | "))
    head = next(
        one for one in told.splitlines() if one.startswith("| subject | ") and "(" not in one
    )
    names = [cell.strip() for cell in head.strip("|").split("|")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    same = [v.values["subject"] for v, s in zip(verdicts, drawn, strict=True) if s.subject == shown]
    assert cells[names.index(seen)] == f"{100 * same.count(seen) / len(same):.1f}"
