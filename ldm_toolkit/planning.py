"""From what was asked of a model to the recipe of every picture."""

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from ldm_toolkit import given as given_
from ldm_toolkit import schedulers
from ldm_toolkit.backends import frozen_problems
from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath.attention import takes_state
from ldm_toolkit.fastpath.halves import most_depth
from ldm_toolkit.given import Given
from ldm_toolkit.hardware import cpu_capability, versions
from ldm_toolkit.models.components import Components
from ldm_toolkit.options import MAX_SEED, GenerateOptions
from ldm_toolkit.recipe import Execution, ModelDefaults, Recipe, resolve

__all__ = ["plan"]


def plan(
    components: Components,
    defaults: ModelDefaults,
    texts: Sequence[str],
    options: GenerateOptions,
    given: Given,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    vae_tiling: bool | None = None,
) -> list[Recipe]:
    """The complete recipes of one call, one a text; all contradictions with the model are told.

    Raises UserError.
    """
    wanted = options.scheduler if options.scheduler is not None else defaults.scheduler
    name = schedulers.resolve_name(wanted, classes=True)
    config = components.scheduler_config
    most = schedulers.max_steps(name, config)
    if options.steps > most:
        raise UserError(f"steps must be at most {most} with {name}, not {options.steps}")
    if options.eta and not schedulers.takes_eta(name):
        raise UserError(f"{name} knows no eta; ddim and tcd do")
    settings = schedulers.json_config(schedulers.create(name, config))
    first = resolve(
        dataclasses.replace(options, scheduler=name),
        defaults,
        _execution(components, settings, given_.batch_of(batch_size, len(texts)), vae_tiling),
        given.inputs(components, len(texts)),
    )
    given_.warn_if_small(first.width, first.height, defaults)
    _check_reuse(first, components)
    if seeds is None:
        seeds = [first.seed + index for index in range(len(texts))]
    recipes = [
        dataclasses.replace(first, prompt=text, seed=seed, latents_sha256=digest)
        for text, seed, digest in zip(texts, seeds, given.digests(len(texts)), strict=True)
    ]
    if max(seeds) > MAX_SEED:
        highest = MAX_SEED - len(texts) + 1
        raise UserError(f"seed must be at most {highest} for {len(texts)} images")
    return recipes


def _check_reuse(recipe: Recipe, components: Components) -> None:
    """Whether the model's UNet can keep what a recipe wants from step to step. Raises UserError."""
    problems = []
    if recipe.reuse_every > 1:
        try:
            most = most_depth(components.unet)
        except UserError as error:
            problems.append(str(error))
        else:
            if recipe.reuse_depth > most:
                problems.append(
                    f"reuse_depth must be from 1 to {most} with this model, not "
                    f"{recipe.reuse_depth}"
                )
    frozen = {"gate": recipe.gate, "attention_every": recipe.attention_every}
    names = " and ".join(name for name, value in frozen.items() if value != 1)
    refused = frozen_problems(components.backend, frozen)
    problems += refused.values()
    if names and not refused and not takes_state(components.unet):
        problems.append(
            f"{names} must be 1 with this model: its UNet's attention is not that of Stable "
            "Diffusion 1.x and 2.x, or was replaced"
        )
    if problems:
        raise UserError("; ".join(problems))


def _execution(
    components: Components,
    scheduler_config: dict[str, Any],
    batch_size: int,
    vae_tiling: bool | None,
) -> Execution:
    """The part of a recipe that model and machine give."""
    computing = dict(versions())
    if components.backend == "openvino":
        computing["openvino"] = importlib.metadata.version("openvino")
    return Execution(
        scheduler_config=scheduler_config,
        model=components.identity.as_dict(),
        dtype=str(components.dtype).removeprefix("torch."),
        device=components.device.type,
        cpu_capability=cpu_capability(),
        threads=torch.get_num_threads(),
        memory_format=components.memory_format,
        batch_size=batch_size,
        attention=components.attention,
        vae_tiling=vae_tiling,
        compile=components.compiled,
        backend=components.backend,
        loras=[dataclasses.asdict(lora) for lora in components.loras],
        embeddings=[dataclasses.asdict(embedding) for embedding in components.embeddings],
        versions=computing,
    )
