"""Train a tokenizer and a text encoder: accelerate launch examples/train_text_encoder.py --help."""

from ldm_toolkit.training.config import TextEncoderConfig
from ldm_toolkit.training.options import command


def main(config: TextEncoderConfig) -> None:
    """Train; the heavy imports come after the options are checked."""
    from ldm_toolkit.training.run import train_text_encoder

    train_text_encoder(config)


if __name__ == "__main__":
    command(TextEncoderConfig, main)
