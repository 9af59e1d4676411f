"""A model of the Hugging Face hub -> a folder of its cache. Level 1: no torch.

huggingface_hub does the work: its cache, environment variables and token. Only what the loader
reads is asked for, in one variant, and what a model is, is looked at before its weights come.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.checks import (
    PARTS,
    TOKENIZER_FILES,
    check_description,
    check_tokenizer,
    check_variant,
    no_weights,
    shard_names,
    weight_names,
)

__all__ = ["Snapshot", "fetch_lora", "fetch_model", "fetch_tokenizer", "is_hub_id", "on_hub"]

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_TOKENIZER = tuple(f"tokenizer/{name}" for name in TOKENIZER_FILES)
_DESCRIPTION = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *_TOKENIZER,
    *(f"{part}/config.json" for part in PARTS),
)
_FILE = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
_LORA = "pytorch_lora_weights.safetensors"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Snapshot:
    """A folder of the hub's cache and the commit it holds, 40 hex digits."""

    folder: Path
    commit: str


def is_hub_id(model: str | Path) -> bool:
    """Whether ``model`` looks like ``owner/name``."""
    return isinstance(model, str) and _HUB_ID.fullmatch(model) is not None


def on_hub(model: str | Path) -> bool:
    """Whether the name is a hub id, and nothing here has that name or its first half.

    ``models/foo`` where ``models`` is a folder is a path that was mistyped; the hub is not asked.
    """
    owner = str(model).partition("/")[0]
    return is_hub_id(model) and not os.path.lexists(model) and not os.path.isdir(owner)


def fetch_model(
    model: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    allow_pickle: bool = False,
) -> Snapshot:
    """Bring the parts of a hub model that a loader reads into the cache.

    ``offline`` opens no socket; None does as HF_HUB_OFFLINE says. The revision is resolved once.
    Raises ModelError.
    """
    check_variant(variant)
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with _pinned(model, revision, offline) as (pinned, local):
        asked = [
            f"{part}/{index}"
            for part in PARTS
            for _, index in weight_names(part, variant, allow_pickle=allow_pickle)
        ]
        folder = _download(model, pinned, local, [*_DESCRIPTION, *asked])
        check_description(folder)
        try:
            tree = get_cached_repo_tree(model, revision=pinned)
        except CachedRepoTreeNotFoundError:  # a cache of before these lists, and no network
            return Snapshot(folder, pinned.resolved)
        sizes = {file.path: file.size for file in tree}
        names = [
            name
            for part in PARTS
            for name in _weights(part, folder, sizes, variant, allow_pickle=allow_pickle)
        ]
        missing = [name for name in names if not (folder / name).exists()]
        if missing and not local:
            total = sum(sizes[name] for name in missing)
            _log.warning(
                "downloading %s of %s, commit %s", _human(total), model, pinned.resolved[:12]
            )
        _download(model, pinned, local, names)
    return Snapshot(folder, pinned.resolved)


def fetch_tokenizer(
    model: str, *, revision: str | None = None, offline: bool | None = None
) -> Path:
    """Bring a hub model's tokenizer into the cache and nothing else; the folder, checked.

    Raises ModelError.
    """
    with _pinned(model, revision, offline) as (pinned, local):
        folder = _download(model, pinned, local, _TOKENIZER)
        if not (folder / "tokenizer").is_dir():
            raise ModelError("the model lacks a folder tokenizer")
        return check_tokenizer(folder)


