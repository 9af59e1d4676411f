"""How sure the judge must be that a picture is of the storybook world; written into its file.

python examples/storybook/threshold.py --judge runs/storybook/judge/judge.safetensors

It is the largest that accepts 99.5 % each of renders, of renders that are soft and off in their
colours as a model may draw them, and of reconstructions: that refuses as much as it may.
Its scenes are neither the training's nor the report's. The weights stay the same bits.
"""

import math
from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from judge_report import options_of, reconstructed
from PIL import Image
from tqdm import tqdm

from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import SIDE, Judge
from ldm_toolkit.storybook.render import render
from ldm_toolkit.storybook.spoiled import SPOILED, spoil
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.inputs import model_folder
from ldm_toolkit.training.judging import weathered

SEED = 880_003
ACCEPTED = 0.995


@torch.inference_mode()
def certainty(judge: Judge, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """How sure the judge is that each picture is of the world, (N,) from 0 to 1."""
    return judge.net.decide(judge.features(pictures))["valid"].double().sigmoid()


def largest(sure: torch.Tensor, accepted: float) -> float:
    """The largest threshold of four digits, below 1, that accepts this share of the pictures."""
    kept = math.ceil(accepted * len(sure) - 1e-9)
    lowest = float(sure.sort(descending=True).values[kept - 1])
    return min(math.floor(lowest * 10_000), 9_999) / 10_000


def main() -> None:
    """Find the threshold and write it."""
    options = options_of(__doc__, decoded=60)
    judge = Judge.load(options.judge)
    vae = load_network(AutoencoderKL, model_folder(options.model) / "vae").eval()
    drawn = [scenes.sample_scene(SEED, k, "all") for k in range(options.renders)]
    shown = [render(one, 256) for one in tqdm(drawn, "drawing")]
    kinds = {
        "renders": shown,
        "soft renders": [weathered(one, scenes.generator(SEED, k)) for k, one in enumerate(shown)],
        "reconstructions": reconstructed(vae, drawn[: options.decoded]),
    }
    found = {kind: largest(certainty(judge, some), ACCEPTED) for kind, some in kinds.items()}
    chosen = min(found.values())
    for kind, value in found.items():
        print(f"{value:.4f} accepts {ACCEPTED:.1%} of {len(kinds[kind])} {kind}")
    for kind in SPOILED:
        bad = [spoil(kind, SEED + k, SIDE) for k in range(options.bad)]
        refused = float((certainty(judge, bad) < chosen).double().mean())
        print(f"{chosen:.4f} refuses {refused:.1%} of {len(bad)} of the kind {kind}")
    Judge(judge.net, chosen).save(options.judge)
    print(f"{options.judge}: the threshold was {judge.threshold:g} and is {chosen:g}")


if __name__ == "__main__":
    main()
