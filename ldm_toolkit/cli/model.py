"""Which model a command line means, with everything that goes onto it, checked without torch."""

import argparse
import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_toolkit import schedulers
from ldm_toolkit.backends import backend_problems, frozen_problems
from ldm_toolkit.cli.options import ATTENTION, DTYPES
from ldm_toolkit.errors import ModelError, UserError, suggestion
from ldm_toolkit.files import sha256_file
from ldm_toolkit.models import identity
from ldm_toolkit.models.checks import check_model_folder, check_vae_folder
from ldm_toolkit.models.configs import check_configs, most_reuse_depth
from ldm_toolkit.models.defaults import model_defaults
from ldm_toolkit.models.headers import check_safetensors
from ldm_toolkit.models.hub import fetch_lora, fetch_model, on_hub
from ldm_toolkit.models.single_file import check_single_file, is_single_file
from ldm_toolkit.promptfile import size_problems
from ldm_toolkit.recipe import GenerateOptions, ModelDefaults
from ldm_toolkit.values import counted

if TYPE_CHECKING:
    from ldm_toolkit.replay import Original

__all__ = ["Known", "ModelChoice", "choose_model", "fit_problems"]


@dataclass(frozen=True)
class Known:
    """What the files of a model on this disk say: configurations of its parts, its defaults."""

    configs: Mapping[str, Any]
    defaults: ModelDefaults


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model, the machine it runs on, LoRAs (file, scale) and embeddings (file, word)."""

    model: str
    device: str
    dtype: str
    vae: str | None
    tokenizer: str | None
    revision: str | None
    variant: str | None
    offline: bool
    allow_pickle: bool
    attention: str
    compile: bool
    backend: str
    loras: tuple[tuple[Path, float], ...]
    embeddings: tuple[tuple[Path, str | None], ...]

    def setting(self, threads: int | None) -> dict[str, Any]:
        """What of it decides a picture's bits beside the weights; files by their hashes."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "attention": self.attention,
            "compile": self.compile,
            "backend": self.computing,
            "threads": threads,
            "tokenizer": _file_hashes(self.tokenizer) if self.tokenizer is not None else None,
            "loras": [(identity.adapter_sha256(path), scale) for path, scale in self.loras],
            "embeddings": [(identity.adapter_sha256(path), word) for path, word in self.embeddings],
        }

    @property
    def computing(self) -> str:
        """What computes the UNet: torch where nobody asked for anything."""
        return "torch" if self.backend == "auto" else self.backend

    @property
    def on_hub(self) -> bool:
        """Whether loading it may need the network."""
        return on_hub(self.model) and not self.offline

    def weights_sha256(self) -> str:
        """The hash in the loaded model's identity, from the files alone. Raises ModelError."""
        vae = Path(self.vae) if self.vae is not None else None
        reading: dict[str, Any] = {"allow_pickle": self.allow_pickle}
        if is_single_file(self.model):
            files = check_vae_folder(vae, **reading)[1] if vae is not None else ()
            return identity.checkpoint_sha256(Path(self.model), files)
        reading["variant"] = self.variant
        if on_hub(self.model):
            offline = self.offline or None
            fetched = fetch_model(self.model, revision=self.revision, offline=offline, **reading)
            folder = fetched.folder
        else:
            folder = identity.find_model(self.model)
        tokenizer = Path(self.tokenizer) if self.tokenizer is not None else None
        checked = check_model_folder(folder, vae=vae, tokenizer=tokenizer, **reading)
        return identity.weights_sha256(checked.files)


