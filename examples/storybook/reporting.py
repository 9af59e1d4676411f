"""What the reports of this folder share: pictures drawn as a job, what agrees, tables."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_toolkit.cli.generate import main as ldm_gen
from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.files import write_atomic


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Where pictures go and how they are drawn."""
    parser.add_argument("--output", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--model", default="storybook", help="storybook, or a model's folder")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)


def draw(asked: Sequence[tuple[str, int]], options: argparse.Namespace) -> list[Path]:
    """Pictures of prompts and seeds, by ``ldm-gen``; such as are there stay."""
    folder: Path = options.output / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": prompt, "seed": seed}) for prompt, seed in asked]
    file = options.output / "prompts.jsonl"
    write_atomic(file, ("\n".join(rows) + "\n").encode())
    words = ["--prompts", str(file), "--model", options.model, "-o", f"{folder}/"]
    words += [f"--steps={options.steps}", f"--guidance={options.guidance}"]
    with contextlib.redirect_stdout(sys.stderr):
        code = ldm_gen(words)
    if code:
        raise SystemExit(code)
    return [folder / f"{row:05d}-{seed}.png" for row, (_, seed) in enumerate(asked)]


def agreement(asked: Mapping[str, str], seen: Mapping[str, str]) -> dict[str, bool]:
    """For each attribute asked for, whether it is among what was seen.

    Night is a setting and a time of day: who asks for it alone may get either.
    """
    found = {name: seen.get(name) == value for name, value in asked.items()}
    for one, other in (("setting", "weather"), ("weather", "setting")):
        if asked.get(one) == "night" and other not in asked:
            found[one] = "night" in (seen.get(one), seen.get(other))
    return found


def percent(one: Interval) -> str:
    """ "98.2 (97.5 to 98.7)"."""
    return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


def table(head: Iterable[object], rows: Iterable[Iterable[object]], text: int = 1) -> str:
    """Markdown; the first ``text`` columns are words, the others numbers."""
    columns = [str(one) for one in head]
    ruler = " --- |" * text + " ---: |" * (len(columns) - text)
    lines = [f"| {' | '.join(columns)} |", f"|{ruler}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def read_drawing(folder: Path) -> dict[str, Any]:
    """How the pictures of ``ldm-eval`` were drawn, as recipes have it."""
    told = json.loads((folder / "scores.json").read_text("utf-8"))["pictures"]["drawing"]
    return dict(told)


def read_scores(
    folder: Path, measure: str = "adherence"
) -> tuple[dict[str, Interval], dict[str, Any]]:
    """What ``ldm-eval`` left in a folder: the scores, and what they were measured with."""
    told = json.loads((folder / "scores.json").read_text("utf-8"))["measures"][measure]
    scores = {name: Interval(**one) for name, one in told["scores"].items()}
    return scores, told["settings"]
