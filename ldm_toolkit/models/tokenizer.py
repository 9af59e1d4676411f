"""The tokenizer of a model and the words it is taught; neither torch nor networks are needed."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ldm_toolkit.errors import LIBRARY_ERRORS, ModelError, UserError, first_line, listed
from ldm_toolkit.files import sha256_bytes
from ldm_toolkit.models.checks import check_tokenizer
from ldm_toolkit.models.headers import check_safetensors
from ldm_toolkit.models.hub import fetch_tokenizer, on_hub
from ldm_toolkit.models.identity import find_model
from ldm_toolkit.models.single_file import is_single_file
from ldm_toolkit.models.vocabulary import STOP, find_published, find_tokenizer, read_published
from ldm_toolkit.values import is_number

__all__ = [
    "file_tokenizer",
    "load_tokenizer",
    "model_tokenizer",
    "published_tokenizer",
    "read_word",
    "tokenizer_sha256",
    "with_word",
]

_NO_WORD = re.compile(r"[\s()\[\]\\]")
_MOST_VECTORS = 1000


def model_tokenizer(
    model: str | Path,
    *,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> Any:
    """The tokenizer that a model is loaded with; of a hub model nothing else is fetched.

    ``tokenizer`` is a folder in place of the model's own. The token that fills prompts up may be
    another one in a single file. Raises ModelError.
    """
    if tokenizer is not None:
        return load_tokenizer(check_tokenizer(Path(tokenizer)))
    if is_single_file(model):
        return file_tokenizer(None)()
    if on_hub(model):
        return load_tokenizer(fetch_tokenizer(str(model), revision=revision, offline=offline))
    return load_tokenizer(check_tokenizer(find_model(model)))


def file_tokenizer(tokenizer: Path | None, padding: str | None = None) -> Callable[[], Any]:
    """How to make the tokenizer that a single file lacks: given, the hub's cache, the published.

    ``padding`` replaces the token that fills prompts up, but of one that is given.
    Raises ModelError.
    """
    if tokenizer is not None:
        given = check_tokenizer(tokenizer)
        return lambda: load_tokenizer(given)
    cached = find_tokenizer()
    if cached is not None:
        checked = check_tokenizer(cached)
        return lambda: load_tokenizer(checked, padding)
    published = find_published()
    return lambda: published_tokenizer(published, padding)


def load_tokenizer(folder: Path, padding: str | None = None) -> Any:
    """The CLIP tokenizer of a checked folder, 77 tokens at most. Raises ModelError.

    ``padding`` replaces the token that fills prompts up.
    """
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    options: dict[str, Any] = {} if padding is None else {"pad_token": padding}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
        length = tokenizer.model_max_length  # 10^30 where the setting is missing
        if not is_number(length) or length < 3:  # a start, a token, an end
            raise ModelError(
                f"tokenizer_config.json: model_max_length must be a number from 3, not "
                f"{length!r:.80}"
            )
        tokenizer.model_max_length = min(77, int(length))
        read = [*_ends(tokenizer), *tokenizer("a", verbose=False).input_ids]
    except (*LIBRARY_ERRORS, StrictDataclassError) as error:
        raise ModelError(
            "the tokenizer cannot be loaded; tokenizer_config.json or another of its files makes "
            f"no sense: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not all(type(one) is int for one in read):
        raise ModelError(
            "the tokenizer lacks a token for start, end or padding; see tokenizer_config.json and "
            "special_tokens_map.json"
        )
    return tokenizer


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of what makes ids of a prompt: vocabulary, merges, start, end and padding."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    what = [model["vocab"], merges, _ends(tokenizer)]
    return sha256_bytes(json.dumps(what, sort_keys=True).encode())


def _ends(tokenizer: Any) -> list[Any]:
    return [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]


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


def read_word(file: Path, token: str | None = None) -> tuple[str, int]:
    """The word of a textual inversion in prompts and its number of vectors, out of the header.

    The word is ``token``, else the tensor's name, or the file's where the web UIs' trainer wrote
    it. Raises ModelError.
    """
    header = check_safetensors(file)
    if len(header) != 1:
        raise ModelError(
            f"{file.name} holds {len(header)} tensors ({listed(header)}); a textual inversion "
            "for Stable Diffusion 1.x or 2.x holds one"
        )
    key, entry = next(iter(header.items()))
    *rows, width = entry["shape"] or (0,)
    vectors = rows[0] if rows else 1
    if len(rows) > 1 or not width or not 0 < vectors <= _MOST_VECTORS:
        raise ModelError(
            f"{file.name}: the embedding's shape is {tuple(entry['shape'])}, not (D) or (n, D) "
            f"with n from 1 to {_MOST_VECTORS}; it is of another model"
        )
    own = file.stem if key == "emb_params" else key
    return token if token is not None else own, vectors


def with_word(tokenizer: Any, word: str, vectors: int) -> tuple[Any, list[str]]:
    """A copy of a tokenizer that knows a word of so many vectors, and the name of each vector.

    Raises UserError for a word that prompts cannot hold or that the tokenizer knows already.
    """
    words = [word, *(f"{word}_{number}" for number in range(1, vectors))]
    _check_words(words, tokenizer)
    taught = copy.deepcopy(tokenizer)
    taught.add_tokens(words)
    return taught, words


def _check_words(words: list[str], tokenizer: Any) -> None:
    """A word that prompts can hold and that the tokenizer does not know. Raises UserError."""
    word = words[0]
    if not word or len(word) > 100 or not word.isprintable() or _NO_WORD.search(word):
        raise UserError(
            f"the embedding's word must be short, without spaces, brackets and backslashes, not "
            f"{word!r:.120}; give it another one with token"
        )
    # <cat> reads <cat>_1, <cat>_2, ... as its own further vectors, so those must be free too.
    known = tokenizer.get_vocab()
    taken = [one for one in (*words, f"{word}_{len(words)}") if one in known]
    stem = re.sub(r"_\d+$", "", word)
    if stem != word and stem in tokenizer.added_tokens_encoder:
        taken.append(stem)
    if taken:
        raise UserError(
            f"the tokenizer knows {taken[0]!r:.120} already; give the embedding another word "
            "with token"
        )
