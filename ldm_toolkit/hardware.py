"""What the machine computes well: device, dtype, memory format. Changes modules, never the loop."""

import functools
import importlib.metadata
import os
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch

from ldm_toolkit.errors import UserError, suggestion

__all__ = [
    "ATTENTION",
    "DTYPES",
    "choose_attention",
    "choose_device",
    "choose_dtype",
    "cpu_capability",
    "lay_out",
    "native_bf16",
    "set_attention",
    "take_own_gpu",
    "threads_per_process",
    "versions",
]

ATTENTION = ("sdpa", "sliced", "xformers")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def _available() -> list[str]:
    """The device types of this machine, the best first."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    return [*found, "cpu"]


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name like "cuda:1"; "auto" takes the best one. Raises UserError."""
    available = _available()
    known = ", ".join(available)
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{name!r:.80} is not a device; this machine has {known}") from error
    if device.type not in available:
        raise UserError(f"no device {name!r:.80} here; this machine has {known}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"no device {name!r:.80} here; this machine has {count} of type cuda")
    return device


def native_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16; Arm's bf16)."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_arm_bf16_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return True
    return False


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" takes what the device computes fast and safely.

    Raises UserError for unknown names and for float16 on a CPU, which computes it slowly.
    """
    if name == "auto":
        return _automatic_dtype(device)
    text = str(name).removeprefix("torch.")
    text = _SHORT.get(text, text)
    if text not in DTYPES:
        known = ", ".join(["auto", *DTYPES])
        hint = suggestion(text, [*DTYPES, *_SHORT])
        raise UserError(f"{text!r:.80} is not a dtype ({known}){hint}")
    if text == "float16" and device.type == "cpu":
        raise UserError("float16 is for GPUs; on the CPU use bfloat16 or float32")
    return DTYPES[text]


def _automatic_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.bfloat16 if native_bf16() else torch.float32
    if device.type == "cuda":
        # Emulated bfloat16 (before Ampere) is slower than float16.
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if device.type == "xpu" else torch.float16


def cpu_capability() -> str:
    """The instruction set torch dispatches to: it decides the bits of a picture."""
    return str(torch.backends.cpu.get_cpu_capability())


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Name and version of the packages that compute a picture, as recipes hold them."""
    from ldm_toolkit import __version__

    others = ("torch", "diffusers", "transformers", "peft", "compel")
    return (
        ("ldm_toolkit", __version__),
        *((name, importlib.metadata.version(name)) for name in others),
    )


def threads_per_process(local: int = 1) -> int:
    """The usable cores divided among the processes of this machine.

    torchrun and accelerate say how many these are; ``local`` counts where nobody does. They start
    each with OMP_NUM_THREADS=1, which would leave most cores idle.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    usable = len(affinity(0)) if affinity is not None else os.cpu_count()
    return max(1, (usable or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", local)))


def take_own_gpu() -> None:
    """Of several processes on a machine each computes on a GPU of its own when it says "cuda"."""
    local = os.environ.get("LOCAL_RANK", "")
    if local.isdecimal() and torch.cuda.is_available():
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def lay_out(networks: Iterable[Any], dtype: torch.dtype) -> str:
    """Lay convolutional networks out for speed; returns the memory format, which a recipe holds.

    Half-precision convolutions want channels last, on CPUs and GPUs (the VAE decodes in a quarter
    less time). float32 stays as it is, for bits equal to those of diffusers.
    """
    if dtype == torch.float32:
        return "contiguous"
    for network in networks:
        network.to(memory_format=torch.channels_last)
    return "channels_last"


def choose_attention(name: str = "auto") -> str:
    """The name of a way to compute attention that is available here. Raises UserError.

    "sdpa" is torch's own and the default, "sliced" computes a part of the heads at a time for small
    memory, "xformers" needs that package and a GPU.
    """
    chosen = "sdpa" if name == "auto" else name
    known = [one for one in ATTENTION if one != "xformers" or find_spec("xformers") is not None]
    if chosen not in known:
        reason = "is not installed" if chosen in ATTENTION else "is no way to compute attention"
        raise UserError(
            f"{chosen!r:.80} {reason}; available: {', '.join(['auto', *known])}"
            f"{suggestion(chosen, known)}"
        )
    return chosen


def set_attention(networks: Iterable[Any], name: str = "auto") -> str:
    """Make networks compute attention in one of the ways; returns its name, for the recipe.

    Raises UserError.
    """
    chosen = choose_attention(name)
    for network in networks:
        if chosen == "sliced" and hasattr(network, "set_attention_slice"):
            network.set_attention_slice("auto")
        if chosen == "xformers":
            try:
                network.enable_xformers_memory_efficient_attention()
            except (ValueError, NotImplementedError, RuntimeError, ImportError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"xformers cannot compute attention here: {reason:.200}") from error
    return chosen
