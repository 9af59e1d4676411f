"""What the methods that train a UNet share: samples from the caches, and the step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ldm_toolkit.errors import UserError
from ldm_toolkit.theory import diffusion, variational
from ldm_toolkit.training import objectives
from ldm_toolkit.training.cache import Rows, rows_at
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.rng import AlternatingIndex, PermutationIndex, generator, uniform

__all__ = ["UNetMethod", "checkpoint_layers", "trained_scheduler"]


# Classes of diffusers that know rescale_betas_zero_snr; others would sample with the old schedule.
_ZERO_SNR_CLASSES = frozenset(
    {"DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"}
    | {"EulerAncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler", "UniPCMultistepScheduler"}
)


def trained_scheduler(config: UNetConfig, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler configuration that a UNet trained with these options belongs to.

    After training with zero-terminal SNR, sampling has to use the same schedule and to start at
    its last timestep: Lin et al. 2023, sections 3.1 and 3.3. Raises UserError where the model
    predicts epsilon.
    """
    if not config.zero_terminal_snr:
        return dict(scheduler_config)
    _refuse_epsilon(scheduler_config.get("prediction_type", "epsilon"))
    changed = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if scheduler_config.get("_class_name") in _ZERO_SNR_CLASSES:
        return {**scheduler_config, **changed}
    # clip_sample: DDIM would clip latents where a configuration does not say.
    ddim = {"_class_name": "DDIMScheduler", **changed}
    return {"clip_sample": False, **scheduler_config, **ddim}


def _refuse_epsilon(kind: str) -> None:
    if kind == "epsilon":
        raise UserError(
            "--zero-terminal-snr needs a model that predicts v or the sample, this one predicts "
            "epsilon, which says nothing of the picture where there is only noise"
        )