def choose_model(
    arguments: argparse.Namespace, original: "Original | None"
) -> tuple[ModelChoice, Known | None]:
    """The choice, and what is known of the model before it is loaded.

    Raises UserError and ModelError with everything that is wrong.
    """
    problems: list[str] = []
    _check_device(arguments.device, arguments.dtype, problems)
    if arguments.attention not in ATTENTION:
        hint = suggestion(arguments.attention, ATTENTION)
        problems.append(
            f"--attention: {arguments.attention!r} is none of {', '.join(ATTENTION)}{hint}"
        )
    attention, compiled = arguments.attention, arguments.compile
    if arguments.backend != "auto":
        problems += backend_problems(arguments.backend, compile=compiled, attention=attention)
    recorded = original.recipe.loras if original is not None else ()
    loras = tuple(_lora(text, recorded, problems) for text in arguments.lora or ())
    embeddings = tuple(_embedding(text, problems) for text in arguments.embedding or ())
    model = arguments.model
    known = None
    try:
        if model is None:
            model = identity.DEFAULT_MODEL if original is None else _recorded_model(original)
        known = _look_at(model, arguments)
    except ModelError as error:
        problems.append(f"--model: {error}")
    if original is not None:
        problems += _other_adapters(original, loras, embeddings)
    if problems:
        raise UserError("; ".join(problems))
    choice = ModelChoice(
        model=model,
        device=arguments.device,
        dtype=arguments.dtype,
        vae=arguments.vae,
        tokenizer=arguments.tokenizer,
        revision=arguments.revision,
        variant=arguments.variant,
        offline=arguments.offline,
        allow_pickle=arguments.allow_pickle,
        attention=arguments.attention,
        compile=arguments.compile,
        backend=arguments.backend,
        loras=loras,
        embeddings=embeddings,
    )
    return choice, known


def fit_problems(options: GenerateOptions, known: Known | None, backend: str) -> dict[str, str]:
    """What cannot be done, by the model where it is known: by field a line that begins with it."""
    wanted, name = options.settled_speed, options.scheduler
    frozen = {"gate": wanted.gate, "attention_every": wanted.attention_every}
    problems = frozen_problems(backend, frozen)
    if options.eta and name is not None and not schedulers.takes_eta(name):
        problems["eta"] = f"eta: {name} knows no eta; ddim and tcd do"
    if options.strength is not None and int(options.steps * options.strength) < 1:
        problems["strength"] = (
            f"strength {options.strength:g} leaves none of {options.steps} steps; raise one"
        )
    if known is None:
        return problems | size_problems(options)
    most = schedulers.max_steps(name if name is not None else "ddim", known.configs["scheduler"])
    if options.steps > most:
        who = name if name is not None else "the model's scheduler"
        problems["steps"] = f"steps: {who} can do {most} at most, not {options.steps}"
    layers = known.configs["text_encoder"].get("num_hidden_layers", 12)
    if options.clip_skip >= layers:
        told = counted(layers, "layer")
        problems["clip_skip"] = f"clip_skip: the text encoder has {told}; one must stay"
    deepest = most_reuse_depth(known.configs["unet"])
    if wanted.reuse_every > 1 and wanted.reuse_depth > deepest:
        problems["reuse_depth"] = (
            f"reuse_depth must be from 1 to {deepest} with this model, not {wanted.reuse_depth}"
        )
    return problems | size_problems(options, known.defaults.multiple)


def _look_at(model: str, arguments: argparse.Namespace) -> Known | None:
    """Check the model's files as the loader will; None where that is later. Raises ModelError."""
    if on_hub(model):
        return None
    vae = Path(arguments.vae) if arguments.vae is not None else None
    if arguments.revision is not None:
        raise ModelError("--revision is for models of the hub (owner/name)")
    if is_single_file(model):
        if arguments.variant is not None:
            raise ModelError("--variant is for folders and models of the hub, not for a file")
        if Path(model).suffix.lower() == ".safetensors":
            return _look_at_file(Path(model), vae, allow_pickle=arguments.allow_pickle)
        if not arguments.allow_pickle:
            raise ModelError(
                f"{model} is a pickle, which can run code when it is read; take the model as "
                "safetensors, or pass --allow-pickle for torch's weights-only loader"
            )
        return None
    checked = check_model_folder(
        identity.find_model(model),
        variant=arguments.variant,
        vae=vae,
        tokenizer=Path(arguments.tokenizer) if arguments.tokenizer is not None else None,
        allow_pickle=arguments.allow_pickle,
    )
    scheduler = checked.index["scheduler"][1]
    return Known(checked.configs, model_defaults(model, checked.configs, scheduler, checked.card))


