"""The registry: names, aliases, configuration, limits, entry points."""

import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import here

from ldm_toolkit import schedulers
from ldm_toolkit.denoise import _noise_level
from ldm_toolkit.errors import UserError
from ldm_toolkit.images import open_image, pixels_sha256, read_recipe
from ldm_toolkit.pipeline import LatentPipeline

CONFIG: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "skip_prk_steps": True,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("ddim", "ddim"),
        ("DDIM", "ddim"),
        ("Euler a", "euler_a"),
        ("Euler", "euler"),
        ("LMS Karras", "lms_karras"),
        ("PLMS", "pndm"),
        ("DPM2 a Karras", "dpm2_a_karras"),
        ("DPM++ 2M", "dpm++_2m"),
        ("DPM++ 2M Karras", "dpm++_2m_karras"),
        ("DPM++ 2M SDE Exponential", "dpm++_2m_sde_exponential"),
        ("dpmpp_2m_sde_karras", "dpm++_2m_sde_karras"),
        ("k_euler", "euler"),
        ("UniPC", "unipc"),
        ("uni-pc", "unipc"),
        ("DEIS", "deis"),
        ("  heun ", "heun"),
    ],
)
def test_names_that_people_type(typed: str, name: str) -> None:
    assert schedulers.resolve_name(typed) == name


@pytest.mark.parametrize(
    "typed", ["", "eulr", "ddim_karras", "karras", "os:system", "../x", "x" * 500]
)
def test_unknown_names(typed: str) -> None:
    with pytest.raises(UserError, match="no scheduler is called") as caught:
        schedulers.resolve_name(typed)
    assert len(str(caught.value)) < 300
    if typed == "eulr":
        assert "did you mean 'euler'" in str(caught.value)


def test_describe_names_them_all() -> None:
    described = schedulers.describe()
    assert tuple(name for name, _ in described) == schedulers.names()
    assert all(about and "\n" not in about for _, about in described)
    assert len(schedulers.names()) == 46


@pytest.mark.parametrize("name", schedulers.names())
def test_every_scheduler_builds_and_has_its_total(name: str) -> None:
    scheduler = schedulers.create(name, CONFIG)
    total = schedulers.set_steps(scheduler, 10)
    base = name.split("_karras")[0].split("_exponential")[0].split("_beta")[0]
    expected = {"heun": 19, "dpm2": 19, "dpm2_a": 19, "pndm": 11}.get(base, 10)
    assert total == expected
    config = schedulers.json_config(scheduler)
    assert config["beta_end"] == 0.012
    assert not any(key.startswith("_") for key in config)
    assert json.loads(json.dumps(config, allow_nan=False)) == config


@pytest.mark.parametrize("name", schedulers.names())
def test_noise_level_is_what_the_scheduler_scales_with(name: str) -> None:
    """(alpha, sigma) of an evaluation agree with the training schedule at its timestep."""
    scheduler = schedulers.create(name, CONFIG)
    schedulers.set_steps(scheduler, 12)
    sample = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scales = getattr(scheduler, "sigmas", None) is not None and scheduler.init_noise_sigma != 1
    for evaluation, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, timestep)
        alpha, sigma = _noise_level(scheduler, evaluation, timestep)
        assert math.isclose(alpha**2 + sigma**2, 1, abs_tol=1e-6)
        if scales:
            assert torch.allclose(scaled, sample * alpha, rtol=1e-4)
        bar = scheduler.alphas_cumprod.double()
        low, high = bar[math.floor(float(timestep))], bar[math.ceil(float(timestep))]
        spacing = 0.02 if name != "dpm2_a" else 0.05
        assert high**0.5 - spacing <= alpha <= low**0.5 + spacing
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample


def test_the_name_wins_over_the_configuration() -> None:
    config = CONFIG | {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    plain = schedulers.create("dpm++_2m", config)
    assert plain.config.use_karras_sigmas is False
    assert plain.config.algorithm_type == "dpmsolver++"
    assert schedulers.create("dpm++_2m_beta", config).config.use_beta_sigmas is True


def test_pndm_without_the_key_skips_the_runge_kutta_steps() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "skip_prk_steps"}
    assert schedulers.set_steps(schedulers.create("pndm", config), 10) == 11
    said = schedulers.create("pndm", {**CONFIG, "skip_prk_steps": False})
    assert said.config.skip_prk_steps is False


