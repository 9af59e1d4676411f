"""OpenVINO in torch's place for the UNet: faster on CPUs, other last bits.

What is computed is converted once for all sizes: the UNet, or, where deep features are reused, each
of its two halves at a depth. It goes into the user's cache folder, under a name that holds what its
weights are (LoRAs and their scales too); what that needs for a moment is the network once more in
float32 and, where it is bfloat16, in float16. A size is compiled in seconds when it is first drawn:
then OpenVINO has the weights of that part once more than torch, laid out as it likes them, for each
of the last four sizes, prompts' lengths and numbers of rows, which are two at most. The VAE stays
torch's, which decodes as fast.
"""

import contextlib
import copy
import functools
import hashlib
import importlib
import importlib.metadata
import json
import logging
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_toolkit.backends import backend_problems
from ldm_toolkit.errors import LdmToolkitError, UserError, first_line, is_out_of_memory
from ldm_toolkit.fastpath.halves import Halves
from ldm_toolkit.files import cache_folder, folder_lock, sha256_file, staged_directory
from ldm_toolkit.hardware import versions
from ldm_toolkit.models.components import module_hash

__all__ = ["check_backend", "convert_unet", "halves", "openvino"]

_log = logging.getLogger(__name__)
# Odd at every level, so that a traced network asks each skip connection for its size.
_SIDES = (9, 11)
_FILES = ("model.xml", "model.bin")
_MOST_SIZES = 4  # kept compiled, each with weights of its own


def check_backend(backend: str, device: torch.device, *, compile: bool, attention: str) -> None:
    """Whether a backend can be had here with the rest of what was asked. Raises UserError."""
    problems = backend_problems(backend, compile=compile, attention=attention)
    if backend == "openvino" and device.type != "cpu":
        problems.append(
            f"the backend openvino computes on CPUs, not on {device.type}; pass the device cpu, or "
            "go on with the backend torch"
        )
    if problems:
        raise UserError("; ".join(problems))


def convert_unet(unet: Any) -> None:
    """Have OpenVINO answer for a UNet, in place, from its next call on.

    As ``nn.Module.compile`` does it, so that copies are torch's again; and as after that, whoever
    changes weights has to convert anew. A UNet that is converted stays as it is.
    """
    if unet._compiled_call_impl is None:
        unet._compiled_call_impl = _Unet(unet)


class _Unet:
    """What answers in the place of a diffusers UNet, and of its halves."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self._parts: dict[tuple[str, int], _Part] = {}

    def __call__(
        self, x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any
    ) -> Any:
        """diffusers' call; torch answers where it asks for more than a prediction in a tuple."""
        if others.pop("return_dict", True) or any(one is not None for one in others.values()):
            return self._unet.forward(x, timestep, encoder_hidden_states, **others)
        return self.part("forward", 0, x, timestep, encoder_hidden_states)

    def part(
        self, method: str, depth: int, x: Tensor, timestep: Tensor, *others: Tensor
    ) -> list[Tensor]:
        """A method of the UNet, or, at a depth from 1, of its ``Halves``."""
        # One of threads that ask at once makes it, and the others get the same.
        part = self._parts.setdefault((method, depth), _Part(self._unet, method, depth))
        # In torch, since in bfloat16 OpenVINO would round the timestep itself, 999 to 1000.
        waves = self._unet.time_proj(timestep.reshape(-1).expand(len(x)))
        return part(x, waves, *others)


@dataclass(frozen=True)
class _Cut:
    """A UNet's ``Halves``, computed by OpenVINO, which takes no state for attention layers."""

    unet: _Unet
    depth: int

    def whole(
        self, x: Tensor, timestep: Tensor, text: Tensor, state: None
    ) -> tuple[Tensor, Tensor]:
        prediction, deep = self.unet.part("whole", self.depth, x, timestep, text)
        return prediction, deep

    def shallow(
        self, x: Tensor, timestep: Tensor, text: Tensor, deep: Tensor, state: None
    ) -> Tensor:
        return self.unet.part("shallow", self.depth, x, timestep, text, deep)[0]


def halves(unet: Any, depth: int) -> _Cut:
    """What takes the place of a converted UNet's ``Halves``."""
    return _Cut(unet._compiled_call_impl, depth)