def fetch_lora(place: str | Path, *, offline: bool | None = None) -> str | Path:
    """The file of a LoRA: a path as it is, ``owner/name`` or ``owner/name/file`` from the hub.

    Of a folder that holds ``pytorch_lora_weights.safetensors``, as a training or diffusers leaves
    it, that file is meant. A repository without a file's name must hold one of that name or one
    other ``.safetensors`` file. Raises ModelError.
    """
    if isinstance(place, str | Path) and os.path.isdir(place):
        inside = Path(place, _LORA)
        return inside if inside.is_file() else place
    if not isinstance(place, str):
        return place
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    repository = f"{owner}/{name}"
    named = file if file else name
    if not on_hub(repository) or bool(file) != named.lower().endswith(".safetensors"):
        return place
    if place.endswith("/") or (file and not _FILE.fullmatch(file)):
        return place
    from huggingface_hub import get_cached_repo_tree

    with _pinned(repository, None, offline) as (pinned, local):
        asked = file or _LORA
        folder = _download(repository, pinned, local, [asked])
        if not (folder / asked).is_file():
            tree = get_cached_repo_tree(repository, revision=pinned)
            there = [one.path for one in tree if one.path.endswith(".safetensors")]
            if file or len(there) != 1:
                shown = ", ".join(there[:5]) or "none"
                raise ModelError(
                    f"there is no {asked}; .safetensors files there: {shown}; name one as "
                    f"{repository}/FILE"
                )
            (asked,) = there
            _download(repository, pinned, local, [asked])
    return folder / asked


def _weights(
    part: str, folder: Path, sizes: dict[str, int], variant: str | None, *, allow_pickle: bool
) -> list[str]:
    """The names of a part's weight files on the hub, in one variant. Raises ModelError."""
    candidates = weight_names(part, variant, allow_pickle=allow_pickle)
    for single, index in candidates:
        if f"{part}/{single}" in sizes:
            return [f"{part}/{single}"]
        if f"{part}/{index}" in sizes:
            names = [f"{part}/{name}" for name in shard_names(folder, f"{part}/{index}")]
            lost = [name for name in names if name not in sizes]
            if lost:
                raise ModelError(f"{part}/{index} names {lost[0]}, which is not there")
            return names
    present = [name.removeprefix(f"{part}/") for name in sizes if name.startswith(f"{part}/")]
    raise no_weights(part, f"{part}/{candidates[0][0]}", present, allow_pickle=allow_pickle)


def _human(size: int) -> str:
    """Bytes for people: ``3.4 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"


@contextlib.contextmanager
def _pinned(model: str, revision: str | None, offline: bool | None) -> Iterator[tuple[Any, bool]]:
    """The commit that a revision is now, and whether to stay offline; errors are explained."""
    from huggingface_hub import HfApi, is_offline_mode

    local = is_offline_mode() if offline is None else offline
    with _explained(model, revision, local):
        yield HfApi().resolve_revision(model, revision=revision, local_files_only=local), local


def _download(model: str, pinned: Any, local: bool, names: Sequence[str]) -> Path:
    """Bring the files with these names or patterns into the cache; the snapshot's folder."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model, revision=pinned, local_files_only=local, allow_patterns=list(names)
        )
    )


@contextlib.contextmanager
def _explained(model: str, revision: str | None, local: bool) -> Iterator[None]:
    """Turn whatever the hub's client raises into one clear ModelError."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{model}: {error}") from error
    except Exception as error:  # the client's transport raises errors of its own
        raise ModelError(_explanation(error, model, revision, local)) from error


def _explanation(error: Exception, model: str, revision: str | None, local: bool) -> str:
    """What went wrong and what to do, in one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{model} is gated: accept its terms on the hub's page, then {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model} has no revision {revision!r:.80} on the hub"
    # Nothing says that the hub has such a model: the name can be a path that was mistyped.
    return f"there is no folder {model} here, and {_failure(error, model, local)}"


def _failure(error: Exception, model: str, local: bool) -> str:
    """Why the hub gives nothing, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {model}, or it is private: check the name, or {_LOG_IN}"
    if status in (401, 403):
        return f"the hub refuses access to {model} ({status}): {_LOG_IN} with a valid token"
    if status is not None:
        return f"the hub answered {status} for {model}; try again later"
    absent = (
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        errors.OfflineModeIsEnabled,
    )
    if isinstance(error, absent):
        where = "is not in the hub's cache, or not all of it"
        if local:
            why = "offline mode (--offline, HF_HUB_OFFLINE) fetches nothing"
            return f"{model} {where}, and {why}; run once with a network"
        return f"the hub cannot be reached and {model} {where}; check the network and try again"
    text = str(error).strip().splitlines()
    return (
        f"{model} could not be fetched from the hub ({type(error).__name__}: "
        f"{text[0][:200] if text else 'no reason given'}); try again, whole files are kept"
    )
