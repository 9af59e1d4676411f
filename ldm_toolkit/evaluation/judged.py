"""``ldm-eval adherence``: whether storybook pictures show what was asked for, and are not copies.

The judge decides; beside its shares stand the Fréchet distance to renders and the least that it can
be, the diversity of the pictures of a prompt, and how near pictures are to renders of the training.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ldm_toolkit import storybook
from ldm_toolkit.errors import InputError
from ldm_toolkit.evaluation.adherence import Adherence, Asked, adherence, held_out_prompts, worst
from ldm_toolkit.evaluation.distances import frechet
from ldm_toolkit.evaluation.extractors import Extractor, judge_extractor
from ldm_toolkit.evaluation.features import diversity, nearest, torchmetrics_version
from ldm_toolkit.evaluation.intervals import Interval, mean
from ldm_toolkit.evaluation.pictures import Pictures, Renders
from ldm_toolkit.evaluation.report import FEWEST, Report
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.images import contact_sheet, save_image
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import Judge, Verdict

__all__ = ["judged"]

_SHOWN = 40  # pictures on the sheet of the worst
_LOOKED_UP = 100  # pictures whose nearest render is looked for
_CELL = 192  # pixels a side of a picture on a sheet
_LINE = 34  # letters under it
_SMALL = 24  # pixels a side of what is compared by pixels


def judged(
    subject: Subject, *, judge: Path | None, neighbours: int, training_seed: int = 0
) -> Report:
    """Shares of what is right, by attribute, and the sheets worst.png and nearest.png.

    ``judge`` is a second one, whose shares are told too; ``neighbours`` is how many renders of the
    training with ``training_seed`` are looked at, 0 for none. Raises InputError for pictures of
    which nobody knows what they should show, ModelError for a judge that is missing.
    """
    version, file = torchmetrics_version(), storybook.JUDGE_FILE
    extractor = judge_extractor(file)
    asked = _asked(subject.pictures)
    first = len(asked) // subject.per_prompt
    features = subject.features(subject.pictures, extractor, "judging")
    verdicts = Judge.load(file).decide(torch.from_numpy(features[:first]))
    scores = _shares(adherence(verdicts, asked[:first]))
    if judge is not None:
        second = judge_extractor(judge)
        seen = subject.features(subject.pictures, second, "judging once more")
        other = Judge.load(judge).decide(torch.from_numpy(seen[:first]))
        shares = _shares(adherence(other, asked[:first]))
        scores |= {f"second judge: {name}": one for name, one in shares.items()}
    notes = []
    if subject.per_prompt > 1:
        groups = torch.from_numpy(features).unflatten(0, (subject.per_prompt, first))
        scores["diversity"] = mean([diversity([one]) for one in groups.unbind(1)])
    else:
        notes.append("no diversity of one picture a prompt; --per-prompt K draws K of each")
    files = _worst_sheet(subject, verdicts, asked[:first])
    world = _World(subject, extractor, features[:first])
    if first >= FEWEST:
        scores |= world.distances()
    else:
        notes.append(f"no Fréchet distance of less than {FEWEST} pictures")
    if neighbours:
        scores |= world.nearest(neighbours, training_seed)
        files += (world.sheet,)
    settings = extractor.settings | {"split": scenes.SPLIT_VERSION, "pictures": first}
    settings["torchmetrics"] = version
    if neighbours:
        settings |= {"training_renders": neighbours, "training_seed": training_seed}
    if judge is not None:
        settings["second_judge_sha256"] = second.sha256
    return Report(scores, settings, tuple(notes), files)


def _asked(pictures: Pictures) -> list[Asked]:
    """What each picture should show. Raises InputError where nobody knows."""
    found = [pictures.asked(index) for index in range(len(pictures))]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        raise InputError(
            f"adherence cannot know what the pictures of {pictures.place} should show; expected "
            "--prompts N, --images storybook, or a folder that python -m ldm_toolkit.storybook "
            "render wrote"
        )
    return known


def _shares(found: Adherence) -> dict[str, Interval]:
    """The rows of the table, what counts most first."""
    rows = {"everything right": found.everything}
    rows |= {name.replace("_", " "): one for name, one in found.attributes.items()}
    return rows | {"refused": found.refused}


def _worst_sheet(
    subject: Subject, verdicts: Sequence[Verdict], asked: Sequence[Asked]
) -> tuple[Path, ...]:
    """worst.png: the pictures with the most that is wrong, the prompt and what the judge saw."""
    wrong = worst(verdicts, asked)[:_SHOWN]
    if not wrong:
        return ()
    labels = [_told(verdicts[index], asked[index]) for index in wrong]
    images = (subject.pictures.image(index) for index in wrong)
    return (_save(subject, "worst.png", _small(images), labels, columns=8),)


def _told(verdict: Verdict, asked: Asked) -> str:
    """The prompt and what is wrong, in lines as wide as a cell of a sheet."""
    lines = textwrap.wrap(asked.prompt, _LINE)
    if not verdict.valid:
        return "\n".join([*lines, "refused"])
    right = verdict.agrees(asked.wanted)
    wrong = [name for name in right if not right[name]]
    seen = (f"{asked.wanted[name]}: saw {verdict.values[name]}" for name in wrong)
    return "\n".join([*lines, *seen])


class _World:
    """What pictures are compared with: renders that no training saw, and the training's own."""

    def __init__(self, subject: Subject, extractor: Extractor, features: np.ndarray) -> None:
        self._subject, self._extractor, self._features = subject, extractor, features
        self._size = max(8, subject.pictures.image(0).width)
        self.sheet = subject.folder / "nearest.png"

    def distances(self) -> dict[str, Interval]:
        """Fréchet distance to renders, and that of as many other renders: it cannot be less."""
        first, second = self._held_out(1), self._held_out(2)
        return {
            "Fréchet distance to renders": frechet(first, self._features),
            "Fréchet distance of renders": frechet(first, second),
        }

    def nearest(self, count: int, seed: int) -> dict[str, Interval]:
        """Mean distances to the nearest of ``count`` training renders; those of held-out renders.

        By features, and by pixels: the root mean square difference of small copies. Writes
        nearest.png: picture and its nearest by either, the nearest of all first.
        """
        renders = Renders(_training(count, seed), self._size)
        subject, looked = self._subject, min(_LOOKED_UP, len(self._features))
        others = Renders(held_out_prompts(looked, subject.seed + 2), self._size)
        known = subject.features(renders, self._extractor, "looking at the training")
        features = subject.features(others, self._extractor, "looking at renders")
        apart, which = _nearest(self._features[:looked], known)
        usual, _ = _nearest(features, known)

        shown = [subject.pictures.image(index) for index in range(looked)]
        small = subject.rows(renders, f"thumbnails {_SMALL}", _thumbnails(renders), "thumbnails")
        differing, alike = _nearest(np.stack([_thumbnail(one) for one in shown]), small)
        usually, _ = _nearest(_thumbnails(others)(range(looked)), small)
        images: list[Image.Image] = []
        labels: list[str] = []
        for index in np.argsort(apart, kind="stable"):
            near = [renders.image(int(one[index])) for one in (which, alike)]
            images += _small([shown[index], *near])
            labels += [
                f"picture {index + 1}",
                f"by features, {apart[index]:.3g}",
                f"by pixels, {differing[index]:.3g}",
            ]
        _save(subject, self.sheet.name, images, labels, columns=12)
        return {
            "nearest training render": mean(apart.tolist()),
            "nearest training render, of renders": mean(usual.tolist()),
            "nearest training render by pixels": mean(differing.tolist()),
            "nearest training render by pixels, of renders": mean(usually.tolist()),
        }

    def _held_out(self, shift: int) -> np.ndarray:
        asked = held_out_prompts(len(self._features), self._subject.seed + shift)
        return self._subject.features(
            Renders(asked, self._size), self._extractor, "looking at renders"
        )


