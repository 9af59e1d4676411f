"""How often pictures show what was asked, for schedulers, steps, guidance and dtypes: two tables.

python examples/storybook/table.py --output runs/storybook/table > examples/storybook/TABLE.md

A cell is a run of `ldm-eval adherence` in a folder of its own; a table that was interrupted goes on
where it was, and cells of another model, judge or number of prompts end it. `--prompts` is that of
a cell, `--default-prompts` that of the default settings.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reporting import percent, read_drawing, read_scores, table

from ldm_toolkit.cli.evaluate import main as ldm_eval

STEPS = (10, 20, 50)
GUIDANCE = (1.0, 3.0, 7.5, 12.0)
SCHEDULERS = (
    "ddim",
    "ddpm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm++_2m",
    "unipc",
    "deis",
    "pndm",
)
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT = {"scheduler": "ddim", "steps": 50, "guidance": 7.5}


class Cells:
    """Scores of settings, each measured once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.measured: tuple[str, ...] | None = None  # model, revision and judge of all cells

    def __call__(self, **settings: object) -> str:
        """ "84.0 (75.6 to 89.9)": all correct in per cent, with its 95 % interval."""
        asked = {**DEFAULT, **settings}
        usual = asked == DEFAULT
        count = self._options.default_prompts if usual else self._options.prompts
        name = "-".join(f"{value}" for value in asked.values()).replace("+", "p")
        folder = self._options.output / name
        if not (folder / "scores.json").is_file():
            words = [f"--{key}={value}" for key, value in asked.items()]
            command = ["adherence", "--model", self._options.model, "--prompts", str(count)]
            command += [*words, "--seed", "0", "--neighbours", "0", "-o", str(folder), "--quiet"]
            with contextlib.redirect_stdout(sys.stderr):
                code = ldm_eval(command)
            if code:
                raise SystemExit(code)
        scores, settings = read_scores(folder)
        self._check(folder, count, settings)
        return percent(scores["everything right"])

    def _check(self, folder: Path, count: int, settings: Mapping[str, Any]) -> None:
        model, judge = read_drawing(folder)["model"], settings["features_sha256"]
        measured = model["name"], model["revision"], model["sha256"], judge
        if self.measured is None:
            self.measured = measured
        if measured != self.measured or settings["pictures"] != count:
            raise SystemExit(
                f"{folder} was measured with another model, judge or number of prompts than is "
                "asked for now: take it away, or give another --output"
            )


def main() -> None:
    """Measure what is not measured yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--default-prompts", type=int, default=500)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES, choices=DTYPES)
    options = parser.parse_args()
    cell = Cells(options)
    solvers = [[name, *(cell(scheduler=name, steps=n) for n in STEPS)] for name in SCHEDULERS]
    guided = [[f"{g:g}", *(cell(guidance=g, steps=n) for n in STEPS)] for g in GUIDANCE]
    dtypes = [[name, cell(dtype=name)] for name in options.dtypes]
    name, revision, weights, judge = cell.measured or ("",) * 4
    print(
        f"Pictures of {name}, revision {revision} ({weights:.12}), in which everything is right\n"
        f"that the prompt names, in per cent, with 95 % intervals, by the judge {judge:.12};\n"
        f"{options.prompts} held-out prompts a cell, {options.default_prompts} for the default.\n"
    )
    print(table(["guidance 7.5", *(f"{n} steps" for n in STEPS)], solvers), "\n")
    print(table(["ddim, guidance", *(f"{n} steps" for n in STEPS)], guided), "\n")
    print(table(["ddim, 50 steps, dtype", "all correct"], dtypes))


if __name__ == "__main__":
    main()
