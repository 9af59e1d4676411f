"""LatentPipeline: the models wired to the loop. A Run is one call on its way, a Result its end.

A pipeline holds models and nothing that a call changes, so two streams can run at once.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_toolkit import latents as latents_
from ldm_toolkit import prompts as prompts_
from ldm_toolkit import schedulers
from ldm_toolkit.denoise import Step, StepInfo, denoise
from ldm_toolkit.errors import LdmToolkitError, UserError
from ldm_toolkit.guidance import Guidance
from ldm_toolkit.hardware import cpu_capability
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.identity import DEFAULT_MODEL, ModelIdentity
from ldm_toolkit.models.load import load_components
from ldm_toolkit.recipe import MAX_SEED, Execution, GenerateOptions, Recipe, resolve

__all__ = ["LatentPipeline", "Result", "Run"]


@dataclass(frozen=True)
class Result:
    """What a call made: pictures, the recipe of each, final latents (B, C, h, w) float32."""

    images: list[Image.Image]
    recipes: list[Recipe]
    latents: torch.Tensor


class Run:
    """One call on its way: iterating yields a Step a UNet evaluation, then ``result`` is there.

    ``recipes`` and ``total`` are known before the first step; leaving the loop early cancels.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        recipes: list[Recipe],
        total: int,
        decode: Callable[[torch.Tensor], list[Image.Image]],
    ) -> None:
        self.recipes = recipes
        self.total = total
        self._steps = steps
        self._decode = decode
        self._last: Step | None = None
        self._result: Result | None = None

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        self._last = next(self._steps)
        return self._last

    @property
    def result(self) -> Result:
        """Pictures, recipes, latents; decoded at the first use. Raises LdmToolkitError early."""
        if self._last is None or self._last.index + 1 < self.total:
            raise LdmToolkitError("the run has no result before its end; iterate it through")
        if self._result is None:
            latents = self._last.latents
            images = self._decode(latents)
            recipes = [
                dataclasses.replace(recipe, pixels_sha256=pixels_sha256(image))
                for recipe, image in zip(self.recipes, images, strict=True)
            ]
            self._result = Result(images, recipes, latents)
        return self._result


