"""What is said before the first step of what is no mistake, but seldom meant."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import LdmToolkitError, listed
from ldm_toolkit.given import warn_if_small
from ldm_toolkit.models.defaults import model_defaults
from ldm_toolkit.models.places import read_card
from ldm_toolkit.models.vocabulary import unknown_words
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.inputs import network_config

__all__ = ["warn_of_size", "warn_of_words"]

logger = logging.getLogger(__name__)


def warn_of_size(config: UNetConfig, base: Path, vae_folder: Path) -> None:
    """Say it where pictures are far smaller than those that the UNet was trained on before.

    In the words of `given.warn_if_small`; fresh weights have no size of their own.
    """
    if config.from_config is not None:
        return
    card = read_card(base)
    scheduler = network_config(base / "scheduler", "scheduler_config.json")
    configs = {
        "unet": network_config(base / "unet"),
        "vae": network_config(vae_folder),
        "scheduler": scheduler,
    }
    try:
        name = str(card.get("name") or base.resolve().name)
        defaults = model_defaults(name, configs, scheduler.get("_class_name", ""), card)
    except LdmToolkitError:  # who draws with it is told
        return
    warn_if_small(config.size, config.size, defaults)


def warn_of_words(captions: Iterable[str], tokenizer: Any) -> None:
    """Say it where a text encoder that stays as it is has never read words of the captions."""
    words = unknown_words(captions, tokenizer.get_vocab())
    if words:
        logger.warning(
            "the text encoder never saw %s: it tells such words apart badly, and what is learned "
            "follows them weakly; pass --train-text-encoder, or teach it one word with --method "
            "textual-inversion",
            listed(map(repr, words)),
        )
