"""The judge beside a second one of another architecture, seed and renders: do they agree?

python examples/storybook/judges.py runs/storybook/table/ddim-50-7.5 > examples/storybook/JUDGES.md

Reads what `ldm-eval adherence --judge FILE` measured. Ends with code 1 where any share of the two
differs by more than three points.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from reporting import percent, read_scores, table

from ldm_toolkit.evaluation.intervals import Interval

APART = 3.0  # points between the judges, at most
SECOND = "second judge: "


def compared(scores: Mapping[str, Interval]) -> tuple[str, bool]:
    """The shares of both judges as Markdown, and whether they agree."""
    names = [name for name in scores if f"{SECOND}{name}" in scores]
    rows, far = [], []
    for name in names:
        one, other = scores[name], scores[f"{SECOND}{name}"]
        points = 100 * (other.value - one.value)
        rows.append([name, percent(one), percent(other), f"{points:+.1f}", one.count])
        if round(abs(points), 6) > APART:
            far.append(name)
    told = f"They agree within {APART:g} points in everything."
    if far:
        told = f"They differ by more than {APART:g} points in: {', '.join(far)}."
    head = ["per cent, 95 % interval", "judge", "second judge", "points", "pictures"]
    return f"{table(head, rows)}\n\n{told}", not far


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="OUTPUT of ldm-eval adherence --judge FILE")
    scores, settings = read_scores(parser.parse_args().folder)
    if "second_judge_sha256" not in settings:
        raise SystemExit("these scores know no second judge: ldm-eval adherence --judge FILE")
    told, agree = compared(scores)
    print(f"# Two judges of the same pictures\n\n{told}")
    hashes = settings["features_sha256"], settings["second_judge_sha256"]
    print(f"\nSHA-256 of their files: {' and '.join(hashes)}.")
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
