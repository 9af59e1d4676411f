"""How different two pictures look: distances between the features of a network that stays as it is.

Both distances are modules that take pictures (B, 3, H, W) in [-1, 1] and return (B,), 0 for equal
pictures. Gradients reach the first picture; the network itself is never trained, and it belongs to
no method's module: neither the optimiser nor a checkpoint nor the result sees it.
"""

import contextlib
import copy
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_toolkit.errors import ModelError, UserError, install_hint
from ldm_toolkit.files import sha256_file
from ldm_toolkit.models.pickles import written_anew

__all__ = [
    "EncoderDistance",
    "Lpips",
    "cached_frechet",
    "cached_lpips",
    "load_lpips",
    "lpips_weights",
]

_SECONDS = 10.0  # without a sign of the network


class EncoderDistance(nn.Module):
    """The distance of Zhang et al. 2018, eq. 1, between features of an autoencoder's encoder.

    Every model has one, and it is here without a download: a copy, made before anything is trained.
    Its features are the activations inside its residual blocks, ahead of their second convolution,
    where they are normalised; what passes between the blocks may be colour above all. All weights
    w_l of the equation are 1: they were fitted to nobody's judgement, as LPIPS's were, and a shift
    of brightness counts no less than a blur.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.first = copy.deepcopy(vae.encoder.conv_in)
        self.blocks = copy.deepcopy(vae.encoder.down_blocks)
        self.eval().requires_grad_(False)
        self._features: list[Tensor] = []
        for block in self.blocks:
            for resnet in block.resnets:
                resnet.conv2.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._features.append(inputs[0])

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Activations of (B, 3, H, W), from fine to coarse, of length 1 along the channels."""
        values = self.first(pixels)
        for block in self.blocks:
            values = block(values)
        found, self._features = self._features, []
        return [nn.functional.normalize(one, dim=1) for one in found]

    def forward(self, made: Tensor, pixels: Tensor) -> Tensor:
        """Sum over layers of the mean over places of the squared distance along channels; (B,)."""
        with torch.no_grad():
            targets = self.features(pixels)
        pairs = zip(self.features(made), targets, strict=True)
        distances = [(one - other).square().sum(dim=1).mean(dim=(1, 2)) for one, other in pairs]
        return torch.stack(distances).sum(dim=0)


class Lpips(nn.Module):
    """LPIPS of torchmetrics with VGG16, as in the latent-diffusion paper's first stage."""

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # The metric around it would refuse what leaves [-1, 1] a little, and keep every graph.
        self.network = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
        self.eval().requires_grad_(False)

    def forward(self, made: Tensor, pixels: Tensor) -> Tensor:
        """Zhang et al. 2018, eq. 1, with their weights; (B,)."""
        return self.network(made, pixels).flatten()


def load_lpips() -> Lpips:
    """LPIPS, its weights downloaded where they lack. Raises UserError where they cannot be had."""
    instead = "pass --perceptual encoder, which needs nothing from outside"
    try:
        file, address = lpips_weights()
    except (ImportError, RuntimeError) as error:  # torchvision for another torch: RuntimeError
        raise UserError(
            f"--perceptual lpips needs torchmetrics and torchvision ({_line(error)}): "
            f"{install_hint('lpips')}, or {instead}"
        ) from error
    try:
        with _impatient():
            return Lpips()
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"--perceptual lpips cannot have the weights of its network ({_line(error)}): put "
            f"{address} at {file}, or {instead}"
        ) from error


def cached_lpips() -> Lpips | None:
    """LPIPS where all that it needs is on this machine."""
    try:
        file, _ = lpips_weights()
        return Lpips() if file.is_file() else None
    except (ImportError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return None


def cached_frechet() -> Any | None:
    """torchmetrics' Fréchet inception distance where all that it needs is on this machine.

    Of pickles only the file that torch-fidelity names by its hash is read, and only its tensors.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import FrechetInceptionDistance

        file = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rpartition("/")[2])
        named = file.stem.rpartition("-")[2]
        if not file.is_file() or not sha256_file(file).startswith(named):
            return None
        with written_anew(file) as safe:
            return FrechetInceptionDistance(
                normalize=True, feature_extractor_weights_path=str(safe)
            )
    except (ImportError, OSError, RuntimeError, ValueError, ModelError):
        return None


def lpips_weights() -> tuple[Path, str]:
    """Where torchvision keeps VGG16's weights, and where it has them from. Raises ImportError."""
    import torchmetrics  # noqa: F401 - what is missing is told at once
    from torchvision.models import VGG16_Weights

    address = VGG16_Weights.DEFAULT.url
    return Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2]), address


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Inside the block a network that does not answer is given up after some seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