def checkpoint_layers(encoder: Any) -> None:
    """Let a text encoder compute its layers twice instead of keeping what they computed."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    # transformers renamed it; the non-reentrant kind leaves the graph as it is
    newer = getattr(encoder, "activation_checkpointing_enable", None)
    enable = newer if newer is not None else encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in encoder.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True  # they ask for it; what has dropout is inside and stays as it is


class _UNetStep(nn.Module):
    """The batch's loss; ``text`` is embeddings, or with an encoder the token ids that it reads."""

    def __init__(self, unet: nn.Module, kind: str, config: UNetConfig, encoder: Any = None) -> None:
        super().__init__()
        self.unet, self.kind, self.encoder = unet, kind, encoder
        self.gamma, self.debiased = config.min_snr_gamma, config.debiased
        self.prior_weight = config.prior_weight

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
        text: Tensor,
        input_noise: Tensor | None = None,
        prior: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        added = noise if input_noise is None else input_noise
        noisy = diffusion.add_noise(latents, added, alpha_bar)
        prediction = self._prediction(noisy, timesteps, text)
        errors = objectives.prediction_errors(
            prediction,
            self.kind,
            latents,
            noise,
            alpha_bar,
            self.gamma,
            debiased=self.debiased,
            mask=mask,
        )
        if prior is None:
            return errors.mean()
        return objectives.prior_preservation(errors, prior, self.prior_weight)

    def errors(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Squared error of each sample without weights of timesteps, (B,): for validation."""
        noisy = diffusion.add_noise(latents, noise, alpha_bar)
        prediction = self._prediction(noisy, timesteps, text)
        return objectives.prediction_errors(
            prediction, self.kind, latents, noise, alpha_bar, mask=mask
        )

    def _prediction(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        # Here and not before: what goes through the module has its gradients reduced.
        if self.encoder is not None:
            text = self.encoder(text).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=text).sample


class UNetMethod(ABC):
    """Trains the UNet, or something beside it, on latent moments and text embeddings.

    ``moments[i]`` is (8, h, w): mean and log variance of the VAE's posterior of picture i.
    ``embeddings`` is (M, T, D), row 0 the empty caption, or token ids (M, T) where there is an
    ``encoder``, which then reads them in every step and is part of what may be trained;
    ``caption_rows[i]`` are the rows of picture i.
    ``instances`` is the number of pictures of a subject, which pictures of its class follow: every
    second sample is one of those, for prior preservation. ``masks[i]`` is (1, h, w) in [0, 1]:
    where errors count. ``index`` maps positions of the run to
    pictures, of one size in each batch; without it all have one size, and each epoch is a
    permutation. ``name`` gives the name of picture i. Raises UserError for zero-terminal SNR with
    a model that predicts epsilon.
    """

    adapter_file: ClassVar[str | None] = None
    """Name of the file that ``save`` writes for beside a model; None for a part of its folder."""

    encodes_text: ClassVar[bool] = False
    """Whether it wants tokenizer, encoder and captions; otherwise it gets cached embeddings."""

    makes_captions: ClassVar[bool] = False
    """Whether it does without captions of the pictures."""

    class_pictures: ClassVar[bool] = False
    """Whether it wants pictures of the subject's class behind its own, and ``instances``."""

    @classmethod  # noqa: B027 - most methods refuse nothing
    def check(cls, config: UNetConfig, unet: Mapping[str, Any]) -> None:
        """Refuse what a UNet's configuration cannot do, before hours of caching.

        Raises UserError.
        """

    @classmethod  # noqa: B027 - as above
    def check_words(cls, config: UNetConfig, tokenizer: Any) -> None:
        """Refuse what a tokenizer cannot do, before hours of caching. Raises UserError."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        config: UNetConfig,
        *,
        moments: Rows,
        embeddings: Rows,
        caption_rows: Sequence[Sequence[int]],
        scaling_factor: float,
        scheduler_config: dict,
        encoder: Any = None,
        instances: int | None = None,
        masks: Rows | None = None,
        index: Callable[[int], int] | None = None,
        name: Callable[[int], str] = str,
    ) -> None:
        from diffusers import DDPMScheduler

        noise_scheduler = DDPMScheduler.from_config(scheduler_config)
        self.unet, self._config, self.encoder = unet, config, encoder
        if encoder is not None:
            encoder.eval()  # dropout would draw from a generator's history
        self._moments, self._embeddings, self._rows = moments, embeddings, caption_rows
        self._scaling_factor = scaling_factor
        self._alphas_cumprod = noise_scheduler.alphas_cumprod
        self._instances, self._masks, self._name = instances, masks, name
        self._index: Callable[[int], int] = PermutationIndex(config.seed, len(moments))
        if index is not None:
            self._index = index
        elif instances is not None:
            self._index = AlternatingIndex(config.seed, instances, len(moments) - instances)
        kind = noise_scheduler.config.prediction_type
        if config.zero_terminal_snr:
            _refuse_epsilon(kind)
            self._alphas_cumprod = diffusion.zero_terminal_snr(self._alphas_cumprod)
        self.module = _UNetStep(unet, kind, config, encoder)

    def trainable(self) -> nn.Module:
        """The UNet, with the text encoder where there is one."""
        return self.unet if self.encoder is None else self.module

    def rates(self) -> Mapping[str, float]:
        """That of the text encoder, where it was given one."""
        rate = self._config.text_encoder_lr
        return {} if rate is None else {"encoder": rate}

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar of each timestep, as it is trained."""
        return self._alphas_cumprod

    def names(self, positions: Sequence[int]) -> list[str]:
        """Names of the pictures at these positions."""
        return [self._name(self._index(position)) for position in positions]

    def checkpoint_gradients(self) -> None:
        """From now on compute blocks twice instead of keeping what they computed, of both parts."""
        self.unet.enable_gradient_checkpointing()
        if self.encoder is not None:
            checkpoint_layers(self.encoder)

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Latents drawn from the posterior, noise, stratified timesteps and text."""
        indices = [self._index(position) for position in positions]
        rows = [self._caption_row(*where) for where in zip(positions, indices, strict=True)]
        given = rows_at(self._moments, indices), rows_at(self._embeddings, rows)
        samples = [self._sample(*one) for one in zip(positions, indices, *given, strict=True)]
        columns = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
        columns["alpha_bar"] = self._alphas_cumprod[columns["timesteps"]]
        return columns

    def _caption_row(self, position: int, index: int) -> int:
        """The row of one of the captions of picture ``index``, or of the empty one."""
        seed, rows = self._config.seed, self._rows[index]
        if uniform(seed, "dropout", position) < self._config.caption_dropout:
            return 0
        return rows[int(uniform(seed, "caption", position) * len(rows))]

    def _sample(
        self, position: int, index: int, moments: Tensor, text: Tensor
    ) -> dict[str, Tensor]:
        seed = self._config.seed
        rng = generator(seed, "noise", position)
        mean, log_variance = moments.float().chunk(2)
        draw = torch.randn(mean.shape, generator=rng)
        if self._config.latents == "mean":
            draw = torch.zeros_like(draw)
        latents = variational.reparameterise(mean, log_variance, draw) * self._scaling_factor
        noise = torch.randn(mean.shape, generator=rng)
        if self._config.offset_noise > 0:
            offset = torch.randn(len(mean), 1, 1, generator=rng)
            noise = diffusion.offset_noise(noise, offset, self._config.offset_noise)
        sample = {
            "latents": latents,
            "noise": noise,
            "timesteps": torch.tensor(self._timestep(position)),
            "text": text.float() if text.is_floating_point() else text,  # or token ids
        }
        if self._instances is not None:
            sample["prior"] = torch.tensor(index >= self._instances)
        if self._masks is not None:
            sample["mask"] = self._masks[index].float()
        gamma = self._config.input_perturbation
        if gamma > 0:  # of a generator of its own: other options leave it as it is
            draw = torch.randn(mean.shape, generator=generator(seed, "perturbation", position))
            sample["input_noise"] = diffusion.input_perturbation(noise, draw, gamma)
        return sample

    def _timestep(self, position: int) -> int:
        # A golden-ratio walk covers [0, 1) evenly in every window of positions, so neighbouring
        # samples fall into different strata of t, whatever the batch size.
        phase = (uniform(self._config.seed, "timestep", 0) + position * 0.6180339887498949) % 1.0
        count = len(self._alphas_cumprod)
        if self._config.timesteps == "logit_normal":
            mean, scale = self._config.timestep_mean, self._config.timestep_scale
            return diffusion.logit_normal_timestep(phase, count, mean, scale)
        return int(phase * count)

    def loss(self, outputs: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss that the module computed."""
        return outputs, {}

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained."""
