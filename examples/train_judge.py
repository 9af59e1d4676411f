"""Train a judge of storybook pictures: accelerate launch examples/train_judge.py --help."""

from ldm_toolkit.training.config import JudgeConfig
from ldm_toolkit.training.options import command


def main(config: JudgeConfig) -> None:
    """Train; the heavy imports come after the options are checked."""
    from ldm_toolkit.training.run import train_judge

    train_judge(config)


if __name__ == "__main__":
    command(JudgeConfig, main)
