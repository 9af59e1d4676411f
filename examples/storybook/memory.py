"""Whether pictures are copies: generated ones beside the nearest renders of the training.

python examples/storybook/memory.py runs/storybook/table/ddim-50-7.5

Reads what `ldm-eval adherence --neighbours N --training-seed S` measured; writes MEMORY.md beside
this file, and the sheet that it shows, at most 300 kB, into assets/. N and S are the count and the
seed of the UNet's training.
"""

import argparse
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from reporting import read_scores, table

from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.files import write_atomic

HERE = Path(__file__).resolve().parent
SHEET = HERE.parents[1] / "assets" / "storybook-nearest.jpg"
MOST_BYTES = 300_000
NEAREST = "nearest training render"


def small_jpeg(sheet: Image.Image, most: int) -> bytes:
    """The sheet as a JPEG of at most so many bytes, as large as that allows."""
    width = min(sheet.width, 1600)
    while True:
        size = (width, round(sheet.height * width / sheet.width))
        data = io.BytesIO()
        sheet.resize(size, Image.Resampling.LANCZOS).save(data, "JPEG", quality=80, optimize=True)
        if data.tell() <= most:
            return data.getvalue()
        width = round(width * 0.93)


def page(scores: Mapping[str, Interval], settings: Mapping[str, Any], sheet: str) -> str:
    """MEMORY.md."""

    def cell(name: str) -> str:
        one = scores[name]
        return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"

    rows = [
        [what, cell(name), cell(f"{name}, of renders")]
        for what, name in (
            ("the judge's features", NEAREST),
            ("pixels", f"{NEAREST} by pixels"),
        )
    ]
    head = ["distance to the nearest training render", "pictures", "held-out renders"]
    return f"""# Are they copies?

{scores[NEAREST].count} pictures of held-out prompts, and for each the nearest of the first
{settings["training_renders"]} renders of a training with seed {settings["training_seed"]}. A model
that learned its training by heart draws pictures that are nearer to it than other renders of the
same world are. Means with 95 % intervals; pixels are those of copies of 24 x 24, whose distance is
the root mean square difference, 1 between black and white.

{table(head, rows)}

In threes, from left to right: the picture, the nearest render by features, the nearest by pixels.
The picture that is nearest to any render comes first.

![pictures and their nearest renders]({sheet})

Written by `examples/storybook/memory.py`.
"""


def main() -> None:
    """Write the page and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="OUTPUT of ldm-eval adherence")
    parser.add_argument("--page", type=Path, default=HERE / "MEMORY.md")
    parser.add_argument("--sheet", type=Path, default=SHEET)
    options = parser.parse_args()
    scores, settings = read_scores(options.folder)
    if NEAREST not in scores:
        raise SystemExit("these scores know no neighbours: ldm-eval adherence --neighbours N")
    with Image.open(options.folder / "nearest.png") as sheet:
        write_atomic(options.sheet, small_jpeg(sheet.convert("RGB"), MOST_BYTES))
    link = Path(os.path.relpath(options.sheet, options.page.parent)).as_posix()
    write_atomic(options.page, page(scores, settings, link).encode())
    print(options.page)


if __name__ == "__main__":
    main()
