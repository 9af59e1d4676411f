"""What a run computes at once: pictures of one shape, as many as there is memory for.

A picture has the bits that it would have alone at the same batch size: the UNet sees it beside
pictures whose prompts have as many chunks, in parts that are filled up, and everything else takes
one picture at a time. Where memory runs out the run begins anew with smaller parts, so that a whole
picture was computed in the way that its recipe names.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from ldm_toolkit.denoise import Predict, Step, StepInfo
from ldm_toolkit.errors import is_out_of_memory
from ldm_toolkit.latents import latents_to_pil
from ldm_toolkit.models.components import Components
from ldm_toolkit.prompts import Conditioning

__all__ = ["Room"]

_log = logging.getLogger(__name__)

# The networks, inpainting mask and picture (or None), what Predict takes, and what these pictures
# keep from step to step.
PredictBeside = Callable[
    [
        Components,
        torch.Tensor | None,
        torch.Tensor,
        torch.Tensor,
        Conditioning,
        StepInfo,
        dict[str, Any],
    ],
    torch.Tensor,
]


class Room:
    """What a run computes at once; out of memory makes it less, step by step.

    First the batch is halved down to one picture, then attention is sliced; the VAE goes over to
    tiles. ``sliced`` gives the same networks with sliced attention; ``components`` stay as they
    are, because other runs may use them.
    """

    def __init__(
        self,
        components: Components,
        batch_size: int,
        *,
        tiled: bool,
        sliced: Callable[[Components], Components],
    ) -> None:
        self._components = components
        self._together = batch_size
        self._tiled = tiled
        self._sliced = sliced
        self._changes: dict[str, Any] = {}

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of the recipe that came out otherwise than was planned."""
        return dict(self._changes)

    def steps(self, steps: Iterator[Step], again: Callable[[], Iterator[Step]]) -> Iterator[Step]:
        """The steps of a run that uses ``fitted``; ``again`` begins it anew.

        Where memory runs out, the steps that were yielded already are only computed again: those
        before that with more memory would have other last bits.
        """
        yielded = 0
        while True:
            with _unless_out_of_memory(self._shrink):
                for step in itertools.islice(steps, yielded, None):
                    yielded += 1
                    yield step
                return
            steps = again()

    def fitted(self, predict: PredictBeside, beside: torch.Tensor | None) -> Predict:
        """The UNet over as many pictures at once as ``steps`` found memory for.

        What it keeps from step to step belongs to this one run and to each part of its pictures.
        """
        kept: dict[tuple[int, ...], dict[str, Any]] = {}

        def over_parts(
            latents: torch.Tensor,
            timestep: torch.Tensor,
            conditioning: Conditioning,
            step: StepInfo,
        ) -> torch.Tensor:
            parts = list(self._parts(conditioning.lengths))
            answers = [
                predict(
                    self._components,
                    None if beside is None else beside[part],
                    latents[part],
                    timestep,
                    conditioning.part(part),
                    step,
                    kept.setdefault(tuple(part), {}),
                )
                for part in parts
            ]
            return _joined(answers, parts, step.guided)

        return over_parts

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """The pictures of latents (B, C, h, w)."""
        while True:
            with _unless_out_of_memory(self._tile):
                return latents_to_pil(latents, self._components, tiled=self._tiled)

    def _parts(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows that go together: prompts of one length; a part that is not full repeats a row."""
        for length in sorted(set(lengths)):
            rows = [row for row, own in enumerate(lengths) if own == length]
            for start in range(0, len(rows), self._together):
                part = rows[start : start + self._together]
                yield part + part[-1:] * (self._together - len(part))

    def _shrink(self, reason: str) -> bool:
        """Make the UNet's next attempt smaller; False where nothing is left to do."""
        if self._together > 1:
            self._together = -(-self._together // 2)
            self._changes["batch_size"] = self._together
            _log.warning("out of memory; again in batches of %d (%s)", self._together, reason)
            return True
        if self._components.attention != "sliced" and self._components.backend == "torch":
            self._components = self._sliced(self._components)
            self._changes["attention"] = "sliced"
            _log.warning("out of memory; again with sliced attention (%s)", reason)
            return True
        return False

    def _tile(self, reason: str) -> bool:
        """Make the VAE's next attempt smaller; False where nothing is left to do."""
        if self._tiled:
            return False
        self._tiled = self._changes["vae_tiling"] = True
        _log.warning("out of memory; going on with the VAE in tiles (%s)", reason)
        return True


@contextlib.contextmanager
def _unless_out_of_memory(smaller: Callable[[str], bool]) -> Iterator[None]:
    """Swallow running out of memory where ``smaller`` knows what to do about it.

    By then nothing holds the failed attempt's tensors any more, not even the traceback.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        if not smaller(reason):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _joined(answers: list[torch.Tensor], parts: list[list[int]], guided: bool) -> torch.Tensor:
    """The answers to parts as the answer to all rows, (2B or B, C, h, w), negative halves first."""
    if len(answers) == 1:
        return answers[0]
    rows = [row for part in parts for row in part]
    places = [rows.index(row) for row in range(max(rows) + 1)]
    if not guided:
        return torch.cat(answers)[places]
    halves = zip(*(answer.chunk(2) for answer in answers), strict=True)
    return torch.cat([torch.cat(half)[places] for half in halves])
