"""torch.compile for the networks: what is compiled, how, and what the person is told."""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ldm_toolkit.errors import LdmToolkitError, UserError
from ldm_toolkit.files import cache_folder

__all__ = ["check_compiler", "compile_networks", "compiled", "explained"]

_log = logging.getLogger(__name__)
# One for each shape: sizes, batches, guided or not, LoRAs. Beyond, torch goes back to eager.
_MOST_VERSIONS = 64


def compile_networks(unet: Any, vae: Any, device: torch.device) -> None:
    """Compile the UNet and the VAE's halves in place, at their first call with each shape.

    On CPUs with inductor's freezing, which takes the weights for constants and lays them out for
    the convolutions; so whoever changes weights has to compile anew. Networks that are compiled
    stay as they are. Raises UserError where there is no compiler.
    """
    check_compiler(device)
    _keep_compiled()
    _tell_times()
    torch._dynamo.config.recompile_limit = max(_MOST_VERSIONS, torch._dynamo.config.recompile_limit)
    for network in (unet, vae.encoder, vae.decoder):
        if network._compiled_call_impl is None:
            network.compile(dynamic=False, options=_options(device))


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A function of a network's layers, compiled like a network at its first call."""
    return torch.compile(function, dynamic=False, options=_options(device))


def _options(device: torch.device) -> dict[str, Any] | None:
    return {"freezing": True} if device.type == "cpu" else None


def check_compiler(device: torch.device) -> None:
    """Whether this machine has what inductor calls. Raises UserError."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise UserError(
                "compiling needs a C++ compiler, and none was found; install g++ or clang, or go "
                "on without compile"
            ) from error
        return
    from torch.utils._triton import has_triton

    if device.type in ("cuda", "xpu") and not has_triton():
        raise UserError(
            "compiling for this device needs the package triton; install it, or go on without "
            "compile"
        )


def _keep_compiled() -> None:
    """Let inductor keep what it makes in the user's cache folder, for the next process.

    Its own choice is the temporary folder, which a restart empties and other users can write in.
    TORCHINDUCTOR_CACHE_DIR decides where it is set.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch writes its own choice there when it is imported.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) != default_cache_dir():
        return
    cache = cache_folder("inductor")
    if cache is not None:  # else it is as torch has it
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


@functools.cache
def _tell_times() -> None:
    """Log how long each compilation takes, from now on in this process."""
    from torch._dynamo.callback import on_compile_end, on_compile_start

    began: list[float] = []

    @on_compile_start
    def start(_: Any) -> None:
        began.append(time.monotonic())
        _log.info("compiling")

    @on_compile_end
    def end(_: Any) -> None:
        _log.info("compiled in %.1f s", time.monotonic() - began.pop())


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn a compiler's failure into one line. Raises LdmToolkitError."""
    try:
        yield
    except RuntimeError as error:
        # Not by class: importing torch._dynamo costs a second, which only a failure may.
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise LdmToolkitError(
            f"the model could not be compiled: {type(error).__name__}: {reason:.300}; go on "
            "without compile"
        ) from error
