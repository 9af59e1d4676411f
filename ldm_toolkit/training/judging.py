"""The judge's training: renders, renders through an autoencoder, and pictures of nothing."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ldm_toolkit.files import write_atomic
from ldm_toolkit.hardware import native_bf16
from ldm_toolkit.latents import pil_to_pixels, pixels_to_pil
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, SIDE, Judge, JudgeNet, labels, prepare
from ldm_toolkit.storybook.render import render
from ldm_toolkit.storybook.spoiled import SPOILED, spoil
from ldm_toolkit.training.config import JudgeConfig
from ldm_toolkit.training.rng import generator

__all__ = ["JudgeTraining", "half_denoised", "reconstructions", "weathered"]

_FULL = 512
_HARD = ("melted",) * 5  # the kind that takes longest to learn comes most often
_DRAWN, _DECODED = 0.6, 0.15  # shares of a batch; the rest shows nothing


@torch.inference_mode()
def reconstructions(vae: AutoencoderKL, drawn: Sequence[scenes.Scene]) -> Tensor:
    """Scenes through the autoencoder at 512 px, as (N, SIDE, SIDE, 3) bytes."""
    made = []
    with _fast():
        for scene in drawn:
            pixels = pil_to_pixels(render(scene, _FULL))[None]
            made.append(_small(vae.decode(vae.encode(pixels).latent_dist.mode()).sample))
    return torch.stack(made)


@torch.inference_mode()
def half_denoised(vae: AutoencoderKL, drawn: Sequence[scenes.Scene], seed: int) -> Tensor:
    """What a run shows that was stopped too early: latents with noise, or blurred ones, decoded.

    (N, SIDE, SIDE, 3) bytes.
    """
    made = []
    with _fast():
        for index, scene in enumerate(drawn):
            rng = generator(seed, "half denoised", index)
            latents = vae.encode(pil_to_pixels(render(scene, _FULL))[None]).latent_dist.mode()
            share = float(torch.rand(1, generator=rng)) * 0.5 + 0.35
            if index % 2:
                noise = torch.randn(latents.shape, generator=rng)
                latents = (1 - share) ** 0.5 * latents + share**0.5 * noise
            else:
                cells = 3 + int(5 * share)
                few = nn.functional.adaptive_avg_pool2d(latents, cells)
                latents = nn.functional.interpolate(few, latents.shape[-2:], mode="bicubic")
            made.append(_small(vae.decode(latents).sample))
    return torch.stack(made)


def _fast() -> torch.autocast:
    """As pictures are decoded that the judge will see: in bfloat16 where the processor has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=native_bf16())


def _small(pixels: Tensor) -> Tensor:
    """(1, 3, 512, 512) in [-1, 1] to (SIDE, SIDE, 3) bytes."""
    small = pixels_to_pil(pixels.float())[0].resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small).copy())


