"""What a user asks becomes a complete recipe; a recipe is data that makes one picture again.

``GenerateOptions`` (None where the user said nothing) and the model's ``ModelDefaults`` are
resolved into a frozen ``Recipe``; only recipes run. Level 1: no torch.
"""

import dataclasses
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm_toolkit.errors import UserError, suggestion

__all__ = [
    "MAX_SEED",
    "Execution",
    "GenerateOptions",
    "ModelDefaults",
    "Recipe",
    "resolve",
]

MAX_SEED = 2**63 - 1
MAX_SIDE = 8192
MAX_STEPS = 1000
_MAX_JSON = 1 << 20


def _help(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """A finite int or float; an int too large for a float is no number here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _range_problem(name: str, value: object, low: int, high: int) -> list[str]:
    """A line about a value that is no whole number from low to high, or nothing."""
    if _is_whole(value) and low <= value <= high:  # type: ignore[operator]
        return []
    return [f"{name} must be a whole number from {low} to {high}, not {value!r:.80}"]


def _text_problem(name: str, value: object) -> list[str]:
    """A line about a value that is no text that UTF-8 can hold, or nothing."""
    if not isinstance(value, str):
        return [f"{name} must be text, not {type(value).__name__}"]
    try:
        value.encode()
    except UnicodeEncodeError:
        return [f"{name} is not valid Unicode text; check the terminal's or the file's encoding"]
    return []


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

    def __post_init__(self) -> None:
        problems = _text_problem("prompt", self.prompt)
        problems += _text_problem("negative_prompt", self.negative_prompt)
        problems += _range_problem("steps", self.steps, 1, MAX_STEPS)
        if not _is_number(self.guidance) or not 0 <= self.guidance <= 1000:
            problems.append(f"guidance must be a number from 0 to 1000, not {self.guidance!r:.80}")
        if self.seed is not None:
            problems += _range_problem("seed", self.seed, 0, MAX_SEED)
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None:
                problems += _range_problem(name, value, 1, MAX_SIDE)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            kind = type(self.scheduler).__name__
            problems.append(f"scheduler must be a name, not {kind}")
        rescale = self.guidance_rescale
        if rescale is not None and not (_is_number(rescale) and 0 <= rescale <= 1):
            problems.append(f"guidance_rescale must be a number from 0 to 1, not {rescale!r:.80}")
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
    """Everything beside the options that decides a picture's bits: model, machine, versions."""

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes one picture again; plain data, safe to read from a stranger's file.

    ``model`` holds name, revision and sha256 of the weights; ``pixels_sha256`` is the hash of the
    finished picture's RGB pixels, None before it exists. Raises UserError for wrong types.
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
    pixels_sha256: str | None = None

    def __post_init__(self) -> None:
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
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the recipe is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise UserError(f"a recipe is a JSON object, not {type(data).__name__}")
        if data.get("schema") != 1:
            raise UserError(
                f"the recipe has schema {data.get('schema')!r:.80}, this version reads 1; "
                "a newer ldm_toolkit may read it"
            )
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                raise UserError(f"unknown field {key!r:.80} in the recipe{suggestion(key, fields)}")
        needed = [name for name, item in fields.items() if item.default is dataclasses.MISSING]
        missing = [name for name in needed if name not in data]
        if missing:
            raise UserError(f"the recipe lacks {', '.join(missing)}")
        return cls(**data)

    def parameters_text(self) -> str:
        """The text that the web UIs write and read; the JSON stays the truth.

        Grammar of AUTOMATIC1111's infotext: prompt, ``Negative prompt:`` line, one line of
        ``Key: value`` pairs. Prompts are folded to one line so that they forge no field.
        """
        sampler, schedule = _web_ui_sampler(self.scheduler)
        pairs: list[tuple[str, object]] = [("Steps", self.steps), ("Sampler", sampler)]
        if schedule:
            pairs.append(("Schedule type", schedule))
        pairs += [
            ("CFG scale", f"{self.guidance:g}"),
            ("Seed", self.seed),
            ("Size", f"{self.width}x{self.height}"),
            ("Model hash", str(self.model.get("sha256", ""))[:10]),
            ("Model", self.model.get("name", "")),
        ]
        if self.guidance_rescale:
            pairs.append(("CFG Rescale phi", f"{self.guidance_rescale:g}"))
        pairs.append(("Version", f"ldm_toolkit {self.versions.get('ldm_toolkit', '')}".strip()))
        lines = [_one_line(self.prompt)]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {_one_line(self.negative_prompt)}")
        lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs))
        return "\n".join(lines)


