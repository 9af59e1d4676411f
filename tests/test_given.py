"""Runs that start from a picture, a mask, latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm_toolkit.errors import UserError
from ldm_toolkit.files import sha256_bytes
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.pipeline import LatentPipeline

PROMPT = "a dog wearing a hat"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    levels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)
    return mask


class TestFromImage:
    @pytest.mark.parametrize(
        ("steps", "strength", "scheduler", "total"),
        [
            (20, 0.75, "ddim", 15),
            (20, 1.0, "ddim", 20),
            (10, 0.55, "euler", 5),
            (5, 0.6, "heun", 5),
        ],
    )
    def test_strength_says_how_many_steps_are_run(
        self,
        pipe: LatentPipeline,
        picture: Image.Image,
        steps: int,
        strength: float,
        scheduler: str,
        total: int,
    ) -> None:
        options: dict[str, Any] = {"steps": steps, "strength": strength, "scheduler": scheduler}
        run = pipe.stream(PROMPT, image=picture, seed=1, **options)
        taken = list(run)
        assert len(taken) == run.total == total
        assert len(run.result.images) == 1

    def test_less_strength_keeps_more(self, pipe: LatentPipeline, picture: Image.Image) -> None:
        latents = pipe.pil_to_latents(picture)
        distances = []
        for strength in (0.1, 0.5, 1.0):
            made = pipe(PROMPT, image=picture, strength=strength, steps=10, seed=1, guidance=1.0)
            distances.append(float((made.latents - latents).abs().mean()))
        assert distances == sorted(distances)

    def test_the_recipe_holds_the_inputs_hash(
        self, pipe: LatentPipeline, picture: Image.Image, mask: Image.Image
    ) -> None:
        recipe = pipe.stream(PROMPT, image=picture, mask=mask, seed=1).recipes[0]
        assert recipe.image_sha256 == pixels_sha256(picture)
        assert recipe.mask_sha256 == pixels_sha256(mask)
        assert recipe.strength == 1.0

    def test_pictures_have_their_own_seeds(
        self, pipe: LatentPipeline, picture: Image.Image
    ) -> None:
        options: dict[str, Any] = {"image": picture, "steps": 4, "scheduler": "euler_a"}
        both = pipe(PROMPT, seed=3, images_per_prompt=2, **options)
        second = pipe(PROMPT, seed=4, batch_size=2, **options)
        assert torch.equal(both.latents[1], second.latents[0])

    def test_alpha_lies_over_white(self, pipe: LatentPipeline) -> None:
        clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
        white = Image.new("RGB", (64, 64), "white")
        options: dict[str, Any] = {"steps": 4, "seed": 1}
        found = pipe(PROMPT, image=clear, **options)
        expected = pipe(PROMPT, image=white, **options)
        assert torch.equal(found.latents, expected.latents)
        assert found.recipes == expected.recipes

    def test_a_closed_picture_is_told(self, pipe: LatentPipeline, tmp_path: Path) -> None:
        Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
        picture = Image.open(tmp_path / "a.png")
        picture.close()
        with pytest.raises(UserError, match="image cannot be read"):
            pipe.stream(PROMPT, image=picture)


class TestFromMask:
    def test_black_stays(
        self, pipe: LatentPipeline, picture: Image.Image, mask: Image.Image
    ) -> None:
        made = pipe(PROMPT, image=picture, mask=mask, steps=4, seed=1, scheduler="ddim")
        original = pipe.pil_to_latents(picture)
        deviation = pipe.components.vae.encode(torch.zeros(1, 3, 8, 8)).latent_dist.std.mean()
        scale = float(deviation) * pipe.components.latent_scale
        kept = (made.latents - original)[..., :4].abs().mean()
        drawn = (made.latents - original)[..., 4:].abs().mean()
        assert kept < 3 * scale  # the posterior's draw, nothing else
        assert drawn > 3 * kept

    def test_an_all_black_mask_draws_nothing(
        self, pipe: LatentPipeline, picture: Image.Image
    ) -> None:
        black = Image.new("L", (64, 64), 0)
        options: dict[str, Any] = {"image": picture, "mask": black, "steps": 3, "seed": 1}
        one = pipe(PROMPT, **options).latents
        other = pipe("a cat", guidance=3.0, **options).latents
        assert torch.equal(one, other)

    def test_the_middle_of_the_greys_decides(
        self, pipe: LatentPipeline, picture: Image.Image, mask: Image.Image
    ) -> None:
        grey = mask.point(lambda level: 128 if level else 127)
        options: dict[str, Any] = {"image": picture, "steps": 2, "seed": 1}
        assert torch.equal(
            pipe(PROMPT, mask=mask, **options).latents, pipe(PROMPT, mask=grey, **options).latents
        )


class TestLatents:
    def test_ones_own_noise_is_the_seeds_noise(self, pipe: LatentPipeline) -> None:
        for name in ("lms", "euler_a"):
            options: dict[str, Any] = {"steps": 3, "seed": 5, "scheduler": name}
            given = pipe(PROMPT, latents=pipe.initial_noise(5, 64, 64), **options)
            assert torch.equal(given.latents, pipe(PROMPT, **options).latents)

    def test_their_size_and_hash(self, pipe: LatentPipeline) -> None:
        latents = torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(0))
        result = pipe(PROMPT, images_per_prompt=2, latents=latents.double(), steps=1, seed=1)
        assert result.images[0].size == (72, 40)
        digests = [sha256_bytes(one.numpy().tobytes()) for one in latents]
        assert [recipe.latents_sha256 for recipe in result.recipes] == digests


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image": "cat.png"}, "image must be a PIL picture, not str"),
        ({"image": True, "mask": 5}, "mask must be a PIL picture"),
        ({"image": True, "strength": 0.01}, "leaves none of 50 steps"),
        ({"image": True, "latents": torch.zeros(1, 4, 8, 8)}, "exclude each other"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents must be a tensor"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents must be a tensor"),
        ({"latents": torch.zeros(4, 8, 8)}, "latents must be a tensor"),
        ({"latents": [1]}, "latents must be a tensor"),
        ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.complex64)}, "latents must be a tensor"),
        ({"image": Image.new("RGB", (9000, 8))}, "an image of 9000x8 is too large"),
        ({"latents": torch.zeros(1, 4, 8, 8), "width": 72}, "latents"),
        ({"latents": torch.full((1, 4, 8, 8), torch.nan)}, "NaN"),
    ],
)
def test_wrong_inputs(
    options: dict[str, Any], told: str, pipe: LatentPipeline, picture: Image.Image
) -> None:
    given = {key: picture if value is True else value for key, value in options.items()}
    with pytest.raises(UserError, match=told):
        pipe.stream(PROMPT, seed=1, **given)