MANY = [
    # lms integrates numerically: ten seconds for a thousand uneven steps.
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("lms_") else [])
    for name in schedulers.names()
    if name not in ("lcm", "tcd")
]


@pytest.mark.parametrize("steps", [pytest.param(999, marks=pytest.mark.slow), 1000])
@pytest.mark.parametrize("name", MANY)
def test_the_most_steps_run_and_stay_finite(name: str, steps: int) -> None:
    """diffusers counts past the last timestep for some, divides by zero for others."""
    assert schedulers.max_steps(name, CONFIG) == 1000
    scheduler = schedulers.create(name, CONFIG)
    evaluations = schedulers.set_steps(scheduler, steps)
    assert evaluations == {"pndm": steps + 1}.get(name, scheduler.order * (steps - 1) + 1)
    assert 0 <= scheduler.timesteps.min() <= scheduler.timesteps.max() <= 999
    sample = torch.zeros(1, 1, 1, 1)
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(torch.full_like(sample, 0.1), timestep, sample).prev_sample
    assert torch.isfinite(sample).all()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "dpm++_2m", "unipc", "deis", "lms"])
def test_as_many_steps_as_were_trained_are_each_timestep_once(name: str) -> None:
    scheduler = schedulers.create(name, CONFIG)
    schedulers.set_steps(scheduler, 1000)
    assert scheduler.timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("name", ["dpm++_2m_karras", "euler_karras", "dpm++_sde_karras"])
def test_many_karras_steps_start_at_the_first(name: str) -> None:
    """Two equal first timesteps: diffusers would take the second and run off the end."""
    scheduler = schedulers.create(name, CONFIG)
    schedulers.set_steps(scheduler, 999)
    sample = torch.zeros(1, 4, 2, 2)
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample
    assert torch.isfinite(sample).all()


def test_limits_follow_the_configuration() -> None:
    assert schedulers.max_steps("lcm", CONFIG) == 50
    assert schedulers.max_steps("tcd", CONFIG | {"original_inference_steps": 30}) == 30
    assert schedulers.max_steps("ddim", {"num_train_timesteps": 100}) == 100
    schedulers.set_steps(schedulers.create("lcm", CONFIG), 50)


def test_the_schedulers_of_model_folders() -> None:
    assert schedulers.name_for_config("PNDMScheduler", CONFIG) == "pndm"
    assert schedulers.name_for_config("DPMSolverMultistepScheduler", {}) == "dpm++_2m"
    sde = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    assert schedulers.name_for_config("DPMSolverMultistepScheduler", sde) == "dpm++_2m_sde_karras"
    assert schedulers.name_for_config("EulerDiscreteScheduler", {}) == "euler"
    assert schedulers.name_for_config("IPNDMScheduler", {}) == "ddim"


