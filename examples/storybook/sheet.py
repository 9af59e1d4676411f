"""The ten prompts at seeds 0, 1, 2: thirty pictures, their recipes inside, and a sheet of them all.

python examples/storybook/sheet.py --model storybook --out assets/thirty
"""

import argparse
from pathlib import Path

from ldm_toolkit import LatentPipeline
from ldm_toolkit.images import contact_sheet, save_image

PROMPTS = Path(__file__).with_name("prompts.txt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = LatentPipeline.from_pretrained(options.model)
    thumbnails, labels = [], []
    for row, prompt in enumerate(PROMPTS.read_text().splitlines()):
        for seed in range(options.seeds):
            made = pipe(prompt, seed=seed, steps=options.steps, guidance=options.guidance)
            path = options.out / f"{row:02d}-{seed}.jpg"
            save_image(made.images[0], path, made.recipes[0], overwrite=True)
            print(path, flush=True)
            thumbnails.append(made.images[0].resize((192, 192)))
            labels.append(f"{prompt}, {seed}")
    save_image(contact_sheet(thumbnails, labels), options.out / "sheet.jpg", None, overwrite=True)
