"""From what was asked of a model to recipes: what the model cannot do is told in one error."""

import dataclasses

import pytest
from diffusers.models.attention_processor import AttnProcessor2_0

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.components import sharing_copy
from ldm_toolkit.pipeline import LatentPipeline


def test_a_unet_that_cannot_be_cut_hides_no_other_problem(pipe: LatentPipeline) -> None:
    unet = sharing_copy(pipe.components.unet)
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    unet.set_attn_processor(AttnProcessor2_0())
    other = LatentPipeline(dataclasses.replace(pipe.components, unet=unet))
    with pytest.raises(UserError, match=r"FreeU.*; gate and attention_every must be 1 with this"):
        other.stream("a dog", reuse_every=2, gate=0.5, attention_every=2)
