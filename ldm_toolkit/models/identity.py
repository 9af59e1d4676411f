"""Which model a recipe means: name, revision and the hash of its weights. Level 1: no torch."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_toolkit.errors import ModelError, suggestion
from ldm_toolkit.files import sha256_file

__all__ = [
    "DEFAULT_MODEL",
    "EmbeddingIdentity",
    "LoraIdentity",
    "ModelIdentity",
    "adapter_sha256",
    "bundled_models",
    "checkpoint_sha256",
    "find_model",
    "weights_sha256",
]

DEFAULT_MODEL = "storybook"
_BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class ModelIdentity:
    """What a recipe holds of a model; ``sha256`` is ``weights_sha256`` of the files loaded.

    ``tokenizer_sha256``: see `models.tokenizer.tokenizer_sha256`.
    """

    name: str
    revision: str
    sha256: str
    tokenizer_sha256: str

    def as_dict(self) -> dict[str, str]:
        """The fields as plain data for a recipe."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LoraIdentity:
    """What a recipe holds of a LoRA; ``sha256`` is that of its file."""

    name: str
    scale: float
    sha256: str


@dataclass(frozen=True)
class EmbeddingIdentity:
    """What a recipe holds of a textual inversion; ``sha256`` is that of its file."""

    token: str
    sha256: str


def bundled_models() -> dict[str, Path]:
    """Name and folder of every model inside the package, sorted by name."""
    return {path.parent.name: path.parent for path in sorted(_BUNDLED.glob("*/model_index.json"))}


def find_model(model: str | Path) -> Path:
    """The folder of a bundled model's name or of a path. Raises ModelError."""
    bundled = bundled_models()
    if isinstance(model, str) and model in bundled:
        return bundled[model]
    try:
        folder = Path(model)
        if folder.is_dir():
            return folder
        found = folder.exists()
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{model!r:.200} is not a model name or a path: {error}") from error
    if found:
        raise ModelError(
            f"{model} is a file; a model is a folder in the diffusers layout, with "
            "model_index.json, or a checkpoint named .safetensors"
        )
    known = ", ".join(bundled) or "none in this installation"
    raise ModelError(
        f"no model {str(model)!r:.200}: neither a folder nor a bundled model "
        f"({known}){suggestion(str(model), bundled)}{_beside(folder)}"
    )


def _beside(missing: Path) -> str:
    """The end of an error message about a path whose last part alone is missing, or nothing."""
    parent = missing.parent
    try:
        if not parent.name or not parent.is_dir():
            return ""
        names = [path.name for path in itertools.islice(parent.iterdir(), 1000)]
    except OSError:  # a folder that cannot be listed
        return ""
    return (
        f"; {str(parent)!r:.200} is a folder and holds no {missing.name!r:.100}, so the hub is "
        f"not asked{suggestion(missing.name, names)}"
    )


def weights_sha256(files: Mapping[str, Path]) -> str:
    """One SHA-256 for all weights: over the lines ``sha256  part/file`` in sorted order.

    The same text as ``sha256sum`` prints, so anybody can check it with ordinary tools.
    """
    lines = [f"{sha256_file(files[name])}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_sha256(file: Path, vae: Sequence[Path] = ()) -> str:
    """A checkpoint file's own SHA-256, as download pages show it.

    With the weights of another VAE, that of both as `weights_sha256` counts.
    """
    if not vae:
        return sha256_file(file)
    return weights_sha256({"checkpoint": file, **{f"vae/{path.name}": path for path in vae}})


def adapter_sha256(file: Path) -> str:
    """The SHA-256 of a LoRA's or an embedding's file, read once for as long as the file stays.

    A replay asks for it to find the file's scale, to compare it with the recipe's, and to load it.
    """
    found = file.stat()
    return _known_sha256(
        file.resolve(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


@functools.lru_cache(maxsize=100)
def _known_sha256(file: Path, *_state: int) -> str:
    return sha256_file(file)
