"""Train the UNet: accelerate launch examples/finetune_unet.py --help."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.options import command


def draw(model: Path, prompts: Sequence[str], adapter: Path | None) -> list[Any]:
    """Sample pictures of the model, LoRA or word in training: 25 steps, seed 0."""
    from ldm_toolkit import LatentPipeline
    from ldm_toolkit.training.methods.textual_inversion import EMBEDDING_FILE

    pipe = LatentPipeline.from_pretrained(model)
    if adapter is not None and adapter.name == EMBEDDING_FILE:
        pipe.load_embedding(adapter)
    elif adapter is not None:
        pipe.load_lora(adapter)
    return [pipe(prompt, steps=25, seed=0).images[0] for prompt in prompts]


def draw_class(model: Path, prompt: str, seeds: Sequence[int], size: int) -> Iterator[Any]:
    """Pictures of DreamBooth's class, one a seed: 25 steps."""
    from ldm_toolkit import LatentPipeline

    pipe = LatentPipeline.from_pretrained(model)
    for seed in seeds:
        yield pipe(prompt, steps=25, seed=seed, width=size, height=size).images[0]


def main(config: UNetConfig) -> None:
    """Train; the heavy imports come after the options are checked."""
    from ldm_toolkit.training.run import train_unet

    train_unet(config, draw, draw_class)


if __name__ == "__main__":
    command(UNetConfig, main)
