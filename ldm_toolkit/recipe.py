"""What a user asks becomes a complete recipe; a recipe is data that makes one picture again.

``GenerateOptions`` (None where the user said nothing) and the model's ``ModelDefaults`` are
resolved into a frozen ``Recipe``; only recipes run. Level 1: no torch.
"""

import dataclasses
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from ldm_toolkit.errors import UserError, suggestion
from ldm_toolkit.infotext import infotext
from ldm_toolkit.options import (
    MAX_LAYERS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    GenerateOptions,
    interval_problem,
    power_problem,
)
from ldm_toolkit.values import number_problem, range_problem, strict_json, text_problem

__all__ = [
    "MAX_SEED",
    "Execution",
    "GenerateOptions",
    "Inputs",
    "ModelDefaults",
    "Recipe",
    "resolve",
]

# Pixels of a picture beyond which the VAE works in tiles: it needs 2 KB a pixel in float32.
TILED_FROM = 1536 * 1536
_MAX_JSON = 1 << 20
_MAX_DEPTH = 16


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """What a model uses where the user said nothing; sizes must be multiples of ``multiple``."""

    name: str
    width: int
    height: int
    scheduler: str
    guidance_rescale: float
    multiple: int = 8


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Everything beside the options that decides a picture's bits: model, machine, versions.

    ``vae_tiling`` None: the picture's size decides.
    """

    scheduler_config: dict[str, Any]
    model: dict[str, Any]
    dtype: str
    device: str
    cpu_capability: str
    threads: int
    memory_format: str
    batch_size: int
    attention: str
    versions: dict[str, str]
    compile: bool = False
    backend: str = "torch"
    vae_tiling: bool | None = None
    loras: list[dict[str, Any]] = field(default_factory=list)
    embeddings: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What goes in beside the text: hashes of RGB pixels, of float32 latents; the image's size."""

    image_sha256: str | None = None
    mask_sha256: str | None = None
    latents_sha256: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes one picture again; plain data, safe to read from a stranger's file.

    ``speed`` is the name that was asked for; what it stood for is in the fields behind it and the
    guidance's interval. ``model`` holds name, revision and hashes. ``pixels_sha256`` is the hash of
    the finished picture's RGB pixels, None before it exists, ``encoded_sha256`` that of what a JPEG
    makes of them; the other hashes are of inputs, None where there was none. ``vae_slicing``: the
    VAE took one picture at a time, as it always does.
    Raises UserError for wrong types.
    """

    schema: int = 1
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance: float
    guidance_rescale: float
    scheduler: str
    scheduler_config: dict[str, Any]
    width: int
    height: int
    model: dict[str, Any]
    dtype: str
    device: str
    cpu_capability: str
    threads: int
    memory_format: str
    batch_size: int
    attention: str
    versions: dict[str, str]
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    speed: str = "exact"
    reuse_every: int = 1
    reuse_depth: int = 1
    reuse_power: float = 1.0
    gate: float = 1.0
    attention_every: int = 1
    clip_skip: int = 0
    eta: float = 0.0
    strength: float | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    latents_sha256: str | None = None
    compile: bool = False
    backend: str = "torch"
    vae_slicing: bool = True
    vae_tiling: bool = False
    loras: list[dict[str, Any]] = field(default_factory=list)
    embeddings: list[dict[str, Any]] = field(default_factory=list)
    pixels_sha256: str | None = None
    encoded_sha256: str | None = field(default=None, compare=False)  # the file's, not the picture's

    def __post_init__(self) -> None:
        if isinstance(self.guidance_interval, list):  # JSON knows no tuple
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        problems = _recipe_problems(self)
        if problems:
            raise UserError(f"not a recipe: {'; '.join(problems)}")

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back to an equal recipe."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read ``to_json``'s text. Unknown, missing and wrong fields raise UserError."""
        if len(text) > _MAX_JSON:
            raise UserError(f"the recipe has {len(text)} characters; at most {_MAX_JSON} are read")
        try:
            data = strict_json(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the recipe is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise UserError(f"a recipe is a JSON object, not {type(data).__name__}")
        if data.get("schema") != 1:
            raise UserError(
                f"the recipe has schema {data.get('schema')!r:.80}, this version reads 1; "
                "a newer ldm_toolkit may read it"
            )
        if _is_deep(data):
            raise UserError(f"the recipe is nested more than {_MAX_DEPTH} deep")
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                raise UserError(f"unknown field {key!r:.80} in the recipe{suggestion(key, fields)}")
        needed = [
            name
            for name, item in fields.items()
            if item.default is item.default_factory is dataclasses.MISSING
        ]
        missing = [name for name in needed if name not in data]
        if missing:
            raise UserError(f"the recipe lacks {', '.join(missing)}")
        return cls(**data)

    def parameters_text(self) -> str:
        """The text that the web UIs write and read; the JSON stays the truth."""
        return infotext(self)


def resolve(
    options: GenerateOptions,
    defaults: ModelDefaults,
    execution: Execution,
    inputs: Inputs = Inputs(),
) -> Recipe:
    """The complete recipe of what was asked: gaps filled from model and image, the seed drawn.

    ``options.scheduler`` must be a canonical name already. Raises UserError for sizes that the
    model cannot draw and for a strength that has nothing to act on.
    """
    width, height = _size(options, defaults, inputs)
    problems = [
        *_size_problem("width", width, defaults.multiple),
        *_size_problem("height", height, defaults.multiple),
    ]
    strength = options.strength
    if inputs.image_sha256 is None:
        if inputs.mask_sha256 is not None:
            problems.append("a mask needs the image that it masks")
        if strength is not None:
            problems.append("strength needs an image: it says how far that is redrawn")
    elif strength is None:
        strength = 0.75 if inputs.mask_sha256 is None else 1.0
    if strength is not None and int(options.steps * strength) < 1:
        problems.append(
            f"strength {strength:g} leaves none of {options.steps} steps; raise one of the two"
        )
    if problems:
        raise UserError("; ".join(problems))
    machine = {item.name: getattr(execution, item.name) for item in dataclasses.fields(execution)}
    if execution.vae_tiling is None:
        machine["vae_tiling"] = width * height > TILED_FROM
    rescale = options.guidance_rescale
    fast = dataclasses.asdict(options.settled_speed)
    start, stop = fast.pop("guidance_interval")
    return Recipe(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed if options.seed is not None else secrets.randbelow(2**32),
        steps=options.steps,
        guidance=float(options.guidance),
        guidance_rescale=float(rescale if rescale is not None else defaults.guidance_rescale),
        scheduler=options.scheduler if options.scheduler is not None else defaults.scheduler,
        width=width,
        height=height,
        guidance_interval=(float(start), float(stop)),
        speed=options.speed,
        **fast,
        clip_skip=options.clip_skip,
        eta=float(options.eta),
        strength=float(strength) if strength is not None else None,
        image_sha256=inputs.image_sha256,
        mask_sha256=inputs.mask_sha256,
        latents_sha256=inputs.latents_sha256,
        **machine,
    )


def _size(options: GenerateOptions, defaults: ModelDefaults, inputs: Inputs) -> tuple[int, int]:
    """(width, height) as asked, else the image's, else the model's. Raises UserError."""
    own = inputs.size if inputs.size is not None else (defaults.width, defaults.height)
    # A few pixels less, where an image does not fit the latents.
    fitting = [max(1, side // defaults.multiple) * defaults.multiple for side in own]
    width = options.width if options.width is not None else fitting[0]
    height = options.height if options.height is not None else fitting[1]
    if inputs.size is not None and max(width, height) > MAX_SIDE:
        raise UserError(
            f"an image of {inputs.size[0]}x{inputs.size[1]} is too large; say what to make of it "
            f"with width and height, {MAX_SIDE} at most"
        )
    return width, height


def _size_problem(name: str, value: int, multiple: int) -> list[str]:
    if value % multiple == 0:
        return []
    nearest = max(multiple, round(value / multiple) * multiple)
    return [f"{name} must be a multiple of {multiple}, not {value}; the nearest is {nearest}"]


_TEXTS = (
    "prompt",
    "negative_prompt",
    "scheduler",
    "dtype",
    "device",
    "cpu_capability",
    "memory_format",
    "attention",
    "backend",
    "speed",
)
_WHOLES = {
    "schema": (1, 1),
    "seed": (0, 2**64 - 1),
    "steps": (1, MAX_STEPS),
    "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
    "threads": (1, 1 << 16),
    "batch_size": (1, 1 << 16),
    "clip_skip": (0, MAX_LAYERS),
    "reuse_every": (1, MAX_STEPS),
    "reuse_depth": (1, MAX_STEPS),
    "attention_every": (1, MAX_STEPS),
}


def _recipe_problems(recipe: Recipe) -> list[str]:
    """Every wrong type or range in a recipe's fields, one line each."""
    problems = []
    for name in _TEXTS:
        problems += text_problem(name, getattr(recipe, name))
    for name, (low, high) in _WHOLES.items():
        problems += range_problem(name, getattr(recipe, name), low, high)
    for name, high in (("guidance", 1000), ("guidance_rescale", 1), ("eta", 1), ("gate", 1)):
        problems += number_problem(name, getattr(recipe, name), high)
    if recipe.strength is not None:
        problems += number_problem("strength", recipe.strength, 1)
    problems += interval_problem(recipe.guidance_interval)
    problems += power_problem(recipe.reuse_power)
    for name in ("compile", "vae_slicing", "vae_tiling"):
        if type(getattr(recipe, name)) is not bool:
            problems.append(f"{name} must be true or false")
    for name in ("scheduler_config", "model", "versions"):
        if not isinstance(getattr(recipe, name), dict):
            problems.append(f"{name} must be an object")
    for name in ("model", "versions"):
        value = getattr(recipe, name)
        if isinstance(value, dict) and not all(isinstance(item, str) for item in value.values()):
            problems.append(f"{name} must hold texts only")
    for name in ("loras", "embeddings"):
        value = getattr(recipe, name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            problems.append(f"{name} must be a list of objects")
    hashes = ("image", "mask", "latents", "pixels", "encoded")
    for name in (f"{what}_sha256" for what in hashes):
        value = getattr(recipe, name)
        is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
        if value is not None and not is_hash:
            problems.append(f"{name} must be 64 hex digits or null")
    return problems


def _is_deep(data: object, level: int = 0) -> bool:
    if level > _MAX_DEPTH:
        return True
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return any(_is_deep(one, level + 1) for one in inner)
