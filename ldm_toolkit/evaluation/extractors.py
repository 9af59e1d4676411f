"""Networks whose features stand for pictures: the judge of storybook pictures, or Inception."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm_toolkit import storybook
from ldm_toolkit.errors import ModelError, UserError, first_line, install_hint
from ldm_toolkit.files import sha256_file
from ldm_toolkit.hardware import choose_device
from ldm_toolkit.models.pickles import written_anew
from ldm_toolkit.storybook.judge import SIDE, Judge

__all__ = ["INCEPTION_SHA256", "Extractor", "judge_extractor", "open_extractor"]

INCEPTION_SHA256 = "6726825d"
"""How the SHA-256 of the usual Inception weights begins."""


@dataclass(frozen=True)
class Extractor:
    """From pictures to features (N, F) float32, and what makes distances in them comparable."""

    name: str
    sha256: str
    resize: str
    compute: Callable[[Sequence[Image.Image]], np.ndarray]

    @property
    def settings(self) -> dict[str, str]:
        """Plain data for the scores."""
        return {"features": self.name, "features_sha256": self.sha256, "resize": self.resize}

    @property
    def key(self) -> str:
        """What decides the features beside the pictures."""
        return f"{self.name} {self.sha256} {self.resize}"


def open_extractor(name: str, inception_weights: Path | None, device: str = "auto") -> Extractor:
    """The network that ``--features`` names: judge, inception, or a judge's file.

    ``device`` is where Inception computes; the judge is small and stays on the CPU.
    Raises ModelError, UserError where a package is missing.
    """
    if name == "inception":
        if inception_weights is None:
            raise UserError("--features inception needs --inception-weights FILE")
        return _inception(inception_weights, choose_device(device))
    return judge_extractor(storybook.JUDGE_FILE if name == "judge" else Path(name))


def judge_extractor(file: Path) -> Extractor:
    """The features of a judge's file. Raises ModelError."""
    judge = Judge.load(file)

    def compute(images: Sequence[Image.Image]) -> np.ndarray:
        return judge.features(images).numpy()

    return Extractor("judge", sha256_file(file), f"box filter to {SIDE}x{SIDE}", compute)


def _inception(weights: Path, device: torch.device) -> Extractor:
    """Inception v3 of Szegedy et al. as Heusel et al. 2017 use it, by torch-fidelity."""
    digest = sha256_file(weights)
    if not digest.startswith(INCEPTION_SHA256):
        raise ModelError(
            f"{weights} is not the file of weights that the distance is defined by: its SHA-256 "
            f"begins with {digest[:8]}, expected {INCEPTION_SHA256}"
        )
    network = _inception_network(weights).to(device)

    @torch.inference_mode()
    def compute(images: Sequence[Image.Image]) -> np.ndarray:
        rows = []
        for image in images:  # their sizes may differ
            levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            rows.append(network(levels[None].to(device))[0].flatten().cpu())
        return torch.stack(rows).numpy()

    return Extractor("inception", digest, "TensorFlow 1's bilinear filter to 299x299", compute)


def _inception_network(weights: Path) -> torch.nn.Module:
    """torch-fidelity's network up to its 2048 pooled features. Raises UserError, ModelError."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # torchvision for another torch: RuntimeError
        raise UserError(
            f"--features inception needs torch-fidelity ({first_line(error)}): "
            f"{install_hint('eval')}"
        ) from error
    with written_anew(weights) as safe:
        try:
            return FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(safe)
            )
        except RuntimeError as error:
            raise ModelError(f"{weights} holds no such network: {first_line(error)}") from error
