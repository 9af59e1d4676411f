"""Configuration and tensors -> network, every tensor accounted for.

Networks are built from the configuration that was checked and filled with the files that were
checked: no library looks around in a stranger's folder once more.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from ldm_toolkit.errors import LIBRARY_ERRORS, ModelError, first_line
from ldm_toolkit.models.checks import PICKLES
from ldm_toolkit.models.headers import check_safetensors
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


def read_weights(
    files: Iterable[Path],
    *,
    names: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a part's checked files, by name; of safetensors those called ``names``.

    ``dtype`` and ``device`` are what they are for, if that is known: they come there one by one,
    so that memory holds no more than one of them twice. Raises ModelError.
    """
    state: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix.lower() in PICKLES:
            shard = load_pickle(path)
        else:
            try:
                shard = _read_safetensors(path, names, dtype, device)
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{path.name} cannot be read: {first_line(error)}") from error
        repeated = next((name for name in shard if name in state), None)
        if repeated is not None:
            raise ModelError(f"{path.name}: {repeated!r:.120} is in another shard too")
        state |= shard
    return state


def _read_safetensors(
    path: Path,
    names: Collection[str] | None,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> dict[str, torch.Tensor]:
    """A file's tensors: mapped where they stay as they are, so that the kernel reads what is used.

    Others are read one by one: pages that were mapped for a moment would count twice. In half
    precision all are others, because the convolutions' are laid out anew.
    """
    there = {entry["dtype"] for entry in check_safetensors(path).values()}
    same = dtype is None or (dtype == torch.float32 and there.isdisjoint({"F64", "F16", "BF16"}))
    mapped = same and device in (None, torch.device("cpu"))
    found = {}
    with safe_open(path, framework="pt", backend="mmap" if mapped else "pread") as file:
        for name in file.keys() if names is None else names:
            value = file.get_tensor(name)
            # Whole numbers stay what they are, for `build_network` to refuse.
            wanted = dtype if value.is_floating_point() else None
            found[name] = value.to(device=device, dtype=wanted)
    return found


def build_network(
    part: str, config: Mapping[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype
) -> Any:
    """The network of a part of a model, or "preview_vae", with these weights, in ``dtype``.

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
    if part == "preview_vae":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        return AutoencoderTiny.from_config(dict(config))
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
    plain = value.layout == torch.strided and value.device.type != "meta"
    return plain and value.is_floating_point() and value.shape == expected.shape
