"""The schedulers: diffusers' own classes behind one table of names. Level 1: no torch.

A class is imported when one is built. Other packages add schedulers through entry points of the
group ``ldm_toolkit.schedulers``: a name and ``module:Class``.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ldm_toolkit.errors import (
    LIBRARY_ERRORS,
    ModelError,
    UserError,
    first_line,
    is_out_of_memory,
    suggestion,
)

__all__ = [
    "create",
    "describe",
    "json_config",
    "max_steps",
    "name_for_config",
    "names",
    "resolve_name",
    "set_steps",
    "takes_eta",
]

ENTRY_POINTS = "ldm_toolkit.schedulers"
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """One scheduler: its class, what the name fixes, what holds where the model says nothing.

    ``eta``: its steps take a share of noise.
    """

    target: str
    about: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    spacings: bool = False
    eta: bool = False


_PACKAGE = "diffusers.schedulers.scheduling_"
_SIGMAS = ("karras", "exponential", "beta")
_DPM = {"use_lu_lambdas": False, "use_flow_sigmas": False}
_BASE: dict[str, _Entry] = {
    "ddpm": _Entry("ddpm:DDPMScheduler", "ancestral sampling of the training chain, adds noise"),
    "ddim": _Entry(
        "ddim:DDIMScheduler", "deterministic, the reference for few surprises", eta=True
    ),
    "lms": _Entry("lms_discrete:LMSDiscreteScheduler", "linear multistep, order 4", spacings=True),
    "pndm": _Entry(
        "pndm:PNDMScheduler",
        "pseudo linear multistep (PLMS), n+1 evaluations",
        # A config made by another scheduler lacks the key; Stable Diffusion always skips them.
        defaults={"skip_prk_steps": True},
    ),
    "euler": _Entry("euler_discrete:EulerDiscreteScheduler", "Euler's method", spacings=True),
    "euler_a": _Entry(
        "euler_ancestral_discrete:EulerAncestralDiscreteScheduler", "Euler with fresh noise"
    ),
    "heun": _Entry(
        "heun_discrete:HeunDiscreteScheduler", "second order, 2n-1 evaluations", spacings=True
    ),
    "dpm2": _Entry(
        "k_dpm_2_discrete:KDPM2DiscreteScheduler",
        "DPM-Solver-2, 2n-1 evaluations",
        spacings=True,
    ),
    "dpm2_a": _Entry(
        "k_dpm_2_ancestral_discrete:KDPM2AncestralDiscreteScheduler",
        "DPM-Solver-2 with fresh noise, 2n-1 evaluations",
        spacings=True,
    ),
    "dpm++_2m": _Entry(
        "dpmsolver_multistep:DPMSolverMultistepScheduler",
        "DPM-Solver++ multistep, good from 15 steps",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, **_DPM},
        spacings=True,
    ),
    "dpm++_2m_sde": _Entry(
        "dpmsolver_multistep:DPMSolverMultistepScheduler",
        "DPM-Solver++ multistep with fresh noise",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, **_DPM},
        spacings=True,
    ),
    "dpm++_sde": _Entry(
        "dpmsolver_singlestep:DPMSolverSinglestepScheduler",
        "DPM-Solver++ singlestep with fresh noise",
        {
            "algorithm_type": "sde-dpmsolver++",
            "solver_order": 2,
            "use_flow_sigmas": False,
            "lower_order_final": True,  # diffusers switches it on itself, with a warning
        },
        spacings=True,
    ),
    "unipc": _Entry(
        "unipc_multistep:UniPCMultistepScheduler",
        "predictor-corrector, good from 10 steps",
        {"solver_type": "bh2", "use_flow_sigmas": False},
        spacings=True,
    ),
    "deis": _Entry(
        "deis_multistep:DEISMultistepScheduler",
        "exponential integrator",
        {"algorithm_type": "deis", "solver_type": "logrho", "use_flow_sigmas": False},
        spacings=True,
    ),
    "lcm": _Entry("lcm:LCMScheduler", "for latent consistency models, 1 to 8 steps"),
    "tcd": _Entry("tcd:TCDScheduler", "for trajectory consistency models, 1 to 8 steps", eta=True),
}


def _builtin_entries() -> dict[str, _Entry]:
    """The table with full module names and one entry for each spacing of the noise levels."""
    entries = {}
    for name, base in _BASE.items():
        target = _PACKAGE + base.target
        flags = {f"use_{other}_sigmas": False for other in _SIGMAS} if base.spacings else {}
        fixed = {**base.fixed, **flags}
        entries[name] = replace(base, target=target, fixed=fixed)
        for sigmas in _SIGMAS if base.spacings else ():
            about = f"{base.about}; {sigmas} noise levels"
            spaced = {**fixed, f"use_{sigmas}_sigmas": True}
            entries[f"{name}_{sigmas}"] = _Entry(target, about, spaced, base.defaults)
    return entries


_ENTRIES = _builtin_entries()
_NO_SAMPLE = frozenset(
    {
        "PNDMScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    }
)

# Other names that people know, in the form _key gives: the web UIs', A1111's and diffusers'.
_ALIASES = {
    "plms": "pndm",
    "k_lms": "lms",
    "lms_discrete": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "euler_ancestral": "euler_a",
    "k_heun": "heun",
    "dpm_2": "dpm2",
    "k_dpm_2": "dpm2",
    "dpm_2_a": "dpm2_a",
    "dpm2_ancestral": "dpm2_a",
    "k_dpm_2_a": "dpm2_a",
    "dpmpp_2m": "dpm++_2m",
    "dpmpp_2m_sde": "dpm++_2m_sde",
    "dpmpp_sde": "dpm++_sde",
    "dpm++": "dpm++_2m",
    "uni_pc": "unipc",
}


@functools.cache
def _entries() -> Mapping[str, _Entry]:
    """Built-in schedulers and those of other packages; a built-in name cannot be taken over."""
    entries = dict(_ENTRIES)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        name = _key(point.name)
        if name in _ENTRIES:
            _log.warning("entry point %s left out: a built-in scheduler has this name", point.name)
        else:
            entries[name] = _Entry(point.value, f"from {point.value.partition(':')[0]}")
    return entries


def names() -> tuple[str, ...]:
    """Every scheduler's canonical name, in the table's order."""
    return tuple(_entries())


def describe() -> list[tuple[str, str]]:
    """Every scheduler's name and one line about it."""
    return [(name, entry.about) for name, entry in _entries().items()]