def resolve(options: GenerateOptions, defaults: ModelDefaults, execution: Execution) -> Recipe:
    """The complete recipe of what was asked: gaps filled from the model, the seed drawn.

    ``options.scheduler`` must be a canonical name already. Raises UserError for sizes that the
    model cannot draw.
    """
    width = options.width if options.width is not None else defaults.width
    height = options.height if options.height is not None else defaults.height
    problems = [
        *_size_problem("width", width, defaults.multiple),
        *_size_problem("height", height, defaults.multiple),
    ]
    if problems:
        raise UserError("; ".join(problems))
    rescale = options.guidance_rescale
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
        **{item.name: getattr(execution, item.name) for item in dataclasses.fields(execution)},
    )


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
}


def _recipe_problems(recipe: Recipe) -> list[str]:
    """Every wrong type or range in a recipe's fields, one line each."""
    problems = []
    for name in _TEXTS:
        problems += _text_problem(name, getattr(recipe, name))
    for name, (low, high) in _WHOLES.items():
        problems += _range_problem(name, getattr(recipe, name), low, high)
    for name, high in (("guidance", 1000), ("guidance_rescale", 1)):
        value = getattr(recipe, name)
        if not _is_number(value) or not 0 <= value <= high:
            problems.append(f"{name} must be a number from 0 to {high}, not {value!r:.80}")
    for name in ("scheduler_config", "model", "versions"):
        if not isinstance(getattr(recipe, name), dict):
            problems.append(f"{name} must be an object")
    for name in ("model", "versions"):
        value = getattr(recipe, name)
        if isinstance(value, dict) and not all(isinstance(item, str) for item in value.values()):
            problems.append(f"{name} must hold texts only")
    pixels = recipe.pixels_sha256
    is_hash = isinstance(pixels, str) and re.fullmatch("[0-9a-f]{64}", pixels)
    if pixels is not None and not is_hash:
        problems.append("pixels_sha256 must be 64 hex digits or null")
    return problems


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


# The names AUTOMATIC1111 gives to the samplers; schedulers.py reads them as aliases.
_WEB_UI_SAMPLERS: Mapping[str, str] = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "lms": "LMS",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpm++_2m": "DPM++ 2M",
    "dpm++_2m_sde": "DPM++ 2M SDE",
    "dpm++_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
    "tcd": "TCD",
}
_WEB_UI_SCHEDULES: Sequence[str] = ("Karras", "Exponential", "Beta")


def _web_ui_sampler(name: str) -> tuple[str, str]:
    """A scheduler's name as the web UIs' sampler and schedule type (empty for the plain one)."""
    for schedule in _WEB_UI_SCHEDULES:
        base = name.removesuffix(f"_{schedule.lower()}")
        if base != name and base in _WEB_UI_SAMPLERS:
            return _WEB_UI_SAMPLERS[base], schedule
    return _WEB_UI_SAMPLERS.get(name, name), ""


def _one_line(prompt: str) -> str:
    """A prompt that no reader takes for another field: one line, no field name before a colon.

    CLIP's tokenizer gives the same tokens for ``steps:`` and ``steps :``.
    """
    folded = " ".join(prompt.split())
    return re.sub(r"(negative prompt|steps):", r"\1 :", folded, flags=re.IGNORECASE)


def _quoted(value: object) -> str:
    """A value as the web UIs quote it: JSON where it holds a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n\r]', text) else text
