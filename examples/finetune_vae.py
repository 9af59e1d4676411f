"""Train the autoencoder: accelerate launch examples/finetune_vae.py --help."""

from ldm_toolkit.training.config import VAEConfig
from ldm_toolkit.training.options import command


def main(config: VAEConfig) -> None:
    """Train; the heavy imports come after the options are checked."""
    from ldm_toolkit.training.run import train_vae

    train_vae(config)


if __name__ == "__main__":
    command(VAEConfig, main)
