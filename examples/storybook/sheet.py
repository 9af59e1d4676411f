"""The ten prompts at seeds 0, 1, 2: thirty pictures, their recipes inside, and a sheet of them all.

python examples/storybook/sheet.py --out assets/thirty
python examples/storybook/sheet.py --prompts sixteen.txt --seeds 1 --columns 4 --out runs/sixteen
"""

import argparse
import textwrap
from pathlib import Path

from ldm_toolkit import LatentPipeline
from ldm_toolkit.images import contact_sheet, save_image

HERE = Path(__file__).parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--prompts", default="prompts.txt", help="a file beside this one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--columns", type=int, default=5, help="of the sheet (default: 5)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = LatentPipeline.from_pretrained(options.model)
    thumbnails, labels = [], []
    for row, prompt in enumerate((HERE / options.prompts).read_text("utf-8").splitlines()):
        for seed in range(options.seeds):
            made = pipe(prompt, seed=seed, steps=options.steps, guidance=options.guidance)
            path = options.out / f"{row:02d}-{seed}.jpg"
            save_image(made.images[0], path, made.recipes[0], overwrite=True)
            print(path, flush=True)
            thumbnails.append(made.images[0].resize((192, 192)))
            label = prompt if options.seeds == 1 else f"{prompt}, {seed}"
            labels.append("\n".join(textwrap.wrap(label, 32)))
    sheet = contact_sheet(thumbnails, labels, columns=options.columns)
    save_image(sheet, options.out / "sheet.jpg", None, overwrite=True)
