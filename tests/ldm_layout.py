"""Tensors of diffusers' networks under the names of the latent-diffusion repository.

Written from the layout of its checkpoints, the other way round than the package goes.
"""

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str, layers: int, attending: set[int]) -> str:
    """One name of a UNet; ``attending`` are the up blocks with attention."""
    for new, old in UNET_ENDS.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{inner(kind, rest)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name)
    assert found, name
    side, block, kind, number, rest = found.groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if int(block) in attending else 1
        return f"output_blocks.{first + layers}.{place}.{rest}"
    index = first + int(number) + (side == "down")
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{index}.{int(kind == 'attentions')}.{inner(kind, rest)}"


def inner(kind: str, rest: str) -> str:
    """Inside a residual block names differ, inside a transformer they do not."""
    if kind == "resnets":
        module, _, leaf = rest.rpartition(".")
        return f"{RESNET[module]}.{leaf}"
    return rest


def vae_name(name: str, levels: int) -> str:
    """One name of a VAE."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
    name = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", name)
    name = re.sub(
        r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("resnets.", "block.")
    if "mid_block.attentions.0." in name:
        head, _, tail = name.partition("mid_block.attentions.0.")
        module, _, leaf = tail.rpartition(".")
        return f"{head}mid.attn_1.{VAE_ATTENTION[module]}.{leaf}"
    return name


def open_clip_state(text: Mapping[str, torch.Tensor]) -> State:
    """OpenCLIP's names: one joint projection for queries, keys and values."""
    state: State = {}
    for name, value in text.items():
        if re.search(r"self_attn\.[kv]_proj", name):
            continue
        if "self_attn.q_proj" in name:
            joint = torch.cat([text[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            place, _, leaf = name.partition("self_attn.q_proj.")
            name, value = f"{place}attn.in_proj_{leaf}", joint
        for new, old in OPEN_CLIP.items():
            name = name.replace(new, old)
        state[name] = value
    width = text["final_layer_norm.weight"].shape[0]
    state["text_projection"] = torch.ones(width, width)
    state["logit_scale"] = torch.tensor(1.0)
    state["transformer.resblocks.23.ln_1.weight"] = torch.ones(width)  # the layer that is not read
    return state


def checkpoint(
    unet: State, vae: State, text: State, *, layers: int, levels: int, second: bool
) -> State:
    """A whole checkpoint; ``layers`` a UNet's block, ``levels`` of the VAE."""
    attending = {
        int(found[1]) for name in unet if (found := re.match(r"up_blocks\.(\d)\.attentions", name))
    }
    state = {
        f"model.diffusion_model.{unet_name(name, layers, attending)}": value
        for name, value in unet.items()
    }
    for name, value in vae.items():
        conv = ".attentions." in name and value.ndim == 2  # LDM has 1 x 1 convolutions there
        old = f"first_stage_model.{vae_name(name, levels)}"
        state[old] = value[:, :, None, None] if conv else value
    text = {name.removeprefix("text_model."): value for name, value in text.items()}
    if second:
        named = open_clip_state(text)
        state |= {f"cond_stage_model.model.{name}": value for name, value in named.items()}
    else:
        state |= {
            f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()
        }
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    state["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    state["model_ema.decay"] = torch.tensor(0.99)
    return state
