"""Train the autoencoder: accelerate launch examples/finetune_vae.py --help.

Without arguments it runs the demonstration of demo/robot_decoder.yaml.
"""

from pathlib import Path

from ldm_toolkit.training.config import VAEConfig
from ldm_toolkit.training.options import Demonstration, command

HERE = Path(__file__).resolve().parent
DEMONSTRATION = Demonstration(
    "sharpens the bundled model's decoder for twenty pictures of robots, in about two minutes "
    "on two cores; robot-decoder/before_after.png will show each beside its reconstruction, before "
    "and after",
    ("--config", str(HERE / "demo" / "robot_decoder.yaml"),
     "--data", str(HERE.parent / "assets" / "robots")),
)  # fmt: skip


def main(config: VAEConfig) -> None:
    """Train; the heavy imports come after the options are checked."""
    from ldm_toolkit.training.run import train_vae

    train_vae(config)


if __name__ == "__main__":
    command(VAEConfig, main, DEMONSTRATION)
