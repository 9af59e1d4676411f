"""Weights of an autoencoder: a start that lets colour through, an end with standard latents.

From random weights an AutoencoderKL learns outlines within minutes and stays grey for hours:
group normalisation hides absolute levels. Here a few channels of the trunk carry the picture
itself, averaged 2 x 2 at each level down and repeated at each level up, so that the untrained
network already returns the blurred picture. Gradients must not reach the weights that write into
these channels: at a learning rate that is right for the others they would be lost in a few steps.
"""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

__all__ = ["keep_colour_", "pass_colour_", "standardise_latents_"]

_CARRIED = 8  # red, green, blue, their negatives, and two constants
_LEVEL = 3.0  # of the constants: they steady the normalisation's scale
_LITTLE = 0.25  # of what blocks write into other channels; 0 at the start, 1 in other networks


@torch.no_grad()
def pass_colour_(vae: AutoencoderKL) -> None:
    """Change the starting weights of ``vae`` in place.

    silu(x) - silu(-x) = x, so a channel and its negative pass a SiLU unharmed; a large constant
    and its negative in the same normalisation group keep the group's mean at 0 and its variance
    nearly constant. Needs at least 8 channels a group and 4 latent channels.
    """
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    _carry_in(encoder.conv_in)
    for block in encoder.down_blocks:
        _carry_resnets(block.resnets)
        for sampler in block.downsamplers or []:
            _carry(sampler.conv, {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.25, (1, 1): 0.25})
    _carry_resnets(encoder.mid_block.resnets)
    _carry_out(encoder.conv_out, gain=1.0)
    latents = int(vae.config["latent_channels"])
    encoder.conv_out.weight[latents:] *= 0.1
    encoder.conv_out.bias[latents:] = -6.0
    convolutions: list[Any] = [vae.quant_conv, vae.post_quant_conv]
    for conv in convolutions:
        if conv is not None:
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
    _carry_in(decoder.conv_in)
    _carry_resnets(decoder.mid_block.resnets)
    for block in decoder.up_blocks:
        _carry_resnets(block.resnets)
        for sampler in block.upsamplers or []:
            _carry(sampler.conv, {(1, 1): 1.0})
    _carry_out(decoder.conv_out, gain=1.0)
    _calibrate(vae)


def keep_colour_(vae: AutoencoderKL) -> None:
    """Keep gradients from what writes into the channels that carry the picture, where some do.

    A network that was loaded has them if it began with `pass_colour_`: in the encoder, the decoder
    or both, no block writes more than a little into them.
    """
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    for half, blocks in ((encoder, encoder.down_blocks), (decoder, decoder.up_blocks)):
        resnets = [one for block in (*blocks, half.mid_block) for one in block.resnets]
        convs = [resnet.conv2 for resnet in resnets]
        if not all(_writes_little(conv.weight) for conv in convs):
            continue
        samplers = "downsamplers" if half is encoder else "upsamplers"
        convs += [half.conv_in, *(one.conv for b in blocks for one in getattr(b, samplers) or ())]
        convs += [one.conv_shortcut for one in resnets if one.conv_shortcut is not None]
        for conv in convs:
            conv.weight.register_hook(_without_carried)
            conv.bias.register_hook(_without_carried)


def _writes_little(weight: Tensor) -> bool:
    sizes = weight.detach().abs().mean(dim=(1, 2, 3))
    return bool(sizes[:_CARRIED].mean() < _LITTLE * sizes[_CARRIED:].mean())


def _clear(conv: Any) -> None:
    """Nothing is written into the carried channels."""
    for parameter in (conv.weight, conv.bias):
        parameter[:_CARRIED] = 0.0


def _without_carried(gradient: Tensor) -> Tensor:
    kept = gradient.clone()
    kept[:_CARRIED] = 0.0
    return kept


def _carry(conv: Any, taps: dict[tuple[int, int], float]) -> None:
    """The carried channels pass ``conv`` with the weights ``taps``; nothing else mixes in."""
    _clear(conv)
    for channel in range(_CARRIED):
        for (row, column), value in taps.items():
            conv.weight[channel, channel, row, column] = value


def _carry_in(conv: Any) -> None:
    _clear(conv)
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] = 1.0
        conv.weight[channel + 3, channel, 1, 1] = -1.0
    conv.bias[6], conv.bias[7] = _LEVEL, -_LEVEL


def _carry_resnets(resnets: Iterable[Any]) -> None:
    for resnet in resnets:
        _clear(resnet.conv2)
        if resnet.conv_shortcut is not None:
            _carry(resnet.conv_shortcut, {(0, 0): 1.0})


def _carry_out(conv: Any, gain: float) -> None:
    conv.weight[:3] *= 0.1
    conv.bias[:3] = 0.0
    conv.weight[:3, :_CARRIED] = 0.0
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] = gain
        conv.weight[channel, channel + 3, 1, 1] = -gain


def _calibrate(vae: AutoencoderKL) -> None:
    """Undo the normalisations' scale, measured on flat colours."""
    colours = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = colours[:, :, None, None].expand(-1, -1, 64, 64).contiguous()
    latents = vae.encode(pixels).latent_dist.mean[:, :3]
    vae.encoder.conv_out.weight[:3] /= _slope(latents, colours)
    latents = vae.encode(pixels).latent_dist.mean
    vae.decoder.conv_out.weight[:3] /= _slope(vae.decode(latents).sample, colours)


def _slope(values: Tensor, colours: Tensor) -> Tensor:
    """Least-squares factor of (B, 3, h, w) values over (B, 3) colours."""
    means = values.mean(dim=(2, 3))
    return (means * colours).sum() / colours.square().sum()


@torch.no_grad()
def standardise_latents_(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give each latent channel mean 0 and variance 1, measured on ``latents`` (B, C, h, w).

    An exact change of variables, folded into the two 1x1 convolutions around the latents:
    reconstructions stay what they were. Stands in for the one scaling factor of Rombach et al.
    2022, appendix G, which becomes 1; without those convolutions that factor it is.
    """
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    inward: Any = vae.quant_conv
    outward: Any = vae.post_quant_conv
    if inward is None or outward is None:  # no place to fold it into
        vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))
        return
    channels = len(mean)
    inward.weight[:channels] /= deviation[:, None, None, None]
    inward.bias[:channels] = (inward.bias[:channels] - mean) / deviation
    inward.bias[channels:] -= 2 * deviation.log()  # the log variances
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
