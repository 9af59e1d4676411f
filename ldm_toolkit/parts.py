"""The parts of a pipeline, for people who write their own loop."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from ldm_toolkit import latents as latents_
from ldm_toolkit import prompts as prompts_
from ldm_toolkit import schedulers
from ldm_toolkit.compilation import explained
from ldm_toolkit.denoise import StepInfo
from ldm_toolkit.given import prompt_list
from ldm_toolkit.models.components import Components
from ldm_toolkit.recipe import ModelDefaults

__all__ = ["Evaluate", "Parts", "predict"]


class Parts:
    """What happens between a prompt and a picture, one method a stage."""

    components: Components
    _defaults: ModelDefaults

    def tokenize(self, prompt: str) -> list[int]:
        """The token ids of a prompt with start, end and padding, 77 a chunk. Raises UserError."""
        return prompts_.tokenize(prompt, self.components.tokenizer)

    def encode_prompt(self, prompt: str | Sequence[str]) -> torch.Tensor:
        """Text embeddings, (B, 77 n, D) in the model's dtype; n chunks as the longest prompt."""
        texts = prompt_list(prompt, 1)
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
        unet = self.components.unet
        return _unet(
            self.components,
            latents,
            timestep,
            embeddings,
            lambda x, time, text: unet(x, time, text, return_dict=False)[0],
        ).float()

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


# An evaluation of the UNet that may reuse what earlier ones of the run left in the dictionary:
# (components, model input, timestep, embeddings, step, dictionary) -> prediction.
Evaluate = Callable[
    [Components, torch.Tensor, torch.Tensor, torch.Tensor, StepInfo, dict[str, Any]], torch.Tensor
]


def predict(
    components: Components,
    beside: torch.Tensor | None,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditioning: prompts_.Conditioning,
    step: StepInfo,
    kept: dict[str, Any],
    evaluate: Evaluate,
) -> torch.Tensor:
    """The UNet as the loop wants it: both halves in one batch when guided.

    ``evaluate`` calls the UNet, or what of it this step needs, and gets ``kept``.
    """
    seen = latents if beside is None else torch.cat([latents, beside], dim=1)
    doubled = torch.cat([seen, seen]) if step.guided else seen
    return _unet(
        components,
        doubled,
        timestep,
        conditioning.batch(step.guided),
        lambda x, time, text: evaluate(components, x, time, text, step, kept),
    )


@torch.no_grad()
def _unet(
    components: Components,
    latents: torch.Tensor,
    timestep: torch.Tensor | float,
    embeddings: torch.Tensor,
    call: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """One UNet evaluation, which ``call`` is, in the model's dtype and memory format."""
    model_input = latents.to(components.device, components.dtype)
    if components.memory_format == "channels_last":
        model_input = model_input.contiguous(memory_format=torch.channels_last)
    embeddings = embeddings.to(components.device, components.dtype)
    if not isinstance(timestep, torch.Tensor):  # a compiled network is made anew for a number
        timestep = torch.tensor(timestep, device=components.device)
    with explained():
        return call(model_input, timestep, embeddings).contiguous()
