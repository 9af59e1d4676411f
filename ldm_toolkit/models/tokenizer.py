"""The tokenizer of a model folder, which needs no network to be loaded."""

from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError

__all__ = ["load_tokenizer"]

_MAX_LENGTH = 77


def load_tokenizer(folder: Path) -> Any:
    """transformers' CLIPTokenizer out of a checked model folder. Raises ModelError."""
    # Imported here: it costs a second, and a wrong folder is found without it.
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"the tokenizer cannot be loaded: {reason:.300}") from error
    if tokenizer.model_max_length > _MAX_LENGTH:  # a tokenizer without the setting says 10^30
        tokenizer.model_max_length = _MAX_LENGTH
    return tokenizer
