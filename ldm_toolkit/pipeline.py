"""LatentPipeline: the models wired to the loop.

A pipeline holds models and nothing that a call changes, so two streams can run at once.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_toolkit import given as given_
from ldm_toolkit import latents as latents_
from ldm_toolkit import prompts as prompts_
from ldm_toolkit import schedulers
from ldm_toolkit.denoise import Step, denoise
from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath.attention import install
from ldm_toolkit.fastpath.reuse import Reuse
from ldm_toolkit.given import Given
from ldm_toolkit.guidance import Guidance
from ldm_toolkit.hardware import set_attention
from ldm_toolkit.memory import Room
from ldm_toolkit.models import adapters, exchange
from ldm_toolkit.models.components import Components, sharing_copy
from ldm_toolkit.models.identity import DEFAULT_MODEL, ModelIdentity
from ldm_toolkit.models.load import load_components, prepare
from ldm_toolkit.options import GenerateOptions
from ldm_toolkit.parts import Parts, predict
from ldm_toolkit.planning import plan
from ldm_toolkit.preview import preview, with_preview_vae
from ldm_toolkit.recipe import Recipe
from ldm_toolkit.run import Result, Run

__all__ = ["LatentPipeline"]


class LatentPipeline(Parts):
    """A Stable Diffusion model that draws: ``pipe("a dog wearing hat").images[0]``."""

    def __init__(self, components: Components, *, scheduler: str | None = None) -> None:
        self._use(components)
        self._offline: bool | None = None
        self._defaults = components.defaults
        if scheduler is not None:
            name = schedulers.resolve_name(scheduler, classes=True)
            self._defaults = dataclasses.replace(self._defaults, scheduler=name)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        scheduler: str | None = None,
        vae: str | Path | None = None,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        variant: str | None = None,
        offline: bool | None = None,
        allow_pickle: bool = False,
        attention: str = "auto",
        compile: bool = False,
        backend: str = "torch",
    ) -> "LatentPipeline":
        """Load a bundled name, a hub id, a folder in the diffusers layout or a checkpoint file.

        ``scheduler`` replaces the model's own as the default; the others are
        ``models.load.load_components``'s. Raises ModelError and UserError.
        """
        if scheduler is not None:
            # A typo is found before the loading.
            scheduler = schedulers.resolve_name(scheduler, classes=True)
        components = load_components(
            model,
            device=device,
            dtype=dtype,
            vae=vae,
            tokenizer=tokenizer,
            revision=revision,
            variant=variant,
            offline=offline,
            allow_pickle=allow_pickle,
            attention=attention,
            compile=compile,
            backend=backend,
        )
        pipe = cls(components, scheduler=scheduler)
        pipe._offline = offline
        return pipe

    @classmethod
    def from_diffusers(cls, pipeline: Any) -> "LatentPipeline":
        """The networks of a diffusers pipeline (1.x or 2.x), not copied. Raises UserError."""
        return cls(exchange.from_diffusers(pipeline))

    def to_diffusers(self) -> Any:
        """diffusers' own pipeline around the same networks, with the model's own scheduler."""
        return exchange.to_diffusers(self.components, self.make_scheduler())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model; unchanged weights keep their bytes. Raises CannotWrite, UserError."""
        exchange.save_components(self.components, folder, self.make_scheduler())

    def load_lora(
        self, path_or_id: str | Path, scale: float = 1.0, name: str | None = None
    ) -> None:
        """Attach a LoRA (diffusers, peft, kohya ``.safetensors``; owner/name on the hub).

        Raises ModelError, also when any of its tensors has no place in the model.
        """
        loaded = adapters.load_lora(self.components, path_or_id, scale, name, offline=self._offline)
        self._use(loaded)

    def unload_loras(self) -> None:
        """Take all LoRAs away; the weights are the same bits as before the first."""
        self._use(adapters.unload_loras(self.components))

    def load_embedding(self, path: str | Path, token: str | None = None) -> None:
        """Teach prompts the word of a textual inversion. Raises ModelError and UserError."""
        self._use(adapters.load_embedding(self.components, path, token))

    def load_preview_vae(self, place: str | Path) -> None:
        """Let previews come from a small decoder: diffusers' AutoencoderTiny, a folder or a file.

        Raises ModelError.
        """
        self._use(with_preview_vae(self.components, place))

    def _use(self, components: Components) -> None:
        """Go on with other networks."""
        prepare(components)
        self.components = components
        self._remembered = prompts_.Remembered()

    @property
    def identity(self) -> ModelIdentity:
        """Name, revision and weights' SHA-256 of the model."""
        return self.components.identity

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int = 50,
        guidance: float = 7.5,
        seed: int | Sequence[int] | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        scheduler: str | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        speed: str = "exact",
        reuse_every: int | None = None,
        reuse_depth: int | None = None,
        reuse_power: float | None = None,
        gate: float | None = None,
        attention_every: int | None = None,
        clip_skip: int = 0,
        eta: float = 0.0,
        image: Image.Image | None = None,
        strength: float | None = None,
        mask: Image.Image | None = None,
        latents: torch.Tensor | None = None,
        batch_size: int | None = None,
        vae_tiling: bool | None = None,
    ) -> Result:
        """Draw pictures. The keywords are ``GenerateOptions``'; see ``stream``.

        Raises UserError for wrong options, NumericalError for NaN.
        """
        options = {key: value for key, value in locals().items() if key not in ("self", "prompt")}
        run = self.stream(prompt, **options)
        for _ in run:
            pass
        return run.result

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int = 50,
        guidance: float = 7.5,
        seed: int | Sequence[int] | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        scheduler: str | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        speed: str = "exact",
        reuse_every: int | None = None,
        reuse_depth: int | None = None,
        reuse_power: float | None = None,
        gate: float | None = None,
        attention_every: int | None = None,
        clip_skip: int = 0,
        eta: float = 0.0,
        image: Image.Image | None = None,
        strength: float | None = None,
        mask: Image.Image | None = None,
        latents: torch.Tensor | None = None,
        batch_size: int | None = None,
        vae_tiling: bool | None = None,
    ) -> Run:
        """The same call as a Run: a loop over Steps outside of the pipeline.

        Image n of prompt p is picture k = p * images_per_prompt + n and has seed + k, or the k-th
        of a list of seeds; its first noise and all noise of its steps come from its own generator.
        ``image`` is drawn over, as far as ``strength`` says, where ``mask`` is white; it and the
        mask are brought to the pictures' size. ``latents`` (B, C, h, w) take the place of the
        first noise. Fewer pictures than ``batch_size`` are computed as that many, so that they
        have the bits of a full batch. ``vae_tiling``: in tiles or not, where the size does not
        decide. ``speed`` names a preset of what is reused from step to step. Raises UserError.
        """
        said = {key: value for key, value in locals().items() if key in given_.OPTIONS}
        texts = given_.prompt_list(prompt, images_per_prompt)
        seeds = given_.seed_list(seed, len(texts))
        said |= {"prompt": texts[0], "seed": seeds[0] if seeds is not None else seed}
        options = GenerateOptions(**said)
        given = Given.of(image, mask, latents)
        recipes = plan(
            self.components, self._defaults, texts, options, given, seeds, batch_size, vae_tiling
        )
        return self._run(recipes, given)

    def interpolate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int],
        frames: int,
        **options: Any,
    ) -> Iterator[Image.Image]:
        """Pictures on the way from the first prompt and seed to the last, one after the other.

        Embeddings are mixed linearly, the seeds' noise on the arc; a single prompt or seed stays
        the same all the way. ``options`` are those of a call without a picture.
        ``images.save_animation`` makes a film of the frames. Raises UserError.
        """
        texts, shared = given_.prompt_list(prompts, 1), given_.frame_options(options)
        if not isinstance(seeds, int | list | tuple):
            raise UserError(f"seeds must be a whole number or a list of them, not {seeds!r:.80}")
        numbers = [seeds] if isinstance(seeds, int) else list(seeds)
        points = max(len(texts), len(numbers))
        if points < 2 or not {len(texts), len(numbers)} <= {1, points}:
            raise UserError(
                f"interpolate needs two or more prompts or seeds, not {len(texts)} and "
                f"{len(numbers)}; of the other one, or as many"
            )
        if type(frames) is not int or frames < points:
            raise UserError(f"frames must be a whole number from {points}, not {frames!r:.80}")
        texts, numbers = texts * (points // len(texts)), numbers * (points // len(numbers))
        return (
            self._frame(texts, numbers, frame * (points - 1) / (frames - 1), shared)
            for frame in range(frames)
        )

    def _frame(
        self, texts: list[str], seeds: list[int], place: float, shared: GenerateOptions
    ) -> Image.Image:
        """The picture at a place between the points 0, 1, 2, ... of ``interpolate``."""
        left = min(int(place), len(texts) - 2)
        weight = place - left
        runs = []
        for at in (left, left + 1):
            asked = dataclasses.replace(shared, prompt=texts[at], seed=seeds[at])
            runs += plan(self.components, self._defaults, [texts[at]], asked, Given())
        first, second = runs
        noise = latents_.slerp(
            self.initial_noise(first.seed, first.width, first.height),
            self.initial_noise(second.seed, second.width, second.height),
            weight,
        )
        conditioning = self._conditioning([first, second]).mix(weight)
        run = self._run([first], Given(latents=noise), conditioning)
        for _ in run:
            pass
        return run.result.images[0]

    def _conditioning(self, recipes: list[Recipe]) -> prompts_.Conditioning:
        """The text embeddings of recipes."""
        prompts = [recipe.prompt for recipe in recipes]
        negatives = [recipe.negative_prompt for recipe in recipes]
        first = recipes[0]
        return prompts_.encode(
            prompts,
            negatives,
            self.components,
            guided=Guidance.of(first).active,
            clip_skip=first.clip_skip,
            remembered=self._remembered,
        )

    def _run(
        self,
        recipes: list[Recipe],
        given: Given,
        conditioning: prompts_.Conditioning | None = None,
    ) -> Run:
        """The run of recipes that differ in prompt and seed only, padded to their batch size."""
        first, components = recipes[0], self.components
        missing = first.batch_size - len(recipes)
        batch = [*recipes, *[recipes[-1]] * missing]
        shared = conditioning if conditioning is not None else self._conditioning(batch)
        reuse = Reuse.of(first)
        room = Room(
            components, first.batch_size, tiled=first.vae_tiling, sliced=self._with_sliced_attention
        )

        def attempt() -> tuple[Iterator[Step], int]:
            """The loop from its beginning, the same each time: all noise is made of the seeds."""
            solver = schedulers.create(first.scheduler, components.scheduler_config)
            schedulers.set_steps(solver, first.steps, components.device)
            generators = latents_.make_generators([recipe.seed for recipe in batch])
            start = given.start(solver, first, components, generators)
            steps = denoise(
                room.fitted(functools.partial(predict, evaluate=reuse), start.beside),
                solver,
                start.latents,
                shared,
                Guidance.of(first),
                generators,
                lambda latents: preview(latents, components),
                room.decode,
                begin=start.begin,
                eta=first.eta,
                blend=start.blend,
            )
            return steps, len(solver.timesteps) - start.begin

        steps, total = attempt()
        steps = room.steps(steps, lambda: attempt()[0])
        if missing:
            steps = (step.first(len(recipes)) for step in steps)
        return Run(steps, recipes, total, room)

    def _with_sliced_attention(self, components: Components) -> Components:
        """The same networks with sliced attention; runs that are on their way keep theirs.

        This pipeline goes on with them, unless it has others by now.
        """
        unet = sharing_copy(components.unet)
        sliced = dataclasses.replace(
            components, unet=unet, attention=set_attention([unet], "sliced")
        )
        install(unet)
        prepare(sliced)
        if self.components is components:
            self.components = sliced
        return sliced
