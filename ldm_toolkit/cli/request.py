"""From words to a `Request`: every value looked at before anything slow is imported."""

import argparse
import contextlib
import dataclasses
import os
import re
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm_toolkit import schedulers
from ldm_toolkit.cli.options import DTYPES, FORMATS, flag
from ldm_toolkit.cli.output import Destination, destination
from ldm_toolkit.errors import InputError, LdmToolkitError, ModelError, UserError, suggestion
from ldm_toolkit.images import open_image, pixels_sha256
from ldm_toolkit.models import identity
from ldm_toolkit.models.checks import check_model_folder
from ldm_toolkit.promptfile import kind_of
from ldm_toolkit.recipe import MAX_SEED, GenerateOptions
from ldm_toolkit.tokens import parse_weights

if TYPE_CHECKING:
    from ldm_toolkit.replay import Original

__all__ = ["Request", "check"]

# A field's name at the start of a problem, to be shown as the option that the person typed.
_NAMES = "|".join(field.name for field in dataclasses.fields(GenerateOptions))
_FIELD = re.compile(rf"(?:(?<=; )|^)(?!prompt)(?:{_NAMES})(?= (?:must|is))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A command line that was understood and found right.

    ``original`` is the picture of a replay; where device, dtype or threads were not given, those
    of its recipe are meant.
    """

    options: GenerateOptions
    seed: int
    count: int
    model: str
    device: str
    dtype: str
    threads: int | None
    every: int | None
    show_tokens: bool
    quiet: bool
    strip: bool
    destination: Destination
    image: Image.Image | None
    mask: Image.Image | None
    original: "Original | None"


class _Problems:
    """Collects what is wrong, so that the person reads all of it at once."""

    def __init__(self) -> None:
        self.errors: list[LdmToolkitError] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keep an error of the block and go on."""
        try:
            yield
        except LdmToolkitError as error:
            self.errors.append(error)

    def number(self, flag: str, text: str | None, kind: type, least: int | None = None) -> Any:
        """``text`` as int or float, or None with a problem noted."""
        if text is None:
            return None
        with self.collected():
            try:
                value = kind(text)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise UserError(f"{flag}: {text!r} is not {what}") from None
            if least is not None and value < least:
                raise UserError(f"{flag}: {value} is too small, at least {least} is needed")
            return value
        return None

    def pair(self, flag: str, text: str | None) -> tuple[float, float] | None:
        """Two numbers with a comma between them; None when nothing or no such thing was given."""
        if text is None:
            return None
        with self.collected():
            try:
                first, second = (float(part) for part in text.split(","))
            except ValueError:
                raise UserError(f"{flag}: {text!r} is not START,STOP such as 0.2,0.8") from None
            return first, second
        return None

    def picture(self, flag: str, path: str | None) -> Image.Image | None:
        """The picture of a file; None when none was given or it cannot be read."""
        if path is None:
            return None
        with self.collected():
            try:
                return open_image(path)
            except InputError as error:
                raise InputError(f"{flag}: {error}") from error
        return None

    def finish(self) -> None:
        """Raise one error for all; wrong use counts before a place that cannot be written."""
        if not self.errors:
            return
        kinds = [type(error) for error in self.errors]
        kind = next((k for k in kinds if issubclass(k, UserError)), kinds[0])
        raise kind("; ".join(str(error) for error in self.errors))


def check(arguments: argparse.Namespace) -> Request:
    """Look at every value, the model's name and the place of the output; report all problems.

    Raises UserError, or CannotWrite when only the output is at fault.
    """
    problems = _Problems()
    count = problems.number("-n", arguments.count, int, least=1) or 1
    threads = problems.number("--threads", arguments.threads, int, least=1)
    every = problems.number("--save-intermediates", arguments.every, int, least=1)
    original: Original | None = None
    options: GenerateOptions | None = None
    image = problems.picture("--image", arguments.image)
    mask = problems.picture("--mask", arguments.mask)
    if arguments.replay is None:
        options = _options(arguments, problems)
        if arguments.image is None:
            for name in ("mask", "strength"):
                if getattr(arguments, name) is not None:
                    problems.errors.append(UserError(f"--{name} needs --image"))
    else:
        with problems.collected():
            _check_replay_alone(arguments)
        with problems.collected():
            original, options = _replayed(arguments.replay)
            _check_inputs(original, {"image": image, "mask": mask})
    if options is not None and options.seed is None:
        # Drawn here, because names and the seeds of the other pictures follow from it.
        options = dataclasses.replace(options, seed=secrets.randbelow(2**32))
    for text in (options.prompt, options.negative_prompt) if options is not None else ():
        with problems.collected():
            parse_weights(text)
    model = arguments.model
    with problems.collected():
        if model is None:
            model = identity.DEFAULT_MODEL if original is None else _recorded_model(original)
        _check_model(model, options)
    with problems.collected():
        _check_device(arguments.device, arguments.dtype)
    place = None
    with problems.collected():
        place = _destination(arguments, options, count, with_steps=every is not None)
    problems.finish()
    if options is None or options.seed is None or place is None:
        raise UserError("the command line could not be read")
    return Request(
        options=options,
        seed=options.seed,
        count=count,
        model=model,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=threads,
        every=every,
        show_tokens=arguments.show_tokens,
        quiet=arguments.quiet,
        strip=arguments.strip,
        destination=place,
        image=image,
        mask=mask,
        original=original,
    )


def _destination(
    arguments: argparse.Namespace, options: GenerateOptions | None, count: int, *, with_steps: bool
) -> Destination:
    """The checked -o and --format, with a place for each of ``count`` pictures."""
    chosen = arguments.format
    if chosen is not None and chosen not in FORMATS:
        hint = suggestion(chosen, FORMATS)
        raise UserError(f"--format: {chosen!r:.80} is none of {', '.join(FORMATS)}{hint}")
    place = destination(
        arguments.output,
        options.prompt if options is not None else "",
        format=chosen,
        count=count,
        overwrite=arguments.overwrite,
        with_steps=with_steps,
    )
    if options is not None and options.seed is not None:
        if options.seed + count - 1 > MAX_SEED:
            raise UserError(f"--seed: the last of {count} pictures would pass {MAX_SEED}")
        for index in range(count):
            place.path(options.seed + index)
    return place


def _check_replay_alone(arguments: argparse.Namespace) -> None:
    """Refuse what the recipe of a replayed picture says already."""
    given = [
        flag(field.name)
        for field in dataclasses.fields(GenerateOptions)
        if getattr(arguments, field.name) is not None
    ]
    given += ["--dim"] if arguments.dim is not None else []
    given += ["-n"] if arguments.count != "1" else []
    if given:
        raise UserError(f"--replay takes {', '.join(given)} from the picture; leave them away")


def _replayed(path: str) -> "tuple[Original, GenerateOptions]":
    """A picture to be made again and what it asks for."""
    from ldm_toolkit.replay import options_of, read_original

    try:
        original = read_original(path)
        return original, options_of(original.recipe)
    except UserError as error:
        raise type(error)(f"--replay: {error}") from error


def _check_inputs(original: "Original", given: dict[str, Image.Image | None]) -> None:
    """Raises UserError unless the inputs that the recipe names, and no others, are there."""
    problems = []
    for name, picture in given.items():
        wanted = getattr(original.recipe, f"{name}_sha256")
        if wanted is None and picture is not None:
            problems.append(f"--replay: the picture was made without --{name}; leave it away")
        elif wanted is not None and picture is None:
            problems.append(
                f"--replay: the picture was made with an input; give it with --{name} FILE "
                f"(its pixels have the SHA-256 {wanted:.12}...)"
            )
        elif picture is not None and pixels_sha256(picture) != wanted:
            problems.append(
                f"--{name}: its pixels are not those of the input that made the picture "
                f"(SHA-256 {wanted:.12}...)"
            )
    if problems:
        raise UserError("; ".join(problems))


def _recorded_model(original: "Original") -> str:
    """The bundled model that a recipe names. A path is opened only if the person names it."""
    name = original.recipe.model.get("name", "")
    if name in identity.bundled_models():
        return name
    weights = original.recipe.model.get("sha256", "")
    raise ModelError(
        f"--model: the picture was made with {name!r:.80} (weights {weights:.12}), which is not "
        "bundled; name its folder with --model"
    )


def _options(arguments: argparse.Namespace, problems: _Problems) -> GenerateOptions | None:
    """The fields of GenerateOptions out of text; None when a contradiction was found."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(GenerateOptions):
        text = getattr(arguments, field.name)
        kind = kind_of(field.name)
        if kind is str:
            value = text
        elif kind is tuple:
            value = problems.pair(flag(field.name), text)
        else:
            value = problems.number(flag(field.name), text, kind)
        if value is not None:
            given[field.name] = value
    if arguments.dim is not None:
        if arguments.width is not None or arguments.height is not None:
            problems.errors.append(UserError("--dim sets --width and --height; leave those away"))
        side = problems.number("--dim", arguments.dim, int)
        if side is not None:
            given |= {"width": side, "height": side}
    if arguments.scheduler is not None:
        with problems.collected():
            given["scheduler"] = schedulers.resolve_name(arguments.scheduler)
            if given.get("eta") and not schedulers.takes_eta(given["scheduler"]):
                raise UserError(f"--eta: {given['scheduler']} knows no eta; ddim and tcd do")
    with problems.collected():
        try:
            return GenerateOptions(**given)
        except UserError as error:
            raise UserError(_FIELD.sub(lambda found: flag(found[0]), str(error))) from error
    return None


def _check_model(name: str, options: GenerateOptions | None) -> None:
    """Check the model's files, as the loader will, and that it can do ``options``."""
    try:
        checked = check_model_folder(identity.find_model(name))
    except ModelError as error:
        hub = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.lexists(name):
            hub = "; names on the hub are not supported, this edition reads local folders only"
        raise ModelError(f"--model: {error}{hub}") from error
    if options is None:
        return
    problems = []
    if options.scheduler is not None:
        most = schedulers.max_steps(options.scheduler, checked.configs["scheduler"])
        if options.steps > most:
            problems.append(
                f"--steps: {options.scheduler} can do {most} at most, not {options.steps}"
            )
    multiple = 2 ** (len(checked.configs["vae"].get("block_out_channels", [1])) - 1)
    for side in ("width", "height"):
        value = getattr(options, side)
        if value is not None and value % multiple:
            nearest = max(1, round(value / multiple)) * multiple
            problems.append(f"--{side} must be a multiple of {multiple}; the nearest is {nearest}")
    if problems:
        raise UserError("; ".join(problems))


def _check_device(device: str, dtype: str) -> None:
    """Spelling only: what the machine has is known when torch is imported."""
    problems = []
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
        problems.append(f"--device: {device!r} is none of auto, cpu, cuda, cuda:1, mps, xpu")
    if dtype not in (*DTYPES, "fp32", "bf16", "fp16"):
        problems.append(
            f"--dtype: {dtype!r} is none of {', '.join(DTYPES)}{suggestion(dtype, DTYPES)}"
        )
    if problems:
        raise UserError("; ".join(problems))
