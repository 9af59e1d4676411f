"""What the benchmarks share: contenders in processes of their own, models, the machine's name."""

import contextlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Worker:
    """A contender in a process of its own: a JSON object on stdin, a JSON object back."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.answers: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.loaded = self._answer()

    def ask(self, **order: Any) -> None:
        """Let it do something; the first is the warm-up."""
        print(json.dumps(order), file=self._process.stdin, flush=True)
        self.answers.append(self._answer())

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def median(self, key: str) -> float:
        """Of a figure over the rounds, without the warm-up."""
        return statistics.median(answer[key] for answer in self.answers[1:])

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            sys.exit(f"{self.name} ended early; run it alone: --contenders {self.name}")
        return json.loads(line)


@contextlib.contextmanager
def running(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Worker]]:
    """The contenders' processes by name; they end with the block."""
    workers: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            workers[name] = Worker(name, command)
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def random_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5's networks with random weights, in half precision as it is shared."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    channels = (128, 256, 512, 512)
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(bundled() / "tokenizer"),
        text_encoder=CLIPTextModel(text).half(),
        unet=UNet(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half(),
        vae=AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ).half(),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def bundled() -> Path:
    """The bundled model's folder."""
    from ldm_toolkit.models.identity import find_model

    return find_model("storybook")


def processor() -> str:
    """The processor's name."""
    lines: Iterator[str] = iter(())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if "model name" in line)
    return next(lines, f":{platform.processor() or platform.machine()}").partition(":")[2].strip()


def versions() -> str:
    """The versions of torch and diffusers."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
