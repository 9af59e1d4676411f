"""A model's name, hub id, folder or file -> Components: checked, loaded, on the device."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm_toolkit.compilation import compile_networks
from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.fastpath.attention import install
from ldm_toolkit.fastpath.openvino import check_backend, convert_unet
from ldm_toolkit.hardware import choose_device, choose_dtype, lay_out, set_attention
from ldm_toolkit.models.checks import PICKLES, check_model_folder, check_vae_folder
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.configs import check_configs
from ldm_toolkit.models.conversion import convert, measured_prediction
from ldm_toolkit.models.defaults import model_defaults
from ldm_toolkit.models.hub import fetch_model, on_hub
from ldm_toolkit.models.identity import (
    ModelIdentity,
    bundled_models,
    checkpoint_sha256,
    find_model,
    weights_sha256,
)
from ldm_toolkit.models.networks import build_network, read_weights
from ldm_toolkit.models.single_file import Description, check_single_file, describe, is_single_file
from ldm_toolkit.models.tokenizer import file_tokenizer, load_tokenizer, tokenizer_sha256

__all__ = ["bundled_models", "load_components", "prepare"]

_log = logging.getLogger(__name__)

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Opened:
    """A model that was found and checked, before its networks are built."""

    name: str
    revision: str
    configs: Configs
    card: Mapping[str, Any]
    scheduler: str
    tokenizer: Callable[[], Any]
    tensors: Callable[[str, torch.dtype, torch.device], dict[str, torch.Tensor]]
    sha256: Callable[[], str]
    unsettled: Description | None = None
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def load_components(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    allow_pickle: bool = False,
    attention: str = "auto",
    compile: bool = False,
    backend: str = "torch",
) -> Components:
    """Load a bundled model, a hub id, a folder in the diffusers layout or a single checkpoint file.

    ``vae`` and ``tokenizer`` are folders in place of the model's own. ``revision`` and ``offline``
    are for hub ids, ``variant`` ("fp16") for those and for folders. ``allow_pickle`` reads ``.bin``
    and ``.ckpt`` with torch's weights-only loader. ``attention`` is one of ``hardware.ATTENTION``;
    ``compile``: see ``compilation``, ``backend``: "torch" or "openvino", see ``fastpath.openvino``.
    Everything is checked before a loader sees it.
    Raises ModelError and UserError.
    """
    target = choose_device(device)
    check_backend(backend, target, compile=compile, attention=attention)
    computing = choose_dtype(dtype, target)
    places: dict[str, Any] = {"vae": _folder(vae), "tokenizer": _folder(tokenizer)}
    hub = on_hub(model)
    if revision is not None and not hub:
        raise UserError(f"revision is for models of the hub (owner/name), not for {model}")
    if is_single_file(model):
        if variant is not None:
            raise UserError("variant is for folders and models of the hub, not for a single file")
        opened = _open_file(Path(model), **places, allow_pickle=allow_pickle)
    else:
        reading: dict[str, Any] = {"variant": variant, "allow_pickle": allow_pickle}
        if hub:
            fetched = fetch_model(str(model), revision=revision, offline=offline, **reading)
            try:
                opened = _open_folder(fetched.folder, **places, **reading)
            except ModelError as error:
                cached = fetched.folder.parent.parent
                raise ModelError(f"{model}: {error}; the hub's cache has it in {cached}") from error
            opened = dataclasses.replace(opened, name=str(model), revision=fetched.commit)
        else:
            opened = _open_folder(find_model(model), **places, **reading)
    components = _load(opened, target, computing, attention)
    components = dataclasses.replace(components, compiled=compile, backend=backend)
    prepare(components)
    return components


def prepare(components: Components) -> None:
    """Have the networks compiled, or computed elsewhere, where the components say so."""
    if components.compiled:
        compile_networks(components.unet, components.vae, components.device)
    if components.backend == "openvino":
        convert_unet(components.unet)


def _folder(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _open_folder(
    folder: Path,
    *,
    variant: str | None,
    vae: Path | None,
    tokenizer: Path | None,
    allow_pickle: bool,
) -> _Opened:
    """A folder in the diffusers layout, checked. Raises ModelError."""
    checked = check_model_folder(
        folder, variant=variant, vae=vae, tokenizer=tokenizer, allow_pickle=allow_pickle
    )
    return _Opened(
        # The card's name, else the folder's; never a path.
        name=_card_text(checked.card, "name") or checked.root.resolve().name,
        revision=_card_text(checked.card, "revision"),
        configs=checked.configs,
        card=checked.card,
        scheduler=checked.index["scheduler"][1],
        tokenizer=lambda: load_tokenizer(checked.tokenizer),
        tensors=lambda part, dtype, device: read_weights(
            checked.weights[part], dtype=dtype, device=device
        ),
        sha256=lambda: weights_sha256(checked.files),
        files=checked.weights,
    )


def _open_file(
    path: Path, *, vae: Path | None, tokenizer: Path | None, allow_pickle: bool
) -> _Opened:
    """A single-file checkpoint, checked. Raises ModelError."""
    pickled = path.suffix.lower() in PICKLES
    stored: dict[str, torch.Tensor] = {}
    if pickled and not allow_pickle:
        raise ModelError(
            f"{path.name} is a pickle, which can run code when it is read; take the model as "
            "safetensors, or allow pickles, which torch's weights-only loader then reads"
        )
    if pickled:
        stored = read_weights([path])
        shapes = {name: tuple(value.shape) for name, value in stored.items()}
        found = describe(path.name, shapes, {}, with_vae=vae is None)
    else:
        found = check_single_file(path, with_vae=vae is None)
    configs: dict[str, Any] = found.settled(found.prediction or "v_prediction")
    vae_files: tuple[Path, ...] = ()
    if vae is not None:
        configs["vae"], vae_files = check_vae_folder(vae, allow_pickle=allow_pickle)
    check_configs(configs)
    # Stable Diffusion 2 was trained with OpenCLIP, which fills up with id 0.
    load_text = file_tokenizer(tokenizer, "!" if found.kind == "2.x" else None)

    def tensors(part: str, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        if part == "vae" and vae_files:
            return read_weights(vae_files, dtype=dtype, device=device)
        names = found.names[part]
        if pickled:
            return convert(part, configs[part], {name: stored.pop(name) for name in names})
        return convert(part, configs[part], read_weights([path], names=names, dtype=dtype))

    return _Opened(
        name=path.stem,
        revision="",
        configs=configs,
        card={},
        scheduler=configs["scheduler"]["_class_name"],
        tokenizer=load_text,
        tensors=tensors,
        sha256=lambda: checkpoint_sha256(path, vae_files),
        unsettled=found if found.prediction is None else None,
    )


def _load(
    opened: _Opened, target: torch.device, computing: torch.dtype, attention: str
) -> Components:
    """Build the networks of a checked model. Raises ModelError."""
    with ThreadPoolExecutor(1) as pool:  # hashing releases the GIL: it costs no time of its own
        digest = pool.submit(opened.sha256)
        tokenizer = opened.tokenizer()
        networks = {
            part: build_network(
                part, opened.configs[part], opened.tensors(part, computing, target), computing
            )
            for part in ("text_encoder", "vae", "unet")
        }
        for network in networks.values():
            network.to(target)
        memory_format = lay_out([networks["unet"], networks["vae"]], computing)
        attention = set_attention([networks["unet"], networks["vae"]], attention)
        install(networks["unet"])
        sha256 = digest.result()
    vocabulary = networks["text_encoder"].config.vocab_size
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder only {vocabulary}; they "
            "are of different models"
        )
    configs = opened.configs
    if opened.unsettled is not None:
        prediction = measured_prediction(networks["unet"])
        _log.info("%s predicts %s, measured", opened.name, prediction)
        settled = opened.unsettled.settled(prediction)
        configs = {**configs, "scheduler": settled["scheduler"], "unet": settled["unet"]}
    return Components(
        tokenizer=tokenizer,
        **networks,
        scheduler_config=dict(configs["scheduler"]),
        identity=ModelIdentity(opened.name, opened.revision, sha256, tokenizer_sha256(tokenizer)),
        defaults=model_defaults(opened.name, configs, opened.scheduler, opened.card),
        memory_format=memory_format,
        attention=attention,
        files=opened.files,
    )


def _card_text(card: Mapping[str, Any], key: str) -> str:
    """A short printable text of the model's card, or nothing."""
    value = card.get(key, "")
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise ModelError(f"ldm_toolkit.json: {key} must be a short text, not {value!r:.120}")
    return value
