"""The model card of a training: OUTPUT/README.md, for the hub and for whoever gets the folder.

It says what was trained on what and how to use it, and names no folder of this machine.
"""

import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import yaml_dump

from ldm_toolkit.errors import CannotWrite
from ldm_toolkit.files import write_atomic
from ldm_toolkit.images import image_bytes
from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.curve import draw_curve, read_metrics
from ldm_toolkit.training.folders import result_name
from ldm_toolkit.training.lora_output import KOHYA_FILE
from ldm_toolkit.values import counted

__all__ = ["CARD", "Result", "write_card"]

logger = logging.getLogger(__name__)
CARD = "README.md"
_CURVE = "loss.png"
# Folders that only going on with the training needs, where they are.
_NOT_PUBLISHED = ("checkpoints", "cache", "class", "logs", "wandb")
_MARKER = "<!-- written by ldm_toolkit; take this line out to keep what you change here -->"

# What is trained, and what the hub calls it.
_KINDS = {
    "full": ("all weights of the UNet", []),
    "lora": ("a LoRA of the UNet", ["lora"]),
    "dreambooth": ("all weights of the UNet, for one subject", ["dreambooth"]),
    "dreambooth-lora": ("a LoRA of the UNet, for one subject", ["dreambooth", "lora"]),
    "textual-inversion": ("the vectors of a new word", ["textual_inversion"]),
    "decoder": ("the decoder of the autoencoder", []),
    "all": ("the autoencoder", []),
}


@dataclass(frozen=True)
class Result:
    """What a card says beyond the options.

    ``pictures`` and their ``fingerprint`` are those that were trained on. ``file`` is what lies
    beside a model; without it OUTPUT is one, or an autoencoder alone where ``whole`` is false.
    """

    pictures: int
    fingerprint: str
    file: str | None = None
    whole: bool = True


def write_card(config: UNetConfig | VAEConfig, result: Result) -> None:
    """Write OUTPUT/README.md and the curve that it shows, unless somebody else's file is there.

    Raises CannotWrite.
    """
    output = Path(config.output)
    place = output / CARD
    try:
        ours = not place.exists() or _MARKER in place.read_text("utf-8", errors="replace")
    except OSError as error:
        raise CannotWrite(f"cannot write {place}: {error.strerror or error}") from error
    if not ours:
        logger.info("%s is not of ldm_toolkit and stays as it is: no model card", place)
        return
    lines = read_metrics(output / "metrics.jsonl")
    if lines:
        curve = draw_curve([line["step"] for line in lines], [line["loss"] for line in lines])
        write_atomic(output / _CURVE, image_bytes(curve))
    kind = config.train if isinstance(config, VAEConfig) else config.method
    told, tags = _KINDS.get(kind, (f"what the method {kind} trains", [kind]))
    if isinstance(config, UNetConfig) and config.token is not None:
        told += f", `{config.token}`"
    started = f"`{_base(config)}`"
    if config.from_config is not None:
        started = "fresh weights"
    elif config.model in bundled_models():
        started += ", the model that comes with ldm_toolkit,"
    parts = [
        f"---\n{_front_matter(config, result, tags)}\n---\n{_MARKER}",
        f"# {result_name(output)}",
        f"{told[0].upper()}{told[1:]}, trained from {started} in {counted(config.steps, 'step')} "
        "with [Accelerate](https://github.com/huggingface/accelerate) by ldm_toolkit.",
        f"## Use\n\n{_usage(config, result)}",
        f"## Files\n\n{_files(output, result)}",
        f"## Training\n\n{_training(lines, result)}",
        *_pictures(output / "samples", config),
        f"All options, as they were resolved:\n\n{_options(config)}",
    ]
    write_atomic(place, ("\n\n".join(parts) + "\n").encode())


def _base(config: UNetConfig | VAEConfig) -> str:
    """The model that was started from, without its place."""
    known = config.model in bundled_models()
    return config.model if known else _on_hub(config) or Path(config.model).resolve().name


def _on_hub(config: UNetConfig | VAEConfig) -> str | None:
    """What the hub calls the model, where its folder is one of the hub's cache."""
    snapshots = Path(config.model).resolve().parent  # models--owner--name/snapshots/COMMIT
    kind, *names = snapshots.parent.name.split("--")
    return "/".join(names) if snapshots.name == "snapshots" and kind == "models" else None


def _front_matter(config: UNetConfig | VAEConfig, result: Result, tags: Sequence[str]) -> str:
    """What the hub reads. The licence is the user's to choose, so none is named."""
    data: dict[str, Any] = {
        "library_name": "diffusers",
        "tags": ["stable-diffusion", *(["text-to-image"] if result.whole else []), *tags],
    }
    base = _on_hub(config) if config.from_config is None else None
    if base is not None:  # the hub takes no other names
        data["base_model"] = base
    if result.whole:
        data["pipeline_tag"] = "text-to-image"
    prompt = getattr(config, "instance_prompt", None)
    if prompt is not None:
        data["instance_prompt"] = prompt
    return ModelCardData(**data).to_yaml()


