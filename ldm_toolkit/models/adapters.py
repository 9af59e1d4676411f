"""LoRAs and textual inversions: Components in, Components with the adapter attached out.

The networks that come out share every tensor with those that went in, which stay as they were, so
a file that fails changes nothing and detaching restores every bit.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.models.components import Components, sharing_copy
from ldm_toolkit.models.hub import fetch_lora
from ldm_toolkit.models.identity import EmbeddingIdentity, LoraIdentity, adapter_sha256
from ldm_toolkit.models.lora_file import (
    checked_file,
    finite,
    read_lora,
    read_tensors,
)
from ldm_toolkit.models.tokenizer import read_word, with_word
from ldm_toolkit.values import text_problem

__all__ = ["load_embedding", "load_lora", "unload_loras"]

_NETWORKS = ("unet", "text_encoder")


def load_lora(
    components: Components,
    path: str | Path,
    scale: float = 1.0,
    name: str | None = None,
    *,
    offline: bool | None = None,
) -> Components:
    """Components with one more LoRA, in addition to those there; ``components`` stay as they are.

    ``path`` is a ``.safetensors`` file in the diffusers, peft or kohya format, a folder with
    ``pytorch_lora_weights.safetensors``, or where the hub has one: see ``hub.fetch_lora``. ``name``
    is the file's unless given. Raises ModelError when any tensor of the file has no place in the
    model, UserError for a scale that is no finite number and for a name that is no text or taken.
    """
    _check_text("a LoRA's name", name)
    strength = finite(scale)
    if strength is None:
        raise UserError(f"a LoRA's scale must be a finite number, not {scale!r:.80}")
    file = checked_file(fetch_lora(path, offline=offline), "LoRA")
    taken = {lora.name for lora in components.loras}
    label, number = name if name is not None else file.stem, 1
    while name is None and label in taken:  # trainers call every file the same
        number += 1
        label = f"{file.stem}-{number}"
    if label in taken:
        raise UserError(f"a LoRA named {label!r:.80} is loaded already; give this one another name")
    layers = read_lora(file, components)
    adapter = f"adapter_{len(components.loras)}"
    loras = (*components.loras, LoraIdentity(label, strength, adapter_sha256(file)))
    changed = {}
    for part, modules in layers.items():
        if modules:
            network = changed[part] = sharing_copy(getattr(components, part))
            _attach(network, modules, adapter)
            _set_scales(network, loras)
    return dataclasses.replace(components, **changed, loras=loras)


def unload_loras(components: Components) -> Components:
    """Components without any LoRA, their weights the same bits as before the first one."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    if not components.loras:
        return components
    changed = {}
    for part in _NETWORKS:
        network = sharing_copy(getattr(components, part))
        recurse_remove_peft_layers(network)
        if hasattr(network, "peft_config"):
            del network.peft_config
            network._hf_peft_config_loaded = False
        changed[part] = network
    return dataclasses.replace(components, **changed, loras=())


def load_embedding(
    components: Components, path: str | Path, token: str | None = None
) -> Components:
    """Components that know a textual inversion's word; ``components`` stay as they are.

    ``path`` is a ``.safetensors`` file with one tensor, (D) or (n, D). ``token`` is the word in
    prompts: the tensor's name unless given, the file's where the web UIs' trainer wrote it.
    Raises ModelError for a file that does not fit, UserError for a word that is no text or taken.
    """
    _check_text("the embedding's word (token)", token)
    file = checked_file(path, "embedding")
    word, _ = read_word(file, token)
    (vectors,) = read_tensors(file).values()
    width = int(components.text_encoder.config.hidden_size)
    if vectors.shape[-1] != width:
        raise ModelError(
            f"{file.name}: the embedding's shape is {tuple(vectors.shape)}, this model's words "
            f"have {width} numbers; it is of another model"
        )
    if not vectors.is_floating_point() or not bool(torch.isfinite(vectors).all()):
        raise ModelError(f"{file.name}: the embedding must be finite floating-point numbers")
    vectors = vectors.reshape(-1, width)
    tokenizer, words = with_word(components.tokenizer, word, len(vectors))
    encoder = sharing_copy(components.text_encoder)
    _add_rows(encoder, tokenizer.convert_tokens_to_ids(words), vectors)
    embeddings = (*components.embeddings, EmbeddingIdentity(word, adapter_sha256(file)))
    return dataclasses.replace(
        components, tokenizer=tokenizer, text_encoder=encoder, embeddings=embeddings
    )


def _check_text(what: str, value: object) -> None:
    """Whether a name that need not be given is text. Raises UserError."""
    problems = text_problem(what, value) if value is not None else []
    if problems:
        raise UserError(problems[0])


def _attach(network: Any, modules: Mapping[str, Any], adapter: str) -> None:
    """Put the complete `LoraLayer` of each module beside it, under peft's name ``adapter``."""
    from peft import LoraConfig, inject_adapter_in_model

    first = next(iter(modules.values()))
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,
        target_modules=list(modules),
        use_dora=first.magnitude is not None,  # of all or of none
        rank_pattern={f"^{m}": one.rank for m, one in modules.items() if one.rank != first.rank},
        alpha_pattern={
            f"^{m}": one.alpha for m, one in modules.items() if one.alpha != first.alpha
        },
    )
    names = {f"{module}.lora_A.weight": layer.down for module, layer in modules.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second LoRA is meant
        inject_adapter_in_model(config, network, adapter, low_cpu_mem_usage=True, state_dict=names)
    for module, layer in modules.items():
        target = network.get_submodule(module)
        base = target.get_base_layer().weight
        parts = {"lora_A": layer.down, "lora_B": layer.up}
        if layer.magnitude is not None:
            parts["lora_magnitude_vector"] = layer.magnitude
        for side, tensor in parts.items():
            weight = torch.nn.Parameter(tensor.to(base.device, base.dtype), requires_grad=False)
            getattr(target, side)[adapter].weight = weight
    network._hf_peft_config_loaded = True  # diffusers' and transformers' own methods ask for it
    network.eval()


def _set_scales(network: Any, loras: Iterable[LoraIdentity]) -> None:
    """Make all LoRAs of a network work, each at its scale."""
    from diffusers.utils.peft_utils import set_weights_and_activate_adapters

    scales = {f"adapter_{index}": lora.scale for index, lora in enumerate(loras)}
    set_weights_and_activate_adapters(network, list(scales), list(scales.values()))
    network.requires_grad_(False)


def _add_rows(encoder: Any, ids: list[int], vectors: torch.Tensor) -> None:
    """Give a text encoder's table of words these rows; the table it shared stays as it was."""
    old = encoder.get_input_embeddings().weight
    table = old.new_zeros(max(len(old), max(ids) + 1), old.shape[1])
    table[: len(old)] = old
    table[ids] = vectors.to(old.device, old.dtype)
    encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(table, freeze=True))
    encoder.config.vocab_size = len(table)
