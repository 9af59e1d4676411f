"""Ours against the plain loop of diffusers' `train_text_to_image`: samples a second and memory.

    python examples/bench_training.py --only storybook     the bundled model, all weights
    python examples/bench_training.py                      and a LoRA, Stable Diffusion 1.5's shapes

The plain loop does what that script does in a step: it reads pictures, encodes them and their
captions and trains, with the same precision, threads, fused AdamW and clipping as ours and, as
ours, without loader workers. Both get the same pictures, noise and timesteps: before anything is
measured their losses are compared in float32, and more than 1e-4 between them ends the script.
Every contender is a process of its own; they take turns, in alternate order, while the others wait,
so that a noisy machine is noisy for all. Prints the README's tables. The weights of Stable
Diffusion 1.5's shapes are random, made here: 2 GB in a temporary folder.

`--peer-script train_text_to_image.py` runs diffusers' script itself too, with its own order, draws
and optimiser; it needs torchvision. What it takes to load and to save does not count.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench_tools import bundled, random_sd15, versions

from ldm_toolkit.evaluation.speed import Worker, processor, running
from ldm_toolkit.training.config import UNetConfig

CONTENDERS = {
    "diffusers": "diffusers' loop",
    "ours": "ldm_toolkit",
    "ours-no-cache": "ldm_toolkit, `--no-cache`",
}
COMPARED = 2
LIKE = 1e-4


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    title: str
    model: str
    method: str
    size: int
    batch: int
    steps: int
    data: str = ""
    precision: str = "bf16"
    threads: int = 0

    @property
    def pictures(self) -> int:
        """Two batches; few where encoding takes long."""
        return max(4, 2 * self.batch)


def main() -> None:
    """Run the cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("storybook", "sd15"), help="one of the two models")
    parser.add_argument("--rounds", type=int, default=3, help="turns a contender (default: 3)")
    parser.add_argument("--steps", type=int, help="steps a turn (default: 4; 1 where large)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16 autocast")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--peer-script", type=Path, help="diffusers' train_text_to_image.py")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.worker[0], Case(**json.loads(arguments.worker[1])))
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    precision = "no" if arguments.float32 else "bf16"
    named = "float32" if arguments.float32 else "bfloat16 autocast"
    print(f"{processor()}, {arguments.threads} threads, {versions()}, {named}")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(arguments.only, Path(folder)):
            data = pictures(Path(folder), case.size, case.pictures)
            case = replace(case, data=str(data), precision=precision, threads=arguments.threads)
            steps = case.steps if arguments.steps is None else arguments.steps
            bench(replace(case, steps=steps), arguments)


def cases(only: str | None, folder: Path) -> Iterator[Case]:
    """The cases one after the other."""
    if only != "sd15":
        for size, batch in ((256, 8), (512, 4)):
            yield Case("the bundled model, full UNet", str(bundled()), "full", size, batch, 4)
    if only != "storybook":
        model = str(random_sd15(folder / "sd15"))
        yield Case("Stable Diffusion 1.5's shapes, LoRA", model, "lora", 512, 1, 1)


def pictures(parent: Path, size: int, count: int) -> Path:
    """An image folder of storybook scenes."""
    from ldm_toolkit.storybook import render, scenes

    folder = parent / f"{count}-pictures-{size}"
    folder.mkdir()
    lines = []
    for index in range(count):
        scene = scenes.sample_scene(0, index)
        render.render(scene, size).save(folder / f"{index}.png")
        lines.append({"file_name": f"{index}.png", "text": scenes.caption(scene, 0).text})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def bench(case: Case, arguments: argparse.Namespace) -> None:
    """Compare the losses, let the contenders take turns and print their table."""
    losses = {}
    for name, command in commands(replace(case, precision="no"), arguments).items():
        with running({name: command}) as alone:
            alone[name].ask(steps=COMPARED)
        losses[name] = alone[name].answers[0]["losses"]
    off = compared(losses)
    with running(commands(case, arguments)) as workers:
        turns = list(workers.values())
        for worker in turns:
            worker.ask(steps=1)  # warm
        for _ in range(arguments.rounds):
            for worker in turns:
                worker.ask(steps=case.steps)
            turns.reverse()
    seconds = None
    if arguments.peer_script is not None and case.method == "full":
        seconds = real_script(arguments.peer_script, case, arguments.rounds * case.steps)
    print_table(case, workers, off, seconds)