def _look_at_file(path: Path, vae: Path | None, *, allow_pickle: bool) -> Known | None:
    """A checkpoint; None where its UNet has to be asked what it predicts. Raises ModelError."""
    found = check_single_file(path, with_vae=vae is None)
    configs = found.settled(found.prediction or "v_prediction")
    if vae is not None:
        configs["vae"] = check_vae_folder(vae, allow_pickle=allow_pickle)[0]
    check_configs(configs)
    if found.prediction is None:
        return None
    scheduler = configs["scheduler"]["_class_name"]
    return Known(configs, model_defaults(path.stem, configs, scheduler, {}))


def _recorded_model(original: "Original") -> str:
    """The bundled model that a recipe names. A path is opened only if the person names it."""
    name = original.recipe.model.get("name", "")
    if name in identity.bundled_models():
        return name
    weights = original.recipe.model.get("sha256", "")
    raise ModelError(
        f"the picture was made with {name!r:.80} (weights {weights:.12}), which is not bundled; "
        "name its folder with --model"
    )


def _other_adapters(
    original: "Original",
    loras: tuple[tuple[Path, float], ...],
    embeddings: tuple[tuple[Path, str | None], ...],
) -> list[str]:
    """What a recipe's LoRAs and embeddings lack among those given, and the other way round."""
    problems = []
    for option, recorded, files in (
        ("--lora", original.recipe.loras, [path for path, _ in loras]),
        ("--embedding", original.recipe.embeddings, [path for path, _ in embeddings]),
    ):
        given = [identity.adapter_sha256(path) for path in files if path.is_file()]
        wanted = {str(one.get("sha256")): one for one in recorded}
        for digest, one in wanted.items():
            if digest not in given:
                label = one.get("name", one.get("token", ""))
                problems.append(
                    f"{option}: the picture was made with {label!r:.80} (SHA-256 {digest:.12}...); "
                    "give its file"
                )
        if any(digest not in wanted for digest in given):
            problems.append(f"{option}: not all of these files made the picture")
    return problems


def _lora(
    text: str, recorded: Sequence[Mapping[str, Any]], problems: list[str]
) -> tuple[Path, float]:
    """``PATH`` or ``PATH:SCALE``; without a scale that of the replayed recipe's LoRA, else 1.

    PATH is a file, or a folder with one; a `Path` is never looked for on the hub.
    """
    head, colon, tail = text.rpartition(":")
    path, given = Path(text), None
    if colon and head:
        with contextlib.suppress(ValueError):  # a colon of the path
            path, given = Path(head), float(tail)
    path = Path(fetch_lora(path))
    scale = 1.0 if given is None else given
    if given is None and recorded and path.is_file():
        digest = identity.adapter_sha256(path)
        scale = next((float(one["scale"]) for one in recorded if one.get("sha256") == digest), 1.0)
    if not math.isfinite(scale):
        problems.append(f"--lora: the scale must be a finite number, not {tail}")
    _check_file("--lora", path, problems)
    return path, scale


def _embedding(text: str, problems: list[str]) -> tuple[Path, str | None]:
    """``PATH`` or ``PATH:WORD``."""
    head, colon, tail = text.rpartition(":")
    split = colon and head and "/" not in tail and "\\" not in tail and not Path(text).exists()
    path, word = (Path(head), tail) if split else (Path(text), None)
    _check_file("--embedding", path, problems)
    return path, word


def _check_file(option: str, path: Path, problems: list[str]) -> None:
    if path.suffix.lower() != ".safetensors":
        problems.append(f"{option}: {path} is no .safetensors file")
    elif not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        problems.append(f"{option}: there is no file {path!s:.200}")
    else:
        try:
            check_safetensors(path)
        except ModelError as error:
            problems.append(f"{option}: {error}")


def _file_hashes(folder: str) -> list[str]:
    """The SHA-256 of every file in a folder."""
    return [sha256_file(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def _check_device(device: str, dtype: str, problems: list[str]) -> None:
    """Spelling only: what the machine has is known when torch is imported."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
        problems.append(f"--device: {device!r} is none of auto, cpu, cuda, cuda:1, mps, xpu")
    if dtype not in (*DTYPES, "fp32", "bf16", "fp16"):
        problems.append(
            f"--dtype: {dtype!r} is none of {', '.join(DTYPES)}{suggestion(dtype, DTYPES)}"
        )
