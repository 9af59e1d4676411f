"""What a data set holds, for people: before the first step, and alone with ``--check-data``."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ldm_toolkit.training.data.entries import Entry
from ldm_toolkit.training.data.geometry import Geometry, cut_share
from ldm_toolkit.training.data.inspection import Facts, Inspection
from ldm_toolkit.values import counted

__all__ = ["Plan", "TokenCounts", "report_text"]

_TOKENS = 77
_MOMENTS = 8  # mean and log variance of four channels, at every eighth pixel
_SHOWN = 10
_MUCH = 0.3  # a share of a picture whose loss is worth a word

TokenCounts = Callable[[Sequence[str]], Sequence[int]]
"""Captions -> the number of tokens of each, start and end included."""


@dataclass(frozen=True)
class Plan:
    """What the data is for.

    ``batch`` is the number of samples of a step over all processes. ``text_width`` is the text
    encoder's, where latents and embeddings are cached, 0 where latents alone are.
    """

    geometry: Geometry
    batch: int = 1
    token_counts: TokenCounts | None = None
    text_width: int | None = None


Looked = Sequence[tuple[Entry, Facts]]


def report_text(inspection: Inspection, plan: Plan, *, readable: bool = False) -> str:
    """The report, a line each finding, with every bad picture named.

    Copies, sizes and captions are those of the good pictures, or of all that are ``readable``;
    what would be trained on, and how much room it takes, is told of the good ones alone.
    """
    bad, listing = len(inspection.problems), inspection.listing
    looked = inspection.readable if readable else inspection.good
    lines = [f"{listing.place}: {counted(inspection.found, 'picture')}, {bad} of them bad"]
    lines += [f"  {problem}" for problem in inspection.problems]
    for (what, told), count in listing.unread.most_common(_SHOWN):
        lines.append(f"not used: {counted(count, what)}{told}")
    if looked:
        if listing.masks:
            count = sum(fact.mask is not None for _, fact in looked)
            lines.append(f"with a mask: {count} of {counted(len(looked), 'picture')}")
        lines += _copies(looked)
        lines += _long_captions(looked, plan)
        lines += _sizes(looked)
        lines += _shapes(inspection.good, plan)
        lines += _misfits(looked, plan)
        lines += _cache(inspection.good, plan)
    return "\n".join(lines)


def _copies(looked: Looked) -> list[str]:
    """Pictures with the very same pixels."""
    groups: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for entry, fact in looked:
        groups[fact.pixels, fact.width, fact.height].append(entry.name)
    same = [names for names in groups.values() if len(names) > 1]
    if not same:
        return []
    extra = sum(len(names) - 1 for names in same)
    told = f"{extra} exact {'copy' if extra == 1 else 'copies'}"
    return [f"{told}: {_some(' = '.join(names[:_SHOWN]) for names in same)}"]


def _long_captions(looked: Looked, plan: Plan) -> list[str]:
    """Captions of which the text encoder does not see the end."""
    pairs = [(entry.name, text) for entry, _ in looked for text in entry.captions]
    if plan.token_counts is None or not pairs:
        return []
    counts = plan.token_counts([text for _, text in pairs])
    cut = [
        f"{name} ({count})"
        for (name, _), count in zip(pairs, counts, strict=True)
        if count > _TOKENS
    ]
    if not cut:
        return []
    return [f"{_are(cut, 'caption')} longer than {_TOKENS} tokens and cut: {_some(cut)}"]


def _sizes(looked: Looked) -> list[str]:
    """The smallest, the middle and the largest picture."""
    sizes = sorted(((fact.width, fact.height) for _, fact in looked), key=lambda s: s[0] * s[1])
    small, middle, large = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    return [f"sizes from {small} to {large}, in the middle {middle}"]


def _shapes(used: Looked, plan: Plan) -> list[str]:
    """How many pictures are brought to each of the training's shapes, and what is cut off."""
    cuts: dict[tuple[int, int], list[float]] = defaultdict(list)
    for _, fact in used:
        shape = plan.geometry.nearest(fact.width, fact.height)
        cuts[shape].append(cut_share((fact.width, fact.height), shape))
    return [
        f"{shape[0]}x{shape[1]}: {counted(len(cut), 'picture')}, {sum(cut) / len(cut):.0%} "
        f"of the area is cut off{_repeated(len(cut), plan)}"
        for shape, cut in sorted(cuts.items())
    ]


def _misfits(looked: Looked, plan: Plan) -> list[str]:
    """Pictures that lose much of their area, and such as are enlarged."""
    much: list[str] = []
    enlarged: list[str] = []
    for entry, fact in looked:
        shape = plan.geometry.nearest(fact.width, fact.height)
        cut = cut_share((fact.width, fact.height), shape)
        if cut > _MUCH:
            much.append(f"{entry.name} ({cut:.0%})")
        if fact.width < shape[0] or fact.height < shape[1]:
            enlarged.append(entry.name)
    lines = []
    if much:
        lines.append(f"{_are(much, 'picture')} cut by more than {_MUCH:.0%}: {_some(much)}")
    if enlarged:
        lines.append(f"{_are(enlarged, 'picture')} smaller and enlarged: {_some(enlarged)}")
    return lines


def _repeated(count: int, plan: Plan) -> str:
    """What fills the last batch of a bucket up; without buckets batches go on over epochs."""
    again = -count % plan.batch
    if len(plan.geometry.shapes) == 1 or not again:
        return ""
    return f", {again} of them shown again to fill batches of {plan.batch}"


def _cache(used: Looked, plan: Plan) -> list[str]:
    """What latents and embeddings take, as float16."""
    if plan.text_width is None or not used:
        return []
    places = 0
    for _, fact in used:
        width, height = plan.geometry.nearest(fact.width, fact.height)
        places += (width // 8) * (height // 8)
    texts = {text for entry, _ in used for text in entry.captions} | {""}
    latents = 2 * _MOMENTS * places  # two bytes a number
    embeddings = 2 * _TOKENS * plan.text_width * len(texts)
    captions = (
        f" and {_human(embeddings)} for {counted(len(texts), 'caption')}" if embeddings else ""
    )
    return [
        f"the cache takes {_human(latents)} for latents{captions}, on disk and in the memory of "
        "every process"
    ]


def _are(found: Sequence[str], what: str) -> str:
    """``1 picture is``, ``2 pictures are``."""
    return f"{counted(len(found), what)} {'is' if len(found) == 1 else 'are'}"


def _some(names: Iterable[str]) -> str:
    """The first few of many, and how many more there are."""
    found = list(names)
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _human(size: int) -> str:
    """Bytes for people: ``3.4 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
