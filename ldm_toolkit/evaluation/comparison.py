"""``ldm-eval compare``: two pictures of each prompt and seed, measured in pairs.

What two models share, such as a hard prompt, cancels in a pair: differences are of the same prompt
and seed, their intervals a bootstrap over the pairs, and an interval without 0 is a difference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm_toolkit import storybook
from ldm_toolkit.errors import CannotWrite, install_hint
from ldm_toolkit.evaluation.adherence import Asked
from ldm_toolkit.evaluation.clip import clip_scores
from ldm_toolkit.evaluation.comparison_page import Pair, comparison_page
from ldm_toolkit.evaluation.extractors import judge_extractor
from ldm_toolkit.evaluation.intervals import Interval, mean, paired_difference, share
from ldm_toolkit.evaluation.report import Report
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.files import write_atomic
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.storybook.judge import ATTRIBUTES, Judge, Verdict
from ldm_toolkit.training.quality import measures_of

__all__ = ["compared"]

_LIKENESS = {"psnr": "PSNR between the two", "ssim": "SSIM between the two"}
_EVERYTHING = "everything right"

Column = dict[int, float]
"""A number a pair; a pair that a measure says nothing of is not in it."""


def compared(
    first: Subject,
    second: Subject,
    *,
    names: tuple[str, str],
    seeds: Sequence[int],
    judge: Path | None,
    clip_model: Path | None,
) -> Report:
    """How alike the pictures are, what each side scores, and compare.html with all pairs.

    Adherence is told where a judge is there and the prompts are of the storybook world, the CLIP
    score where there is a model for it. Raises ModelError, CannotWrite.
    """
    notes: list[str] = []
    settings: dict[str, Any] = {"A": names[0], "B": names[1], "pairs": len(seeds)}
    settings |= _drawn_with(first, second) | {"seeds": _range(seeds)}
    likeness = _likeness(first, second, notes)
    scores = {_LIKENESS[name]: _mean(column) for name, column in likeness.items()}
    told: dict[str, tuple[Column, Column]] = {}
    file = judge if judge is not None else storybook.JUDGE_FILE
    asked = [first.pictures.asked(index) for index in range(len(seeds))]
    known = [one for one in asked if one is not None]
    if len(known) < len(seeds):
        notes.append("no adherence: nobody knows what these prompts ask for; --prompts N has some")
    elif not file.is_file():
        notes.append(f"no adherence: there is no judge at {file}; name one with --judge")
    else:
        told |= _adherence(first, second, known, file)
        settings["judge_sha256"] = judge_extractor(file).sha256
    if clip_model is not None:
        columns = []
        for subject in (first, second):
            rows, about = clip_scores(subject, clip_model)
            columns.append(dict(enumerate(rows.tolist())))
        told["CLIP score"] = (columns[0], columns[1])
        settings |= about
    for name, (of_a, of_b) in told.items():
        scores |= _paired(name, of_a, of_b)
    page = first.folder / "compare.html"
    if first.share.first:
        pairs = _pairs(first, second, seeds, likeness, told)
        _write(page, comparison_page(names, pairs, scores))
    return Report(scores, settings, tuple(notes), (page,))


def _drawn_with(first: Subject, second: Subject) -> dict[str, Any]:
    """What the pictures' recipes say that scores depend on; of each side where the two differ."""
    found: dict[str, Any] = {}
    a, b = (_recipe_settings(subject.drawing) for subject in (first, second))
    for name in a | b:
        if a.get(name) == b.get(name):
            found[name] = a[name]
        else:
            found |= {f"A {name}": a.get(name, "none"), f"B {name}": b.get(name, "none")}
    return found


