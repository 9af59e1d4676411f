"""What each way to draw faster saves, and what it costs: the contract of the presets.

    python examples/bench_speed.py --set tune                        every part, alone and combined
    python examples/bench_speed.py --set report --settings balanced fast
    python examples/bench_speed.py --only sd15 --rounds 1            Stable Diffusion 1.5's shapes

Four sections, see --only. adherence: what the package's judge says of pictures of held-out
compositions, paired with those of exact by prompt and seed. speed: a setting and exact take turns
in this process, diffusers' own pipeline in another. solvers: the distance to a solution of the
probability flow in 1000 steps. sd15: speed with Stable Diffusion 1.5's networks and random weights,
made here, 2 GB in a temporary folder. What is measured stays in --output, picture by picture: the
same command goes on where it was ended, and another can measure other settings of the same folder;
after a change of the code that changes pictures, take another folder.
Prompts of `tune` are for choosing the presets, those of `report` for what is said of them; the sets
share no composition and no prompt (bench_cells.prompts_of). Prints Markdown.

On two cores that do nothing else: 40 settings of tune in adherence take 5 hours and in speed 20
minutes, the two presets of report an hour, solvers 20 minutes, a round of sd15 5 minutes a setting.
"""

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from bench_cells import FIRST_SEED, SETS, USUAL_STEPS, Cell, Sitting, prompts_of
from bench_scores import (
    Pace,
    Quality,
    Target,
    frontier,
    pace_of,
    points,
    quality_of,
    reached,
    verdict,
)
from bench_tools import random_sd15, table, versions

from ldm_toolkit import storybook
from ldm_toolkit.allocation import keep_freed_memory
from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.evaluation.intervals import mean
from ldm_toolkit.evaluation.speed import Contender, command_of, processor, running
from ldm_toolkit.files import sha256_file
from ldm_toolkit.hardware import choose_device
from ldm_toolkit.models.identity import find_model
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.progress import follow
from ldm_toolkit.storybook.judge import Judge

