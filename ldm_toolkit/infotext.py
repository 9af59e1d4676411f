"""The web UIs' text about a picture; our own JSON beside it stays the truth. Level 1: no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm_toolkit.recipe import Recipe

__all__ = ["infotext"]

# The names AUTOMATIC1111 gives to the samplers; schedulers.py reads them as aliases.
_WEB_UI_SAMPLERS: Mapping[str, str] = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "lms": "LMS",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpm++_2m": "DPM++ 2M",
    "dpm++_2m_sde": "DPM++ 2M SDE",
    "dpm++_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
    "tcd": "TCD",
}
_WEB_UI_SCHEDULES: Sequence[str] = ("Karras", "Exponential", "Beta")


def infotext(recipe: "Recipe") -> str:
    """A recipe as the web UIs write and read it.

    Grammar of AUTOMATIC1111's infotext: prompt, ``Negative prompt:`` line, one line of
    ``Key: value`` pairs. Prompts are folded to one line so that they forge no field.
    """
    sampler, schedule = _web_ui_sampler(recipe.scheduler)
    pairs: list[tuple[str, object]] = [("Steps", recipe.steps), ("Sampler", sampler)]
    if schedule:
        pairs.append(("Schedule type", schedule))
    pairs += [
        ("CFG scale", f"{recipe.guidance:g}"),
        ("Seed", recipe.seed),
        ("Size", f"{recipe.width}x{recipe.height}"),
        ("Model hash", str(recipe.model.get("sha256", ""))[:10]),
        ("Model", recipe.model.get("name", "")),
    ]
    if recipe.guidance_rescale:
        pairs.append(("CFG Rescale phi", f"{recipe.guidance_rescale:g}"))
    if recipe.strength is not None:
        pairs.append(("Denoising strength", f"{recipe.strength:g}"))
    if recipe.clip_skip:
        pairs.append(("Clip skip", recipe.clip_skip + 1))  # the web UIs count from 1
    if recipe.eta:
        pairs.append(("Eta", f"{recipe.eta:g}"))
    pairs.append(("Version", f"ldm_toolkit {recipe.versions.get('ldm_toolkit', '')}".strip()))
    lines = [_one_line(recipe.prompt)]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {_one_line(recipe.negative_prompt)}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs))
    return "\n".join(lines)


def _web_ui_sampler(name: str) -> tuple[str, str]:
    """A scheduler's name as the web UIs' sampler and schedule type (empty for the plain one)."""
    for schedule in _WEB_UI_SCHEDULES:
        base = name.removesuffix(f"_{schedule.lower()}")
        if base != name and base in _WEB_UI_SAMPLERS:
            return _WEB_UI_SAMPLERS[base], schedule
    return _WEB_UI_SAMPLERS.get(name, name), ""


def _one_line(prompt: str) -> str:
    """A prompt that no reader takes for another field: one line, no field name before a colon.

    CLIP's tokenizer gives the same tokens for ``steps:`` and ``steps :``.
    """
    folded = " ".join(prompt.split())
    return re.sub(r"(negative prompt|steps):", r"\1 :", folded, flags=re.IGNORECASE)


def _quoted(value: object) -> str:
    """A value as the web UIs quote it: JSON where it holds a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n\r]', text) else text