def _recipe_settings(drawing: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are told: hashes of what was loaded, options that are not switched off."""
    if not drawing:
        return {}
    told = {name: drawing[name] for name in ("scheduler", "steps", "guidance", "dtype", "device")}
    told["size"] = f"{drawing['width']}x{drawing['height']}"
    model = drawing["model"]
    told |= {"model": model["name"], "model_sha256": model["sha256"]} if model != "several" else {}
    for name, key in (("loras", "scale"), ("embeddings", "token")):
        if drawing[name]:
            told[name] = drawing[name]
            if drawing[name] != "several":
                told[name] = " ".join(f"{one['sha256']}:{one[key]}" for one in drawing[name])
    for name in ("negative_prompt", "guidance_rescale", "clip_skip", "eta"):
        if drawing[name]:
            told[name] = drawing[name]
    if drawing["guidance_interval"] != [0.0, 1.0]:
        told["guidance_interval"] = drawing["guidance_interval"]
    return told


def _range(seeds: Sequence[int]) -> str:
    """The seeds of the pairs in short."""
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}..{seeds[-1]}"
    return f"{len(set(seeds))} from {min(seeds)} to {max(seeds)}"


def _likeness(first: Subject, second: Subject, notes: list[str]) -> dict[str, Column]:
    """PSNR and SSIM of each pair, by name; nothing of pictures of two sizes."""
    device = torch.device("cpu")
    found = {name: one for name, one in measures_of(None, device).items() if name in _LIKENESS}
    if "ssim" not in found:
        notes.append(f"no SSIM: it needs torchmetrics, {install_hint('eval')}")
    columns: dict[str, Column] = {name: {} for name in found}
    count = len(first.pictures)
    for index in first.follow(range(count), count, "comparing"):
        images = [one.pictures.image(index) for one in (first, second)]
        if images[0].size != images[1].size:
            notes.append("no PSNR and SSIM: the two sides draw pictures of different sizes")
            return {}
        a, b = (pil_to_pixels(image)[None] for image in images)
        for name, measure in found.items():
            columns[name][index] = float(measure(b, a))
    return columns


def _adherence(
    first: Subject, second: Subject, asked: Sequence[Asked], file: Path
) -> dict[str, tuple[Column, Column]]:
    """For each attribute 1 for a picture that shows it as its prompt says, 0 for another."""
    extractor, judge = judge_extractor(file), Judge.load(file)
    sides = []
    for subject in (first, second):
        features = subject.features(subject.pictures, extractor, "judging")
        sides.append(judge.decide(torch.from_numpy(features)))
    names = [_EVERYTHING, *ATTRIBUTES]
    columns = [[_right(verdicts, asked, name) for verdicts in sides] for name in names]
    titles = [name.replace("_", " ") for name in names]
    return {title: (a, b) for title, (a, b) in zip(titles, columns, strict=True) if a}


def _right(verdicts: Sequence[Verdict], asked: Sequence[Asked], name: str) -> Column:
    column = {}
    for index, (verdict, one) in enumerate(zip(verdicts, asked, strict=True)):
        right = verdict.agrees(one.wanted)
        if name == _EVERYTHING:
            column[index] = float(all(right.values()))
        elif name in right:
            column[index] = float(right[name])
    return column


def _paired(name: str, of_a: Column, of_b: Column) -> dict[str, Interval]:
    """The rows of the table about one score, in whose columns the same pairs are."""
    return {
        f"{name}, A": _mean(of_a),
        f"{name}, B": _mean(of_b),
        f"{name}, B - A": paired_difference(list(of_a.values()), list(of_b.values())),
    }


def _mean(column: Column) -> Interval:
    values = list(column.values())
    if set(values) <= {0.0, 1.0}:  # right or wrong
        return share(int(sum(values)), len(values))
    return mean(values)


def _pairs(
    first: Subject,
    second: Subject,
    seeds: Sequence[int],
    likeness: dict[str, Column],
    told: dict[str, tuple[Column, Column]],
) -> list[Pair]:
    """The pairs, least alike first."""
    by_likeness = likeness.get("psnr", {})
    pairs = []
    for index in sorted(range(len(seeds)), key=lambda one: (by_likeness.get(one, 0.0), one)):
        facts = [f"seed {seeds[index]}"]
        for name, column in likeness.items():
            facts.append(f"{name.upper()} {column[index]:.3g}")
        for name, (a, b) in told.items():
            if index in a and a[index] != b[index]:
                facts.append(f"{name}: A {a[index]:.3g}, B {b[index]:.3g}")
        pairs.append(
            Pair(
                prompt=first.pictures.caption(index) or "",
                facts=tuple(facts),
                first=lambda index=index: first.pictures.image(index),  # type: ignore[misc]
                second=lambda index=index: second.pictures.image(index),  # type: ignore[misc]
            )
        )
    return pairs


def _write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {path.parent}: {error.strerror}") from error
    write_atomic(path, page.encode())
