"""How much noise a model knows at each timestep, and at which of them the solvers stop."""

import math
from collections.abc import Mapping

import numpy as np

from ldm_toolkit import schedulers
from ldm_toolkit.errors import LdmToolkitError
from ldm_toolkit.explain.picture import BLUE, GREEN, ORANGE, PURPLE, SOFT, Picture, curves
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.theory.diffusion import signal_to_noise
from ldm_toolkit.theory.samplers import noise_levels

__all__ = ["noise_schedule", "schedule_values", "timesteps"]

_SPACINGS = {"karras": ORANGE, "exponential": GREEN, "beta": PURPLE}


def schedule_values(pipeline: LatentPipeline) -> Mapping[str, np.ndarray]:
    """``beta``, ``alpha_bar``, ``sigma`` and ``snr`` at the timesteps of training, each (T,)."""
    scheduler = pipeline.make_scheduler("ddpm")
    level = scheduler.alphas_cumprod
    values = {
        "beta": scheduler.betas,
        "alpha_bar": level,
        "sigma": noise_levels(level),
        "snr": signal_to_noise(level),
    }
    return {name: value.cpu().numpy() for name, value in values.items()}


def noise_schedule(pipeline: LatentPipeline) -> Picture:
    """The curves of ``schedule_values`` over the timesteps."""
    values = schedule_values(pipeline)
    level, ratio = values["alpha_bar"], values["snr"]
    picture = Picture("schedule", "noise-schedule", "The noise schedule", (10, 5.6))
    axes = picture.grid(2, 2).ravel()
    rows = (
        ("beta", "beta: noise that one step adds", BLUE, "linear"),
        ("alpha_bar", "alpha-bar: share of the signal in the square of x_t", GREEN, "linear"),
        ("sigma", "sigma: noise per signal", ORANGE, "log"),
        ("snr", "signal-to-noise ratio", PURPLE, "log"),
    )
    for place, (name, label, colour, scale) in zip(axes, rows, strict=True):
        curves(place, label, "timestep t")
        place.set_yscale(scale)
        drawn = values[name]
        if scale == "log":  # a zero-terminal schedule ends at infinity or 0, which has no place
            drawn = np.where(np.isfinite(drawn) & (drawn > 0), drawn, np.nan)
        place.plot(np.arange(len(drawn)), drawn, color=colour, linewidth=2)
    for place in (axes[2], axes[3]):
        place.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
    equal = int(np.argmin(np.abs(level - 0.5)))
    picture.caption = (
        f"Training mixes a picture with noise in {len(level)} strengths: x_t = sqrt(alpha-bar) x_0 "
        "+ sqrt(1 - alpha-bar) noise, where alpha-bar is the product of all 1 - beta up to t. "
        f"Signal and noise are equally strong at t = {equal} (dotted: ratio 1). At the last "
        f"timestep alpha-bar is {level[-1]:.2g} and the signal-to-noise ratio {ratio[-1]:.2g}: "
        + (
            "what sampling starts from, pure noise, is exactly what the network was shown."
            if level[-1] <= 0
            else "nearly the pure noise that sampling starts from, but not quite."
        )
    )
    return picture


def timesteps(pipeline: LatentPipeline, steps: int) -> Picture:
    """Where each scheduler that we offer evaluates the network in so many steps.

    Those that cannot run the model with its configuration are left out and named.
    """
    config = pipeline.components.scheduler_config
    places: dict[str, np.ndarray] = {}
    missing = []
    for name in schedulers.names():
        try:
            scheduler = schedulers.create(name, config)
            schedulers.set_steps(scheduler, min(steps, schedulers.max_steps(name, config)))
        except LdmToolkitError:
            missing.append(name)
        else:
            places[name] = scheduler.timesteps.float().cpu().numpy()
    half = math.ceil(len(places) / 2)
    picture = Picture("schedule", "timesteps", "Where the schedulers step", (10, 1.2 + 0.19 * half))
    columns = picture.grid(1, 2)[0]
    for axes, names in ((columns[0], list(places)[:half]), (columns[1], list(places)[half:])):
        curves(axes, "", "timestep t, from noise to picture")
        for row, name in enumerate(names):
            colour = _SPACINGS.get(name.rpartition("_")[2], BLUE)
            axes.plot(places[name], [row] * len(places[name]), ".", color=colour, markersize=4)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(half - 0.4, -0.6)
        axes.invert_xaxis()
    counts = {name: len(found) for name, found in places.items()}
    own = pipeline.make_scheduler()
    schedulers.set_steps(own, steps)
    picture.caption = (
        f"Each dot is a timestep at which the network is asked, for {steps} steps of each of the "
        f"{len(places)} schedulers: blue as they are, orange, green and purple with Karras's, "
        "exponential and beta noise levels. Dots on the right spend evaluations on details, dots "
        f"on the left on the composition; there are {min(counts.values())} to "
        f"{max(counts.values())} evaluations, as some solvers ask twice a step, and dots of equal "
        "timesteps lie on each other. This model's own, "
        f"{type(own).__name__}, goes from t = {float(own.timesteps[0]):.0f} to "
        f"{float(own.timesteps[-1]):.0f}"
    )
    left_out = f"; left out are {', '.join(missing)}, which cannot run it" if missing else ""
    picture.caption += f"{left_out}."
    return picture
