"""What the benchmarks share: models, versions, tables."""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def random_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5's networks with random weights, in half precision as it is shared."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    channels = (128, 256, 512, 512)
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(bundled() / "tokenizer"),
        text_encoder=CLIPTextModel(text).half(),
        unet=UNet(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half(),
        vae=AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ).half(),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def bundled() -> Path:
    """The bundled model's folder."""
    from ldm_toolkit.models.identity import find_model

    return find_model("storybook")


def versions() -> str:
    """The versions of torch and diffusers."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown, the first column to the left."""
    columns = list(head)
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
