"""``ldm-gen --dry-run``: what would be done, with every gap filled that can be before loading."""

import dataclasses
import json
from typing import Any

from ldm_toolkit.cli.request import JobRequest, Request
from ldm_toolkit.promptfile import Row
from ldm_toolkit.recipe import Execution, GenerateOptions, Inputs, ModelDefaults, resolve

__all__ = ["plan"]

# The part of a recipe that only a loaded model has, and that no plan shows.
_UNKNOWN = Execution(
    scheduler_config={},
    model={},
    dtype="",
    device="",
    cpu_capability="",
    threads=1,
    memory_format="",
    batch_size=1,
    attention="",
    versions={},
)


def plan(request: Request | JobRequest) -> str:
    """A line of JSON. What only the loaded model or the job's folder tells is null."""
    told: dict[str, Any] = {"model": request.choice.model}
    if isinstance(request, JobRequest):
        told |= {"folder": str(request.folder), "batch_size": request.batch_size}
        told["rows"] = [
            _settled(_with_seed(row.options, request.seed, index), request.defaults, _inputs(row))
            for index, row in enumerate(request.rows)
        ]
        return json.dumps(told, ensure_ascii=False)
    hashes = {}
    if request.image is not None:
        from ldm_toolkit.images import pixels_sha256

        hashes["image_sha256"] = pixels_sha256(request.image)
        if request.mask is not None:
            hashes["mask_sha256"] = pixels_sha256(request.mask)
    size = request.image.size if request.image is not None else None
    told["options"] = _settled(request.options, request.defaults, Inputs(**hashes, size=size))
    seeds = range(request.seed, request.seed + request.count)
    told["pictures"] = [str(request.destination.path(seed)) for seed in seeds]
    return json.dumps(told, ensure_ascii=False)


def _settled(
    options: GenerateOptions, defaults: ModelDefaults | None, inputs: Inputs
) -> dict[str, Any]:
    """The options with the model's and the image's values in their gaps. Raises UserError."""
    asked = dataclasses.asdict(options)
    if defaults is None:
        return asked
    recipe = resolve(options, defaults, _UNKNOWN, inputs)
    return {name: getattr(recipe, name) for name in asked} | {"seed": options.seed}


def _with_seed(options: GenerateOptions, seed: int | None, index: int) -> GenerateOptions:
    """A row's options with its seed where the job's is known, as `jobs` gives it out."""
    if options.seed is not None or seed is None:
        return options
    return dataclasses.replace(options, seed=seed + index)


def _inputs(row: Row) -> Inputs:
    """What resolving needs of a row's picture."""
    if row.image is None:
        return Inputs()
    from ldm_toolkit.images import open_image

    hashes = {"image_sha256": row.image_sha256, "mask_sha256": row.mask_sha256}
    return Inputs(**hashes, size=open_image(row.image).size)