def _training(count: int, seed: int) -> list[Asked]:
    """The first scenes that a training with this seed draws."""
    drawn = (scenes.sample_scene(seed, index, "train") for index in range(count))
    return [Asked("", {}, scene) for scene in drawn]


def _nearest(rows: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = nearest(torch.from_numpy(rows), torch.from_numpy(among))
    return found[0].numpy(), found[1].numpy()


def _thumbnail(image: Image.Image) -> np.ndarray:
    small = image.convert("RGB").resize((_SMALL, _SMALL), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32).reshape(-1) / 255
    return pixels / math.sqrt(pixels.size)  # a distance is then a root mean square


def _thumbnails(pictures: Pictures) -> Callable[[Sequence[int]], np.ndarray]:
    return lambda block: np.stack([_thumbnail(pictures.image(index)) for index in block])


def _small(images: Iterable[Image.Image]) -> list[Image.Image]:
    """Copies as large as a cell, so that a sheet holds no large ones."""
    return [ImageOps.contain(one, (_CELL, _CELL)) for one in images]


def _save(
    subject: Subject, name: str, images: list[Image.Image], labels: list[str], columns: int
) -> Path:
    """A sheet in the folder of the scores, by the first process. Raises CannotWrite."""
    path = subject.folder / name
    if subject.share.first:
        save_image(contact_sheet(images, labels, columns=columns, cell=_CELL), path, overwrite=True)
    return path
