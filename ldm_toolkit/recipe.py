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

MAX_SEED = 2**63 - 1
MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_LAYERS = 64
# Pixels of a picture beyond which the VAE works in tiles: it needs 2 KB a pixel in float32.
TILED_FROM = 1536 * 1536
_MAX_JSON = 1 << 20
_MAX_DEPTH = 16


def _help(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What a user asked for, one picture; None where nothing was said.

    Raises UserError that names every wrong option at once.
    """

    prompt: str = _help("what the picture shows")
    negative_prompt: str = _help("what the picture must not show", "")
    steps: int = _help("denoising steps; more is slower and finer", 50)
    guidance: float = _help("how strictly the picture follows the prompt; 1 switches it off", 7.5)
    seed: int | None = _help("number that fixes the noise; drawn at random when not given", None)
    width: int | None = _help("width in pixels; the model's own when not given", None)
    height: int | None = _help("height in pixels; the model's own when not given", None)
    scheduler: str | None = _help("solver, see --list-schedulers; the model's own by default", None)
    guidance_rescale: float | None = _help(
        "pull a guided picture's contrast back, 0 to 1 (Lin et al. 2023)", None
    )
    guidance_interval: tuple[float, float] = _help(
        "guide only from START up to STOP, fractions of the steps (Kynkäänniemi et al. 2024)",
        (0.0, 1.0),
    )
    clip_skip: int = _help("leave out the last N layers of the text encoder", 0)
    eta: float = _help("share of fresh noise in each step, for ddim and tcd; 0 is none", 0.0)
    strength: float | None = _help(
        "how far an image is redrawn, 0 to 1; 0.75 by default, 1 with a mask", None
    )

    def __post_init__(self) -> None:
        if isinstance(self.guidance_interval, list):
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        problems = text_problem("prompt", self.prompt)
        problems += text_problem("negative_prompt", self.negative_prompt)
        problems += range_problem("steps", self.steps, 1, MAX_STEPS)
        problems += number_problem("guidance", self.guidance, 1000)
        if self.seed is not None:
            problems += range_problem("seed", self.seed, 0, MAX_SEED)
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None:
                problems += range_problem(name, value, 1, MAX_SIDE)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            kind = type(self.scheduler).__name__
            problems.append(f"scheduler must be a name, not {kind}")
        for name in ("guidance_rescale", "strength"):
            if getattr(self, name) is not None:
                problems += number_problem(name, getattr(self, name), 1)
        problems += _interval_problem(self.guidance_interval)
        problems += range_problem("clip_skip", self.clip_skip, 0, MAX_LAYERS)
        problems += number_problem("eta", self.eta, 1)
        if problems:
            raise UserError("; ".join(problems))


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

    ``model`` holds name, revision and hashes. ``pixels_sha256`` is the hash of the finished
    picture's RGB pixels, None before it exists, ``encoded_sha256`` that of what a JPEG makes of
    them; the other hashes are of inputs, None where there was none. ``vae_slicing``: the VAE took
    one picture at a time, as it always does.
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
    clip_skip: int = 0
    eta: float = 0.0
    strength: float | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    latents_sha256: str | None = None
    compile: bool = False
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
    start, stop = options.guidance_interval
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


def _interval_problem(value: object) -> list[str]:
    """A line about a guidance interval that is no (start, stop) within 0 and 1, or nothing."""
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and not any(number_problem("", end, 1) for end in value)
        and value[0] <= value[1]
    ):
        return []
    return [
        "guidance_interval must be (start, stop), fractions of the steps with "
        f"0 <= start <= stop <= 1, not {value!r:.80}"
    ]


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
}


def _recipe_problems(recipe: Recipe) -> list[str]:
    """Every wrong type or range in a recipe's fields, one line each."""
    problems = []
    for name in _TEXTS:
        problems += text_problem(name, getattr(recipe, name))
    for name, (low, high) in _WHOLES.items():
        problems += range_problem(name, getattr(recipe, name), low, high)
    for name, high in (("guidance", 1000), ("guidance_rescale", 1), ("eta", 1)):
        problems += number_problem(name, getattr(recipe, name), high)
    if recipe.strength is not None:
        problems += number_problem("strength", recipe.strength, 1)
    problems += _interval_problem(recipe.guidance_interval)
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
