"""From words to a `Request`: every value looked at before anything slow is imported."""

import argparse
import contextlib
import dataclasses
import os
import re
import secrets
from collections.abc import Iterator
from typing import Any

from ldm_toolkit import schedulers
from ldm_toolkit.cli.options import DTYPES, flag, kind_of
from ldm_toolkit.cli.output import Destination, destination
from ldm_toolkit.errors import LdmToolkitError, ModelError, UserError, suggestion
from ldm_toolkit.models import identity
from ldm_toolkit.models.checks import check_model_folder
from ldm_toolkit.recipe import MAX_SEED, GenerateOptions
from ldm_toolkit.tokens import parse_weights

__all__ = ["Request", "check"]

# A field's name at the start of a problem, to be shown as the option that the person typed.
_NAMES = "|".join(field.name for field in dataclasses.fields(GenerateOptions))
_FIELD = re.compile(rf"(?:(?<=; )|^)(?!prompt)(?:{_NAMES})(?= (?:must|is))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A command line that was understood and found right."""

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
    destination: Destination


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
    options = _options(arguments, problems)
    if options is not None and options.seed is None:
        # Drawn here, because names and the seeds of the other pictures follow from it.
        options = dataclasses.replace(options, seed=secrets.randbelow(2**32))
    for text in (options.prompt, options.negative_prompt) if options is not None else ():
        with problems.collected():
            parse_weights(text)
    with problems.collected():
        _check_model(arguments.model, options)
    with problems.collected():
        _check_device(arguments.device, arguments.dtype)
    place = None
    with problems.collected():
        place = destination(
            arguments.output,
            arguments.prompt,
            count=count,
            overwrite=arguments.overwrite,
            with_steps=every is not None,
        )
        if options is not None and options.seed is not None:
            if options.seed + count - 1 > MAX_SEED:
                raise UserError(f"--seed: the last of {count} pictures would pass {MAX_SEED}")
            for index in range(count):
                place.path(options.seed + index)
    problems.finish()
    if options is None or options.seed is None or place is None:
        raise UserError("the command line could not be read")
    return Request(
        options=options,
        seed=options.seed,
        count=count,
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=threads,
        every=every,
        show_tokens=arguments.show_tokens,
        quiet=arguments.quiet,
        destination=place,
    )


def _options(arguments: argparse.Namespace, problems: _Problems) -> GenerateOptions | None:
    """The fields of GenerateOptions out of text; None when a contradiction was found."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(GenerateOptions):
        text = getattr(arguments, field.name)
        kind = kind_of(field.name)
        value = text if kind is str else problems.number(flag(field.name), text, kind)
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
