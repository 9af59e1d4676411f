"""A process of `evaluation.speed`: loads a model, then draws for each line on stdin.

    python -m ldm_toolkit.evaluation.contender '{"kind": "ours", "model": "storybook"}'

The argument holds the fields of a `speed.Contender`. It prints a line of JSON when it is ready and
one for each order, such as {"steps": 20, "batch": 1}, with the seconds of every stage; an order's
``picture`` is a file for the first picture's array.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ldm_toolkit import schedulers
from ldm_toolkit.allocation import keep_freed_memory
from ldm_toolkit.evaluation.speed import Contender
from ldm_toolkit.hardware import DTYPES, choose_device
from ldm_toolkit.pipeline import LatentPipeline

__all__ = ["Diffusers", "Drawing", "Ours", "answer", "main"]


class Drawing(Protocol):
    """A loaded model."""

    about: dict[str, Any]
    device: torch.device

    def encode(self) -> object:
        """The embeddings of the prompt and of the empty one."""

    def draw(self, steps: int, batch: int, after: Callable[[], None]) -> list[Image.Image]:
        """Pictures; ``after`` is called after each step."""


class Ours:
    """This package's pipeline."""

    def __init__(self, asked: Contender) -> None:
        self._asked = asked
        self._pipe = LatentPipeline.from_pretrained(asked.model, **asked.loading)
        for path, scale in asked.loras:
            self._pipe.load_lora(path, scale)
        components = self._pipe.components
        self.device = components.device
        usual = components.defaults
        drawn = {"width": usual.width, "height": usual.height, **asked.drawing}
        self.about = _about(self.device, components.dtype) | {
            "compile": components.compiled,
            "backend": components.backend,
            "model": components.identity.name,
            "model_sha256": components.identity.sha256,
            "size": f"{drawn['width']}x{drawn['height']}",
        }
        if components.loras:
            self.about["loras"] = " ".join(f"{one.sha256}:{one.scale}" for one in components.loras)

    def encode(self) -> object:
        """The embeddings of the prompt and of the empty one."""
        return self._pipe.encode_prompt([self._asked.prompt, ""])

    def draw(self, steps: int, batch: int, after: Callable[[], None]) -> list[Image.Image]:
        """Pictures; ``after`` is called after each step."""
        asked = self._asked
        run = self._pipe.stream(
            asked.prompt, images_per_prompt=batch, steps=steps, seed=asked.seed, **asked.drawing
        )
        for _ in run:
            after()
        return run.result.images


class Diffusers:
    """diffusers' own pipeline as it comes, with the scheduler that ours has."""

    def __init__(self, asked: Contender) -> None:
        from diffusers import StableDiffusionPipeline

        self._asked = asked
        self.device = choose_device(asked.loading.get("device", "auto"))
        # transformers 5 alone would keep the file's float16 for the text encoder.
        dtype = DTYPES[asked.loading.get("dtype", "float32")]
        pipe = StableDiffusionPipeline.from_pretrained(
            asked.model, safety_checker=None, dtype=dtype, local_files_only=True
        )
        pipe = pipe.to(self.device)
        drawing = dict(asked.drawing)
        pipe.scheduler = schedulers.create(drawing.pop("scheduler"), pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        compiled = bool(asked.loading.get("compile", False))
        if compiled:  # as its documentation does
            pipe.unet.compile(fullgraph=True)
        self._pipe, self._guidance = pipe, drawing.pop("guidance")
        self._drawing = drawing
        self.about = _about(self.device, dtype) | {"compile": compiled}

    @torch.no_grad()
    def encode(self) -> object:
        """The embeddings of the prompt and of the empty one."""
        return self._pipe.encode_prompt(self._asked.prompt, self.device, 1, True)

    def draw(self, steps: int, batch: int, after: Callable[[], None]) -> list[Image.Image]:
        """Pictures; ``after`` is called after each step."""

        def stepped(_pipe: Any, _step: int, _timestep: Any, kept: dict[str, Any]) -> Any:
            after()
            return kept

        seeds = range(self._asked.seed, self._asked.seed + batch)
        found = self._pipe(
            self._asked.prompt,
            num_images_per_prompt=batch,
            num_inference_steps=steps,
            guidance_scale=self._guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=stepped,
            **self._drawing,
        )
        images: list[Image.Image] = found.images
        return images


Kinds = Mapping[str, Callable[[Contender], Drawing]]
_KINDS: Kinds = {"ours": Ours, "diffusers": Diffusers}


def answer(model: Drawing, order: dict[str, Any]) -> dict[str, float]:
    """Do what an order asks; the seconds of each stage, and the most memory so far in GB."""
    began = _now(model.device)
    model.encode()
    text = _now(model.device) - began
    stamps: list[float] = []
    began = _now(model.device)
    images = model.draw(
        order["steps"], order.get("batch", 1), lambda: stamps.append(_now(model.device))
    )
    ended = _now(model.device)
    if "picture" in order:
        np.save(order["picture"], np.asarray(images[0]))
    between = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    return {
        "text": text,
        "first_step": stamps[0] - began,
        "step": statistics.median(between or [stamps[0] - began]),
        "decode": ended - stamps[-1],
        "seconds": ended - began,
        "peak": _peak_memory(model.device),
    }


def main(arguments: Sequence[str], kinds: Kinds = _KINDS) -> None:
    """Load, say so, and answer orders until stdin ends; ``kinds`` may be others than ours."""
    asked = Contender(**json.loads(arguments[0]))
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    if asked.kind == "ours":  # as our commands do; what others do by default stays theirs
        keep_freed_memory()
    began = time.perf_counter()
    model = kinds[asked.kind](asked)
    _tell({"load": _now(model.device) - began, "about": model.about})
    for line in sys.stdin:
        _tell(answer(model, json.loads(line)))


def _tell(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _now(device: torch.device) -> float:
    """The time at which the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _about(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kind = str(dtype).removeprefix("torch.")
    return {"device": name, "dtype": kind, "threads": torch.get_num_threads()}


def _peak_memory(device: torch.device) -> float:
    """Of the GPU's memory where torch counts it, otherwise of the process; 0 where nobody does."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / (1 << 30)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 << 30 if sys.platform == "darwin" else 1 << 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main(sys.argv[1:])