# Keywords of a call; what a part leaves out is as in exact. Steps are of 50.
PARTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"speed": "balanced"},
    "fast": {"speed": "fast"},
    "interval-0.8": {"guidance_interval": (0.0, 0.8)},
    "interval-0.6": {"guidance_interval": (0.0, 0.6)},
    "interval-0.4": {"guidance_interval": (0.0, 0.4)},
    "interval-0.1-0.8": {"guidance_interval": (0.1, 0.8)},
    "reuse-2-d1": {"reuse_every": 2, "reuse_depth": 1},
    "reuse-3-d1": {"reuse_every": 3, "reuse_depth": 1},
    "reuse-5-d1": {"reuse_every": 5, "reuse_depth": 1},
    "reuse-2-d2": {"reuse_every": 2, "reuse_depth": 2},
    "reuse-3-d2": {"reuse_every": 3, "reuse_depth": 2},
    "reuse-5-d2": {"reuse_every": 5, "reuse_depth": 2},
    "reuse-3-d4": {"reuse_every": 3, "reuse_depth": 4},
    "reuse-5-d4": {"reuse_every": 5, "reuse_depth": 4},
    "reuse-3-d2-p1.4": {"reuse_every": 3, "reuse_depth": 2, "reuse_power": 1.4},
    "reuse-5-d2-p1.4": {"reuse_every": 5, "reuse_depth": 2, "reuse_power": 1.4},
    "reuse-5-d2-p0.7": {"reuse_every": 5, "reuse_depth": 2, "reuse_power": 0.7},
    "gate-0.4": {"gate": 0.4},
    "attention-2": {"attention_every": 2},
    "attention-3": {"attention_every": 3},
    "ddim-25": {"scheduler": "ddim", "steps": 25},
    "dpmpp-15": {"scheduler": "dpm++_2m", "steps": 15},
    "dpmpp-20": {"scheduler": "dpm++_2m", "steps": 20},
    "dpmpp-25": {"scheduler": "dpm++_2m", "steps": 25},
    "unipc-10": {"scheduler": "unipc", "steps": 10},
    "unipc-15": {"scheduler": "unipc", "steps": 15},
    "unipc-20": {"scheduler": "unipc", "steps": 20},
    "deis-15": {"scheduler": "deis", "steps": 15},
}
# Any parts with + between are a setting, here or on the command line.
SETTINGS = (
    *PARTS,
    "interval-0.8+reuse-2-d1",
    "interval-0.8+reuse-3-d2",
    "interval-0.6+reuse-3-d2",
    "interval-0.6+reuse-5-d2",
    "interval-0.6+reuse-3-d2+gate-0.4",
    "interval-0.6+reuse-5-d2+gate-0.4",
    "interval-0.6+reuse-3-d2+attention-2",
    "dpmpp-25+interval-0.8",
    "unipc-20+interval-0.8",
    "unipc-20+reuse-2-d1",
    "unipc-20+interval-0.8+reuse-2-d1",
    "unipc-15+interval-0.6+reuse-2-d1",
)
SOLVERS = (
    "ddim", "euler", "lms", "pndm", "heun", "dpm2", "dpm++_2m", "dpm++_2m_karras", "unipc", "deis",
)  # fmt: skip
SOLVER_STEPS = (5, 8, 10, 15, 20, 25, 50)
SOLUTION_STEPS = 1000
# What a preset promises: times as fast as exact, points of adherence lost, and the upper bound.
TARGETS = {
    "balanced": Target(ratio=2, loss=0.5, bound=1.5),
    "fast": Target(ratio=3, loss=1, bound=2),
}
BESIDE_DIFFUSERS = {"fast": 12}  # times as fast as diffusers' default, on a CPU
SECTIONS = ("adherence", "speed", "solvers", "sd15")
TUNING_PROMPTS = 200
ENOUGH = {"cpu": 400, "gpu": 2000}  # prompts of report that the contract is judged on
DIFFUSERS = "diffusers"


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet and print the tables."""
    options = _options(words)
    for name in options.settings:
        setting_of(name)
    keep_freed_memory()  # as our commands do
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"{processor()}, {torch.get_num_threads()} threads, {versions()}\n")
    qualities: dict[str, Quality] = {}
    paces: dict[str, Pace] = {}
    if {"adherence", "speed"} & set(options.only):
        pipe = loaded(options.model, options)
        if "adherence" in options.only:
            qualities = adherence(pipe, options)
        if "speed" in options.only:
            title = f"## Speed, {options.steps} steps of exact, {options.rounds} rounds"
            paces = speed(pipe, str(options.model), options.steps, options, title)
        del pipe
    if "solvers" in options.only:
        solvers(options)
    if "sd15" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            model = str(random_sd15(Path(folder) / "sd15"))
            title = f"## Stable Diffusion 1.5's shapes, random weights, {options.sd15_steps} steps"
            speed(loaded(model, options), model, options.sd15_steps, options, title)
    if qualities and paces:
        contract(qualities, paces, options)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="storybook", help="bundled name or folder (default: storybook)")
    add("--output", type=Path, default=Path("runs/bench_speed"), help="default: %(default)s")
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections (default: all)")
    add("--set", choices=SETS, default="tune", dest="prompt_set", help="default: tune")
    add("--prompts", type=int, help="default: 200 of tune; of report 400, and 2000 on a GPU")
    add("--settings", nargs="+", default=SETTINGS, help="names, or parts with + between")
    add("--rounds", type=int, default=3, help="timed pictures a setting (default: 3)")
    add("--solver-prompts", type=int, default=4, help="default: 4")
    add("--steps", type=int, default=50, help="of exact; fewer for a trial (default: 50)")
    add("--sd15-steps", type=int, default=20, help="default: 20")
    add("--size", type=int, help="pixels of a side (default: the model's)")
    add("--batch-size", type=int, default=1, help="pictures judged at once (default: 1)")
    add("--threads", type=int, help="default: torch's, all cores")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--compile", action="store_true", help="ours is compiled")
    add("--alone", action="store_true", help="do not draw with diffusers")
    options = parser.parse_args(words)
    options.settings = list(dict.fromkeys(["exact", *options.settings]))
    if options.prompts is None:
        tuning = options.prompt_set == "tune"
        options.prompts = TUNING_PROMPTS if tuning else ENOUGH[_kind(options)]
    return options


def _kind(options: argparse.Namespace) -> str:
    """What the options' device is, "cpu" or "gpu". Raises UserError."""
    return "cpu" if choose_device(options.device).type == "cpu" else "gpu"


