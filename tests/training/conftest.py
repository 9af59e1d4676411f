"""Fixtures of the training tests: pictures with captions, the scripts in forks of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw

REPO = Path(__file__).parents[2]
SCRIPTS = {name: REPO / "examples" / f"{name}.py" for name in
           ("finetune_unet", "finetune_vae", "train_judge", "train_text_encoder")}  # fmt: skip


def draw_pictures(folder: Path, count: int = 6, side: int = 72) -> Path:
    """Pictures of a coloured disc with .txt captions; equal arguments, equal bytes."""
    folder.mkdir(parents=True)
    for index in range(count):
        shade = (40 * index) % 256
        picture = Image.new("RGB", (side, side), (shade, 255 - shade, 128))
        box = (4 * index, 8, 4 * index + 40, 48)
        ImageDraw.Draw(picture).ellipse(box, fill=(255 - shade, 60, shade))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a dog wearing hat number {index}\n")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image folder; never write into it."""
    return draw_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A fresh single-process Accelerator; it keeps global state otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    """A fresh single-process Accelerator that computes in bfloat16."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@dataclass
class Child:
    """A script on its way."""

    pid: int
    server: subprocess.Popen
    out: Path
    err: Path
    code: int | None = None

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        if self.code is None:
            self.code = int(self.server.stdout.readline())
        return self.code

    def kill(self, number: int) -> int:
        """Send a signal; the exit code."""
        os.kill(self.pid, number)
        return self.wait()

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self.err.read_text(errors="replace")


class Trainer:
    """Starts training scripts one after the other."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # there is no network
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("train_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        self._folder, self._count = folder, 0
        if self._server.stdout.readline() != "ready\n":
            raise RuntimeError("the training server did not start")

    def start(
        self,
        script: str,
        *words: object,
        die: Any = None,
        report: str | None = None,
        limit: int | None = None,
        full: Any = None,
    ) -> Child:
        """Start a script; it runs on while the test goes on."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{kind}" for kind in ("out", "err"))
        request = {
            "script": str(SCRIPTS[script]), "words": [str(word) for word in words],
            "out": str(out), "err": str(err), "die": die, "report": report, "limit": limit,
            "full": full,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Child(int(self._server.stdout.readline()), self._server, out, err)

    def run(self, script: str, *words: object, **options: Any) -> Child:
        """Start a script and wait for its end."""
        child = self.start(script, *words, **options)
        child.wait()
        return child

    def close(self) -> None:
        """End the server."""
        self._server.stdin.close()
        self._server.wait(timeout=10)


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """The training scripts as processes, without the seconds that their imports take."""
    trainer = Trainer(tmp_path_factory.mktemp("trainer"))
    yield trainer
    trainer.close()
