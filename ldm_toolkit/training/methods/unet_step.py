"""What the methods that train a UNet share: samples from the caches, and the step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ldm_toolkit.theory import diffusion, variational
from ldm_toolkit.training import objectives
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.rng import PermutationIndex, generator, uniform

__all__ = ["UNetMethod"]


class _UNetStep(nn.Module):
    def __init__(self, unet: nn.Module, kind: str, gamma: float) -> None:
        super().__init__()
        self.unet, self.kind, self.gamma = unet, kind, gamma

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, alpha_bar: Tensor, text: Tensor
    ) -> Tensor:
        noisy = diffusion.add_noise(latents, noise, alpha_bar)
        prediction = self.unet(noisy, timesteps, encoder_hidden_states=text).sample
        return objectives.noise_prediction_loss(
            prediction, self.kind, latents, noise, alpha_bar, self.gamma
        )


class UNetMethod(ABC):
    """Trains the UNet, or something beside it, on cached latent moments and text embeddings.

    ``moments`` is (N, 8, h, w): mean and log variance of the VAE's posterior. ``embeddings`` is
    (M, T, D), row 0 the empty caption; ``caption_rows[i]`` are the rows of picture i.
    ``adapter_file`` is the name of the file that ``save`` writes for beside a model; None where it
    writes a part of the model's folder.
    """

    adapter_file: ClassVar[str | None] = None

    @classmethod  # noqa: B027 - most methods refuse nothing
    def check(cls, config: UNetConfig, unet: Mapping[str, Any]) -> None:
        """Refuse what a UNet's configuration cannot do, before hours of caching.

        Raises UserError.
        """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        config: UNetConfig,
        *,
        moments: Tensor,
        embeddings: Tensor,
        caption_rows: Sequence[Sequence[int]],
        scaling_factor: float,
        scheduler_config: dict,
    ) -> None:
        from diffusers import DDPMScheduler

        noise_scheduler = DDPMScheduler.from_config(scheduler_config)
        self.unet, self._config = unet, config
        self._moments, self._embeddings, self._rows = moments, embeddings, caption_rows
        self._scaling_factor = scaling_factor
        self._alphas_cumprod = noise_scheduler.alphas_cumprod
        self._index = PermutationIndex(config.seed, len(moments))
        kind = noise_scheduler.config.prediction_type
        self.module = _UNetStep(unet, kind, config.min_snr_gamma)

    def trainable(self) -> nn.Module:
        """The UNet."""
        return self.unet

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Latents drawn from the posterior, noise, stratified timesteps and text."""
        samples = [self._sample(position) for position in positions]
        columns = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
        columns["alpha_bar"] = self._alphas_cumprod[columns["timesteps"]]
        return columns

    def _sample(self, position: int) -> dict[str, Tensor]:
        seed = self._config.seed
        rng = generator(seed, "noise", position)
        index = self._index(position)
        mean, log_variance = self._moments[index].float().chunk(2)
        draw = torch.randn(mean.shape, generator=rng)
        if self._config.latents == "mean":
            draw = torch.zeros_like(draw)
        latents = variational.reparameterise(mean, log_variance, draw) * self._scaling_factor
        noise = torch.randn(mean.shape, generator=rng)
        if self._config.offset_noise > 0:
            offset = torch.randn(len(mean), 1, 1, generator=rng)
            noise = noise + self._config.offset_noise * offset
        rows = self._rows[index]
        row = rows[int(uniform(seed, "caption", position) * len(rows))]
        if uniform(seed, "dropout", position) < self._config.caption_dropout:
            row = 0
        # A golden-ratio walk covers [0, 1) evenly in every window of positions, so neighbouring
        # samples fall into different strata of t, whatever the batch size.
        phase = (uniform(seed, "timestep", 0) + position * 0.6180339887498949) % 1.0
        timestep = int(phase * len(self._alphas_cumprod))
        return {
            "latents": latents,
            "noise": noise,
            "timesteps": torch.tensor(timestep),
            "text": self._embeddings[row].float(),
        }

    def loss(self, outputs: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss that the module computed."""
        return outputs, {}

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained."""
