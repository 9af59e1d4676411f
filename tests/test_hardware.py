"""Device and dtype by name and by machine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_toolkit import hardware
from ldm_toolkit.errors import UserError
from ldm_toolkit.pipeline import LatentPipeline

CPU = torch.device("cpu")


def test_devices() -> None:
    assert hardware.choose_device("cpu") == CPU
    assert hardware.choose_device("auto").type in ("cuda", "mps", "xpu", "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "cpu:x", "tpu", "cuda:-1"])
def test_wrong_devices(name: str) -> None:
    with pytest.raises(UserError, match="this machine has"):
        hardware.choose_device(name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_dtypes(name: Any, dtype: torch.dtype) -> None:
    assert hardware.choose_dtype(name, CPU) == dtype


@pytest.mark.parametrize("name", ["float", "fp8", "", torch.int8, "float16", "fp16"])
def test_wrong_dtypes(name: Any) -> None:
    with pytest.raises(UserError):
        hardware.choose_dtype(name, CPU)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_automatic_dtype_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(hardware, "native_bf16", lambda: native)
    assert hardware.choose_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)]
)
def test_automatic_dtype_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.choose_dtype("auto", torch.device("cuda")) == dtype


def test_native_bf16_agrees_with_the_kernel() -> None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:
        pytest.skip("no /proc/cpuinfo on this system")
    if "flags" not in flags:
        pytest.skip("not an x86 processor")
    assert hardware.native_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)


def test_memory_format() -> None:
    convolution = torch.nn.Conv2d(4, 8, 3)
    assert hardware.lay_out([convolution], torch.float32) == "contiguous"
    assert hardware.lay_out([convolution], torch.bfloat16) == "channels_last"
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


class TestAttention:
    def test_sliced_computes_the_same(self, tiny_model: Path) -> None:
        made = {}
        for name in ("auto", "sdpa", "sliced"):
            pipe = LatentPipeline.from_pretrained(
                tiny_model, device="cpu", dtype="float32", attention=name
            )
            result = pipe("a dog", steps=2, seed=1)
            assert result.recipes[0].attention == ("sdpa" if name == "auto" else name)
            processors = pipe.components.unet.attn_processors.values()
            kinds = {type(one.inner).__name__ for one in processors}
            assert kinds == {"SlicedAttnProcessor" if name == "sliced" else "AttnProcessor2_0"}
            made[name] = result.latents
        assert torch.equal(made["auto"], made["sdpa"])
        assert (made["sliced"] - made["sdpa"]).abs().max() < 1e-4

    @pytest.mark.parametrize("name", ["xformers", "flash", "", "SDPA"])
    def test_what_is_not_there_lists_what_is(
        self, name: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hardware, "find_spec", lambda _: None)
        with pytest.raises(UserError, match="available: auto, sdpa, sliced"):
            LatentPipeline.from_pretrained(tiny_model, device="cpu", attention=name)


def test_processes_of_a_machine_take_their_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    hardware.take_own_gpu()
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        hardware.take_own_gpu()
    assert taken == [0, 1, 0]
