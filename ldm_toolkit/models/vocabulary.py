"""CLIP's published vocabulary where a checkpoint has no tokenizer, and what a small one lacks.

Level 1: no torch. The published file is OpenAI's ``bpe_simple_vocab_16e6.txt.gz``, which the
package open_clip_torch installs; it is read as data, the package is never imported.
"""

import gzip
import importlib.util
import re
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

from ldm_toolkit.errors import ModelError, install_hint

__all__ = ["START", "STOP", "find_published", "find_tokenizer", "read_published", "unknown_words"]

START = "<|startoftext|>"
STOP = "<|endoftext|>"
_HUB_TOKENIZER = "openai/clip-vit-large-patch14"
_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # the file holds more; CLIP took 49152 entries with bytes and two marks
_MAX_BYTES = 16 << 20
_SMALL = 10_000  # entries of a vocabulary that the captions of a small world made
_WORD = re.compile(r"[^\W\d_]+")


def find_tokenizer() -> Path | None:
    """The folder of CLIP's tokenizer in the hub's cache; no socket is opened."""
    from huggingface_hub import try_to_load_from_cache

    files = [try_to_load_from_cache(_HUB_TOKENIZER, name) for name in ("vocab.json", "merges.txt")]
    folders = {Path(file).parent for file in files if isinstance(file, str)}
    return folders.pop() if len(folders) == 1 and all(isinstance(f, str) for f in files) else None


def find_published() -> Path:
    """The vocabulary's file inside an installed open_clip_torch. Raises ModelError."""
    spec = importlib.util.find_spec("open_clip")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).with_name(_FILE)
        if path.is_file():
            return path
    raise ModelError(
        "a single file holds no tokenizer; name a folder with tokenizer (vocab.json, merges.txt), "
        f"or fetch it once with `hf download {_HUB_TOKENIZER} vocab.json merges.txt "
        f"tokenizer_config.json`, or {install_hint('single-file')} (open_clip_torch has it)"
    )


def read_published(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the published file. Raises ModelError.

    The order gives the ids (Radford et al. 2021, CLIP): 256 bytes as letters, the same at a word's
    end, one entry a merge, start and end of text.
    """
    try:
        with gzip.open(path) as file:
            text = file.read(_MAX_BYTES).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from error
    merges = []
    for number, line in enumerate(text.splitlines()[1 : 1 + _MERGES], start=2):
        pair = line.split()
        if len(pair) != 2:
            raise ModelError(f"{path.name}, line {number}: a merge is two words, not {line!r:.80}")
        merges.append((pair[0], pair[1]))
    letters = _letters_of_bytes().values()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(pair) for pair in merges]
    words += [START, STOP]
    return {word: index for index, word in enumerate(words)}, merges


def unknown_words(texts: Iterable[str], vocabulary: Collection[str]) -> list[str]:
    """The words of ``texts`` that are no entry of a small ``vocabulary``, in lower case, once each.

    ``vocabulary`` are the entries of a tokenizer's vocab.json, in which ``</w>`` ends a word. What
    is none of them is read in pieces, which mean something only to an encoder that has seen as much
    of the world as CLIP's: a vocabulary as large as its own lacks no word.
    """
    if len(vocabulary) > _SMALL:
        return []
    letters = _letters_of_bytes()
    found = dict.fromkeys(word for text in texts for word in _WORD.findall(text.lower()))
    entries = {word: "".join(letters[byte] for byte in word.encode()) for word in found}
    return [word for word, entry in entries.items() if f"{entry}</w>" not in vocabulary]


def _letters_of_bytes() -> dict[int, str]:
    """A letter for each byte, in the order of byte-level BPE (Radford et al. 2019, GPT-2).

    Printable bytes stand for themselves and come first; the others follow from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted({*range(256)}.difference(printable))
    letters = {code: chr(code) for code in printable}
    return letters | {code: chr(0x100 + place) for place, code in enumerate(others)}
