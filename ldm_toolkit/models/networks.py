"""Configuration and tensors -> network, every tensor accounted for.

Networks are built from the configuration that was checked and filled with the files that were
checked: no library looks around in a stranger's folder once more.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm_toolkit.errors import LIBRARY_ERRORS, ModelError, first_line
from ldm_toolkit.models.checks import PICKLES
from ldm_toolkit.models.pickles import load_pickle

__all__ = ["build_network", "read_weights"]

# The rest of a text encoder's configuration does not change the network, or asks for code.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def read_weights(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The tensors of a part's checked files, by name. Raises ModelError."""
    state: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix.lower() in PICKLES:
            shard = load_pickle(path)
        else:
            try:
                shard = load_file(path)
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{path.name} cannot be read: {first_line(error)}") from error
        repeated = next((name for name in shard if name in state), None)
        if repeated is not None:
            raise ModelError(f"{path.name}: {repeated!r:.120} is in another shard too")
        state |= shard
    return state


def build_network(
    part: str, config: Mapping[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype
) -> Any:
    """The network of a part ("unet", "vae", "text_encoder") with these weights, in ``dtype``.

    Missing, unexpected and misshapen tensors are a ModelError, not a warning.
    """
    # Imported here: these cost seconds, and a wrong folder is found without them.
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            network = _empty_network(part, config)
    except (*LIBRARY_ERRORS, StrictDataclassError) as error:
        raise ModelError(f"{part} cannot be built: {first_line(error)}") from error
    if part == "text_encoder":
        state = _without_wrapper(state, network)
    else:
        network._fix_state_dict_keys_on_load(state)  # VAEs of 2022 name their attention otherwise
    _account_for(part, network.state_dict(), state)
    network.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _empty_network(part: str, config: Mapping[str, Any]) -> Any:
    """The network of a configuration, without memory for its weights."""
    if part == "unet":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel.from_config(dict(config))
    if part == "vae":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL.from_config(dict(config))
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    known = {name: config[name] for name in _TEXT_FIELDS if name in config}
    return CLIPTextModel(CLIPTextConfig(**known))


def _without_wrapper(state: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """The names of a CLIP text model as this transformers has them.

    Before 5.6 all lay below ``text_model.``; before 4.31 the table of 0, 1, 2, ... was saved.
    """
    wrapped = hasattr(network, "text_model")
    return {
        f"{'text_model.' if wrapped else ''}{name.removeprefix('text_model.')}": value
        for name, value in state.items()
        if not name.endswith("position_ids")
    }


def _account_for(
    part: str, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> None:
    """Every tensor there, none left over, each of its shape. Raises ModelError with all kinds."""
    problems = {
        "missing keys": [name for name in expected if name not in state],
        "unexpected keys": [name for name in state if name not in expected],
        "mismatched keys": [
            name
            for name, value in state.items()
            if name in expected and not _fits(value, expected[name])
        ],
    }
    found = [
        f"{len(names)} {problem}, the first is {names[0]!r:.120}"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise ModelError(
            f"{part}: {'; '.join(found)}; weights and configuration are of different models"
        )


def _fits(value: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a tensor is an ordinary one of floating-point numbers and of the right shape."""
    plain = value.layout == torch.strided and value.device.type == "cpu"
    return plain and value.is_floating_point() and value.shape == expected.shape
