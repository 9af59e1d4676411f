"""Checks of values from outside; most return a line of text a problem. Level 0."""

import json
import math
from typing import Any

__all__ = [
    "counted",
    "is_number",
    "is_whole",
    "number_problem",
    "range_problem",
    "strict_json",
    "text_problem",
    "without_repeats",
]


def counted(number: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {what}{'s' * (number != 1)}"


def is_whole(value: object) -> bool:
    """An int that is no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite int or float; an int too large for a float is no number here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def range_problem(name: str, value: object, low: int, high: int) -> list[str]:
    """A line about a value that is no whole number from low to high, or nothing."""
    if is_whole(value) and low <= value <= high:  # type: ignore[operator]
        return []
    return [f"{name} must be a whole number from {low} to {high}, not {value!r:.80}"]


def number_problem(name: str, value: object, high: int) -> list[str]:
    """A line about a value that is no number from 0 to high, or nothing."""
    if is_number(value) and 0 <= value <= high:  # type: ignore[operator]
        return []
    return [f"{name} must be a number from 0 to {high}, not {value!r:.80}"]


def text_problem(name: str, value: object) -> list[str]:
    """A line about a value that is no text that UTF-8 can hold, or nothing."""
    if not isinstance(value, str):
        return [f"{name} must be text, not {type(value).__name__}"]
    try:
        value.encode()
    except UnicodeEncodeError:
        return [f"{name} is not valid Unicode text; check the terminal's or the file's encoding"]
    return []


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` of json: a name that occurs twice is a ValueError."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def strict_json(text: str) -> Any:
    """What JSON holds whose numbers are finite and whose names occur once. Raises ValueError."""
    return json.loads(
        text,
        parse_constant=_no_number,
        parse_float=_finite,
        object_pairs_hook=without_repeats,
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")