class LatentPipeline:
    """A Stable Diffusion model that draws: ``pipe("a dog wearing hat").images[0]``."""

    def __init__(self, components: Components, *, scheduler: str | None = None) -> None:
        self.components = components
        self._defaults = components.defaults
        if scheduler is not None:
            name = schedulers.resolve_name(scheduler)
            self._defaults = dataclasses.replace(self._defaults, scheduler=name)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        scheduler: str | None = None,
    ) -> "LatentPipeline":
        """Load a bundled model by name or a folder in the diffusers layout.

        ``scheduler`` replaces the model's own as the default. Raises ModelError and UserError.
        """
        if scheduler is not None:
            scheduler = schedulers.resolve_name(scheduler)  # a typo is found before the loading
        return cls(load_components(model, device=device, dtype=dtype), scheduler=scheduler)

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
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        scheduler: str | None = None,
        guidance_rescale: float | None = None,
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
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        scheduler: str | None = None,
        guidance_rescale: float | None = None,
    ) -> Run:
        """The same call as a Run: a loop over Steps outside of the pipeline.

        Image n of prompt p is picture k = p * images_per_prompt + n and has seed + k; its first
        noise and all noise of its steps come from its own generator. Raises UserError.
        """
        texts = _prompt_list(prompt, images_per_prompt)
        options = GenerateOptions(
            prompt=texts[0],
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            seed=seed,
            width=width,
            height=height,
            scheduler=scheduler,
            guidance_rescale=guidance_rescale,
        )
        recipes, solver = self._recipes(texts, options)
        return self._run(recipes, solver)

    def tokenize(self, prompt: str) -> list[int]:
        """The token ids of a prompt with start, end and padding, 77 a chunk. Raises UserError."""
        return prompts_.tokenize(prompt, self.components.tokenizer)

    def encode_prompt(self, prompt: str | Sequence[str]) -> torch.Tensor:
        """Text embeddings, (B, 77 n, D) in the model's dtype; n chunks as the longest prompt."""
        texts = _prompt_list(prompt, 1)
        return prompts_.encode(texts, texts, self.components, guided=False).positive

    def make_scheduler(self, name: str | None = None) -> Any:
        """A fresh diffusers scheduler for this model; ``set_timesteps`` is yours to call."""
        chosen = name if name is not None else self._defaults.scheduler
        return schedulers.create(chosen, self.components.scheduler_config)

    def predict_noise(
        self, latents: torch.Tensor, timestep: torch.Tensor | float, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """One UNet evaluation: (B, C, h, w) and (B, 77, D) -> (B, C, h, w) float32.

        ``latents`` are as ``scheduler.scale_model_input`` gives them. For a v-prediction model the
        answer is v.
        """
        return self._unet(latents, timestep, embeddings).float()

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The forward process: latents (B, C, h, w) at timesteps (B,), Ho et al. 2020, eq. 4."""
        scheduler = schedulers.create("ddpm", self.components.scheduler_config)
        return scheduler.add_noise(latents, noise, timesteps)

    def initial_noise(self, seed: int, width: int, height: int) -> torch.Tensor:
        """The first noise of the picture with this seed, (1, C, h, w) float32 on the CPU."""
        return latents_.initial_noise([seed], self.components.latent_shape(width, height))

    def pil_to_latents(self, images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """Pictures -> latents of unit variance (the posterior's mean), (B, C, H/8, W/8) float32."""
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        return latents_.pil_to_latents(pictures, self.components)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents -> pixels from -1 to 1, (B, 3, H, W) float32."""
        return latents_.decode_latents(latents, self.components)

    def latents_to_pil(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents (B, C, h, w) as RGB pictures."""
        return latents_.latents_to_pil(latents, self.components)

    def _recipes(self, texts: list[str], options: GenerateOptions) -> tuple[list[Recipe], Any]:
        """The complete recipe of every picture, and the scheduler that they name, steps set."""
        wanted = options.scheduler if options.scheduler is not None else self._defaults.scheduler
        name = schedulers.resolve_name(wanted)
        config = self.components.scheduler_config
        most = schedulers.max_steps(name, config)
        if options.steps > most:
            raise UserError(f"steps must be at most {most} with {name}, not {options.steps}")
        solver = schedulers.create(name, config)
        execution = self._execution(schedulers.json_config(solver), len(texts))
        first = resolve(dataclasses.replace(options, scheduler=name), self._defaults, execution)
        if first.seed + len(texts) - 1 > MAX_SEED:
            highest = MAX_SEED - len(texts) + 1
            raise UserError(f"seed must be at most {highest} for {len(texts)} images")
        recipes = [
            dataclasses.replace(first, prompt=text, seed=first.seed + index)
            for index, text in enumerate(texts)
        ]
        schedulers.set_steps(solver, options.steps, self.components.device)
        return recipes, solver

    def _execution(self, scheduler_config: dict[str, Any], batch_size: int) -> Execution:
        """The part of a recipe that model and machine give."""
        components = self.components
        return Execution(
            scheduler_config=scheduler_config,
            model=components.identity.as_dict(),
            dtype=str(components.dtype).removeprefix("torch."),
            device=components.device.type,
            cpu_capability=cpu_capability(),
            threads=torch.get_num_threads(),
            memory_format=components.memory_format,
            batch_size=batch_size,
            attention="sdpa",
            versions=dict(_versions()),
        )

    def _run(self, recipes: list[Recipe], solver: Any) -> Run:
        """The run of recipes that differ in prompt and seed only."""
        first, components = recipes[0], self.components
        guidance = Guidance(first.guidance, first.guidance_rescale)
        conditioning = prompts_.encode(
            [recipe.prompt for recipe in recipes],
            [recipe.negative_prompt for recipe in recipes],
            components,
            guided=guidance.active,
        )
        generators = latents_.make_generators([recipe.seed for recipe in recipes])
        shape = components.latent_shape(first.width, first.height)
        noise = latents_.initial_noise(generators, shape).to(components.device)
        steps = denoise(
            self._predict,
            solver,
            noise * solver.init_noise_sigma,
            conditioning,
            guidance,
            generators,
            self.latents_to_pil,
        )
        return Run(steps, recipes, len(solver.timesteps), self.latents_to_pil)

    @torch.no_grad()
    def _unet(
        self, latents: torch.Tensor, timestep: torch.Tensor | float, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """One UNet evaluation in the model's dtype and memory format."""
        components = self.components
        model_input = latents.to(components.device, components.dtype)
        if components.memory_format == "channels_last":
            model_input = model_input.contiguous(memory_format=torch.channels_last)
        embeddings = embeddings.to(components.device, components.dtype)
        prediction = components.unet(model_input, timestep, embeddings, return_dict=False)[0]
        return prediction.contiguous()

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: prompts_.Conditioning,
        step: StepInfo,
    ) -> torch.Tensor:
        """The UNet as the loop wants it: both halves in one batch when guided."""
        doubled = torch.cat([latents, latents]) if step.guided else latents
        return self._unet(doubled, timestep, conditioning.batch(step.guided))


def _prompt_list(prompt: str | Sequence[str], images_per_prompt: int) -> list[str]:
    """One prompt a picture: prompt p comes images_per_prompt times. Raises UserError."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError("prompt must be a text or a list of texts")
    if not texts:
        raise UserError("the list of prompts is empty")
    if type(images_per_prompt) is not int or images_per_prompt < 1:
        raise UserError(
            f"images_per_prompt must be a whole number from 1, not {images_per_prompt!r:.80}"
        )
    return [text for text in texts for _ in range(images_per_prompt)]


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Versions of what computes a picture, as recipes hold them."""
    from ldm_toolkit import __version__

    others = ("torch", "diffusers", "transformers")
    return (
        ("ldm_toolkit", __version__),
        *((name, importlib.metadata.version(name)) for name in others),
    )