def setting_of(name: str) -> dict[str, Any]:
    """The keywords of a setting's name: those of its parts, later ones over earlier ones."""
    unknown = [part for part in name.split("+") if part not in PARTS]
    if unknown:
        sys.exit(f"no part is called {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return functools.reduce(lambda found, part: found | PARTS[part], name.split("+"), {})


def loaded(model: str, options: argparse.Namespace, **instead: Any) -> LatentPipeline:
    """The model as the options ask for it."""
    asked = {name: getattr(options, name) for name in ("device", "dtype", "compile")}
    return LatentPipeline.from_pretrained(model, **asked | instead)


def drawing_of(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of every call."""
    return {} if options.size is None else {"width": options.size, "height": options.size}


def adherence(pipe: LatentPipeline, options: argparse.Namespace) -> dict[str, Quality]:
    """Judge every setting on the same prompts and seeds, and print the table."""
    drawing = drawing_of(options) | {"batch_size": options.batch_size}
    sitting = Sitting(pipe, options.output, options.steps, drawing)
    judge, asked = Judge.load(), prompts_of(options.prompt_set, options.prompts)
    about = {"set": options.prompt_set, "judge": sha256_file(storybook.JUDGE_FILE)}
    cells = {}
    for name in options.settings:
        setting = setting_of(name)
        cells[name] = cell = sitting.cell(f"adherence-{options.prompt_set}", name, setting, **about)
        starts = range(len(cell.rows), len(asked), options.batch_size)
        for start in follow(starts, len(starts), name, tell=_tell, every=60, what="batch"):
            block = asked[start : start + options.batch_size]
            first = FIRST_SEED[options.prompt_set]
            sitting.judge_next(cell, setting, block, first, cells["exact"], judge)
    exact = cells["exact"].rows[: len(asked)]
    found = {name: quality_of(cell.rows[: len(asked)], exact) for name, cell in cells.items()}
    print(f"## Adherence, {len(asked)} prompts of {options.prompt_set}\n")
    print(
        "Right: the mean share of what prompts ask for, in per cent; all right: pictures in which "
        "nothing is wrong.\nLosses against exact in points, paired by prompt and seed, with "
        "bootstrapped 95 % intervals. ln p: the mean\ndrop of the judge's log-probability that all "
        "is right. PSNR: to the exact picture, dB.\n"
    )
    head = ("setting", "right", "loss", "all right", "loss", "ln p", "PSNR", "s a picture")
    print(table(head, [_quality_row(name, one) for name, one in found.items()]), "\n")
    return found


def _quality_row(name: str, one: Quality) -> list[str]:
    fixed = f"{100 * one.right.value:.1f}", f"{100 * one.everything.value:.1f}"
    if one.psnr is None:
        return [name, fixed[0], "", fixed[1], "", "", "", f"{one.seconds:.2f}"]
    drop = f"{one.drop.value:.3f} ({one.drop.low:.3f} to {one.drop.high:.3f})"
    losses = points(one.loss), points(one.everything_loss)
    return [
        name, fixed[0], losses[0], fixed[1], losses[1], drop,
        f"{one.psnr.value:.1f}", f"{one.seconds:.2f}",
    ]  # fmt: skip


def speed(
    pipe: LatentPipeline, model: str, steps: int, options: argparse.Namespace, title: str
) -> dict[str, Pace]:
    """Time every setting beside exact, round by round, and print the table."""
    sitting = Sitting(pipe, options.output, steps, drawing_of(options))
    machine = {"machine": processor()}
    names = options.settings
    cells = {name: sitting.cell("speed", name, setting_of(name), **machine) for name in names}
    if not options.alone:
        cells[DIFFUSERS] = sitting.cell("speed", DIFFUSERS, {}, **machine, contender=DIFFUSERS)
    turns = [(number, name) for number in range(options.rounds) for name in cells]
    turns = [(number, name) for number, name in turns if len(cells[name].rows) <= number]
    with ExitStack() as stack:
        if any(name == DIFFUSERS for _, name in turns):
            command = command_of(_theirs(pipe, model, options))
            worker = stack.enter_context(running({DIFFUSERS: command}))[DIFFUSERS]
            worker.ask(steps=2)  # warm
        for _, name in follow(turns, len(turns), "timing", tell=_tell, every=60, what="turn"):
            if name == DIFFUSERS:
                sitting.pace_beside(cells[name], worker)
            else:
                sitting.pace_next(cells[name], setting_of(name))
    found = {name: pace_of(cell.rows[: options.rounds]) for name, cell in cells.items()}
    print(f"{title}\n")
    print(
        "Medians; the ratio is that of neighbours in time, with its 95 % interval, the one to "
        "diffusers' default\n(float32, eager) that to exact times exact's to diffusers. PSNR: of "
        "the latents, to those of exact, dB.\n"
    )
    theirs = found.get(DIFFUSERS)
    rows = [_pace_row(name, one, theirs) for name, one in found.items()]
    print(table(("setting", "picture, s", "step, s", "exact", "diffusers", "PSNR"), rows), "\n")
    return found


def _theirs(pipe: LatentPipeline, model: str, options: argparse.Namespace) -> Contender:
    """diffusers' own pipeline as it comes, drawing what exact draws."""
    usual = pipe.components.defaults
    return Contender(
        kind="diffusers",
        model=str(find_model(model)),
        threads=torch.get_num_threads(),
        loading={"device": options.device},
        drawing={"guidance": 7.5, "scheduler": usual.scheduler, **drawing_of(options)},
    )


def _pace_row(name: str, one: Pace, theirs: Pace | None) -> list[str]:
    ratio = f"{one.ratio.value:.2f}x ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
    beside = "" if theirs is None else f"{one.ratio.value / theirs.ratio.value:.2f}x"
    likeness = "" if one.psnr is None else f"{one.psnr:.1f}"
    return [name, f"{one.seconds:.2f}", f"{one.step:.3f}", ratio, beside, likeness]


def solvers(options: argparse.Namespace) -> None:
    """Measure solvers against a solution of the same flow from the same noise; in float32."""
    pipe = loaded(options.model, options, dtype="float32", compile=False)
    sitting = Sitting(pipe, options.output, USUAL_STEPS, drawing_of(options))
    prompts = [one.prompt for one in prompts_of(options.prompt_set, options.solver_prompts)]
    cells: dict[str, dict[int, Cell]] = {name: {} for name in SOLVERS}
    for name in SOLVERS:
        for steps in SOLVER_STEPS:
            setting = {"scheduler": name, "steps": steps}
            more = {"prompts": options.prompt_set, "solution": SOLUTION_STEPS}
            cells[name][steps] = sitting.cell("solvers", f"{name}-{steps}", setting, **more)
    for index, prompt in enumerate(prompts):
        every = [(name, steps) for name in SOLVERS for steps in SOLVER_STEPS]
        every = [(name, steps) for name, steps in every if len(cells[name][steps].rows) <= index]
        label = f"solving, prompt {index + 1} of {len(prompts)}"
        _tell(f"{label}: its flow in {SOLUTION_STEPS} steps")
        solution = sitting.reference(prompt, index, SOLUTION_STEPS)
        for name, steps in follow(every, len(every), label, tell=_tell, every=60, what="solver"):
            setting = {"scheduler": name, "steps": steps}
            sitting.solve_next(cells[name][steps], setting, prompt, solution)
    print(f"## Solvers, {len(prompts)} prompts, float32\n")
    print(
        f"PSNR of the latents, dB, to DDIM's in {SOLUTION_STEPS} steps from the same noise; in "
        "brackets the evaluations of the UNet\nwhere they are not the steps.\n"
    )
    rows = []
    likeness: dict[str, dict[int, float]] = {name: {} for name in SOLVERS}
    for name, by_steps in cells.items():
        row = [name]
        for steps, cell in by_steps.items():
            some = cell.rows[: len(prompts)]
            likeness[name][steps] = mean([one["psnr"] for one in some]).value
            calls = some[0]["evaluations"]
            beside = "" if calls == steps else f" ({calls})"
            row.append(f"{likeness[name][steps]:.1f}{beside}")
        rows.append(row)
    print(table(("solver", *(f"{steps} steps" for steps in SOLVER_STEPS)), rows), "\n")
    usual = max(SOLVER_STEPS)
    goal = likeness["ddim"][usual]
    fewest = ", ".join(
        f"{name} in {steps}" if steps is not None else f"{name} never"
        for name, steps in reached(likeness, goal).items()
    )
    print(f"What ddim has in {usual} steps ({goal:.1f} dB) is reached by {fewest}.\n")


def contract(
    qualities: Mapping[str, Quality], paces: Mapping[str, Pace], options: argparse.Namespace
) -> None:
    """Print whether presets keep what they promise, what would, and the frontier."""
    print("## The contract\n")
    kind = _kind(options)
    enough = ENOUGH[kind]
    if options.prompt_set != "report" or options.prompts < enough:
        print(f"A trial: the contract is judged on {enough} prompts of report at least.\n")
    by_speed = sorted(qualities, key=lambda name: -paces[name].ratio.value)
    for preset, target in TARGETS.items():
        told = {name: verdict(target, paces[name].ratio, qualities[name].loss) for name in by_speed}
        if preset in told:
            print(f"- {preset}: {told[preset][0]}")
        keeping = ", ".join(name for name in by_speed if told[name][1]) or "nothing"
        print(f"- what keeps the promise of {preset}, fastest first: {keeping}")
    for preset, goal in BESIDE_DIFFUSERS.items():
        if preset in paces and DIFFUSERS in paces:
            found = paces[preset].ratio.value / paces[DIFFUSERS].ratio.value
            beside = f"; the goal on a CPU is {goal}x" if kind == "cpu" else ""
            print(f"- {preset}: {found:.2f}x diffusers' default{beside}")
    print("\nSettings that no other beats in both speed and adherence:\n")
    both = {name: (paces[name].ratio.value, one.loss.value) for name, one in qualities.items()}
    rows = [
        [name, f"{paces[name].ratio.value:.2f}x", points(qualities[name].loss)]
        for name in frontier(both)
    ]
    print(table(("setting", "exact", "loss"), rows))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        main()
    except LdmToolkitError as error:
        sys.exit(str(error))
