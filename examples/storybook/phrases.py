"""Whether the model understands other words than its captions have: a report, not a gate.

python examples/storybook/phrases.py --output runs/storybook/phrases > examples/storybook/PHRASES.md

Each line of phrases.jsonl is drawn (seed 0, with --seeds N also 1, 2, ...) and judged against what
the line asks for; the pictures are on OUTPUT/sheet.png. What was drawn stays, so that a report that
was interrupted goes on.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from reporting import add_drawing_options, agreement, draw, percent, table

from ldm_toolkit.evaluation.intervals import mean, share
from ldm_toolkit.images import contact_sheet, open_image, save_image
from ldm_toolkit.storybook import JUDGE_FILE
from ldm_toolkit.storybook.judge import ATTRIBUTES, Judge, Verdict

PHRASES = Path(__file__).with_name("phrases.jsonl")
COLUMNS = 8


def read_phrases(file: Path) -> list[tuple[str, dict[str, str]]]:
    """Phrases and what they ask for. Ends the script at what the judge does not know."""
    found = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        asked = json.loads(line)
        prompt = asked.pop("prompt")
        for name, value in asked.items():
            if value not in ATTRIBUTES.get(name, ()):
                raise SystemExit(f"{file}:{number}: nothing is judged by {name} {value!r}")
        found.append((prompt, asked))
    return found


def told(asked: Mapping[str, str], verdict: Verdict) -> str:
    """What a picture shows in place of what was asked for; nothing where it is right."""
    if not verdict.valid:
        return "refused"
    right = agreement(asked, verdict.values)
    return ", ".join(verdict.values[name] for name in asked if not right[name])


def main() -> None:
    """Draw what is not drawn yet, judge, print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_drawing_options(parser)
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each phrase")
    parser.add_argument("--phrases", type=Path, default=PHRASES)
    parser.add_argument("--judge", type=Path, default=JUDGE_FILE, help="a file; the package's")
    options = parser.parse_args()
    phrases, seeds = read_phrases(options.phrases), range(options.seeds)
    paths = draw([(prompt, seed) for prompt, _ in phrases for seed in seeds], options)
    pictures = [open_image(path) for path in paths]
    verdicts = Judge.load(options.judge).verdicts(pictures)

    rows, labels, hits = [], [], []
    for index, (prompt, asked) in enumerate(phrases):
        own = verdicts[index * options.seeds : (index + 1) * options.seeds]
        wrong = [told(asked, one) for one in own]
        right = sum(not one for one in wrong)
        hits.append(right)
        mark = ("right" if right else "wrong") if options.seeds == 1 else f"{right} of {len(own)}"
        seen = "; ".join(dict.fromkeys(one for one in wrong if one))
        rows.append([f"`{prompt}`", ", ".join(asked.values()), mark, seen])
        labels += [f"{prompt[:34]}\n{one or 'right'}" for one in wrong]
    sheet = contact_sheet(pictures, labels, columns=COLUMNS)
    save_image(sheet, options.output / "sheet.png", overwrite=True)

    count = len(phrases)
    usually = sum(2 * one > options.seeds for one in hits)
    print("# Phrases that ask in other words than captions do\n")
    print(
        f"{count} phrases, {options.seeds} of each drawn by {options.model} in {options.steps} "
        f"steps at guidance {options.guidance:g}; right is what shows everything asked for.\n"
    )
    right = share(hits.count(1), count)
    if options.seeds > 1:  # pictures of one phrase are not independent
        right = mean([one / options.seeds for one in hits])
    print(f"Right pictures: {percent(right)} per cent, 95 % interval.")
    if options.seeds > 1:
        print(f"Phrases right more often than not: {percent(share(usually, count))} per cent.")
    print(f"\n{table(['phrase', 'asked for', 'pictures', 'seen instead'], rows, text=4)}")


if __name__ == "__main__":
    main()
