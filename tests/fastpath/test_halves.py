"""The cut UNet computes what diffusers' own computes."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath.halves import Halves, most_depth

KINDS = {
    "1.x": {},
    "2.x": {"use_linear_projection": True, "attention_head_dim": [2, 4, 8]},
    "without attention outside": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "without a middle": {"mid_block_type": None},
    "two layers a block": {"layers_per_block": 2},
    "nine channels": {"in_channels": 9},
}


def make(**settings):
    torch.manual_seed(0)
    plain = {
        "sample_size": 8, "in_channels": 4, "layers_per_block": 1,
        "block_out_channels": (16, 32, 32), "cross_attention_dim": 12, "attention_head_dim": 4,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**plain, **settings}).eval()


def inputs(unet, side=(8, 8), batch=2):
    torch.manual_seed(1)
    x = torch.randn(batch, unet.config.in_channels, *side)
    return x, torch.tensor(321), torch.randn(batch, 77, 12)


@pytest.mark.parametrize("side", [(8, 8), (9, 14)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_cut_gives_the_bits_of_the_unet(kind, side):
    unet = make(**KINDS[kind])
    given = inputs(unet, side)
    expected = unet(*given, return_dict=False)[0]
    depths = range(1, most_depth(unet) + 1)
    assert len(depths) >= 5
    for depth in depths:
        cut = Halves(unet, depth)
        prediction, deep = cut.whole(*given)
        assert torch.equal(prediction, expected)
        assert torch.equal(cut.shallow(*given, deep), expected)


@torch.no_grad()
def test_a_shallow_evaluation_computes_the_outer_layers_only():
    unet = make(layers_per_block=2)
    x, timestep, text = inputs(unet)
    calls = []
    for name, module in unet.named_modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    cut = Halves(unet, 2)
    _, deep = cut.whole(x, timestep, text)
    assert len(calls) == 6 + 2 + 9
    calls.clear()
    far = cut.shallow(x, timestep, text, deep + 1)
    assert calls == ["down_blocks.0.resnets.0", "up_blocks.2.resnets.1", "up_blocks.2.resnets.2"]
    assert not torch.equal(far, cut.shallow(x, timestep, text, deep))
    near = cut.shallow(x + 1, timestep, text, deep)
    assert not torch.equal(near, cut.shallow(x, timestep, text, deep))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D")},
         "AttnDownBlock2D"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
    ],
    ids=["blocks", "centred", "classes"],
)  # fmt: skip
def test_other_architectures_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        most_depth(make(**settings))


def test_freeu_is_refused():
    unet = make()
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    with pytest.raises(UserError, match="FreeU"):
        most_depth(unet)
