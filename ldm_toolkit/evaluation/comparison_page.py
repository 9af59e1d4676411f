"""The page of ``ldm-eval compare``: pictures side by side, or one over the other to switch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.webpage import escaped, image_tag, page

__all__ = ["Pair", "comparison_page"]

_SHOWN = 200
_SIDE = 320  # pixels of a picture on the page
_QUALITY = 85
_STYLE = """\
.pair { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.pair div { position: relative; }
.pair span { position: absolute; left: 0; top: 0; padding: 0 0.5rem; background: Canvas; }
.switched .pair { cursor: pointer; }
.switched .pair div:last-child { display: none; }
.switched .pair.other div:first-child { display: none; }
.switched .pair.other div:last-child { display: block; }
"""
_SCRIPT = """\
document.getElementById("switch").addEventListener("change", function (event) {
  document.body.classList.toggle("switched", event.target.checked);
});
document.querySelectorAll(".pair").forEach(function (pair) {
  pair.addEventListener("click", function () {
    pair.classList.toggle("other", document.body.classList.contains("switched") &&
      !pair.classList.contains("other"));
  });
});
"""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures of one prompt and seed, opened when they are needed, and facts about them."""

    prompt: str
    facts: tuple[str, ...]
    first: Callable[[], Image.Image]
    second: Callable[[], Image.Image]


def comparison_page(
    names: tuple[str, str], pairs: Sequence[Pair], scores: Mapping[str, Interval]
) -> str:
    """A page in one file: scores, then the first 200 ``pairs`` in their order."""
    shown = pairs[:_SHOWN]
    of_all = f" (the first {_SHOWN} of {len(pairs)})" if len(pairs) > _SHOWN else ""
    body = [
        "<h1>A against B</h1>",
        f"<p>A: <code>{escaped(names[0])}</code><br>B: <code>{escaped(names[1])}</code></p>",
        _table(scores),
        f"<h2>The pairs, least alike first{of_all}</h2>",
        '<p><label><input type="checkbox" id="switch"> one over the other: click a picture to '
        "switch</label></p>",
        *(_figure(one) for one in shown),
    ]
    return page("A against B", "\n".join(body), style=_STYLE, script=_SCRIPT)


def _table(scores: Mapping[str, Interval]) -> str:
    rows = [
        f"<tr><td>{escaped(name)}</td><td>{one.value:.4g}</td>"
        f"<td>{one.low:.4g} .. {one.high:.4g}</td><td>{one.count}</td></tr>"
        for name, one in scores.items()
    ]
    head = "<tr><th>score</th><th>value</th><th>95 % interval</th><th>pairs</th></tr>"
    return "\n".join(["<table>", head, *rows, "</table>"])


def _figure(pair: Pair) -> str:
    sides = []
    for letter, opened in (("A", pair.first), ("B", pair.second)):
        image = ImageOps.contain(opened(), (_SIDE, _SIDE))
        tag = image_tag(image, f"{letter}: {pair.prompt}", quality=_QUALITY)
        sides.append(f"<div>{tag}<span>{letter}</span></div>")
    caption = f"{escaped(pair.prompt)}<br>{escaped('; '.join(pair.facts))}"
    return (
        f'<figure><div class="pair">{"".join(sides)}</div>\n'
        f"<figcaption>{caption}</figcaption></figure>"
    )