def commands(case: Case, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What starts each contender."""
    told = json.dumps(asdict(case))
    start = [sys.executable, __file__, "--worker"]
    return {name: [*start, name, told] for name in arguments.contenders}


def compared(losses: dict[str, list[float]]) -> dict[str, float]:
    """How far each contender's losses are from the first one's; ends the script where too far."""
    first, base = next(iter(losses.items()))
    off = {}
    for name, own in losses.items():
        distances = [abs(a - b) for a, b in zip(own, base, strict=True)]
        if not all(distance <= LIKE for distance in distances):  # NaN neither
            sys.exit(f"{name} computes other losses than {first}: {own}, not {base}")
        off[name] = max(distances)
    return off


def work(name: str, case: Case) -> None:
    """The contender's process: begin, then train so many steps for each line on stdin."""
    import torch

    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        losses = plain_loop(case, output) if name == "diffusers" else own_loop(case, output, name)
        print(json.dumps({"loaded": time.perf_counter() - began}), flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            found = list(itertools.islice(losses, json.loads(line)["steps"]))
            seconds = time.perf_counter() - began
            answer = {"seconds": seconds, "losses": found, "peak": peak_memory()}
            print(json.dumps(answer), flush=True)


def peak_memory() -> float:
    """The most memory that this process had, of a GPU where there is one, in GB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / (1 << 30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def config_of(case: Case, output: str, name: str) -> UNetConfig:
    """The options of a run; the plain loop has no other ones."""
    return UNetConfig(
        model=case.model, data=case.data, output=output, method=case.method, size=case.size,
        batch_size=case.batch, mixed_precision=case.precision, threads=case.threads,
        lr=1e-4 if case.method == "lora" else 1e-5, lr_schedule="constant", warmup=0, ema=0,
        caption_dropout=0, no_cache=name == "ours-no-cache",
    )  # fmt: skip


def own_loop(case: Case, output: str, name: str) -> Iterator[float]:
    """Ours, as `train_unet` has it, step by step: the loss of each."""
    from ldm_toolkit.models.tokenizer import load_tokenizer
    from ldm_toolkit.training import prepare
    from ldm_toolkit.training.begin import begin
    from ldm_toolkit.training.methods import method_class
    from ldm_toolkit.training.run_state import RunState
    from ldm_toolkit.training.step import advance

    config, model = config_of(case, output, name), Path(case.model)
    parts = {part: model / part for part in ("tokenizer", "text_encoder", "vae")}
    tokenizer = load_tokenizer(parts["tokenizer"])
    accelerator = begin(config)
    kind = method_class(config.method)
    found = prepare.unet_inputs(config, kind, parts, tokenizer, accelerator, lambda _: model, None)
    method = kind(network(model), config, scheduler_config=schedule(model), **found.given)
    run = RunState(method, config, accelerator, found.hashes)
    return (advance(run)["loss"] for _ in itertools.count())


def plain_loop(case: Case, output: str) -> Iterator[float]:
    """The steps of diffusers' script, with our order of pictures, draws and start of a LoRA."""
    import torch
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTextModel

    from ldm_toolkit.latents import pil_to_pixels
    from ldm_toolkit.training.data import ImageFolder
    from ldm_toolkit.training.folders import load_network
    from ldm_toolkit.training.rng import PermutationIndex

    config, model = config_of(case, output, "diffusers"), Path(case.model)
    accelerator = Accelerator(mixed_precision=case.precision)
    source = ImageFolder(Path(case.data), case.size)
    method = own_draws(case, config, source)
    trained = [p for p in method.unet.parameters() if p.requires_grad]
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    for parameter in method.unet.parameters():
        if not parameter.requires_grad:  # as diffusers' script for LoRAs has it
            parameter.data = parameter.data.to(dtype)
    vae = load_network(AutoencoderKL, model / "vae").requires_grad_(False)
    encoder = load_network(CLIPTextModel, model / "text_encoder").requires_grad_(False)
    for part in (vae, encoder):
        part.to(accelerator.device, dtype)
    noise_scheduler = DDPMScheduler.from_config(schedule(model))
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.01, fused=True)
    unet, optimizer = accelerator.prepare(method.unet.train(), optimizer)
    index = PermutationIndex(config.seed, len(source))

    def step(positions: range) -> float:
        pixels = torch.stack([pil_to_pixels(source.image(index(p))) for p in positions])
        given = {name: one.to(accelerator.device) for name, one in method.batch(positions).items()}
        posterior = vae.encode(pixels.to(accelerator.device, dtype)).latent_dist
        latents = posterior.mean + posterior.std * given["latents"].to(dtype)
        latents = latents * vae.config.scaling_factor
        noise, timesteps = given["noise"].to(dtype), given["timesteps"]
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        text = encoder(given["text"]).last_hidden_state
        target = noise
        if noise_scheduler.config.prediction_type == "v_prediction":
            target = noise_scheduler.get_velocity(latents, noise, timesteps)
        prediction = unet(noisy, timesteps, text).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), target.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return (step(range(p, p + case.batch)) for p in itertools.count(0, case.batch))


