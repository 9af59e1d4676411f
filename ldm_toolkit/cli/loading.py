"""From a command line's choice of a model to the pipeline."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ldm_toolkit.cli.model import ModelChoice
from ldm_toolkit.cli.terminal import note
from ldm_toolkit.errors import UserError, listed
from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.models.vocabulary import unknown_words
from ldm_toolkit.storybook.scenes import known_words

if TYPE_CHECKING:
    from ldm_toolkit.pipeline import LatentPipeline
    from ldm_toolkit.recipe import Recipe
    from ldm_toolkit.replay import Original

__all__ = ["load_pipeline", "threads_for"]


def load_pipeline(
    choice: ModelChoice,
    *,
    threads: int | None,
    original: "Original | None" = None,
    prompts: Iterable[str] = (),
    preview_vae: str | None = None,
) -> "LatentPipeline":
    """Load the model with its LoRAs and embeddings; for a replay as the picture was made.

    A bundled model knows few words: which of ``prompts`` it never saw is told.
    """
    with _without_collecting():
        pipe = _loaded(choice, threads, original, preview_vae)
    _tell_unseen(choice, prompts)
    return pipe


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """No looking for garbage in the block.

    What libraries make when they are imported stays; to go through it again and again would be a
    tenth of all that a start computes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _loaded(
    choice: ModelChoice,
    threads: int | None,
    original: "Original | None",
    preview_vae: str | None,
) -> "LatentPipeline":
    from ldm_toolkit.pipeline import LatentPipeline

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if original is not None:
        choice = _as_recorded(choice, original.recipe)
    pipe = LatentPipeline.from_pretrained(
        choice.model,
        device=choice.device,
        dtype=choice.dtype,
        vae=choice.vae,
        tokenizer=choice.tokenizer,
        revision=choice.revision,
        variant=choice.variant,
        offline=choice.offline or None,
        allow_pickle=choice.allow_pickle,
        attention=choice.attention,
        compile=choice.compile,
        backend=choice.computing,
    )
    for path, scale in choice.loras:
        pipe.load_lora(path, scale)
    for path, word in choice.embeddings:
        pipe.load_embedding(path, word)
    if preview_vae is not None:
        pipe.load_preview_vae(preview_vae)
    if original is not None:
        _compare_weights(original, pipe)
    return pipe


def _tell_unseen(choice: ModelChoice, prompts: Iterable[str]) -> None:
    if choice.model not in bundled_models() or choice.loras or choice.embeddings:
        return  # what was fine-tuned may have taught it more words
    words = unknown_words(prompts, {f"{word}</w>" for word in known_words()})
    if words:
        note(
            f"{choice.model} is a small model and never saw {listed(map(repr, words))}: the "
            "picture shows what it knows; a large model knows more, e.g. --model "
            "stable-diffusion-v1-5/stable-diffusion-v1-5, or a folder"
        )


def threads_for(asked: int | None, original: "Original | None") -> int | None:
    """The threads that were asked for, or those of the replayed picture where there are as many."""
    if asked is not None or original is None:
        return asked
    recorded = original.recipe.threads
    return recorded if recorded <= (os.cpu_count() or 1) else None


def _as_recorded(choice: ModelChoice, recipe: "Recipe") -> ModelChoice:
    """The choice with what the picture was made with, where nothing was asked for.

    Where this machine lacks it the person is told, and it computes as it can.
    """
    from ldm_toolkit.compilation import check_compiler
    from ldm_toolkit.fastpath.openvino import check_backend
    from ldm_toolkit.hardware import choose_attention, choose_device, choose_dtype

    changes: dict[str, Any] = {}
    checks: dict[str, Callable[[str], object]] = {
        "device": choose_device,
        "dtype": lambda name: choose_dtype(name, choose_device(device)),
        "attention": choose_attention,
        "backend": lambda name: check_backend(
            name,
            choose_device(device),
            compile=choice.compile,
            attention=changes.get("attention", choice.attention),
        ),
    }
    device = choice.device
    own = choice.computing != "torch"  # and then compiles by itself, with attention of its own
    for name, check in checks.items():
        if getattr(choice, name) != "auto" or (own and name == "attention"):
            continue
        try:
            check(getattr(recipe, name))
        except UserError as error:
            note(f"{error}; the picture is made with another {name} than it was")
        else:
            changes[name] = getattr(recipe, name)
            device = changes.get("device", device)
    if recipe.compile and not (choice.compile or own):
        try:
            check_compiler(choose_device(device))
        except UserError as error:
            note(f"{error}; the picture is made without, and it was made with it")
        else:
            note("the picture was made by a compiled model; compiling takes a minute or more")
            changes["compile"] = True
    return dataclasses.replace(choice, **changes)


def _compare_weights(original: "Original", pipe: "LatentPipeline") -> None:
    """Say before the work that it cannot give the same picture."""
    wanted, found = original.recipe.model.get("sha256", "unknown"), pipe.identity.sha256
    if wanted != found:
        note(
            f"the weights of {pipe.identity.name} ({found:.12}) are not those that made the "
            f"picture ({wanted:.12}); expect another one"
        )