class JudgeTraining:
    """Every head learns from renders, the head of "none of these" from everything."""

    def __init__(self, config: JudgeConfig, vae: AutoencoderKL) -> None:
        self._config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            fresh = JudgeNet(config.network)
        self.module = fresh if config.start is None else Judge.load(Path(config.start)).net.train()
        self._scenes = [scenes.sample_scene(config.seed + 1, k) for k in range(config.decoded)]
        self._pool = self._decoded(vae)
        self._labels: Tensor = torch.empty(0)
        self._valid: Tensor = torch.empty(0)

    def _decoded(self, vae: AutoencoderKL) -> dict[str, Tensor]:
        """Decoded pictures, computed once for a run."""
        file = Path(self._config.output) / "decoded.safetensors"
        if file.is_file():
            return load_file(file)
        some = self._scenes[: max(1, len(self._scenes) // 3)]
        pool = {"whole": reconstructions(vae, self._scenes)}
        pool["half"] = half_denoised(vae, some, self._config.seed)
        write_atomic(file, save(pool))
        return pool

    def trainable(self) -> nn.Module:
        """The whole network."""
        return self.module

    def rates(self) -> Mapping[str, float]:
        """One learning rate for all."""
        return {}

    def names(self, positions: Sequence[int]) -> list[str]:
        """None: scenes are drawn."""
        return []

    def checkpoint_gradients(self) -> None:
        """Nothing to save: the network is small."""

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Pictures (B, 3, SIDE, SIDE), some of them spoiled."""
        pictures, rows, valid = [], [], []
        for position in positions:
            draw = scenes.generator("judge", self._config.seed, position)
            picture, scene = self._picture(draw, position)
            pictures.append(weathered(picture, draw))
            shown = labels(scene) if scene is not None else {}
            rows.append([ATTRIBUTES[n].index(shown[n]) if shown else -1 for n in ATTRIBUTES])
            valid.append(float(scene is not None))
        self._labels, self._valid = torch.tensor(rows), torch.tensor(valid)
        pixels = prepare(pictures)
        for row, position in enumerate(positions):
            rng = generator(self._config.seed, "grain", position)
            grain = float(torch.rand(1, generator=rng)) * 0.1
            pixels[row] += grain * torch.randn(pixels[row].shape, generator=rng)
        return {"pixels": pixels}

    def _picture(
        self, draw: random.Random, position: int
    ) -> tuple[Image.Image, scenes.Scene | None]:
        chance, size = draw.random(), draw.choice((SIDE, SIDE, 256))
        if chance < _DRAWN:
            scene = scenes.sample_scene(self._config.seed, position)
            return render(scene, size), scene
        if chance < _DRAWN + _DECODED:
            index = draw.randrange(len(self._scenes))
            return Image.fromarray(self._pool["whole"][index].numpy()), self._scenes[index]
        kind = draw.choice((*SPOILED, "half", *_HARD))
        if kind == "half":
            half = self._pool["half"]
            return Image.fromarray(half[draw.randrange(len(half))].numpy()), None
        return spoil(kind, draw.getrandbits(40), size), None

    def loss(self, outputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of every attribute of true pictures, and of being one."""
        device = outputs["valid"].device
        rows, valid = self._labels.to(device), self._valid.to(device)
        own = nn.functional.binary_cross_entropy_with_logits(outputs["valid"].float(), valid)
        loss, right = own, {}
        for column, name in enumerate(ATTRIBUTES):
            logits = outputs[name].float()
            # A batch of spoiled pictures alone has no attributes: its sum is 0, not 0 / 0.
            total = nn.functional.cross_entropy(
                logits, rows[:, column], ignore_index=-1, reduction="sum"
            )
            loss = loss + total / valid.sum().clamp(min=1)
            hits = (logits.argmax(1) == rows[:, column]).float() * valid
            right[name] = float(hits.sum() / valid.sum().clamp(min=1))
        right["valid"] = float(((outputs["valid"] > 0).float() == valid).float().mean())
        return loss, right

    def save(self, folder: Path) -> None:
        """``folder/judge.safetensors``."""
        Judge(self.module).save(folder / "judge.safetensors")


def weathered(picture: Image.Image, draw: random.Random) -> Image.Image:
    """The picture as a model might draw it: wobbly, soft, mottled, a little off in its colours."""
    if draw.random() < 0.6:
        picture = _wobbly(picture, draw)
    if draw.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.6)))
    picture = ImageEnhance.Brightness(picture).enhance(draw.uniform(0.92, 1.08))
    picture = ImageEnhance.Color(picture).enhance(draw.uniform(0.88, 1.1))
    return ImageEnhance.Contrast(picture).enhance(draw.uniform(0.9, 1.1))


def _wobbly(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Lines that a hand draws, and colour that lies unevenly: small smooth fields of both."""
    rng = torch.Generator().manual_seed(draw.getrandbits(62))

    def field(channels: int, cells: int, most: float) -> Tensor:
        few = torch.randn(1, channels, cells, cells, generator=rng) * draw.uniform(0, most)
        return nn.functional.interpolate(few, picture.size[::-1], mode="bicubic")

    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float()
    straight = nn.functional.affine_grid(
        torch.eye(2, 3)[None], list(pixels.shape), align_corners=False
    )
    bent = straight + (field(2, 6, 0.03) + field(2, 24, 0.012)).permute(0, 2, 3, 1)
    pixels = nn.functional.grid_sample(
        pixels, bent, padding_mode="border", align_corners=False
    ) * (1 + field(3, 12, 0.1))  # fmt: skip
    return Image.fromarray(pixels[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())
