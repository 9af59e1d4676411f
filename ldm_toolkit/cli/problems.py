"""What is wrong with a command line, collected, so that the person reads all of it at once."""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ldm_toolkit.errors import InputError, LdmToolkitError, UserError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Problems"]


class Problems:
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

    def number(
        self,
        flag: str,
        text: str | None,
        kind: type,
        least: float | None = None,
        most: float | None = None,
    ) -> Any:
        """``text`` as int or float, or None with a problem noted."""
        if text is None:
            return None
        with self.collected():
            try:
                value = kind(text)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise UserError(f"{flag}: {text!r} is not {what}") from None
            if least is not None and math.isnan(value):
                raise UserError(f"{flag}: {text!r} is not a number")
            if least is not None and value < least:
                raise UserError(f"{flag}: {value} is too small, at least {least} is needed")
            if most is not None and value > most:
                raise UserError(f"{flag}: {value:.6g} is too large, {most} is the most")
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

    def picture(self, flag: str, path: str | None) -> "Image.Image | None":
        """The picture of a file; None when none was given or it cannot be read."""
        if path is None:
            return None
        from ldm_toolkit.images import open_image

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
