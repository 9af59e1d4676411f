"""Train the UNet: accelerate launch examples/finetune_unet.py --help.

Without arguments it runs the demonstration of demo/robot_lora.yaml.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.options import Demonstration, command

HERE = Path(__file__).resolve().parent
DEMONSTRATION = Demonstration(
    "teaches the bundled model what a robot is, from twenty pictures, in about four minutes on "
    "two cores; robot-lora/before_after.png will show what it drew before and what it draws then",
    ("--config", str(HERE / "demo" / "robot_lora.yaml"),
     "--data", str(HERE.parent / "assets" / "robots")),
)  # fmt: skip


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
    command(UNetConfig, main, DEMONSTRATION)