class _Told(nn.Module):
    """A UNet, or one of its halves, which is told the waves of the timestep."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, x: Tensor, waves: Tensor, text: Tensor, *deep: Tensor) -> Any:
        network: Any = self.network
        network.time_proj.forward = lambda _: waves
        found = getattr(network, self.method)(x, torch.zeros(1), text, *deep)
        return found.sample if self.method == "forward" else found

    def deep(self, x: Tensor, waves: Tensor, text: Tensor) -> Tensor:
        """Deep features that fit the latents, for the half that takes some."""
        network: Any = self.network
        network.time_proj.forward = lambda _: waves
        return network.whole(x, torch.zeros(1), text)[1]


class _Part:
    """A method of a UNet, or of its ``Halves``, which OpenVINO computes: tensors in, tensors out.

    All have a row a picture and are computed two rows at a time, such as the halves of guidance,
    where their number is even, else one; so a row's bits do not depend on how many there are.
    """

    def __init__(self, unet: Any, method: str, depth: int) -> None:
        self._unet, self._method, self._depth = unet, method, depth
        self._compiled: dict[Any, Any] = {}
        self._folder: Path | None = None
        self._lock = threading.Lock()

    def __call__(self, *rows: Tensor) -> list[Tensor]:
        """Answers in the dtype of the first of ``rows``. Raises LdmToolkitError."""
        count = len(rows[0])
        parts = count // 2 if count % 2 == 0 else count
        with self._lock:
            answers = [self._answers([row[k::parts] for row in rows]) for k in range(parts)]
        return [
            torch.stack(one, dim=1).flatten(0, 1).to(rows[0].dtype)
            for one in zip(*answers, strict=True)
        ]

    def _answers(self, rows: list[Tensor]) -> list[Tensor]:
        with _explained():
            key = tuple(row.shape for row in rows), torch.get_num_threads()
            if key not in self._compiled:
                while len(self._compiled) >= _MOST_SIZES:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[key] = self._compile(rows)
            found = self._compiled[key]([row.float().contiguous().numpy() for row in rows])
        return [torch.from_numpy(one) for one in found.to_tuple()]

    def _compile(self, rows: list[Tensor]) -> Any:
        """The network for rows of these shapes."""
        if self._folder is None:
            folder = _cache() / self._key()
            if not _intact(folder):
                with folder_lock(_cache()):
                    if not _intact(folder):  # else another process of the job did it meanwhile
                        self._convert(rows, folder)
            self._folder = folder
        began = time.monotonic()
        model = _core().read_model(self._folder / _FILES[0])
        model.reshape({index: list(row.shape) for index, row in enumerate(rows)})
        settings = {
            "INFERENCE_PRECISION_HINT": "f32" if self._unet.dtype == torch.float32 else "bf16",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several processes would all take the first cores
        }
        compiled = _core().compile_model(model, "CPU", settings)
        _log.info("OpenVINO compiled the UNet in %.1f s", time.monotonic() - began)
        return compiled

    @torch.no_grad()
    def _convert(self, rows: list[Tensor], folder: Path) -> None:
        """Write the network for rows of any shape. Raises CannotWrite."""
        _log.info("converting the UNet for OpenVINO; it is kept in %s", folder.parent)
        began = time.monotonic()
        exact = self._unet.dtype == torch.float32
        copied = _in_float32(self._unet)
        told = _Told(Halves(copied, self._depth) if self._depth else copied, self._method)
        inputs = [torch.zeros(1, rows[0].shape[1], *_SIDES)]
        inputs += [torch.zeros(1, *row.shape[1:]) for row in rows[1:3]]
        if self._method == "shallow":
            inputs.append(told.deep(*inputs))
        with _quiet():
            model = openvino().convert_model(
                told, example_input=tuple(inputs), input=[_any_size(row) for row in rows]
            )
        with staged_directory(folder) as staging:
            # float16 holds the weights of bfloat16: it has more digits, and range enough.
            openvino().save_model(model, staging / _FILES[0], compress_to_fp16=not exact)
            (staging / "sha256").write_text(_sums(staging))
        _log.info("converted in %.1f s", time.monotonic() - began)

    def _key(self) -> str:
        """The name of what is computed: weights, structure, LoRAs' scales, precision, versions."""
        unet = self._unet
        scales = [getattr(layer, "scaling", None) for layer in unet.modules()]
        # Without what diffusers notes for itself, in another order in every process.
        config = {name: one for name, one in unet.config.items() if not name.startswith("_")}
        about = [str(unet), config, [one for one in scales if one is not None]]
        about += [str(unet.dtype), versions(), importlib.metadata.version("openvino")]
        told = f"{json.dumps(about, default=str, sort_keys=True)} {module_hash(unet)}"
        return f"{self._method}-{self._depth}-{hashlib.sha256(told.encode()).hexdigest()[:32]}"


def _in_float32(unet: Any) -> Any:
    """A copy of a UNet; where it is float32 already it shares its weights."""
    made: dict[int, Any] = {id(one): one.float() for one in unet.buffers()}
    for one in unet.parameters():
        made[id(one)] = nn.Parameter(one.float(), requires_grad=False)
    return copy.deepcopy(unet, made)


def _any_size(row: Tensor) -> list[int]:
    """A shape of any number of rows, of any height and width, or of any number of tokens."""
    if row.ndim == 4:
        return [-1, row.shape[1], -1, -1]
    return [-1] * (row.ndim - 1) + [row.shape[-1]]


def _sums(folder: Path) -> str:
    """A line a file, as ``sha256sum`` prints them."""
    return "".join(f"{sha256_file(folder / name)}  {name}\n" for name in _FILES)


def _intact(folder: Path) -> bool:
    """Whether a folder holds what was written there."""
    try:
        return (folder / "sha256").read_text() == _sums(folder)
    except (OSError, ValueError):
        return False


@functools.cache
def _cache() -> Path:
    """Where converted networks stay: the user's cache folder, or one for this process alone."""
    place = cache_folder("openvino")
    return place if place is not None else Path(_temporary().name)


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()  # held by this function's cache, gone with the process


@functools.cache
def _core() -> Any:
    return openvino().Core()


def openvino() -> Any:
    """The package, without the telemetry that it sends: nothing here uses the network."""
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing tells what it takes for constants; here all of these are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
        yield


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn a failure of OpenVINO into one line. Raises LdmToolkitError."""
    frontend = openvino().frontend
    try:
        yield
    except (RuntimeError, frontend.GeneralFailure, frontend.OpConversionFailure) as error:
        if is_out_of_memory(error):
            raise
        raise LdmToolkitError(
            f"OpenVINO failed: {first_line(error)}; go on with the backend torch"
        ) from error
