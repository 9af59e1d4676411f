"""Every error that the package raises on purpose, each with the exit code of the command line.

::

    LdmToolkitError            1  something failed
    ├── UserError              2  wrong use or bad input: says what was wrong, expected, to do
    │   ├── ModelError         2  a model folder or file that cannot be used
    │   └── InputError         2  a picture, prompt file or data set that cannot be used
    ├── NumericalError         1  NaN or infinity where numbers were expected
    └── CannotWrite           74  a file could not be written (EX_IOERR)
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "LIBRARY_ERRORS",
    "CannotWrite",
    "InputError",
    "LdmToolkitError",
    "ModelError",
    "NumericalError",
    "UserError",
    "first_line",
    "install_hint",
    "is_out_of_memory",
    "listed",
    "suggestion",
]

# What the libraries raise at configurations and files that make no sense.
LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Names of a long list that a message shows.
_SHOWN = 5
# What CPython says of C code that failed and raised nothing.
_FAILED_IN_SILENCE = (
    "returned null without setting an exception",
    "error return without exception set",
)


class LdmToolkitError(Exception):
    """Base of the package's errors."""

    exit_code = 1


class UserError(LdmToolkitError):
    """Wrong use or bad input."""

    exit_code = 2


class ModelError(UserError):
    """A model that cannot be found, read or used."""


class InputError(UserError):
    """A picture, prompt file or data set that cannot be used."""


class NumericalError(LdmToolkitError):
    """NaN or infinity where numbers were expected."""


class CannotWrite(LdmToolkitError):
    """A file that could not be written: full disk, missing permission, missing folder."""

    exit_code = 74


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'euler'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """The first few names, each cut to a readable length, and how many more there are."""
    shown = [name[:160] for name in names]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def install_hint(extra: str) -> str:
    """The command that brings what an optional part of the package needs."""
    return f"pip install 'ldm-toolkit[{extra}]'"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the forms that running out of memory takes in torch and Python."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if isinstance(error, SystemError):
        # C code got no memory and failed without saying why, as imports do under `ulimit -v`.
        return any(words in text for words in _FAILED_IN_SILENCE)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text
        or "can't allocate memory" in text
        or "cannot allocate memory" in text
        or "not enough memory" in text
        or "could not create a primitive" in text  # oneDNN's words for it
    )


def first_line(error: Exception) -> str:
    """The first line of an error of another library, with its type when there is no text."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
