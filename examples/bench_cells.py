"""What the benchmark of speed measures of one picture, and the cells that keep it.

A cell is one setting on one set of prompts: a file of rows, which is whole at any time.
"""

import collections
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_toolkit.evaluation.adherence import Asked, held_out_prompts
from ldm_toolkit.evaluation.speed import Worker
from ldm_toolkit.files import sha256_bytes, write_atomic
from ldm_toolkit.images import open_image, save_image
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import Judge

SETS = ("tune", "report")
FIRST_SEED = {"tune": 1_000_000, "report": 0}  # of the noise of the first picture
SCENES = 8_008  # the stream of scenes that both sets are taken from
PROMPT, SEED = "a dog wearing hat", 42  # of what is timed
USUAL_STEPS = 50  # that steps of settings refer to


def set_of(text: str) -> str:
    """The set that a composition or a prompt belongs to, for ever: a hash of it."""
    return SETS[int(2 * scenes.generator("speed", text).random())]


def prompts_of(name: str, count: int) -> list[Asked]:
    """The first prompts of a set; the sets share no composition and no prompt."""

    def belongs(one: Asked) -> bool:
        return {set_of(one.scene.composition.key), set_of(one.prompt.lower())} == {name}

    drawn, found = count, []
    while len(found) < count:
        drawn *= 2
        found = [one for one in held_out_prompts(drawn, SCENES) if belongs(one)]
    return found[:count]


