"""Pictures for somebody who does not know the prompts, and what came of it.

python examples/storybook/by_eye.py --output runs/storybook/by_eye
python examples/storybook/by_eye.py --output runs/storybook/by_eye --answers answers.txt

Draws the prompts of by_eye.txt, one seed each, and copies them under random names and without
their recipes into OUTPUT/blind/, with contact sheets; OUTPUT/key.json, which says what was asked
for, is not for whoever names them. A line of the answers is "NAME: a small red car on the beach".
With answers it prints how many agree in everything that was asked for, as far as words can be
compared, and both texts of each for a person, who decides: "no hat" has the word, too. The goal: 34
of 40.
"""

import argparse
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from reporting import add_drawing_options, agreement, draw, table

from ldm_toolkit.files import write_atomic
from ldm_toolkit.images import contact_sheet, open_image, save_image
from ldm_toolkit.storybook import scenes

PROMPTS = Path(__file__).with_name("by_eye.txt")
SHEET = 20
OTHER_WORDS = {"gray": "grey", "violet": "purple", "sunglasses": "glasses", "bowtie": "bow tie"}


def _found(text: str, words: Mapping[str, Iterable[str]]) -> tuple[str | None, str]:
    """The value one of whose words stands first in a text, longest words first, and the rest."""
    best: tuple[int, int, str] | None = None
    for value, names in words.items():
        for name in names:
            match = re.search(rf"\b{re.escape(name)}s?\b", text)
            if match and (best is None or (match.start(), -len(name)) < best[:2]):
                best = match.start(), -len(name), value
    if best is None:
        return None, text
    start, length, value = best
    return value, f"{text[:start]} , {text[start - length :]}"


def named(text: str) -> dict[str, str]:
    """What a description names of the storybook world, by attribute as the judge calls them."""
    text = text.lower()
    for other, word in OTHER_WORDS.items():
        text = text.replace(other, word)
    surroundings = {
        "place": {name: (*words, name) for name, words in scenes.PLACES.items()},
        "weather": {name: (*row.phrases, *row.words) for name, row in scenes.WEATHERS.items()},
        "setting": {name: (*row.phrases, *row.words) for name, row in scenes.SETTINGS.items()},
    }
    found: dict[str, str | None] = {}
    for attribute, words in surroundings.items():
        found[attribute], text = _found(text, words)
    if found["setting"] is None and found["weather"] == "night":  # as captions have it
        found["setting"], found["weather"] = "night", None
    worn = {name: row.names for name, row in scenes.ACCESSORIES.items()}
    shades = "|".join(scenes.ACCESSORY_RGB)
    for names in worn.values():
        coloured = re.search(rf"\b({shades}) (?:{'|'.join(map(re.escape, names))})s?\b", text)
        if coloured:
            found["accessory_colour"] = coloured[1]
            text = text[: coloured.start()] + text[coloured.end(1) :]
    found["accessory"], text = _found(text, worn)
    found["subject"], text = _found(text, {n: row.names for n, row in scenes.SUBJECTS.items()})
    found["colour"], text = _found(text, {name: (name,) for name in scenes.ACCESSORY_RGB})
    found["size"], _ = _found(text, scenes.SIZES)
    return {name: value for name, value in found.items() if value is not None}


def blind(options: argparse.Namespace) -> dict[str, str]:
    """Draw what is not drawn yet; the key: what each picture's name was asked for."""
    prompts = options.prompts.read_text("utf-8").splitlines()
    paths = draw([(prompt, options.seed) for prompt in prompts], options)
    file, folder = options.output / "key.json", options.output / "blind"
    key: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    if sorted(key.values()) != sorted(prompts):
        taken: set[str] = set()
        while len(taken) < len(prompts):
            taken.add(secrets.token_hex(2))
        names = list(taken)
        secrets.SystemRandom().shuffle(names)
        key = dict(sorted(zip(names, prompts, strict=True)))
        write_atomic(file, (json.dumps(key, indent=2) + "\n").encode())
    folder.mkdir(exist_ok=True)
    drawn = dict(zip(prompts, paths, strict=True))
    pictures = {name: open_image(drawn[prompt]) for name, prompt in key.items()}
    for name, picture in pictures.items():
        save_image(picture, folder / f"{name}.png", None, overwrite=True)
    names = list(pictures)
    for start in range(0, len(names), SHEET):
        some = names[start : start + SHEET]
        sheet = contact_sheet([pictures[name] for name in some], some, columns=5, cell=256)
        path = options.output / f"sheet-{start // SHEET + 1}.png"
        save_image(sheet, path, None, overwrite=True)
        print(path)
    return key


def read_answers(file: Path, key: Mapping[str, str]) -> dict[str, str]:
    """The answers by name. Ends the script at names of no picture, and at missing ones."""
    found = {}
    for line in file.read_text("utf-8").splitlines():
        name, _, text = line.partition(":")
        if line.strip() and name.strip() not in key:
            raise SystemExit(f"{file}: no picture is called {name.strip()!r}; see OUTPUT/blind")
        if line.strip():
            found[name.strip()] = text.strip()
    missing = [name for name in key if name not in found]
    if missing:
        raise SystemExit(f"{file}: no answer for {', '.join(missing)}")
    return found


def score(key: Mapping[str, str], answers: Mapping[str, str]) -> str:
    """How many answers agree in everything, and the others for a person, in Markdown."""
    rows = []
    for name, prompt in key.items():
        right = agreement(named(prompt), named(answers[name]))
        lacking = [attribute.replace("_", " ") for attribute, one in right.items() if not one]
        rows.append([name, prompt, answers[name], ", ".join(lacking)])
    rows.sort(key=lambda row: not row[-1])  # what differs comes first
    agreed = sum(not row[-1] for row in rows)
    head = ["picture", "asked for", "answer", "not found in the answer"]
    return (
        f"{agreed} of {len(key)} agree in everything that was asked for, word by word; a person "
        f"decides.\n\n{table(head, rows, text=4)}"
    )


def main() -> None:
    """Draw and hide, or score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_drawing_options(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--answers", type=Path, help="what somebody named, a line a picture")
    options = parser.parse_args()
    if options.answers is None:
        blind(options)
        return
    key = json.loads((options.output / "key.json").read_text("utf-8"))
    print(score(key, read_answers(options.answers, key)))


if __name__ == "__main__":
    main()