def _usage(config: UNetConfig | VAEConfig, result: Result) -> str:
    """The commands that draw with it; the folder is meant to lie in the current one."""
    folder = Path(config.output).resolve().name
    if not result.whole:
        code = f'AutoencoderKL.from_pretrained({folder!r}, subfolder="vae")'
        return f"```python\nfrom diffusers import AutoencoderKL\n\nvae = {code}\n```"
    words = ["ldm-gen", _prompt(config)]
    load = f"StableDiffusionPipeline.from_pretrained({folder!r})"
    if result.file is None:
        words += ["--model", folder]
    else:
        option = "--embedding" if _is_word(config) else "--lora"
        words += ["--model", _base(config), option, f"{folder}/{result.file}"]
        method = "load_textual_inversion" if _is_word(config) else "load_lora_weights"
        load = (
            f"pipe.{method}({folder!r}, weight_name={result.file!r})` on "
            f"`LatentPipeline.from_pretrained({_base(config)!r}).to_diffusers()"
        )
    told = f"```bash\n{shlex.join(words)}\n```\n\nor in diffusers: `{load}`."
    if (Path(config.output) / KOHYA_FILE).is_file():
        told += f" The web UIs read `{KOHYA_FILE}`, which is the same LoRA by kohya's names."
    return told


def _files(output: Path, result: Result) -> str:
    """What of the folder is the result, and how it gets to the hub without the rest."""
    name = output.resolve().name
    told = "The folder is a model in the diffusers layout"
    if not result.whole:
        told = "`vae/` is what was trained"
    elif result.file is not None:
        told = f"`{result.file}` is what was trained"
    left = [folder for folder in _NOT_PUBLISHED if (output / folder).is_dir()]
    words = ["hf", "upload", f"YOUR-NAME/{name}", name, "."]
    for folder in left:
        words += ["--exclude", f"{folder}/*"]
    told += ", beside this page and what it shows."
    if left:
        folders = " and ".join(f"`{folder}/`" for folder in left)
        told += f" Only going on with the training needs {folders}: do not publish them."
    return f"{told}\n\n```bash\n{shlex.join(words)}\n```"


def _is_word(config: UNetConfig | VAEConfig) -> bool:
    return isinstance(config, UNetConfig) and config.token is not None


def _prompt(config: UNetConfig | VAEConfig) -> str:
    """A prompt that shows what was learned, on one line."""
    if isinstance(config, VAEConfig):
        return "a dog wearing hat"
    word = f"a photo of {config.token}" if config.token is not None else None
    first = config.sample_prompts[0] if config.sample_prompts else "a dog wearing hat"
    return " ".join((config.instance_prompt or word or first).split())


def _training(lines: Sequence[dict], result: Result) -> str:
    """The data and how the losses went."""
    told = [
        f"{counted(result.pictures, 'picture')}; SHA-256 of their content, captions and sizes: "
        f"`{result.fingerprint}`."
    ]
    if lines:
        tenth = max(1, len(lines) // 10)
        first, last = (sum(one["loss"] for one in some) / tenth
                       for some in (lines[:tenth], lines[-tenth:]))  # fmt: skip
        told.append(
            f"Mean loss of the first tenth of the steps: {first:.4g}; of the last: {last:.4g}."
        )
    measured = [line["validation"] for line in lines if "validation" in line]
    if measured:
        weights = measured[-1].get("averaged", measured[-1]["raw"])
        margin = f" ± {weights['margin']:.2g}" if "margin" in weights else ""
        told.append(
            f"Loss on {measured[-1]['pictures']} held-out pictures at the end: "
            f"{weights['loss']:.4g}{margin}."
        )
    if lines:
        told.append(f"![loss over steps]({_CURVE})")
    return "\n\n".join(told)


def _pictures(folder: Path, config: UNetConfig | VAEConfig) -> list[str]:
    """The first and the last sample pictures, where there are any."""
    found = sorted(folder.glob("step-*.png"))
    if not found:
        return []
    shown = dict.fromkeys([found[0], found[-1]])
    told = "Pictures of the data beside their reconstructions"
    if isinstance(config, UNetConfig):
        plain = (" ".join(prompt.split()).replace("`", "'") for prompt in config.sample_prompts)
        told = f"Sample pictures, from left to right: {', '.join(f'`{one}`' for one in plain)}"
    links = [
        f"![step {int(path.stem.removeprefix('step-'))}](samples/{path.name})" for path in shown
    ]
    return ["\n\n".join([told, *links])]


def _options(config: UNetConfig | VAEConfig) -> str:
    """All options as a block of YAML, of folders and files only the names."""
    options = vars(config) | {"output": Path(config.output).resolve().name}
    text = yaml_dump({name: _without_place(value) for name, value in options.items()})
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)  # longer than any
    return f"{fence}yaml\n{text}{fence}"


def _without_place(value: Any) -> Any:
    if not isinstance(value, str) or not ("/" in value or "\\" in value):
        return value
    path = Path(value)
    try:
        named = path.is_absolute() or value.startswith(("~", "..")) or path.exists()
    except (OSError, ValueError):  # a long prompt is no path
        return value
    return path.name if named else value
