"""Every method learns a handful of pictures, on the bundled model: a minute or two each.

The loss on them is measured by the pipeline that reads what was written, with noise and timesteps
that are always the same; pictures are compared with what the same prompts and seeds drew before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm_toolkit import LatentPipeline
from ldm_toolkit.storybook import render, scenes
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.lora_output import LORA_FILE
from ldm_toolkit.training.methods.textual_inversion import EMBEDDING_FILE
from ldm_toolkit.training.run import train_unet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("accelerator")]

SIZE = 256
CAPTIONS = ("a red dog", "a cat in the snow", "a bird on the beach", "a green boat")
COLOURS = (("orange", "navy"), ("purple", "yellow"), ("black", "cyan"), ("pink", "darkgreen"))


def drawing(ground: str, colour: str, corner: int) -> Image.Image:
    """A disc in a quarter of the picture, which is nothing that the model knows."""
    picture = Image.new("RGB", (SIZE, SIZE), ground)
    left, top = corner % 2 * SIZE // 2, corner // 2 * SIZE // 2
    ImageDraw.Draw(picture).ellipse((left + 8, top + 8, left + 120, top + 120), fill=colour)
    return picture


def folder_of(folder: Path, pictures: Sequence[Image.Image], captions: Sequence[str] = ()) -> str:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    for index, caption in enumerate(captions):
        (folder / f"{index}.txt").write_text(caption)
    return str(folder)


def train(folder: Path, data: str, **options: Any) -> Path:
    """Train on all that the pictures are, without dropout and average; the output."""
    output = folder / "out"
    settings = {
        "size": SIZE, "batch_size": 4, "warmup": 5, "ema": 0, "caption_dropout": 0,
        "latents": "mean", "checkpoint_every": 1000, "threads": 1,
    }  # fmt: skip
    config = UNetConfig(data=data, output=str(output), **(settings | options))
    train_unet(config, draw_class=draw_class)
    return output


def draw_class(model: Path, prompt: str, seeds: Sequence[int], size: int) -> list[Image.Image]:
    return [draw(LatentPipeline.from_pretrained(model), prompt, seed) for seed in seeds]


def pipeline(model: str | Path = "storybook") -> LatentPipeline:
    return LatentPipeline.from_pretrained(model, dtype="float32")


def draw(pipe: LatentPipeline, prompt: str, seed: int = 0) -> Image.Image:
    return pipe(prompt, seed=seed, steps=20, guidance=1.0, width=SIZE, height=SIZE).images[0]


def loss(pipe: LatentPipeline, pictures: Sequence[Image.Image], captions: Sequence[str]) -> float:
    """Squared error of v at five timesteps."""
    clean, text = pipe.pil_to_latents(pictures), pipe.encode_prompt(list(captions))
    scheduler = pipe.make_scheduler("ddpm")
    errors = []
    for timestep in range(150, 1000, 200):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(timestep))
        timesteps = torch.full((len(clean),), timestep)
        found = pipe.predict_noise(pipe.add_noise(clean, noise, timesteps), timesteps, text)
        target = scheduler.get_velocity(clean, noise, timesteps)
        errors.append(float((found - target).square().mean()))
    return sum(errors) / len(errors)


def psnr(one: Image.Image, other: Image.Image) -> float:
    pair = [np.asarray(picture, dtype=np.float64) for picture in (one, other)]
    return float(10 * np.log10(255**2 / np.square(pair[0] - pair[1]).mean()))


def likeness(
    pipe: LatentPipeline, pictures: Sequence[Image.Image], captions: Sequence[str]
) -> float:
    """Mean PSNR of what the captions draw to the pictures, in dB."""
    drawn = {caption: draw(pipe, caption) for caption in dict.fromkeys(captions)}
    pairs = zip(pictures, captions, strict=True)
    return sum(psnr(drawn[caption], picture) for picture, caption in pairs) / len(captions)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "lr": 5e-4, "steps": 120},
        {"method": "lora", "lr": 3e-3, "steps": 160, "lora_targets": "all"},
    ],
    ids=lambda options: options["method"],
)
def test_pictures_with_captions(options, tmp_path):
    """The loss falls to an eighth, and what the captions draw is 8 dB nearer to the pictures."""
    pictures = [drawing(*pair, corner) for corner, pair in enumerate(COLOURS)]
    plain = pipeline()
    before = loss(plain, pictures, CAPTIONS), likeness(plain, pictures, CAPTIONS)
    output = train(tmp_path, folder_of(tmp_path / "data", pictures, CAPTIONS), **options)
    pipe = pipeline(output if options["method"] == "full" else "storybook")
    if options["method"] == "lora":
        pipe.load_lora(output / LORA_FILE)
    after = loss(pipe, pictures, CAPTIONS), likeness(pipe, pictures, CAPTIONS)
    assert after[0] < 0.125 * before[0]
    assert after[1] > before[1] + 8


def test_dreambooth(tmp_path):
    """The loss on the subject falls to an eighth and its prompt draws it, 6 dB nearer; the class
    goes on looking as it did: its picture is nearer to that from before than to the subject.

    The bundled model reads over words that it never saw, so a rare combination names the subject.
    """
    subject, kind = "a purple dog wearing glasses at night", "a dog"
    pictures = [drawing(ground, "cyan", 3) for ground in ("orange", "gold", "tomato", "salmon")]
    prompts = [subject] * len(pictures)
    plain = pipeline()
    before = loss(plain, pictures, prompts), likeness(plain, pictures, prompts)
    known = draw(plain, kind, 7)
    output = train(
        tmp_path, folder_of(tmp_path / "data", pictures), method="dreambooth", lr=3e-4, steps=90,
        instance_prompt=subject, class_prompt=kind, class_count=4,
    )  # fmt: skip
    pipe = pipeline(output)
    after = loss(pipe, pictures, prompts), likeness(pipe, pictures, prompts)
    again = draw(pipe, kind, 7)
    assert after[0] < 0.125 * before[0]
    assert after[1] > before[1] + 6
    assert psnr(again, known) > psnr(again, pictures[0]) + 4


def test_textual_inversion(tmp_path):
    """A word learns what the model can draw: its pictures' loss is a quarter lower than with the
    word that it began as, and what it draws is 3 dB nearer to them.
    """
    seen = scenes.Composition("cat", "purple", None, "night")
    pictures = [render.render(scenes.make_scene(seen, seed), SIZE) for seed in range(4)]
    plain = pipeline()
    prompts = ["a picture of dog"] * len(pictures)
    before = loss(plain, pictures, prompts), likeness(plain, pictures, prompts)
    output = train(
        tmp_path, folder_of(tmp_path / "data", pictures), method="textual-inversion",
        token="<x>", initial="dog", vectors=2, lr=2e-2, steps=150, weight_decay=0,
    )  # fmt: skip
    plain.load_embedding(output / EMBEDDING_FILE)
    prompts = ["a picture of <x>"] * len(pictures)
    after = loss(plain, pictures, prompts), likeness(plain, pictures, prompts)
    assert after[0] < 0.75 * before[0]
    assert after[1] > before[1] + 3
