"""What two processes find out together; `test_two_processes.py` starts it and reads the answers.

torchrun --nproc_per_node 2 two_ranks.py FOLDER MODEL PICTURES
"""

import hashlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from training_tools import (
    Line,
    dreambooth_method,
    inversion_method,
    line_config,
    lora_method,
    unet_method,
    vae_method,
)

from ldm_toolkit.training import loop
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.signals import Interrupted
from ldm_toolkit.training.step import _add_gradients, _batches

KINDS = ["unet", "lora", "word", "dreambooth", "decoder", "vae"]
STEPS, RANKS = 6, 2


class Kinds:
    """Makes methods with their configurations."""

    def __init__(self, model: Path, pictures: Path) -> None:
        self.model, self.pictures = model, pictures

    def __call__(self, kind: str, output: Path, **more: Any) -> Any:
        output.mkdir(exist_ok=True, parents=True)
        options = {"steps": STEPS, "batch_size": 2, "warmup": 1, "lr": 1e-3, "ema": 0.9, **more}
        if kind == "lora":
            return lora_method(output, lora_targets="all", **options)
        if kind == "word":
            captions = [("a dog",), ("a cat",)]
            return inversion_method(output, self.model, captions=captions, **options)
        if kind == "dreambooth":
            return dreambooth_method(output, **options)
        if kind in ("decoder", "vae"):
            part = "all" if kind == "vae" else "decoder"
            return vae_method(output, self.pictures, train=part, adversarial_weight=0.5, **options)
        return unet_method(output, min_snr_gamma=5.0, **options)


def digest(tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def mean_of_ranks(made: Kinds, kind: str, folder: Path, accelerator: Accelerator) -> dict:
    """How far the gradients of two processes are from the mean of those that each has alone."""
    method, settings = made(kind, folder, accumulate=2)
    run = RunState(method, settings, accelerator, {})
    loss, _ = _add_gradients(run, _batches(run))
    together = torch.cat([parameter.grad.flatten() for parameter in run.parameters])
    alone, _ = made(kind, folder, accumulate=2)
    of_ranks, losses = [], []
    for rank in range(RANKS):
        alone.module.zero_grad()
        losses.append(0.0)
        for start in (4 * rank, 4 * rank + 2):
            own, _ = alone.loss(alone.module(**alone.batch(range(start, start + 2))), 0)
            (own / 2).backward()
            losses[-1] += float(own.detach()) / 2
        trained = [p for p in alone.trainable().parameters() if p.requires_grad]
        of_ranks.append(torch.cat([p.grad.flatten() for p in trained]))
    mean = sum(of_ranks) / RANKS
    return {
        "off": float((together - mean).norm() / mean.norm()),
        "ranks apart": float((of_ranks[0] - of_ranks[1]).norm() / mean.norm()),
        "losses": [loss, losses[accelerator.process_index]],
        "gradient": digest([together]),
    }


def draws(made: Kinds, kind: str, folder: Path, accelerator: Accelerator) -> list[str]:
    """Hashes of what is drawn for each sample of this process in some steps."""
    method, settings = made(kind, folder)
    run, found = RunState(method, settings, accelerator, {}), []
    for _ in range(STEPS):
        for positions in _batches(run):
            found += [digest([noise]) for noise in method.batch(positions)["noise"]]
        run.step += 1
    return found


def stopped_and_gone_on_with(
    made: Kinds, kind: str, folder: Path, accelerator: Accelerator
) -> dict[str, Any]:
    """A run in one part, and one that a signal to the second process alone stops."""
    saves, codes = [], []
    for name in ("whole", "first part", "parts"):
        output = folder / name.replace("first part", "parts")
        method, settings = made(kind, output)
        count, real = iter(range(100)), method.batch

        def batch(positions: Any, count: Any = count, real: Any = real, name: str = name) -> Any:
            if next(count) == 3 and name == "first part" and accelerator.process_index == 1:
                signal.raise_signal(signal.SIGTERM)
            return real(positions)

        method.batch = batch
        method.save = lambda folder, real=method.save: (saves.append(1), real(folder))
        try:
            loop.train(method, settings, accelerator)
        except Interrupted as error:
            codes.append(error.code)
        accelerator.wait_for_everyone()
    return {"weights": digest(method.trainable().parameters()), "saves": len(saves), "codes": codes}


def one_bad_rank(folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """Only the second process has a loss that is not finite, in one step."""
    bad = {3} if accelerator.process_index == 1 else set()
    method, settings = Line(bad=bad), line_config(folder, steps=4, checkpoint_every=1, keep=4)
    loop.train(method, settings, accelerator)
    return {"weights": digest(method.module.parameters())}


def main(folder: Path, model: Path, pictures: Path) -> None:
    torch.set_num_threads(1)
    made, accelerator = Kinds(model, pictures), Accelerator(cpu=True)
    found: dict[str, Any] = {"processes": accelerator.num_processes}
    for kind in KINDS:
        found[f"mean {kind}"] = mean_of_ranks(made, kind, folder / "mean" / kind, accelerator)
    for kind in ("unet", "vae"):
        found[f"draws {kind}"] = draws(made, kind, folder / "draws" / kind, accelerator)
        place = folder / "resume" / kind
        found[f"resume {kind}"] = stopped_and_gone_on_with(made, kind, place, accelerator)
    found["bad"] = one_bad_rank(folder / "bad", accelerator)
    answers = gather_object([found])
    if accelerator.is_main_process:
        (folder / "answers.json").write_text(json.dumps(answers))
    accelerator.end_training()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
