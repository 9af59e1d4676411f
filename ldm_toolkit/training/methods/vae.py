"""The autoencoder's training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.theory import variational
from ldm_toolkit.training import objectives
from ldm_toolkit.training.config import VAEConfig
from ldm_toolkit.training.data import Source
from ldm_toolkit.training.folders import save_network
from ldm_toolkit.training.rng import PermutationIndex, generator

__all__ = ["VAEMethod"]


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
    """The decoder or the whole autoencoder, on random crops.

    ``perceptual`` is one of the distances of `training.perceptual`.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        config: VAEConfig,
        source: Source,
        perceptual: nn.Module | None = None,
    ) -> None:
        self.vae, self._config, self._source = vae, config, source
        self._perceptual = perceptual  # beside the module: never trained, never saved
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

    def rates(self) -> Mapping[str, float]:
        """None: there is one rate for all."""
        return {}

    def names(self, positions: Sequence[int]) -> list[str]:
        """Names of the pictures that are cut at these positions."""
        indices = (self._index(position // self._config.crops) for position in positions)
        return [self._source.name(index) for index in indices]

    def checkpoint_gradients(self) -> None:
        """From now on compute the blocks twice instead of keeping what they computed."""
        self.vae.enable_gradient_checkpointing()

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
        """Distances, gradient and KL terms, and the PatchGAN's, which counts after its start."""
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
        if self._perceptual is not None:
            far = self._perceptual.to(made.device)(made.float(), pixels).mean()
            fit, logs["perceptual"] = fit + config.perceptual_weight * far, float(far.detach())
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
        save_network(self.vae, folder / "vae")