def own_draws(case: Case, config: UNetConfig, source: Any) -> Any:
    """Our method with its UNet, and with batches of draws in place of latents, tokens for text.

    The latents of a posterior with mean 0 and variance 1 are the draws themselves.
    """
    import torch

    from ldm_toolkit.models.tokenizer import load_tokenizer
    from ldm_toolkit.training.methods import method_class

    model, count, side = Path(case.model), len(source), case.size // 8
    captions = [source.captions(index)[0] for index in range(count)]
    tokenizer = load_tokenizer(model / "tokenizer")
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return method_class(config.method)(
        network(model),
        config,
        moments=torch.zeros(1, 8, 1, 1).expand(count, 8, side, side),
        embeddings=tokens.input_ids,
        caption_rows=[[index] for index in range(count)],
        scaling_factor=1.0,
        scheduler_config=schedule(model),
    )


def network(model: Path) -> Any:
    """The UNet in float32."""
    from diffusers import UNet2DConditionModel

    from ldm_toolkit.training.folders import load_network

    return load_network(UNet2DConditionModel, model / "unet")


def schedule(model: Path) -> dict[str, Any]:
    """The scheduler's configuration."""
    return json.loads((model / "scheduler" / "scheduler_config.json").read_text())


def real_script(script: Path, case: Case, steps: int) -> float:
    """Seconds a step of diffusers' script: those by which a longer run takes longer."""
    seconds = []
    for count in (1, 1 + steps):
        with tempfile.TemporaryDirectory() as output:
            options = {
                "pretrained_model_name_or_path": case.model, "train_data_dir": case.data,
                "output_dir": output, "cache_dir": output, "resolution": case.size,
                "train_batch_size": case.batch, "max_train_steps": count,
                "mixed_precision": case.precision, "learning_rate": 1e-5, "seed": 0,
                "lr_warmup_steps": 0, "checkpointing_steps": 1 << 30,
            }  # fmt: skip
            words = [f"--{name}={value}" for name, value in options.items()]
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(script), *words], capture_output=True, text=True, check=False
            )
            seconds.append(time.perf_counter() - began)
        if done.returncode != 0:
            sys.exit(f"{script} failed:\n{done.stderr[-2000:]}")
    return (seconds[1] - seconds[0]) / steps


def print_table(
    case: Case, workers: dict[str, Worker], off: dict[str, float], real: float | None
) -> None:
    """One row a contender, with ratios and the distance to the plain loop's losses."""
    base = next(iter(workers.values()))
    print(f"\n{case.title}, {case.size}x{case.size}, batches of {case.batch}\n")
    print("| | samples/s | | peak memory, GB | losses off by |")
    print("| --- | --- | --- | --- | --- |")
    for name, worker in workers.items():
        speed = case.batch * case.steps / worker.median("seconds")
        ratio = base.median("seconds") / worker.median("seconds")
        print(
            f"| {CONTENDERS[name]} | {speed:.2f} | {ratio:.2f}x "
            f"| {worker.answers[-1]['peak']:.1f} | {off[name]:.1e} |"
        )
    if real is not None:
        ratio = base.median("seconds") / case.steps / real
        print(f"| diffusers' script itself | {case.batch / real:.2f} | {ratio:.2f}x | | |")
    if {"ours", "ours-no-cache"} <= workers.keys():
        once = workers["ours"].loaded["loaded"] - workers["ours-no-cache"].loaded["loaded"]
        print(f"\nencoding once: {max(once, 0) / case.pictures:.2f} s a picture", flush=True)


if __name__ == "__main__":
    if shutil.disk_usage(tempfile.gettempdir()).free < 4 << 30:
        sys.exit("the temporary folder needs 4 GB; set TMPDIR to a larger one")
    main()
