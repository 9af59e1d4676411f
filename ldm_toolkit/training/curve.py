"""The curve of a run's losses, drawn from metrics.jsonl."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

__all__ = ["draw_curve", "read_metrics"]

_WIDTH, _HEIGHT, _LEFT, _MARGIN = 640, 320, 56, 24
_SCALE = 2  # drawn larger and shrunk, so that lines are smooth
_SHOWN = 0.99  # of all losses
_WINDOWS = 40  # of the running mean, in a whole run
_GREY, _LIGHT, _DARK = "#777777", "#b5cde3", "#1f5a8f"


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl with a finite loss; one that is cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if math.isfinite(line["loss"]) and math.isfinite(line["step"]):
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def draw_curve(steps: Sequence[float], losses: Sequence[float]) -> Image.Image:
    """Losses over steps, one or more of each: all of them, and the mean of those just before.

    The highest hundredth is cut off, so that a spike does not press the rest flat.
    """
    low, high = min(losses), sorted(losses)[math.ceil(len(losses) * _SHOWN) - 1]
    losses = [min(loss, high) for loss in losses]
    count = max(1, len(losses) // _WINDOWS)
    sums = [0.0, *itertools.accumulate(losses)]
    means = [
        (sums[end] - sums[max(0, end - count)]) / min(end, count)
        for end in range(1, len(losses) + 1)
    ]
    height = (high - low) or 1.0
    first, width = steps[0], (steps[-1] - steps[0]) or 1.0
    large = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    pen = ImageDraw.Draw(large)

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (
                _SCALE * (_LEFT + (step - first) / width * (_WIDTH - _LEFT - _MARGIN)),
                _SCALE * (_MARGIN + (high - value) / height * (_HEIGHT - 2 * _MARGIN)),
            )
            for step, value in zip(steps, values, strict=True)
        ]

    pen.line(points(losses), fill=_LIGHT, width=_SCALE)
    pen.line(points(means), fill=_DARK, width=2 * _SCALE)
    picture = large.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - _MARGIN
    pen.line([(_LEFT, _MARGIN), (_LEFT, bottom), (right, bottom)], fill=_GREY)
    pen.text((_LEFT - 6, _MARGIN), f"{high:.4g}", fill=_GREY, anchor="rm")
    pen.text((_LEFT - 6, bottom), f"{low:.4g}", fill=_GREY, anchor="rm")
    pen.text((_LEFT, bottom + 6), f"step {steps[0]}", fill=_GREY, anchor="lt")
    pen.text((right, bottom + 6), f"{steps[-1]}", fill=_GREY, anchor="rt")
    return picture
