"""Whether pictures show what their prompts say, by a judge of the storybook world."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_toolkit.evaluation.intervals import Interval, share
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, Verdict, asked

__all__ = ["Adherence", "Asked", "adherence", "held_out_prompts", "worst"]


@dataclass(frozen=True)
class Asked:
    """A prompt with what it asks for, and a scene that would answer it."""

    prompt: str
    wanted: Mapping[str, str]
    scene: scenes.Scene


def held_out_prompts(count: int, seed: int) -> list[Asked]:
    """Captions of compositions that no training has seen; a pure function of its arguments."""
    found = []
    for index in range(count):
        scene = scenes.sample_scene(seed, index, "test")
        caption = scenes.caption(scene, seed)
        found.append(Asked(caption.text, asked(scene, caption.mentions), scene))
    return found


@dataclass(frozen=True)
class Adherence:
    """How often pictures show what was asked for.

    ``attributes`` counts, for each, the prompts that name it; ``everything`` the pictures in which
    all that the prompt names is right; ``refused`` those that the judge takes for none of these.
    """

    attributes: Mapping[str, Interval]
    everything: Interval
    refused: Interval

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = {name: one.as_dict() for name, one in self.attributes.items()}
        rows["everything"], rows["refused"] = self.everything.as_dict(), self.refused.as_dict()
        return rows


def adherence(verdicts: Sequence[Verdict], prompts: Sequence[Asked]) -> Adherence:
    """Judge's verdicts of pictures against what their prompts ask for, in equal order."""
    named: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    everything = []
    for verdict, prompt in zip(verdicts, prompts, strict=True):
        right = verdict.agrees(prompt.wanted)
        for name, one in right.items():
            named[name].append(one)
        everything.append(all(right.values()))
    return Adherence(
        {name: share(sum(rows), len(rows)) for name, rows in named.items() if rows},
        share(sum(everything), len(everything)),
        share(sum(not one.valid for one in verdicts), len(verdicts)),
    )


def worst(verdicts: Sequence[Verdict], prompts: Sequence[Asked]) -> list[int]:
    """Indices of the pictures with the most that is wrong first; right ones are left out."""
    wrong = {}
    for index, (verdict, prompt) in enumerate(zip(verdicts, prompts, strict=True)):
        count = sum(not one for one in verdict.agrees(prompt.wanted).values())
        if count:
            wrong[index] = count
    return sorted(wrong, key=lambda index: (-wrong[index], index))
