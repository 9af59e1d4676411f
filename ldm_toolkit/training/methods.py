"""What is trained, what a batch costs, what is saved: nothing else.

A method is given positions in the run and makes its own batch from them, so that everything
random depends on (seed, position) alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ldm_toolkit.errors import UserError
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.theory import diffusion, variational
from ldm_toolkit.training import objectives
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.rng import PermutationIndex, generator, uniform

__all__ = ["FullUNet", "Method", "VAEMethod", "trained_scheduler"]

# Classes of diffusers that know rescale_betas_zero_snr; others would sample with the old schedule.
_ZERO_SNR_CLASSES = frozenset(
    {"DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"}
    | {"EulerAncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler", "UniPCMultistepScheduler"}
)


class Method(Protocol):
    """The contract between the loop and what it trains."""

    @property
    def module(self) -> nn.Module:
        """What goes through Accelerate and is called once a step, so that gradients are reduced."""

    def trainable(self) -> nn.Module:
        """The network that the optimiser and the moving average see."""

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Inputs of ``module`` for these positions of the run."""

    def loss(self, outputs: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss and what to log, from what ``module`` returned."""

    def save(self, folder: Path) -> None:
        """Write the trained network, in the diffusers layout."""


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


class _UNetStep(nn.Module):
    def __init__(self, unet: nn.Module, kind: str, gamma: float, debiased: bool = False) -> None:
        super().__init__()
        self.unet, self.kind, self.gamma, self.debiased = unet, kind, gamma, debiased

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
        text: Tensor,
        input_noise: Tensor | None = None,
    ) -> Tensor:
        added = noise if input_noise is None else input_noise
        noisy = diffusion.add_noise(latents, added, alpha_bar)
        prediction = self.unet(noisy, timesteps, encoder_hidden_states=text).sample
        return objectives.noise_prediction_loss(
            prediction, self.kind, latents, noise, alpha_bar, self.gamma, debiased=self.debiased
        )


class FullUNet:
    """All weights of the UNet, on cached latent moments and text embeddings.

    ``moments`` is (N, 8, h, w): mean and log variance of the VAE's posterior. ``embeddings`` is
    (M, T, D), row 0 the empty caption; ``caption_rows[i]`` are the rows of picture i. Raises
    UserError for zero-terminal SNR with a model that predicts epsilon.
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
        if config.zero_terminal_snr:
            _refuse_epsilon(kind)
            self._alphas_cumprod = diffusion.zero_terminal_snr(self._alphas_cumprod)
        self.module = _UNetStep(unet, kind, config.min_snr_gamma, config.debiased)

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
            noise = diffusion.offset_noise(noise, offset, self._config.offset_noise)
        rows = self._rows[index]
        row = rows[int(uniform(seed, "caption", position) * len(rows))]
        if uniform(seed, "dropout", position) < self._config.caption_dropout:
            row = 0
        sample = {
            "latents": latents,
            "noise": noise,
            "timesteps": torch.tensor(self._timestep(position)),
            "text": self._embeddings[row].float(),
        }
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

    def save(self, folder: Path) -> None:
        """``folder/unet``."""
        self.unet.save_pretrained(folder / "unet")


class _VAEStep(nn.Module):
    def __init__(self, vae: AutoencoderKL, critic: nn.Module | None, train_encoder: bool) -> None:
        super().__init__()
        self.vae, self.critic, self.train_encoder = vae, critic, train_encoder

    def forward(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            posterior = self.vae.encode(pixels).latent_dist
        latents = variational.reparameterise(posterior.mean, posterior.logvar, noise)
        made = self.vae.decode(latents).sample
        outputs = {"made": made, "mean": posterior.mean, "log_variance": posterior.logvar}
        if self.critic is not None:
            # The critic's weights are constants in the generator's term and the reconstruction is
            # one in the critic's, so a single backward pass trains both on the same batch.
            constants = {name: p.detach() for name, p in self.critic.named_parameters()}
            outputs["fooled"] = torch.func.functional_call(self.critic, constants, (made,))
            outputs["real"], outputs["fake"] = self.critic(pixels), self.critic(made.detach())
        return outputs


class VAEMethod:
    """The decoder or the whole autoencoder, on random crops."""

    def __init__(self, vae: AutoencoderKL, config: VAEConfig, source: Source) -> None:
        self.vae, self._config, self._source = vae, config, source
        self._index = PermutationIndex(config.seed, len(source))
        self._held: tuple[int, Tensor] = (-1, torch.empty(0))
        self._pixels = torch.empty(0)
        train_encoder = config.train == "all"
        vae.encoder.requires_grad_(train_encoder)
        if vae.quant_conv is not None:
            vae.quant_conv.requires_grad_(train_encoder)
        critic = None
        if config.adversarial_weight > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                critic = objectives.PatchDiscriminator()
        self.module = _VAEStep(vae, critic, train_encoder)

    def trainable(self) -> nn.Module:
        """The autoencoder, and the critic where there is one."""
        return self.module

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Crops in [-1, 1] and the noise of the posterior's draw."""
        crops, noise = [], []
        side, channels = self._config.crop, int(self.vae.config["latent_channels"])
        for position in positions:
            rng = generator(self._config.seed, "crop", position)
            pixels = self._picture(position // self._config.crops)
            limit = self._config.size - side + 1
            top, left = torch.randint(limit, (2,), generator=rng).tolist()
            crop = pixels[:, top : top + side, left : left + side]
            flip = bool(torch.randint(2, (1,), generator=rng))
            crops.append(crop.flip(-1) if flip else crop)
            noise.append(torch.randn(channels, side // 8, side // 8, generator=rng))
        self._pixels = torch.stack(crops)
        return {"pixels": self._pixels, "noise": torch.stack(noise)}

    def _picture(self, position: int) -> Tensor:
        if self._held[0] != position:
            self._held = (position, pil_to_pixels(self._source.image(self._index(position))))
        return self._held[1]

    def loss(self, outputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Distance, gradient and KL terms, and the PatchGAN's, which counts after its start."""
        config, made = self._config, outputs["made"]
        pixels = self._pixels.to(made.device)
        fit = objectives.reconstruction_loss(
            made, pixels, config.gradient_weight, config.reconstruction
        )
        kl = variational.kl_to_standard_normal(
            outputs["mean"].float(), outputs["log_variance"].float()
        ).mean()
        mse = (made.detach().float() - pixels).square().mean()
        logs = {"psnr": float(10 * torch.log10(4.0 / mse)), "kl": float(kl.detach())}
        loss = fit + config.kl_weight * kl
        if "fooled" in outputs:
            critic = variational.discriminator_hinge(
                outputs["real"].float(), outputs["fake"].float()
            )
            loss, logs["critic"] = loss + critic, float(critic.detach())
            if step >= config.adversarial_start:
                fooled = variational.generator_hinge(outputs["fooled"].float())
                last_layer = self.vae.decoder.conv_out.weight
                weight = objectives.adaptive_weight(fit, fooled, last_layer)
                loss = loss + config.adversarial_weight * weight * fooled
        return loss, logs

    def save(self, folder: Path) -> None:
        """``folder/vae``."""
        self.vae.save_pretrained(folder / "vae")