def test_entry_points(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    target = "diffusers.schedulers.scheduling_ddim:DDIMScheduler"
    points = [
        importlib.metadata.EntryPoint("My-Solver", target, schedulers.ENTRY_POINTS),
        importlib.metadata.EntryPoint("ddim", "evil:Scheduler", schedulers.ENTRY_POINTS),
        importlib.metadata.EntryPoint("broken", "no_such_module:X", schedulers.ENTRY_POINTS),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    schedulers._entries.cache_clear()
    try:
        assert type(schedulers.create("my_solver", CONFIG)).__name__ == "DDIMScheduler"
        assert type(schedulers.create("ddim", CONFIG)).__name__ == "DDIMScheduler"
        assert "ddim left out" in caplog.text
        with pytest.raises(UserError, match="cannot be imported"):
            schedulers.create("broken", CONFIG)
    finally:
        schedulers._entries.cache_clear()


# What is in the wheel of another package.
INFO = "spare_solver-1.0.dist-info"
WHEEL = {
    "spare_solver.py": "from diffusers import DDIMScheduler\nclass Spare(DDIMScheduler): pass\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: spare-solver\nVersion: 1.0\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/entry_points.txt": f"[{schedulers.ENTRY_POINTS}]\nSpare-Solver = spare_solver:Spare\n",
}
PIP = ("-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet")


@pytest.fixture(scope="module")
def with_package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with another package, which pip has installed into a folder of its own."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    folder = tmp_path_factory.mktemp("package")
    wheel, site = folder / "spare_solver-1.0-py3-none-any.whl", folder / "site"
    record = "".join(f"{name},,\n" for name in (*WHEEL, f"{INFO}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**WHEEL, f"{INFO}/RECORD": record}.items():
            archive.writestr(name, text)
    words = ("--no-deps", "--no-index", "--no-cache-dir", "--target", str(site), str(wheel))
    subprocess.run([sys.executable, *PIP, *words], check=True)
    environment = here()
    return environment | {"PYTHONPATH": os.pathsep.join([str(site), environment["PYTHONPATH"]])}


def ldm_gen(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: which packages there are is read once a process."""
    command = [sys.executable, "-m", "ldm_toolkit.cli.generate", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_scheduler_of_an_installed_package_is_listed(with_package: dict[str, str]) -> None:
    done = ldm_gen(with_package, "--list-schedulers")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == [*schedulers.names(), "spare_solver"]
    assert lines[-1][1] == "from spare_solver"
    without = ldm_gen(here(), "--list-schedulers")
    assert "spare_solver" not in without.stdout


def test_the_scheduler_of_an_installed_package_draws(
    with_package: dict[str, str], tiny_model: Path, pipe: LatentPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "dog.png"
    words = ("a dog", "--scheduler", "Spare Solver", "--steps", 2, "--seed", 3, "-o", path)
    machine = ("--device", "cpu", "--dtype", "float32", "--threads", 1)
    done = ldm_gen(with_package, *words, *machine, "--model", tiny_model)
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(path)
    assert recipe.scheduler == "spare_solver"
    assert recipe.pixels_sha256 == pixels_sha256(open_image(path))
    expected = pipe("a dog", steps=2, seed=3, scheduler="ddim").recipes[0]  # what it is made of
    assert recipe.scheduler_config == expected.scheduler_config
    assert recipe.pixels_sha256 == expected.pixels_sha256
    absent = ldm_gen(here(), *words, *machine, "--model", tiny_model, "--overwrite")
    assert absent.returncode == 2
    assert "no scheduler is called 'Spare Solver'" in absent.stderr


@pytest.mark.parametrize("name", ["pndm", "euler_a", "dpm2", "dpm2_a", "dpm2_karras"])
def test_models_that_predict_the_sample(name: str) -> None:
    with pytest.raises(UserError, match="predicts the sample"):
        schedulers.create(name, CONFIG | {"prediction_type": "sample"})
    schedulers.create("ddim", CONFIG | {"prediction_type": "sample"})


def test_foreign_keys_of_the_configuration_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    for name in schedulers.names():
        schedulers.set_steps(schedulers.create(name, CONFIG | {"no_such_key": 1}), 5)
    assert not caplog.records


def test_a_scheduler_that_cannot_run_the_model_says_so() -> None:
    with pytest.raises(UserError, match="cannot run this model"):
        schedulers.create("ddim", CONFIG | {"beta_schedule": "no such"})


def test_names_need_no_torch() -> None:
    code = (
        "import sys, ldm_toolkit.schedulers as s, ldm_toolkit.recipe, ldm_toolkit.models.identity;"
        "import ldm_toolkit.models.checks; s.describe(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_that_a_person_names() -> None:
    name = "diffusers:DDIMInverseScheduler"
    assert schedulers.resolve_name(name, classes=True) == name
    scheduler = schedulers.create(name, CONFIG)
    assert type(scheduler).__name__ == "DDIMInverseScheduler"
    assert scheduler.config.beta_end == CONFIG["beta_end"]
    assert schedulers.max_steps(name, CONFIG) == 1000
    assert not schedulers.takes_eta("diffusers:EulerDiscreteScheduler")
    with pytest.raises(UserError, match="no scheduler is called"):
        schedulers.resolve_name(name)  # out of a file


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("os:system", "is no scheduler class"),
        ("no_such_module:Class", "cannot be imported"),
        ("diffusers:NoSuchClass", "cannot be imported"),
        ("diffusers:AutoencoderKL", "is no scheduler class"),
    ],
)
def test_a_class_that_is_no_scheduler(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        schedulers.create(name, CONFIG)
