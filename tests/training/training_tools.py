"""Small helpers of the training tests."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldm_toolkit.models.tokenizer import load_tokenizer
from ldm_toolkit.training.config import LoopConfig, UNetConfig, VAEConfig
from ldm_toolkit.training.data import ImageFolder
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.methods.dreambooth import DreamBooth
from ldm_toolkit.training.methods.full import FullUNet
from ldm_toolkit.training.methods.lora import LoraUNet
from ldm_toolkit.training.methods.textual_inversion import TextualInversion
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.perceptual import EncoderDistance
from ldm_toolkit.training.prepare import _caption_rows, caption_tokens


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited too long")
        time.sleep(0.002)


def steps_of(metrics: Path) -> list[int]:
    """The steps that a metrics file holds so far."""
    if not metrics.is_file():
        return []
    return [
        json.loads(line)["step"] for line in metrics.read_text().splitlines() if line[-1:] == "}"
    ]


def tiny_unet(seed: int = 0, channels: tuple[int, ...] = (16, 32)) -> UNet2DConditionModel:
    """A UNet of some thousand weights for 8 x 8 latents; text width 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )


def tiny_vae(seed: int = 0, channels: tuple[int, ...] = (8, 8, 16, 16), groups: int = 4) -> Any:
    """An AutoencoderKL that shrinks eight times, with few channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=groups,
            latent_channels=4,
            sample_size=64,
        )


def random_moments(pictures: int, rng: torch.Generator) -> torch.Tensor:
    """Posteriors of so many pictures, (N, 8, 8, 8): random means and little variance."""
    mean = torch.randn(pictures, 4, 8, 8, generator=rng)
    return torch.cat([mean, torch.full_like(mean, -8.0)], dim=1).half()


def noise_schedule(prediction: str) -> dict[str, Any]:
    """Stable Diffusion's schedule for a kind of prediction."""
    return {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
    }  # fmt: skip


def unet_method(
    output: Path,
    *,
    pictures: int = 6,
    captions: int = 1,
    prediction: str = "epsilon",
    kind: Any = FullUNet,
    unet: Any = None,
    instances: int | None = None,
    **options: Any,
) -> tuple[Any, UNetConfig]:
    """A UNet method on random latents and embeddings of ``pictures`` pictures."""
    config = UNetConfig(**({"data": "none", "output": str(output), "size": 64} | options))
    rng = torch.Generator().manual_seed(1)
    moments = random_moments(pictures, rng)
    rows = [[1 + captions * i + n for n in range(captions)] for i in range(pictures)]
    method = kind(
        unet if unet is not None else tiny_unet(),
        config,
        moments=moments,
        embeddings=torch.randn(1 + captions * pictures, 7, 32, generator=rng).half(),
        caption_rows=rows,
        scaling_factor=0.5,
        scheduler_config=noise_schedule(prediction),
        instances=instances,
    )
    return method, config


def lora_method(output: Path, **options: Any) -> tuple[LoraUNet, UNetConfig]:
    """The LoRA method in the same way."""
    return unet_method(output, kind=LoraUNet, method="lora", **options)


def dreambooth_method(
    output: Path, *, instances: int = 2, kind: Any = DreamBooth, **options: Any
) -> tuple[Any, UNetConfig]:
    """DreamBooth in the same way: the first pictures are the subject's, the others its class's."""
    settings = {"method": "dreambooth", "class_prompt": "a dog"} | options
    return unet_method(output, kind=kind, instances=instances, **settings)


def inversion_method(
    output: Path,
    model: Path,
    *,
    captions: Any = (("a dog",), ("a cat",)),
    moments: torch.Tensor | None = None,
    prediction: str = "epsilon",
    unet: Any = None,
    **options: Any,
) -> tuple[TextualInversion, UNetConfig]:
    """A textual inversion with the tokenizer and text encoder of a tiny model."""
    settings = {"data": "none", "output": str(output), "size": 64}
    settings |= {"method": "textual-inversion", "token": "<x>"}
    config = UNetConfig(**(settings | options))
    if moments is None:
        moments = random_moments(len(captions), torch.Generator().manual_seed(1))
    method = TextualInversion(
        unet if unet is not None else tiny_unet(),
        config,
        tokenizer=CLIPTokenizer.from_pretrained(str(model / "tokenizer")),
        encoder=load_network(CLIPTextModel, model / "text_encoder"),
        captions=captions,
        moments=moments,
        scaling_factor=0.5,
        scheduler_config=noise_schedule(prediction),
    )
    return method, config


def encoder_method(
    output: Path,
    model: Path,
    *,
    kind: Any = FullUNet,
    captions: Any = (("a dog", "a red cat"), ("a bird",), ("a blue house at night",)),
    unet: Any = None,
    encoder: Any = None,
    prediction: str = "epsilon",
    **options: Any,
) -> tuple[Any, UNetConfig]:
    """A UNet method that trains the text encoder of a tiny model too."""
    settings = {"data": "none", "output": str(output), "size": 64, "train_text_encoder": True}
    config = UNetConfig(**(settings | options))
    rows, texts = _caption_rows(captions)
    method = kind(
        unet if unet is not None else tiny_unet(),
        config,
        encoder=encoder or load_network(CLIPTextModel, model / "text_encoder"),
        embeddings=caption_tokens(load_tokenizer(model / "tokenizer"), texts),
        caption_rows=rows,
        moments=random_moments(len(captions), torch.Generator().manual_seed(1)),
        scaling_factor=0.5,
        scheduler_config=noise_schedule(prediction),
    )
    return method, config


def vae_method(output: Path, data: Path, **options: Any) -> tuple[VAEMethod, VAEConfig]:
    """The autoencoder method on an image folder."""
    settings = {"data": str(data), "output": str(output), "size": 64, "crop": 32, "batch_size": 4}
    config = VAEConfig(**(settings | options))
    vae = tiny_vae()
    perceptual = EncoderDistance(vae) if config.perceptual == "encoder" else None
    return VAEMethod(vae, config, ImageFolder(data, config.size), perceptual), config


class Line:
    """The smallest method: fits w x = 2 x + noise of the position; can break at some steps."""

    def __init__(self, bad=(), scale=1.0):
        self.module = nn.Linear(2, 1)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(0.5)
        self.bad, self.scale, self.seen = set(bad), scale, []

    def trainable(self):
        return self.module

    def rates(self):
        return {}

    def names(self, positions):
        return [f"{position % 7}.png" for position in positions]

    def batch(self, positions):
        self.seen.append(list(positions))
        return {"input": torch.tensor([[float(p % 7), 1.0] for p in positions])}

    def loss(self, outputs, step):
        loss = self.scale * (outputs - 3.0).square().mean()
        return (loss * float("nan") if step in self.bad else loss), {}

    def save(self, folder):
        torch.save(self.module.state_dict(), folder / "line.pt")


def line_config(output: Path, **options: Any) -> LoopConfig:
    """Options of a short run of it."""
    output.mkdir(exist_ok=True)
    settings = {"steps": 12, "batch_size": 2, "warmup": 2, "lr": 0.05, "checkpoint_every": 4}
    return LoopConfig(output=str(output), **(settings | options))


def metric(output: Path, name: str) -> list[float]:
    """A column of metrics.jsonl."""
    return [json.loads(line)[name] for line in (output / "metrics.jsonl").read_text().splitlines()]
