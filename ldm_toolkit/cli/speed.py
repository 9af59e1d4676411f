"""``ldm-eval speed``: how fast a model draws on this machine."""

from typing import Any

from ldm_toolkit.cli.evaluate_request import EvalRequest
from ldm_toolkit.cli.job import share
from ldm_toolkit.cli.terminal import Stop, follow
from ldm_toolkit.errors import UserError
from ldm_toolkit.evaluation.report import Report
from ldm_toolkit.evaluation.speed import Contender, Turns, speed
from ldm_toolkit.models.hub import on_hub
from ldm_toolkit.models.identity import find_model
from ldm_toolkit.models.single_file import is_single_file

__all__ = ["measured"]

_STEPS = 20
_MEASURED = ("steps", "guidance", "scheduler", "width", "height", "seed")
_MOST = 64


def measured(request: EvalRequest, stop: Stop) -> Report:
    """Measure the model of a request, and diffusers beside it if asked. Raises UserError."""
    problems = []
    if share()[1] > 1:
        problems.append("speed is measured by one process, not by several that disturb each other")
    batches = _batches(request.own["batches"], problems)
    unmeasured = [name for name in request.options if name not in _MEASURED]
    if unmeasured:
        problems.append(f"speed does not measure {', '.join(unmeasured)}; leave it away")
    contenders = {"ours": _ours(request)}
    if request.own["against"] is not None:
        problems += _against_problems(request)
    if problems:
        raise UserError("; ".join(problems))
    if request.own["against"] is not None:
        contenders["diffusers"] = _diffusers(request, contenders["ours"])
    turns = Turns(
        steps=request.options.get("steps", _STEPS), batches=batches, rounds=request.own["rounds"]
    )

    def shown(orders: Any, total: int, label: str) -> Any:
        steps = stop.between(orders)
        return steps if request.quiet else follow(steps, total, label, what="turn")

    return speed(contenders, turns, shown)


def _ours(request: EvalRequest) -> Contender:
    choice, options = request.choice, request.options
    drawing = {"guidance": options.get("guidance", 7.5), "scheduler": "ddim"}
    drawing |= {n: options[n] for n in ("scheduler", "width", "height") if n in options}
    loading = {
        name: getattr(choice, name)
        for name in (
            "device", "dtype", "vae", "tokenizer", "revision", "variant", "allow_pickle",
            "attention", "compile",
        )
    }  # fmt: skip
    return Contender(
        kind="ours",
        model=choice.model,
        threads=request.threads,
        loading=loading | {"backend": choice.computing, "offline": choice.offline or None},
        loras=[(str(path), scale) for path, scale in choice.loras],
        drawing=drawing,
        seed=request.seed,
    )


def _diffusers(request: EvalRequest, ours: Contender) -> Contender:
    """The same weights and call, in diffusers' own default, which is float32."""
    return Contender(
        kind="diffusers",
        model=str(find_model(request.choice.model)),
        threads=request.threads,
        loading={"device": request.choice.device},
        drawing=ours.drawing,
        seed=ours.seed,
    )


def _against_problems(request: EvalRequest) -> list[str]:
    """What keeps diffusers from drawing the same."""
    choice = request.choice
    problems = []
    if request.own["against"] != "diffusers":
        problems.append(f"--against: {request.own['against']!r:.80} is not diffusers")
    if is_single_file(choice.model) or on_hub(choice.model):
        problems.append(
            f"--against diffusers needs a model folder, and {choice.model} is none: "
            "LatentPipeline.from_pretrained(...).save_pretrained(...) makes one of it"
        )
    added = {"--lora": choice.loras, "--vae": choice.vae, "--tokenizer": choice.tokenizer}
    given = [option for option, value in added.items() if value]
    if given:
        problems.append(f"--against diffusers measures the folder alone; leave {given[0]} away")
    return problems


def _batches(text: str, problems: list[str]) -> tuple[int, ...]:
    """``1,2,4``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= _MOST for part in parts):
        problems.append(
            f"--batches: {text!r:.80} is not a list of numbers from 1 to {_MOST} such as 1,2,4"
        )
        return ()
    return tuple(dict.fromkeys(int(part) for part in parts))
