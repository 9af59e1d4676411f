"""The tokenizer of a model, which needs neither torch nor a network to be loaded."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.vocabulary import STOP, read_published

__all__ = ["LIBRARY_ERRORS", "first_line", "load_tokenizer", "published_tokenizer"]

# What the libraries raise at configurations and tokenizers that make no sense.
LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


def load_tokenizer(folder: Path, padding: str | None = None) -> Any:
    """The CLIP tokenizer of a checked folder, 77 tokens at most. Raises ModelError.

    ``padding`` replaces the token that fills prompts up.
    """
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    options: dict[str, Any] = {} if padding is None else {"pad_token": padding}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
    except LIBRARY_ERRORS as error:
        raise ModelError(f"the tokenizer cannot be loaded: {first_line(error)}") from error
    if tokenizer.model_max_length > 77:  # a tokenizer without the setting says 10^30
        tokenizer.model_max_length = 77
    return tokenizer


def published_tokenizer(path: Path, padding: str | None = None) -> Any:
    """The CLIP tokenizer of the published vocabulary's file. Raises ModelError."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    vocabulary, merges = read_published(path)
    pairs: list[Any] = list(merges)  # annotated as texts there, but the backend wants pairs
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,
        pad_token=padding if padding is not None else STOP,
        model_max_length=77,
    )


def first_line(error: Exception) -> str:
    """The first line of an error of another library, with its type when there is no text."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