def _key(name: str) -> str:
    """``DPM++ 2M Karras`` -> ``dpm++_2m_karras``."""
    return re.sub(r"[\s_\-]+", "_", name.strip().lower())


def resolve_name(name: str, *, classes: bool = False) -> str:
    """The canonical name of a scheduler's name or alias, whatever its case.

    The web UIs' names ("DPM++ 2M Karras", "Euler a") are understood. With ``classes`` a
    ``module:Class`` is a name too: only where a person typed it, never out of a file, because
    importing a module runs it. Raises UserError.
    """
    if classes and _CLASS.fullmatch(name):
        _import(name)
        return name
    key = _key(name)
    if key in _entries():
        return key
    for sigmas in ("", *(f"_{sigmas}" for sigmas in _SIGMAS)):
        base = key.removesuffix(sigmas)
        found = f"{_ALIASES.get(base, base)}{sigmas}"
        if key.endswith(sigmas) and found in _entries():
            return found
    hint = suggestion(key, [*_entries(), *_ALIASES])
    raise UserError(f"no scheduler is called {name!r:.80}{hint}; --list-schedulers shows them all")


def create(name: str, scheduler_config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler, built from the model's scheduler_config.

    What the name fixes (the solver, the spacing) wins over the config. Raises UserError, for a
    config that makes no sense ModelError.
    """
    entry = _entry(name)
    scheduler_class = _class_of(name)
    if (
        scheduler_config.get("prediction_type") == "sample"
        and scheduler_class.__name__ in _NO_SAMPLE
    ):
        raise UserError(f"{name} cannot run a model that predicts the sample; take ddim")
    # The config of another scheduler has keys that this one does not know: diffusers warns of each.
    known = inspect.signature(scheduler_class.__init__).parameters
    config = {key: value for key, value in scheduler_config.items() if key in known}
    with _explained(name):
        return scheduler_class.from_config({**entry.defaults, **config}, **entry.fixed)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What diffusers raises at a configuration, as one line. Raises ModelError."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"the scheduler {name} cannot run this model with its scheduler_config.json: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _class_of(name: str) -> Any:
    """The class behind a scheduler's name, imported now. Raises UserError."""
    return _import(_entry(name).target)


def _import(target: str) -> Any:
    """The class of ``module:Class``. Raises UserError."""
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the scheduler {target} cannot be imported: {error}") from error
    if not all(hasattr(found, needed) for needed in ("from_config", "set_timesteps", "step")):
        raise UserError(f"the scheduler {target} is no scheduler class such as those of diffusers")
    return found


def _entry(name: str) -> _Entry:
    """The table's row of a name, or one of its own for a ``module:Class``. Raises UserError."""
    resolved = resolve_name(name, classes=True)
    if _CLASS.fullmatch(resolved):
        return _Entry(resolved, f"from {resolved.partition(':')[0]}")
    return _entries()[resolved]


def max_steps(name: str, scheduler_config: Mapping[str, Any]) -> int:
    """The most steps that a scheduler can do with a model's scheduler_config."""
    trained = int(scheduler_config.get("num_train_timesteps", 1000))
    if resolve_name(name, classes=True) in ("lcm", "tcd"):
        return min(trained, int(scheduler_config.get("original_inference_steps", 50)))
    return trained


def takes_eta(name: str) -> bool:
    """Whether a scheduler's steps add a chosen share of noise (DDIM's eta). Raises UserError."""
    known = _ENTRIES.get(resolve_name(name, classes=True))
    if known is not None:  # answered without importing the class
        return known.eta
    return "eta" in inspect.signature(_class_of(name).step).parameters


def set_steps(scheduler: Any, steps: int, device: Any = None) -> int:
    """Give a scheduler its timesteps; returns the number of UNet evaluations.

    Starting at index 0 is said: diffusers looks the first timestep up and takes the second of two
    equal ones, which happens with many karras steps. With hundreds of steps the steps_offset of
    the model counts past the last timestep that was trained; there it is left out. As many steps
    as were trained are each timestep once, last to first: the other spacings of diffusers repeat
    one, and its multistep solvers then divide by zero. Raises ModelError.
    """
    trained = scheduler.config.num_train_timesteps
    if steps == trained:
        scheduler.register_to_config(timestep_spacing="trailing", steps_offset=0)
    with _explained(type(scheduler).__name__):
        scheduler.set_timesteps(steps, device=device)
        if scheduler.timesteps.max() >= trained:
            scheduler.register_to_config(steps_offset=0)
            scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return len(scheduler.timesteps)


def name_for_config(class_name: str, scheduler_config: Mapping[str, Any]) -> str:
    """The name of the scheduler that a model folder asks for; ``ddim`` where we have none."""
    fitting = [name for name, entry in _ENTRIES.items() if entry.target.endswith(f":{class_name}")]
    for name in fitting:
        fixed = _ENTRIES[name].fixed
        if all(scheduler_config.get(key, value) == value for key, value in fixed.items()):
            return name
    return fitting[0] if fitting else "ddim"


def json_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as plain data for a recipe; infinity as the text "-inf"."""
    plain: dict[str, Any] = {}
    for key, value in scheduler.config.items():
        if isinstance(value, float) and not math.isfinite(value):
            plain[key] = str(value)  # JSON has no infinity, lambda_min_clipped is one
        elif not key.startswith("_"):
            plain[key] = list(value) if isinstance(value, tuple) else value
    return plain
