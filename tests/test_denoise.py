"""The loop and the predicted x0, without a network."""

import math

import pytest
import torch

from ldm_toolkit import schedulers
from ldm_toolkit.denoise import StepInfo, denoise, predicted_original
from ldm_toolkit.errors import NumericalError, UserError
from ldm_toolkit.guidance import Guidance
from ldm_toolkit.latents import initial_noise, make_generators
from ldm_toolkit.prompts import Conditioning

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
TEXT = Conditioning(torch.zeros(2, 77, 8), torch.zeros(2, 77, 8))


def oracle(scheduler: object, original: torch.Tensor, kind: str) -> object:
    """A perfect model: what a network would say that knows x0."""
    bars = scheduler.alphas_cumprod  # type: ignore[attr-defined]

    def predict(x: torch.Tensor, t: torch.Tensor, _: Conditioning, step: StepInfo) -> torch.Tensor:
        # Interpolated in log sigma as diffusers does for timesteps between the trained ones.
        ratios = (((1 - bars) / bars) ** 0.5).log()
        low, high = math.floor(float(t)), math.ceil(float(t))
        ratio = torch.lerp(ratios[low], ratios[high], float(t) - low).exp()
        alpha = 1 / (1 + ratio**2) ** 0.5
        sigma = ratio * alpha
        eps = (x - alpha * original) / sigma
        answer = {"epsilon": eps, "v_prediction": alpha * eps - sigma * original}.get(
            kind, original
        )
        return torch.cat([answer, answer]) if step.guided else answer

    return predict


NAMES = "ddim ddpm euler euler_a heun dpm2 dpm++_2m dpm++_sde unipc deis lms lcm tcd euler_karras"
CASES = [
    (name, kind)
    for name in NAMES.split()
    for kind in ("epsilon", "v_prediction", "sample")
    if not (kind == "sample" and name in ("euler_a", "dpm2"))  # diffusers' classes cannot
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_predicted_original_is_the_original(name: str, kind: str) -> None:
    scheduler = schedulers.create(name, CONFIG | {"prediction_type": kind})
    schedulers.set_steps(scheduler, 8)
    original = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generators = make_generators([1, 2])
    noise = initial_noise(generators, (4, 8, 8)) * scheduler.init_noise_sigma
    predict = oracle(scheduler, original, kind)
    steps = list(denoise(predict, scheduler, noise, TEXT, Guidance(3.0), generators))
    for step in steps:
        assert (step.denoised - original).abs().max() < 0.06, (step.index, step.timestep)
    sigmas = [step.sigma for step in steps]
    assert sigmas[0] > 5
    assert sigmas[-1] < 2
    assert (steps[-1].latents - original).abs().max() < 0.5


def test_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=generator)
    alpha, sigma = 0.8, 0.6
    x_t = alpha * x0 + sigma * eps
    for kind, prediction in (
        ("epsilon", eps),
        ("v_prediction", alpha * eps - sigma * x0),
        ("sample", x0),
    ):
        found = predicted_original(prediction, x_t, alpha, sigma, kind)
        assert torch.allclose(found, x0, atol=1e-5)
    with pytest.raises(UserError, match="flow"):
        predicted_original(eps, x_t, alpha, sigma, "flow_prediction")


def test_step_info_and_halves() -> None:
    scheduler = schedulers.create("heun", CONFIG)
    schedulers.set_steps(scheduler, 3)
    infos: list[StepInfo] = []

    def predict(x: torch.Tensor, t: torch.Tensor, c: Conditioning, step: StepInfo) -> torch.Tensor:
        infos.append(step)
        assert x.dtype == torch.float32
        return torch.zeros_like(torch.cat([x, x]) if step.guided else x, dtype=torch.bfloat16)

    latents = torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16)
    steps = list(denoise(predict, scheduler, latents, TEXT, Guidance(2.0), make_generators([1, 2])))
    assert [(info.index, info.evaluation) for info in infos] == [
        (0, 0),
        (0, 1),
        (1, 2),
        (1, 3),
        (2, 4),
    ]
    assert all(info.total == 5 and info.guided for info in infos)
    assert all(step.latents.dtype == step.denoised.dtype == torch.float32 for step in steps)


def test_nothing_runs_before_the_first_step() -> None:
    def predict(*_: object) -> torch.Tensor:
        raise AssertionError

    scheduler = schedulers.create("ddim", CONFIG)
    schedulers.set_steps(scheduler, 3)
    denoise(predict, scheduler, torch.zeros(1, 4, 8, 8), TEXT, Guidance(), make_generators([1]))


def test_nan_names_step_and_dtype() -> None:
    scheduler = schedulers.create("ddim", CONFIG)
    schedulers.set_steps(scheduler, 3)

    def predict(x: torch.Tensor, t: torch.Tensor, c: Conditioning, step: StepInfo) -> torch.Tensor:
        return torch.full_like(x, torch.nan if step.index else 0, dtype=torch.bfloat16)

    run = denoise(
        predict, scheduler, torch.zeros(1, 4, 8, 8), TEXT, Guidance(1), make_generators([1])
    )
    next(run)
    with pytest.raises(NumericalError, match=r"step 2 of 3 in bfloat16; .*float32"):
        next(run)


def test_preview_without_a_function() -> None:
    scheduler = schedulers.create("ddim", CONFIG)
    schedulers.set_steps(scheduler, 1)
    run = denoise(
        lambda x, t, c, step: x,
        scheduler,
        torch.zeros(1, 4, 8, 8),
        TEXT,
        Guidance(1),
        make_generators([1]),
    )
    step = next(run)
    for call in (step.preview, step.previews, step.decoded):
        with pytest.raises(UserError, match="without a preview"):
            call()
