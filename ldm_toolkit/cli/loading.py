"""From a command line's choice of a model to the pipeline."""

import os
from typing import TYPE_CHECKING

from ldm_toolkit.cli.model import ModelChoice
from ldm_toolkit.cli.terminal import note
from ldm_toolkit.errors import UserError

if TYPE_CHECKING:
    from ldm_toolkit.pipeline import LatentPipeline
    from ldm_toolkit.replay import Original

__all__ = ["load_pipeline", "threads_for"]


def load_pipeline(
    choice: ModelChoice, *, threads: int | None, original: "Original | None" = None
) -> "LatentPipeline":
    """Load the model with its LoRAs and embeddings; for a replay as the picture was made."""
    from ldm_toolkit.pipeline import LatentPipeline

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    device, dtype = choice.device, choice.dtype
    if original is not None:
        device, dtype = _as_recorded(device, dtype, original)
    pipe = LatentPipeline.from_pretrained(
        choice.model,
        device=device,
        dtype=dtype,
        vae=choice.vae,
        tokenizer=choice.tokenizer,
        revision=choice.revision,
        variant=choice.variant,
        offline=choice.offline or None,
        allow_pickle=choice.allow_pickle,
        attention=choice.attention,
    )
    for path, scale in choice.loras:
        pipe.load_lora(path, scale)
    for path, word in choice.embeddings:
        pipe.load_embedding(path, word)
    if original is not None:
        _compare_weights(original, pipe)
    return pipe


def threads_for(asked: int | None, original: "Original | None") -> int | None:
    """The threads that were asked for, or those of the replayed picture where there are as many."""
    if asked is not None or original is None:
        return asked
    recorded = original.recipe.threads
    return recorded if recorded <= (os.cpu_count() or 1) else None


def _as_recorded(device: str, dtype: str, original: "Original") -> tuple[str, str]:
    """What was asked for, or what the replayed picture was made with where this machine has it."""
    from ldm_toolkit.hardware import choose_device, choose_dtype

    recipe = original.recipe
    if device == "auto":
        try:
            choose_device(recipe.device)
            device = recipe.device
        except UserError as error:
            note(f"{error}; the picture is made on another device than it was")
    if dtype == "auto":
        try:
            choose_dtype(recipe.dtype, choose_device(device))
            dtype = recipe.dtype
        except UserError as error:
            note(f"{error}; the picture is made with another dtype than it was")
    return device, dtype


def _compare_weights(original: "Original", pipe: "LatentPipeline") -> None:
    """Say before the work that it cannot give the same picture."""
    wanted, found = original.recipe.model.get("sha256", "unknown"), pipe.identity.sha256
    if wanted != found:
        note(
            f"the weights of {pipe.identity.name} ({found:.12}) are not those that made the "
            f"picture ({wanted:.12}); expect another one"
        )
