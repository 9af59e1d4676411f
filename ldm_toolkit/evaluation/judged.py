"""``ldm-eval adherence``: whether storybook pictures show what was asked for, and are not copies.

The judge decides; beside its shares stand the Fréchet distance to renders and the least that it can
be, the diversity of the pictures of a prompt, and how near pictures are to renders of the training.
"""

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
_TRAINED = 0  # the seed of the training's scenes


def judged(subject: Subject, *, judge: Path | None, neighbours: int) -> Report:
    """Shares of what is right, by attribute, and the sheets worst.png and nearest.png.

    ``judge`` is a second one, whose shares are told too; ``neighbours`` is how many renders of the
    training are looked at, 0 for none. Raises InputError for pictures of which nobody knows what
    they should show, ModelError for a judge that is missing.
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
    if subject.per_prompt > 1:
        groups = torch.from_numpy(features).unflatten(0, (subject.per_prompt, first))
        scores["diversity"] = mean([diversity([one]) for one in groups.unbind(1)])
    files = _worst_sheet(subject, verdicts, asked[:first])
    world = _World(subject, extractor, features[:first])
    notes = []
    if first >= FEWEST:
        scores |= world.distances()
    else:
        notes.append(f"no Fréchet distance of less than {FEWEST} pictures")
    if neighbours:
        scores |= world.nearest(neighbours)
        files += (world.sheet,)
    settings = extractor.settings | {"split": scenes.SPLIT_VERSION, "pictures": first}
    settings["torchmetrics"] = version
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

    def nearest(self, count: int) -> dict[str, Interval]:
        """Mean distance to the nearest of ``count`` training renders; that of held-out renders.

        Writes nearest.png: picture, nearest render by features, nearest by pixels.
        """
        looked = self._features[:_LOOKED_UP]
        training = [
            Asked("", {}, scenes.sample_scene(_TRAINED, index, "train")) for index in range(count)
        ]
        renders = Renders(training, self._size)
        known = self._subject.features(renders, self._extractor, "looking at the training")
        apart, which = _nearest(looked, known)
        others, _ = _nearest(self._held_out(2)[:_LOOKED_UP], known)
        shown = [self._subject.pictures.image(index) for index in range(len(looked))]
        pixels = self._subject.rows(renders, "thumbnails", _thumbnails(renders), "thumbnails")
        _, alike = _nearest(np.stack([_thumbnail(one) for one in shown]), pixels)
        self._write_sheet(shown, renders, which, alike)
        return {
            "nearest training render": mean(apart.tolist()),
            "nearest training render, of renders": mean(others.tolist()),
        }

    def _held_out(self, shift: int) -> np.ndarray:
        asked = held_out_prompts(len(self._features), self._subject.seed + shift)
        return self._subject.features(
            Renders(asked, self._size), self._extractor, "looking at renders"
        )

    def _write_sheet(
        self,
        pictures: Sequence[Image.Image],
        renders: Pictures,
        by_features: np.ndarray,
        by_pixels: np.ndarray,
    ) -> None:
        images: list[Image.Image] = []
        labels: list[str] = []
        for index, picture in enumerate(pictures):
            images += [
                picture,
                *(renders.image(int(one[index])) for one in (by_features, by_pixels)),
            ]
            labels += [f"picture {index + 1}", "nearest by features", "nearest by pixels"]
        _save(self._subject, self.sheet.name, _small(images), labels, columns=12)


def _nearest(rows: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = nearest(torch.from_numpy(rows), torch.from_numpy(among))
    return found[0].numpy(), found[1].numpy()


def _thumbnail(image: Image.Image) -> np.ndarray:
    small = image.convert("RGB").resize((_SMALL, _SMALL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1) / 255


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
