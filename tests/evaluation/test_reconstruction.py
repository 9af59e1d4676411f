"""Reconstructions: PSNR by its formula, SSIM by torchmetrics, the distance by scipy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from albums import Album, noise
from PIL import Image

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; pip install '.[eval]'")

from torchmetrics.functional.image import structural_similarity_index_measure

from ldm_toolkit.errors import UserError
from ldm_toolkit.evaluation.distances import frechet
from ldm_toolkit.evaluation.reconstruction import reconstruction
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.storybook.judge import Judge


def by_hand(pipe: LatentPipeline, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Picture and reconstruction in [0, 1], (H, W, 3), by the VAE itself."""
    levels = np.asarray(image, dtype=np.float64) / 255
    pixels = torch.tensor(levels * 2 - 1).permute(2, 0, 1)[None].float()
    vae = pipe.components.vae
    with torch.no_grad():
        made = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return levels, (made[0] / 2 + 0.5).permute(1, 2, 0).double().numpy()


def test_scores_are_those_of_the_formulas(
    subject: Callable[..., Subject], pipe: LatentPipeline, judge_file: Path
) -> None:
    album = Album(noise(20, size=32))
    found = reconstruction(subject(album), features=str(judge_file), inception_weights=None)
    pairs = [by_hand(pipe, image) for image in album.images]
    psnr = [-10 * np.log10(((a - b) ** 2).mean()) for a, b in pairs]
    assert found.scores["psnr"].value == pytest.approx(np.mean(psnr), rel=1e-4)
    both = [[torch.tensor(one).permute(2, 0, 1)[None] for one in pair] for pair in pairs]
    ssim = [float(structural_similarity_index_measure(b, a, data_range=1.0)) for a, b in both]
    assert found.scores["ssim"].value == pytest.approx(np.mean(ssim), rel=1e-3)
    judge = Judge.load(judge_file)
    made = [Image.fromarray((b * 255).round().astype(np.uint8)) for _, b in pairs]
    before, after = judge.features(album.images).numpy(), judge.features(made).numpy()
    assert found.scores["rfid"].value == pytest.approx(frechet(before, after).value, rel=1e-3)
    assert found.settings["dtype"] == "torch.float32"


def test_pictures_are_cut_to_what_the_vae_takes(
    subject: Callable[..., Subject], pipe: LatentPipeline, judge_file: Path
) -> None:
    image = noise(1, size=40)[0].crop((0, 0, 39, 35))
    middle = image.crop((3, 1, 35, 33))
    options = {"features": str(judge_file), "inception_weights": None}
    one = reconstruction(subject(Album([image])), **options)
    other = reconstruction(subject(Album([middle])), **options)
    assert one.scores["psnr"].value == other.scores["psnr"].value
    assert "rfid" not in one.scores
    assert any("no Fréchet distance" in line for line in one.notes)
    with pytest.raises(UserError, match="too small"):
        reconstruction(subject(Album([image.crop((0, 0, 7, 30))])), **options)


def test_without_a_judge_the_other_scores_are_told(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ldm_toolkit.storybook.JUDGE_FILE", tmp_path / "none.safetensors")
    found = reconstruction(
        subject(Album(noise(2, size=16))), features="judge", inception_weights=None
    )
    assert {"psnr", "ssim"} <= found.scores.keys()
    assert "none.safetensors is not there" in " ".join(found.notes)
