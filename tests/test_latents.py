"""The seed rule's noise; pictures to latents and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_toolkit.errors import UserError
from ldm_toolkit.latents import (
    decode_latents,
    initial_noise,
    make_generators,
    pil_to_latents,
    pixels_to_pil,
    slerp,
)
from ldm_toolkit.pipeline import LatentPipeline

SHAPE = (4, 8, 8)


def test_noise_depends_on_the_own_seed_only() -> None:
    batch = initial_noise([5, 6, 7], SHAPE)
    assert batch.dtype == torch.float32
    for index, seed in enumerate((5, 6, 7)):
        alone = torch.randn((1, *SHAPE), generator=torch.Generator("cpu").manual_seed(seed))
        assert torch.equal(batch[index : index + 1], alone)


def test_generators_go_on_where_the_first_noise_ended() -> None:
    generators = make_generators([5, 6])
    assert torch.equal(initial_noise(generators, SHAPE), initial_noise([5, 6], SHAPE))
    assert not torch.equal(initial_noise(generators, SHAPE), initial_noise([5, 6], SHAPE))


def test_noise_ignores_the_default_dtype_and_generator() -> None:
    expected = initial_noise([1], SHAPE)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        assert torch.equal(initial_noise([1], SHAPE), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_largest_seed() -> None:
    assert initial_noise([2**64 - 1], SHAPE).shape == (1, *SHAPE)


def test_levels_round_like_diffusers() -> None:
    pixels = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 1.5]).reshape(1, 1, 1, 7)
    image = pixels_to_pil(pixels.expand(1, 3, 1, 7))[0]
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 0, 128, 191, 255, 255]


class TestPictures:
    def test_mean_is_scaled(self, pipe: LatentPipeline) -> None:
        image = Image.new("RGB", (64, 64), "red")
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255 * 2 - 1).permute(2, 0, 1)[
            None
        ]
        with torch.no_grad():
            mean = pipe.components.vae.encode(pixels).latent_dist.mean
        assert torch.allclose(pipe.pil_to_latents(image), mean * 0.18215)

    def test_drawn_with_a_generator_each(self, pipe: LatentPipeline) -> None:
        images = [Image.new("RGB", (64, 64), color) for color in ("red", "green")]
        both = pil_to_latents(images, pipe.components, make_generators([1, 2]))
        alone = pil_to_latents(images[1:], pipe.components, make_generators([2]))
        assert torch.equal(both[1:], alone)
        assert not torch.equal(both, pil_to_latents(images, pipe.components))

    def test_modes_are_converted(self, pipe: LatentPipeline) -> None:
        gray = pipe.pil_to_latents(Image.new("L", (64, 64), 128))
        assert torch.equal(gray, pipe.pil_to_latents(Image.new("RGB", (64, 64), (128,) * 3)))

    @pytest.mark.parametrize(
        "sizes", [[(65, 64)], [(64, 60)], [(64, 64), (64, 72)], []], ids=["w", "h", "two", "none"]
    )
    def test_sizes_that_do_not_fit(self, pipe: LatentPipeline, sizes: list) -> None:
        with pytest.raises(UserError):
            pipe.pil_to_latents([Image.new("RGB", size) for size in sizes])


@pytest.mark.parametrize("tiled", [False, True])
def test_two_that_decode_at_once(
    tiled: bool, pipe: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one works in tiles is not to be seen at the VAE that both use."""
    latents = torch.randn(2, 4, 20, 12, generator=torch.Generator().manual_seed(0))
    expected = {
        one: decode_latents(latents, pipe.components, tiled=one) for one in (tiled, not tiled)
    }
    vae, seen, inner = pipe.components.vae, [], []
    forward = vae.decoder.forward

    def interrupted(*given: torch.Tensor) -> torch.Tensor:
        seen.append(vae.use_tiling)
        if len(seen) == 1:
            inner.append(decode_latents(latents, pipe.components, tiled=not tiled))
        return forward(*given)

    monkeypatch.setattr(vae.decoder, "forward", interrupted)
    assert torch.equal(decode_latents(latents, pipe.components, tiled=tiled), expected[tiled])
    assert torch.equal(inner[0], expected[not tiled])
    assert not any(seen)


def test_slerp_follows_the_arc() -> None:
    """On two orthogonal vectors it is a circle; on noise it keeps the length."""
    x, y = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for weight in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(weight * torch.pi / 2)
        expected = 2 * torch.stack([angle.cos(), angle.sin()])
        assert torch.allclose(slerp(x, y, weight), expected, atol=1e-6)
    one, two = initial_noise([1, 2], (4, 64, 64))
    assert torch.equal(slerp(one, two, 0.0), one)
    assert torch.allclose(slerp(one, two, 1.0), two, atol=1e-6)
    assert float(slerp(one, two, 0.5).std()) == pytest.approx(1.0, abs=0.02)
    assert float(torch.lerp(one, two, 0.5).std()) < 0.75
    assert torch.equal(slerp(one, one, 0.3), one)
    assert torch.isfinite(slerp(one, -one, 0.5)).all()
