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
from tqdm import tqdm

from ldm_toolkit.evaluation.intervals import Interval, share
from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.storybook import JUDGE_FILE, scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, SIDE, Judge, Verdict, labels
from ldm_toolkit.storybook.render import render
from ldm_toolkit.storybook.spoiled import SPOILED, spoil
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.judging import half_denoised, reconstructions

SEED = 990_017
CHUNK = 50


def percent(one: Interval) -> str:
    """ "98.2 (97.5 to 98.7)"."""
    return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


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
    lines = [f"| {name} | {' | '.join(values)} |", f"| --- |{' ---: |' * len(values)}"]
    for shown in values:
        total = sum(counts[shown, seen] for seen in values)
        cells = (counts[shown, seen] for seen in values)
        row = [f"{100 * n / total:.1f}" if n else "" for n in cells]
        lines.append(f"| {shown} | {' | '.join(row)} |")
    return "\n".join(lines)


def pictures_of(vae: AutoencoderKL, drawn: list[scenes.Scene], half: bool) -> list[Image.Image]:
    """Scenes through the autoencoder, whole or half denoised."""
    made = []
    for start in tqdm(range(0, len(drawn), CHUNK), "decoding", unit="chunk"):
        some = drawn[start : start + CHUNK]
        rows = half_denoised(vae, some, SEED + start) if half else reconstructions(vae, some)
        made += [Image.fromarray(row.numpy()) for row in rows]
    return made


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, default=JUDGE_FILE, help="a file; the package's")
    parser.add_argument("--model", default="storybook", help="whose autoencoder decodes")
    parser.add_argument("--renders", type=int, default=3000)
    parser.add_argument("--decoded", type=int, default=500)
    parser.add_argument("--bad", type=int, default=400, help="bad pictures of each kind")
    options = parser.parse_args()
    judge = Judge.load(options.judge)
    bundled = bundled_models()
    folder = bundled[options.model] if options.model in bundled else Path(options.model)
    vae = load_network(AutoencoderKL, folder / "vae").eval()

    drawn = [scenes.sample_scene(SEED, k, "test") for k in range(options.renders)]
    shown = [render(one, 256) for one in tqdm(drawn, "drawing")]
    seen = judge.verdicts(shown)
    decoded = drawn[: options.decoded]
    seen_decoded = judge.verdicts(pictures_of(vae, decoded, half=False))

    digest = hashlib.sha256(options.judge.read_bytes()).hexdigest()
    print("# The judge\n")
    print(f"{judge.net.config}, threshold {judge.threshold}, SHA-256 of the file {digest}.")
    print(
        f"\nRight answers in per cent with 95 % intervals, on {len(drawn)} renders of held-out "
        f"compositions, and on {len(decoded)} of them through the autoencoder.\n"
    )
    print("| attribute | renders | reconstructions |\n| --- | ---: | ---: |")
    for name in ATTRIBUTES:
        both = right(seen, drawn, name), right(seen_decoded, decoded, name)
        print(f"| {name} | {percent(both[0])} | {percent(both[1])} |")
    accepted = [share(sum(v.valid for v in some), len(some)) for some in (seen, seen_decoded)]
    print(f"| accepted | {percent(accepted[0])} | {percent(accepted[1])} |")

    print("\nBad pictures that it refuses, in per cent.\n\n| kind | refused |\n| --- | ---: |")
    for kind in SPOILED:
        bad = [spoil(kind, SEED + k, SIDE, "test") for k in range(options.bad)]
        refused = sum(not v.valid for v in judge.verdicts(bad))
        print(f"| {kind} | {percent(share(refused, len(bad)))} |")
    bad = pictures_of(vae, drawn[: options.bad // 2], half=True)
    refused = sum(not v.valid for v in judge.verdicts(bad))
    print(f"| half denoised | {percent(share(refused, len(bad)))} |")

    print("\nConfusion on renders: a row what was drawn, a column what the judge saw, in per cent.")
    for name in ATTRIBUTES:
        print(f"\n{confusion(seen, drawn, name)}")


if __name__ == "__main__":
    main()
