"""Ours against diffusers' own pipeline: a whole picture, a step, memory, cold start, likeness.

    python examples/bench_inference.py --only storybook     the bundled model
    python examples/bench_inference.py                      and Stable Diffusion 1.5's shapes

Every contender is a process of its own, with the same weights and threads; they take turns while
the others wait, so that a noisy machine is noisy for all. Prints the README's tables. OpenVINO is
among them where it is installed (pip install openvino). The weights of Stable Diffusion 1.5's
shapes are random, made here: 2 GB in a temporary folder, and 25 GB of memory for all contenders
together; --contenders takes some of them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from bench_tools import bundled, random_sd15, versions

from ldm_toolkit.evaluation.speed import Contender, Worker, command_of, processor, running

CONTENDERS = {
    "diffusers": "diffusers, its default (float32)",
    "diffusers-bf16": "diffusers, bfloat16",
    "diffusers-compiled": "diffusers, bfloat16, `torch.compile`",
    "openvino": "diffusers, OpenVINO (bfloat16)",
    "ours": "ldm_toolkit",
    "ours-compiled": "ldm_toolkit, `compile`",
    "ours-openvino": "ldm_toolkit, OpenVINO",
}
COMPILED = ("diffusers-compiled", "openvino", "ours-compiled", "ours-openvino")
ABSENT = ("openvino", "ours-openvino") if find_spec("openvino") is None else ()
THERE = [name for name in CONTENDERS if name not in ABSENT]
PROMPT = "a dog wearing hat"
DRAWING = {"guidance": 7.5, "scheduler": "ddim"}
# What a script without a pipeline imports and reads before it can begin.
BARE = """
import sys, time
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
folder = sys.argv[1]
for part, one in {
    "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel, "vae": AutoencoderKL,
    "unet": UNet2DConditionModel, "scheduler": DDIMScheduler,
}.items():
    one.from_pretrained(folder, subfolder=part)
"""
# A product of matrices, which is most of a UNet, in both precisions; they take turns.
CEILING = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
a, b = torch.randn(4096, 1280), torch.randn(1280, 4096)
pairs = {kind: (a.to(kind), b.to(kind)) for kind in (torch.float32, torch.bfloat16)}
best = dict.fromkeys(pairs, float("inf"))
for _ in range(12):
    for kind, (left, right) in pairs.items():
        began = time.perf_counter()
        left @ right
        best[kind] = min(best[kind], time.perf_counter() - began)
print(best[torch.float32] / best[torch.bfloat16])
"""
# `ldm-gen` up to the moment at which the UNet is called for the first time.
FIRST_STEP = """
import os, sys
import ldm_toolkit.denoise as loop
loop.denoise = lambda *_, **__: os._exit(0)
import ldm_toolkit.cli.generate
sys.exit(ldm_toolkit.cli.generate.main(sys.argv[1:]))
"""


def main() -> None:
    """Run the contenders and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("storybook", "sd15"), help="one of the two models")
    parser.add_argument("--rounds", type=int, default=3, help="turns a contender (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--steps", type=int, help="of a picture (default: 50, and 4 of 1.5's)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=THERE)
    arguments = parser.parse_args()
    print(f"{processor()}, {arguments.threads} threads, {versions()}")
    print(f"a product of matrices is {ceiling(arguments.threads):.2f}x as fast in bfloat16 here")
    if arguments.only != "sd15":
        bench("the bundled model", bundled(), 50, arguments)
        cold_start(arguments)
        compiled_start(arguments)
    if arguments.only != "storybook":
        with tempfile.TemporaryDirectory() as folder:
            model = random_sd15(Path(folder) / "sd15")
            bench("Stable Diffusion 1.5's shapes", model, 4, arguments)


def ceiling(threads: int) -> float:
    """How much faster this machine multiplies in bfloat16: precision alone can give no more."""
    done = subprocess.run(
        [sys.executable, "-c", CEILING, str(threads)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def bench(title: str, model: Path, usual: int, arguments: argparse.Namespace) -> None:
    """Let the contenders take turns, of ``usual`` steps if nothing is said; print their table."""
    steps = arguments.steps if arguments.steps is not None else usual
    with tempfile.TemporaryDirectory() as folder:
        pictures = {name: str(Path(folder) / f"{name}.npy") for name in arguments.contenders}
        commands = {
            name: command(name, contender(name, model, arguments.threads))
            for name in arguments.contenders
        }
        with running(commands) as workers:
            for name, worker in workers.items():
                # warm: compiled, caches filled, allocator grown
                worker.ask(steps=2, picture=pictures[name])
            for _ in range(arguments.rounds):
                for name, worker in workers.items():
                    worker.ask(steps=steps, picture=pictures[name])
        _print_table(f"{title}, 512x512, {steps} steps", workers, pictures)


def command(name: str, asked: Contender) -> list[str]:
    """What starts a contender: the package's own process, or the one around OpenVINO."""
    if name != "openvino":
        return command_of(asked)
    script = Path(__file__).with_name("bench_openvino.py")
    return [sys.executable, str(script), json.dumps(asdict(asked))]


