"""How good the judge is: accuracies, refusals and confusion tables, as Markdown.

python examples/storybook/judge_report.py --judge runs/storybook/judge/judge.safetensors \\
    --model storybook > examples/storybook/JUDGE.md

Compositions of the test split, which no training has drawn; seeds that no training used.
"""

import argparse
import hashlib
from collections import Counter
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from reporting import percent, table
from tqdm import tqdm

from ldm_toolkit.evaluation.intervals import Interval, share
from ldm_toolkit.storybook import JUDGE_FILE, scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, SIDE, Judge, Verdict, labels
from ldm_toolkit.storybook.render import render
from ldm_toolkit.storybook.spoiled import SPOILED, spoil
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.inputs import model_folder
from ldm_toolkit.training.judging import half_denoised, reconstructions

SEED = 990_017
CHUNK = 50


def right(verdicts: list[Verdict], drawn: list[scenes.Scene], name: str) -> Interval:
    """Share of the pictures whose attribute the judge names rightly."""
    hits = sum(v.values[name] == labels(s)[name] for v, s in zip(verdicts, drawn, strict=True))
    return share(hits, len(drawn))


def confusion(verdicts: list[Verdict], drawn: list[scenes.Scene], name: str) -> str:
    """A table of an attribute: a row what was drawn, a column what the judge saw; per cent."""
    counts = Counter(
        (labels(s)[name], v.values[name]) for v, s in zip(verdicts, drawn, strict=True)
    )
    values = [value for value in ATTRIBUTES[name] if any(value in pair for pair in counts)]
    rows: list[list[str]] = []
    for shown in values:
        cells = [counts[shown, seen] for seen in values]
        rows.append([shown, *(f"{100 * n / sum(cells):.1f}" if n else "" for n in cells)])
    return table([name, *values], rows)


def refused(judge: Judge, pictures: list[Image.Image]) -> Interval:
    """Share of the pictures that the judge takes for none of the world's."""
    return share(sum(not one.valid for one in judge.verdicts(pictures)), len(pictures))


def reconstructed(
    vae: AutoencoderKL, drawn: list[scenes.Scene], half: int | None = None
) -> list[Image.Image]:
    """Scenes through the autoencoder, half denoised where there is a seed for it."""
    made = []
    for start in tqdm(range(0, len(drawn), CHUNK), "decoding", unit="chunk"):
        some = drawn[start : start + CHUNK]
        whole = half is None
        rows = reconstructions(vae, some) if whole else half_denoised(vae, some, half + start)
        made += [Image.fromarray(row.numpy()) for row in rows]
    return made


def options_of(description: str | None, *, decoded: int) -> argparse.Namespace:
    """Which judge is looked at, and how many pictures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--judge", type=Path, default=JUDGE_FILE, help="a file; the package's")
    parser.add_argument("--model", default="storybook", help="whose autoencoder decodes")
    parser.add_argument("--renders", type=int, default=3000)
    parser.add_argument("--decoded", type=int, default=decoded)
    parser.add_argument("--bad", type=int, default=400, help="bad pictures of each kind")
    return parser.parse_args()


def main() -> None:
    """Print the report."""
    options = options_of(__doc__, decoded=500)
    judge = Judge.load(options.judge)
    vae = load_network(AutoencoderKL, model_folder(options.model) / "vae").eval()

    drawn = [scenes.sample_scene(SEED, k, "test") for k in range(options.renders)]
    shown = [render(one, 256) for one in tqdm(drawn, "drawing")]
    seen = judge.verdicts(shown)
    decoded = drawn[: options.decoded]
    seen_decoded = judge.verdicts(reconstructed(vae, decoded))

    digest = hashlib.sha256(options.judge.read_bytes()).hexdigest()
    print("# The judge\n")
    print(f"{judge.net.config}, threshold {judge.threshold:g}, SHA-256 of the file {digest}.")
    print(
        f"\nRight answers in per cent with 95 % intervals, on {len(drawn)} renders of held-out "
        f"compositions, and on {len(decoded)} of them through the autoencoder.\n"
    )
    both = ((seen, drawn), (seen_decoded, decoded))
    rows = [[name, *(percent(right(*one, name)) for one in both)] for name in ATTRIBUTES]
    accepted = [share(sum(v.valid for v in some), len(some)) for some, _ in both]
    print(
        table(
            ["attribute", "renders", "reconstructions"],
            [*rows, ["accepted", *map(percent, accepted)]],
        )
    )

    rows = []
    for kind in SPOILED:
        bad = [spoil(kind, SEED + k, SIDE, "test") for k in range(options.bad)]
        rows.append([kind, percent(refused(judge, bad))])
    bad = reconstructed(vae, drawn[: options.bad // 2], half=SEED)
    rows.append(["half denoised", percent(refused(judge, bad))])
    print(f"\nBad pictures that it refuses, in per cent.\n\n{table(['kind', 'refused'], rows)}")

    print("\nConfusion on renders: a row what was drawn, a column what the judge saw, in per cent.")
    for name in ATTRIBUTES:
        print(f"\n{confusion(seen, drawn, name)}")


if __name__ == "__main__":
    main()
