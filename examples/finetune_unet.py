"""Train the UNet: accelerate launch examples/finetune_unet.py --help."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.options import command


def draw(model: Path, prompts: Sequence[str], lora: Path | None) -> list[Any]:
    """Sample pictures of the model or LoRA in training: 25 steps, seed 0."""
    from ldm_toolkit import LatentPipeline

    pipe = LatentPipeline.from_pretrained(model)
    if lora is not None:
        pipe.load_lora(lora)
    return [pipe(prompt, steps=25, seed=0).images[0] for prompt in prompts]


def main(config: UNetConfig) -> None:
    """Train; the heavy imports come after the options are checked."""
    from ldm_toolkit.training.run import train_unet

    train_unet(config, draw)


if __name__ == "__main__":
    command(UNetConfig, main)
