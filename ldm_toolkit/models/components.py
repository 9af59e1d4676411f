"""A loaded model as one record."""

import copy
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm_toolkit.models.configs import latent_factor
from ldm_toolkit.models.identity import EmbeddingIdentity, LoraIdentity, ModelIdentity
from ldm_toolkit.recipe import ModelDefaults

__all__ = ["Components", "module_hash", "sharing_copy", "tensors_hash"]


@dataclass(frozen=True)
class Components:
    """The parts of a Stable Diffusion model: loaded, checked, on the device, nothing else.

    ``tokenizer`` and ``text_encoder`` are transformers', ``vae`` and ``unet`` diffusers' classes;
    ``scheduler_config`` is what a scheduler is built from, ``files`` the weight files of each part.
    ``loras`` and ``embeddings`` tell what `models.adapters` attached, ``preview_vae`` is what
    `preview.with_preview_vae` did; ``backend`` computes the UNet.
    """

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler_config: Mapping[str, Any]
    identity: ModelIdentity
    defaults: ModelDefaults
    memory_format: str = field(default="contiguous")
    attention: str = field(default="sdpa")
    compiled: bool = False
    backend: str = field(default="torch")
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    loras: tuple[LoraIdentity, ...] = ()
    embeddings: tuple[EmbeddingIdentity, ...] = ()
    preview_vae: Any = None

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the models compute in."""
        return next(self.unet.parameters()).dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, 4."""
        return int(self.vae.config.latent_channels)

    @property
    def inpainting(self) -> bool:
        """Whether the UNet sees a mask and a masked picture beside the latents: 9 channels."""
        return int(self.unet.config.in_channels) == 2 * self.latent_channels + 1

    @property
    def latent_factor(self) -> int:
        """Pixels a latent position covers in each direction, 8."""
        return latent_factor(self.vae.config)

    @property
    def latent_scale(self) -> float:
        """What brings the VAE's latents to unit variance."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_shift(self) -> float:
        """The VAE's latents' mean, 0 unless the model says otherwise."""
        shift = getattr(self.vae.config, "shift_factor", None)
        return float(shift) if shift is not None and math.isfinite(shift) else 0.0

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) for a picture's width and height in pixels."""
        factor = self.latent_factor
        return self.latent_channels, height // factor, width // factor


def sharing_copy(network: torch.nn.Module) -> Any:
    """A copy of a network's modules around the same parameters and buffers; it is not compiled."""
    tensors: Iterable[torch.Tensor] = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def module_hash(module: torch.nn.Module) -> str:
    """SHA-256 over a module's tensors in the order of their names."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of tensors in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(raw.data)
    return digest.hexdigest()
