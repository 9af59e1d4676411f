"""How the pictures look: one font size a role, a palette that colour-blind people can read.

Figures are matplotlib's own objects, drawn without pyplot, so that nothing global changes.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from ldm_toolkit.errors import UserError, install_hint

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise UserError(
        f"the pictures of ldm_toolkit.explain need matplotlib: {install_hint('explain')}"
    ) from error

__all__ = [
    "BLUE",
    "DIVERGING",
    "GREEN",
    "INK",
    "ORANGE",
    "PURPLE",
    "SEQUENTIAL",
    "SOFT",
    "VERMILION",
    "Picture",
    "colour_bar",
    "curves",
    "drawable",
    "largest",
    "legend",
    "quoted",
    "row_label",
    "show",
]

# Okabe and Ito 2008, "Color Universal Design".
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
PURPLE = "#AA4499"  # theirs is too pale for a thin line on white
INK = "#1f2933"
SOFT = "#5f6b7a"
_LINE = "#d5dae1"
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"

_DPI = 144
_LARGE, _MIDDLE, _SMALL = 12, 9, 8


class Picture(Figure):
    """A matplotlib figure that knows its name, its title and the caption that teaches it.

    ``name`` is a file's stem; ``section`` is what a page puts it under. ``caption`` is plain text.
    """

    def __init__(self, section: str, name: str, title: str, size: tuple[float, float]) -> None:
        super().__init__(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
        self.section, self.name, self.title = section, name, title
        self.caption = ""
        self.suptitle(title, fontsize=_LARGE, color=INK, x=0.01, ha="left", fontweight="bold")

    def grid(self, rows: int, columns: int, **ratios: Any) -> Any:
        """Axes (rows, columns) that stand close to each other."""
        engine: Any = self.get_layout_engine()
        engine.set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
        return self.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)

    def pixels(self) -> Image.Image:
        """The figure as an RGB picture."""
        with Image.open(io.BytesIO(self._repr_png_())) as drawn:
            return drawn.convert("RGB")

    def _repr_png_(self) -> bytes:
        """What a notebook shows of it."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()


def drawable(text: str, width: int = 40) -> str:
    """Any text as a label: printable, on one line, cut to ``width`` characters."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= width else f"{shown[: width - 4]} ..."


def quoted(prompt: str) -> str:
    """A prompt as a caption names it."""
    return f'"{drawable(prompt, 60)}"' if prompt.strip() else "the empty prompt"


def show(
    axes: Any,
    values: "np.ndarray | Image.Image",
    label: str = "",
    *,
    span: tuple[float, float] | None = None,
    colours: str = SEQUENTIAL,
    note: str = "",
    smooth: bool = False,
) -> Any:
    """A picture or a map (h, w) without ticks, its label above and its note below.

    ``span`` are the values of the first and the last colour of a map.
    """
    array = np.asarray(values)
    low, high = span if span is not None else (None, None)
    drawn = axes.imshow(
        array,
        cmap=colours,
        vmin=low,
        vmax=high,
        interpolation="bilinear" if smooth else "antialiased",
    )
    bare(axes)
    # Prompts are no mathematics, whatever dollars they hold.
    if label:
        axes.set_title(label, fontsize=_MIDDLE, color=INK, pad=3, parse_math=False)
    if note:
        axes.set_xlabel(note, fontsize=_SMALL, color=SOFT, labelpad=3, parse_math=False)
    return drawn


def bare(axes: Any) -> None:
    """No ticks, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=_LINE, linewidth=0.6)


def row_label(axes: Any, text: str) -> None:
    """What a row of a grid shows, beside its first picture."""
    axes.set_ylabel(text, fontsize=_MIDDLE, color=INK, parse_math=False)


def curves(axes: Any, label: str, x_label: str, y_label: str = "") -> None:
    """The look of axes that hold curves."""
    axes.set_title(label, fontsize=_MIDDLE, color=INK, loc="left", parse_math=False)
    axes.set_xlabel(x_label, fontsize=_MIDDLE, color=SOFT)
    axes.set_ylabel(y_label, fontsize=_MIDDLE, color=SOFT)
    axes.tick_params(labelsize=_SMALL, colors=SOFT, length=3, width=0.6)
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(color=_LINE, linewidth=0.8, visible=side in ("left", "bottom"))


def legend(axes: Any) -> None:
    """Which curve is which."""
    axes.legend(fontsize=_SMALL, labelcolor=INK, frameon=False)


def colour_bar(picture: Picture, drawn: Any, axes: Any, label: str = "") -> None:
    """A slim scale of the colours of ``drawn`` beside ``axes``."""
    bar = picture.colorbar(drawn, ax=axes, fraction=0.025, pad=0.015, aspect=30)
    bar.outline.set(edgecolor=_LINE, linewidth=0.6)
    bar.ax.tick_params(labelsize=_SMALL, colors=SOFT, length=2, width=0.6)
    bar.set_label(label, fontsize=_SMALL, color=SOFT)


def largest(values: np.ndarray, share: float = 0.995) -> float:
    """The size that ``share`` of the values do not pass; above 0."""
    return max(float(np.quantile(np.abs(values), share)), 1e-12)