def contender(name: str, model: Path, threads: int) -> Contender:
    """What draws under this name."""
    kind, _, how = name.partition("-")
    loading: dict[str, object] = {"compile": how == "compiled"}
    if how == "openvino":
        loading["backend"] = how
    if kind != "ours":
        loading["dtype"] = "float32" if name == "diffusers" else "bfloat16"
    return Contender(
        kind=kind,
        model=str(model),
        threads=threads,
        prompt=PROMPT,
        drawing=DRAWING,
        loading=loading,
    )


def cold_start(arguments: argparse.Namespace) -> None:
    """Print how long `ldm-gen` takes to its first step, and a bare script to its weights."""
    bare = [sys.executable, "-c", BARE, str(bundled())]
    ours = [sys.executable, "-c", FIRST_STEP, PROMPT, "--quiet", "--threads"]
    ours.append(str(arguments.threads))
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds + 1):  # the first fills the file cache
            for name, command in (("bare", bare), ("ours", ours)):
                began = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - began)
    first, second = (statistics.median(times[name][1:]) for name in ("ours", "bare"))
    print("\n| cold start | seconds |\n| --- | --- |")
    print(f"| `ldm-gen`, to the first step | {first:.1f} |")
    print(f"| a script that imports the classes and reads the weights | {second:.1f} |")
    print(f"\nratio {first / second:.2f}", flush=True)


def compiled_start(arguments: argparse.Namespace) -> None:
    """Print how long a process takes to its first picture: eager, compiling, compiled before."""
    kinds = [("not compiled", "ours")]
    for name in ("ours-compiled", "ours-openvino"):
        if name in arguments.contenders:
            kinds.append((f"{CONTENDERS[name]}, for the first time", name))
            kinds.append((f"{CONTENDERS[name]}, after another process", name))
    print("\n| start to the first picture of 2 steps | seconds |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": folder, "XDG_CACHE_HOME": folder}
        with patch.dict(os.environ, caches):  # of this comparison alone
            for title, name in kinds:
                command = command_of(contender(name, bundled(), arguments.threads))
                with running({name: command}) as workers:
                    first = workers[name].ask(steps=2)
                    seconds = workers[name].started + first["seconds"]
                    print(f"| {title} | {seconds:.1f} |", flush=True)


def _print_table(title: str, workers: dict[str, Worker], pictures: dict[str, str]) -> None:
    """One row a contender, with ratios and the distance to diffusers' default picture."""
    base = next(iter(workers.values()))
    print(f"\n{title}\n")
    print("| | picture, s | | step, s | | peak memory, GB | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, worker in workers.items():
        whole, step = worker.median("seconds"), worker.median("step")
        peak = worker.answers[-1]["peak"]
        print(
            f"| {CONTENDERS[name]} | {whole:.2f} | {base.median('seconds') / whole:.2f}x "
            f"| {step:.3f} | {base.median('step') / step:.2f}x | {peak:.1f} "
            f"| {_distance(pictures[base.name], pictures[name])} |"
        )
    slow = {name: worker.answers[0]["seconds"] for name, worker in workers.items()}
    told = [f"{name} {slow[name]:.0f} s" for name in slow if name in COMPILED]
    if told:
        print(f"\ncompiling, with the first two steps: {', '.join(told)}")


def _distance(first: str, second: str) -> str:
    """The mean difference of two pictures in steps of 1/255."""
    import numpy as np

    pictures = [np.load(path).astype(float) for path in (first, second)]
    return f"{np.abs(pictures[0] - pictures[1]).mean():.2f}"


if __name__ == "__main__":
    if shutil.disk_usage(tempfile.gettempdir()).free < 3 << 30:
        sys.exit("the temporary folder needs 3 GB; set TMPDIR to a larger one")
    main()
