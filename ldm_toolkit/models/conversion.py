"""The tensors of a single-file checkpoint under diffusers' names, by diffusers' own functions."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.single_file import PREFIXES

__all__ = ["convert", "measured_prediction"]

_OPEN_CLIP = f"{PREFIXES['text_encoder']}model."
# The last of OpenCLIP's 24 layers and what follows it: 2.x reads the one before.
_UNREAD = (f"{_OPEN_CLIP}transformer.resblocks.23.", f"{_OPEN_CLIP}text_projection")


def convert(
    part: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A part's tensors, by their names in the checkpoint, as its diffusers network names them.

    Raises ModelError when one of them would be lost on the way.
    """
    from diffusers.loaders import single_file_utils as theirs

    source = dict(tensors)
    try:
        if part == "unet":
            state = theirs.convert_ldm_unet_checkpoint(source, dict(config))
        elif part == "vae":
            state = theirs.convert_ldm_vae_checkpoint(source, dict(config))
        elif any(name.startswith(_OPEN_CLIP) for name in source):
            model = SimpleNamespace(config=SimpleNamespace(**config))
            state = theirs.convert_open_clip_checkpoint(model, source)
        else:
            state = theirs.convert_ldm_clip_checkpoint(source)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{part}: the checkpoint's tensors cannot be converted ({type(error).__name__}: "
            f"{str(error)[:200]}); they are of another model"
        ) from error
    lost = _lost(source, state)
    if lost:
        raise ModelError(f"{part}: {len(lost)} unexpected keys, the first is {lost[0]!r:.120}")
    return {name: value.contiguous() for name, value in state.items()}


def _lost(source: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names whose tensors the conversion left out, save those that 2.x does not read.

    Converted tensors are the same memory; only OpenCLIP's joint projections are copied apart.
    """
    kept = {value.data_ptr() for value in state.values()}
    return [
        name
        for name, value in source.items()
        if value.data_ptr() not in kept
        and not name.startswith(_UNREAD)
        and not (name.startswith(_OPEN_CLIP) and ".attn.in_proj_" in name)
    ]


@torch.no_grad()
def measured_prediction(unet: Any) -> str:
    """Whether a UNet predicts epsilon or v, from one small evaluation.

    At the noisiest step the input is nearly all noise, so a UNet that predicts the noise answers
    with its input; one that predicts v answers with minus the picture it guesses
    (Salimans & Ho 2022, appendix D: v = alpha eps - sigma x, and alpha is near 0).
    """
    parameter = next(unet.parameters())
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    text = torch.zeros((1, 77, unet.config.cross_attention_dim))
    place = {"device": parameter.device, "dtype": parameter.dtype}
    answer = unet(noise.to(**place), 999, text.to(**place), return_dict=False)[0]
    pair = torch.stack([noise.flatten(), answer.float().cpu().flatten()])
    return "epsilon" if float(torch.corrcoef(pair)[0, 1]) > 0.5 else "v_prediction"
