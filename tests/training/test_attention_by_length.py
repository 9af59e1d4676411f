"""Attention of a UNet in training: which kernel computes it, and that all compute the same."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from ldm_toolkit.training.attention import ByLength, suit_attention


@pytest.fixture
def called(monkeypatch):
    names = []
    for kind in (AttnProcessor, AttnProcessor2_0):
        own = kind.__call__

        def counting(self, *args, own=own, kind=kind, **kwargs):
            names.append(kind.__name__)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", counting)
    return names


def layer():
    torch.manual_seed(0)
    return Attention(16, heads=2, dim_head=8).double()


@pytest.mark.parametrize(
    ("tokens", "text", "dtype", "expected"),
    [
        (64, None, torch.bfloat16, "AttnProcessor"),
        (64, 77, torch.bfloat16, "AttnProcessor"),
        (1025, None, torch.bfloat16, "AttnProcessor2_0"),
        (1025, 77, torch.bfloat16, "AttnProcessor"),
        (64, None, torch.float32, "AttnProcessor2_0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_few_tokens_in_bfloat16_are_computed_plainly(
    tokens, text, dtype, expected, autocast, called
):
    attention = layer().to(torch.float32 if autocast else dtype)
    attention.set_processor(ByLength())
    torch.manual_seed(1)
    x = torch.randn(1, tokens, 16).to(torch.float32 if autocast else dtype)
    words = None if text is None else torch.randn(1, text, 16).to(x.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
        found = attention(x, words)
    assert called == [expected]
    reference = layer()
    reference.set_processor(AttnProcessor2_0())
    exact = reference(x.double(), None if words is None else words.double())
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def test_only_the_default_attention_is_replaced():
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        norm_num_groups=8,
    )
    suit_attention(unet)
    assert {type(one) for one in unet.attn_processors.values()} == {ByLength}
    unet.set_attn_processor(AttnProcessor())
    suit_attention(unet)
    assert {type(one) for one in unet.attn_processors.values()} == {AttnProcessor}
