"""Guidance arithmetic against diffusers' and against closed forms."""

import pytest
import torch

from ldm_toolkit.guidance import Guidance, combine, rescale


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 8, 8)
    return torch.randn(shape, generator=generator), 2 * torch.randn(shape, generator=generator) + 1


def test_combine() -> None:
    negative, positive = pair()
    assert torch.equal(combine(negative, positive, 0.0), negative)
    assert torch.allclose(combine(negative, positive, 1.0), positive)
    assert torch.allclose(combine(negative, positive, 3.0), 3 * positive - 2 * negative, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_rescale_is_diffusers(factor: float) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    negative, positive = pair()
    guided = combine(negative, positive, 7.5)
    expected = rescale_noise_cfg(guided, positive, guidance_rescale=factor)
    assert torch.allclose(rescale(guided, positive, factor), expected)


def test_rescale_restores_each_pictures_spread() -> None:
    negative, positive = pair()
    result = rescale(combine(negative, positive, 7.5), positive, 1.0)
    assert torch.allclose(result.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)), rtol=1e-5)


def test_apply_takes_the_negative_half_first() -> None:
    negative, positive = pair()
    both = torch.cat([negative, positive])
    assert torch.equal(Guidance(2.0).apply(both), combine(negative, positive, 2.0))
    rescaled = rescale(combine(negative, positive, 2.0), positive, 0.5)
    assert torch.equal(Guidance(2.0, 0.5).apply(both), rescaled)


def test_only_scale_one_is_inactive() -> None:
    assert not Guidance(1.0).active
    assert not Guidance(1).active
    assert Guidance(0.0).active
    assert Guidance(0.5).active