class Cell:
    """Rows of one setting; its file is named by a hash of ``about``, all that decides them."""

    def __init__(self, folder: Path, name: str, about: Mapping[str, Any]) -> None:
        digest = sha256_bytes(json.dumps(about, sort_keys=True).encode())[:12]
        self.path = folder / f"{name}-{digest}.json"
        self._about = dict(about)
        self.rows: list[dict[str, Any]] = []
        if self.path.is_file():
            self.rows = json.loads(self.path.read_text("utf-8"))["rows"]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep more rows; the file has all of them or none. Raises CannotWrite."""
        self.rows += map(dict, rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"about": self._about, "rows": self.rows}).encode())


class Sitting:
    """A loaded model with what all its cells share: the folder, the steps, keywords of a call."""

    def __init__(
        self, pipe: LatentPipeline, folder: Path, steps: int, drawing: Mapping[str, Any]
    ) -> None:
        self.pipe, self._folder, self._steps, self._drawing = pipe, folder, steps, dict(drawing)
        self._warm: set[str] = set()

    def options(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of a call; a setting's steps are of 50, and less where there are less."""
        steps = max(1, round(setting.get("steps", USUAL_STEPS) * self._steps / USUAL_STEPS))
        return {**self._drawing, **setting, "steps": steps}

    def cell(self, kind: str, name: str, setting: Mapping[str, Any], **more: Any) -> Cell:
        """The cell of a setting: the recipe names the rest of what decides its rows."""
        recipe = self.pipe.stream("", seed=0, **self.options(setting)).recipes[0]
        return Cell(self._folder / kind, name, json.loads(recipe.to_json()) | more)

    def judge_next(
        self,
        cell: Cell,
        setting: Mapping[str, Any],
        block: Sequence[Asked],
        first_seed: int,
        exact: Cell,
        judge: Judge,
    ) -> None:
        """Draw the next prompts of a cell and keep what the judge says of each.

        The pictures of the cell ``exact`` are kept, the others are compared with them.
        """
        place, count = len(cell.rows), len(block)
        began = time.perf_counter()
        seeds = [first_seed + place + k for k in range(count)]
        prompts = [one.prompt for one in block]
        images = self.pipe(prompts, seed=seeds, **self.options(setting)).images
        seconds = (time.perf_counter() - began) / count
        rows = judged(judge, images, block)
        pictures = exact.path.with_suffix("")
        pictures.mkdir(parents=True, exist_ok=True)
        for index, (image, row) in enumerate(zip(images, rows, strict=True), place):
            file = pictures / f"{index:05}.png"
            if cell is exact:
                save_image(image, file, overwrite=True)
            else:
                row["psnr"] = psnr(np.asarray(image), np.asarray(open_image(file)), 255)
            row["seconds"] = seconds
        cell.add(rows)

    def pace_next(self, cell: Cell, setting: Mapping[str, Any]) -> None:
        """Time a setting and exact, one after the other, and keep seconds and the latents' PSNR."""
        pair = {"exact": {}, "setting": setting}
        names = ["exact", "setting"] if len(cell.rows) % 2 == 0 else ["setting", "exact"]
        for name in names:
            self._warm_up(pair[name])
        found = {name: self._timed(pair[name]) for name in names}
        own, exact = found["setting"], found["exact"]
        span = float(exact["latents"].max() - exact["latents"].min())
        row = {name: own[name] for name in ("seconds", "step")}
        row |= {f"exact_{name}": exact[name] for name in row}
        row["psnr"] = psnr(own["latents"].numpy(), exact["latents"].numpy(), span)
        cell.add([row])

    def pace_beside(self, cell: Cell, worker: Worker) -> None:
        """Time another contender's picture and ours, one after the other."""
        self._warm_up({})
        theirs, exact = worker.ask(steps=self._steps), self._timed({})
        row = {name: theirs[name] for name in ("seconds", "step")}
        cell.add([row | {f"exact_{name}": exact[name] for name in row}])

    def solve_next(
        self, cell: Cell, setting: Mapping[str, Any], prompt: str, reference: np.ndarray
    ) -> None:
        """Solve from a prompt's noise and keep the distance of the latents to a reference."""
        run = self.pipe.stream(prompt, seed=len(cell.rows), **self.options(setting))
        latents = _last_latents(run).numpy()
        span = float(reference.max() - reference.min())
        cell.add([{"psnr": psnr(latents, reference, span), "evaluations": run.total}])

    def reference(self, prompt: str, seed: int, steps: int) -> np.ndarray:
        """The latents of DDIM in many steps, a solution of the probability flow; kept in a file."""
        options = {**self._drawing, "scheduler": "ddim", "steps": steps, "seed": seed}
        run = self.pipe.stream(prompt, **options)
        digest = sha256_bytes(run.recipes[0].to_json().encode())[:12]
        file = self._folder / "solutions" / f"{digest}.npy"
        if not file.is_file():
            buffer = io.BytesIO()
            np.save(buffer, _last_latents(run).numpy())
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, buffer.getvalue())
        return np.load(file)

    def _warm_up(self, setting: Mapping[str, Any]) -> None:
        """Compile what a setting needs, grow the allocator; once in a process."""
        if repr(setting) not in self._warm:
            fewer = {} if self.pipe.components.compiled else {"steps": 2}
            self.pipe(PROMPT, seed=SEED, **self.options(setting) | fewer)
            self._warm.add(repr(setting))

    def _timed(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds of a picture and of a step of it, and the latents."""
        began = time.perf_counter()
        run = self.pipe.stream(PROMPT, seed=SEED, **self.options(setting))
        ready = time.perf_counter()
        _last_latents(run)
        stepped = time.perf_counter()
        result = run.result  # decodes
        ended = time.perf_counter()
        step = (stepped - ready) / result.recipes[0].steps
        return {"seconds": ended - began, "step": step, "latents": result.latents.cpu()}


def judged(
    judge: Judge, images: Sequence[Image.Image], asked: Sequence[Asked]
) -> list[dict[str, Any]]:
    """What the judge says of pictures: which attributes are right, and how sure it is of all."""
    features = judge.features(images)
    verdicts = judge.decide(features)
    sure = judge.log_probabilities(features, [one.wanted for one in asked])
    return [
        {"right": verdict.agrees(one.wanted), "valid": verdict.valid, "log_probability": value}
        for verdict, one, value in zip(verdicts, asked, sure, strict=True)
    ]


def psnr(found: np.ndarray, reference: np.ndarray, span: float) -> float:
    """Peak signal-to-noise ratio in dB of numbers within ``span``; 100 for equal ones."""
    error = float(((found.astype(float) - reference.astype(float)) ** 2).mean())
    return min(100.0, 10 * float(np.log10(span**2 / error))) if error else 100.0


def _last_latents(run: Any) -> torch.Tensor:
    """The latents at the end of a run, without a decode."""
    return collections.deque(run, maxlen=1)[0].latents.cpu()
