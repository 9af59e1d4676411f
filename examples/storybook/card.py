"""The bundled model's card, filled from the records of its runs and of its scores.

python examples/storybook/card.py --machine "two cores of an AMD EPYC" \\
    --scores runs/storybook/table/ddim-50-7.5 \\
    runs/storybook/text_2 runs/storybook/vae_2 runs/storybook/unet_2_256 runs/storybook/unet_2

The folders are the outputs of the stages in their order, of which config.json and metrics.jsonl are
read. Name and revision are those of the bundled folder, which bundle.py wrote; known failures stand
in failures.md beside this file.
"""

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle import BUNDLED, WEIGHTS
from reporting import percent, read_scores, table

from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.files import write_atomic
from ldm_toolkit.models.headers import check_safetensors
from ldm_toolkit.models.places import read_card
from ldm_toolkit.storybook import scenes
from ldm_toolkit.training.curve import read_metrics

HERE = Path(__file__).resolve().parent
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32  # of a curve, in letters
GOALS = {"subject": 95, "colour": 90, "accessory": 90, "setting": 95, "everything right": 80}
GOALS["reconstruction: psnr"] = 32
NO_SHARES = ("distance", "nearest", "diversity", "reconstruction")


def curve(losses: Sequence[float]) -> str:
    """A curve of losses in letters: means of equal parts of the run, on a logarithmic scale."""
    count = min(WIDTH, len(losses))
    edges = [round(len(losses) * part / count) for part in range(count + 1)]
    parts = [losses[start:end] for start, end in itertools.pairwise(edges)]
    means = [math.log(max(sum(part) / len(part), 1e-12)) for part in parts]
    low, height = min(means), (max(means) - min(means)) or 1.0
    return "".join(BARS[round((mean - low) / height * (len(BARS) - 1))] for mean in means)


def stage(folder: Path) -> list[object]:
    """A row of the table of stages: what the run's own records say of it."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    lines = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl")}
    if not lines:
        raise SystemExit(f"{folder} has no metrics.jsonl with losses; is it a training's output?")
    losses = [lines[step]["loss"] for step in sorted(lines)]
    tenth = max(1, len(losses) // 10)
    first, last = (sum(some) / tenth for some in (losses[:tenth], losses[-tenth:]))
    hours = sum(line.get("seconds", 0.0) for line in lines.values()) / 3600
    batch = config["batch_size"] * config.get("accumulate", 1)
    side = f"{config['size']} px" if "size" in config else ""
    if "crop" in config:
        side = f"{config['crop']} px of {side}"
    return [
        f"`{folder.name}`", side, f"{max(lines):,} x {batch}", f"{hours:.1f}",
        f"{first:.3g} to {last:.3g}", f"`{curve(losses)}`",
    ]  # fmt: skip


def data(folders: Sequence[Path]) -> str:
    """The scenes that each stage drew."""
    told = []
    for folder in folders:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        count = config.get("count", config.get("caption_count"))
        told.append(f"`{folder.name}` {count:,} of seed {config['seed']}")
    return ", ".join(told)


def scored(scores: Mapping[str, Interval]) -> str:
    """The scores as a table; shares in per cent, with the goals where there are some."""
    rows = []
    for name, one in scores.items():
        plain = any(word in name for word in NO_SHARES)
        value = f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})" if plain else percent(one)
        rows.append([name, value, GOALS.get(name, ""), one.count])
    return table(["score, shares in per cent", "value (95 % interval)", "goal", "samples"], rows)


def weights(model: Path) -> str:
    """Parameters and megabytes of each network."""
    told, total = [], 0
    for part, stem in WEIGHTS.items():
        file = model / part / f"{stem}.safetensors"
        entries = check_safetensors(file).values()
        count = sum(math.prod(entry["shape"]) for entry in entries)
        size = file.stat().st_size
        total += size
        told.append(f"{part.replace('_', ' ')} {count / 1e6:.1f} M ({size / 1e6:.1f} MB)")
    return f"{', '.join(told)}; {total / 1e6:.1f} MB together"


def card(model: Path, options: argparse.Namespace) -> str:
    """The whole card."""
    about = read_card(model)
    scores, settings = read_scores(options.scores)
    if options.recon is not None:
        found, _ = read_scores(options.recon, "recon")
        scores |= {f"reconstruction: {name}": one for name, one in found.items()}
    if options.diversity is not None:
        found, _ = read_scores(options.diversity)
        scores |= {name: one for name, one in found.items() if "diversity" in name}
    noise = json.loads((model / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    stages = table(
        ["stage", "pictures", "steps x batch", "hours", "loss, first and last tenth", "its curve"],
        map(stage, options.runs),
        text=2,
    )
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [text-to-image, stable-diffusion]
---

# {about["name"]}, revision {about["revision"]}

A latent diffusion model of a small drawn world, trained by the scripts of this repository; no
picture, caption or weight of anybody else is in it. The stages below went on from the networks of
the first edition, which were trained from nothing.

- **Networks**, float16: {weights(model)}. CLIP-format tokenizer, pictures of 512 x 512, latents
  of 4 x 64 x 64, {noise["prediction_type"]}, {noise["beta_schedule"]} {noise["beta_start"]:g} to
  {noise["beta_end"]:g}, {noise["num_train_timesteps"]} steps.
- **Data**: scenes of `ldm_toolkit.storybook` drawn on the fly, training part of split version
  {scenes.SPLIT_VERSION}: {data(options.runs)}.
- **Configuration**: `examples/storybook/`, one command a stage.
- **Machine**: {options.machine}.
- **Licence**: Apache-2.0.

## Training

{stages}

Curves are logarithmic, from the highest mean to the lowest.

## Scores

{settings["pictures"]} held-out prompts, judged by `storybook/judge.safetensors`
({settings["features_sha256"][:12]}), of split version {settings["split"]}.

{scored(scores)}

## Known failures

{options.failures.read_text("utf-8").strip()}
"""


def main() -> None:
    """Write README.md into the bundled folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="outputs of the stages, in their order")
    parser.add_argument("--scores", type=Path, required=True, help="OUTPUT of ldm-eval adherence")
    parser.add_argument("--recon", type=Path, help="OUTPUT of ldm-eval recon --images storybook")
    parser.add_argument("--diversity", type=Path, help="OUTPUT of ldm-eval adherence --per-prompt")
    parser.add_argument("--model", type=Path, default=BUNDLED / "storybook")
    parser.add_argument("--failures", type=Path, default=HERE / "failures.md")
    parser.add_argument("--machine", required=True, help="what all the stages ran on, in words")
    options = parser.parse_args()
    file = options.model / "README.md"
    write_atomic(file, card(options.model, options).encode())
    print(file)


if __name__ == "__main__":
    main()
