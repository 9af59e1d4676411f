"""Random-weight Stable Diffusion models that diffusers saves: small, repeatable, fast to make."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "a dog wearing a hat",
    "a red cat with glasses on the beach",
    "a blue house beside a tree in the snow",
    "a small bird with a crown in a forest",
    "a yellow car on a street at night",
] * 4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def write_tokenizer(folder: Path) -> int:
    """A CLIP-format BPE tokenizer trained on a few captions; returns its vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    words += [left + right for left, right in merges]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


def make_model(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    text_width: int = 32,
    unet_channels: tuple[int, ...] = (32, 64),
    in_channels: int = 4,
    second: bool = False,
    seed: int = 0,
) -> Path:
    """Write a model of 64 x 64 pixels in the diffusers layout; equal arguments, equal bytes.

    ``second``: laid out as Stable Diffusion 2 (OpenCLIP's activation, linear projections, heads a
    level); 9 ``in_channels`` make an inpainting model.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocabulary = write_tokenizer(folder / "tokenizer")
        text = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=text_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=2,
            hidden_act="gelu" if second else "quick_gelu",
            num_attention_heads=4,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
        levels = len(unet_channels)
        attention = ["CrossAttn"] * (levels - 1)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            use_linear_projection=second,
            layers_per_block=1,
            block_out_channels=unet_channels,
            down_block_types=tuple([f"{kind}DownBlock2D" for kind in attention] + ["DownBlock2D"]),
            up_block_types=tuple(["UpBlock2D"] + [f"{kind}UpBlock2D" for kind in attention]),
            cross_attention_dim=text_width,
            attention_head_dim=[2 * level + 2 for level in range(levels)] if second else 4,
            norm_num_groups=8,
        )
        unet.save_pretrained(folder / "unet")
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=64,
            scaling_factor=0.18215,
        )
        vae.save_pretrained(folder / "vae")
    scheduler = PNDMScheduler(
        **BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=prediction_type
    )
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": (
            "StableDiffusionInpaintPipeline" if in_channels == 9 else "StableDiffusionPipeline"
        ),
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_preview_vae(folder: Path, **changes: object) -> Path:
    """Write a tiny AutoencoderTiny for 4 latent channels, 8 pixels a position."""
    from diffusers import AutoencoderTiny

    config = {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoencoderTiny(**config | changes).save_pretrained(folder)
    return folder
