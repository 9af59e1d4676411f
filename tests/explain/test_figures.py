"""Every picture: a figure whose numbers are those of the model, with a caption that fits it."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from matplotlib.figure import Figure
from PIL import Image

from ldm_toolkit import explain, schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.explain import guidance, picture
from ldm_toolkit.explain.attention import word_maps
from ldm_toolkit.explain.autoencoder import compression
from ldm_toolkit.explain.observed import Observed, observe
from ldm_toolkit.explain.schedule import schedule_values
from ldm_toolkit.pipeline import LatentPipeline

Draw = Callable[[LatentPipeline, Observed], explain.Picture]
PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")
DRAWN: dict[str, Draw] = {
    "embedding": lambda pipe, seen: explain.embedding(pipe, seen.recipe.prompt),
    "attention_maps": explain.attention_maps,
    "autoencoder": lambda pipe, seen: explain.autoencoder(pipe, PICTURE),
    "noise_schedule": lambda pipe, seen: explain.noise_schedule(pipe),
    "timesteps": lambda pipe, seen: explain.timesteps(pipe, 5),
    "added_noise": lambda pipe, seen: explain.added_noise(pipe, PICTURE, 1),
    "one_step": lambda pipe, seen: explain.one_step(pipe, PICTURE, "a dog", 1),
    "run_strip": explain.run_strip,
    "guidance_scales": explain.guidance_scales,
    "guidance_difference": explain.guidance_difference,
    "between_seeds": explain.between_seeds,
    "between_prompts": lambda pipe, seen: explain.between_prompts(pipe, seen, "a red car"),
    "bound_terms": lambda pipe, seen: explain.bound_terms(pipe, PICTURE, "", 1),
    "adversarial_losses": lambda pipe, seen: explain.adversarial_losses(),
}


def lines(figure: Figure, number: int) -> np.ndarray:
    return np.asarray(figure.axes[number].lines[0].get_ydata(), dtype=np.float64)


def test_all_that_is_exported_is_drawn_here() -> None:
    assert {*DRAWN, "Observed", "Picture", "observe"} == set(explain.__all__)


@pytest.mark.parametrize("models", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_figure_with_a_caption_of_two_or_three_sentences(
    name: str, models: str, request: pytest.FixtureRequest
) -> None:
    prefix = "v_" if models == "v_prediction" else ""
    pipe = request.getfixturevalue(f"{prefix}pipe")
    before = dict(matplotlib.rcParams)
    figure = DRAWN[name](pipe, request.getfixturevalue(f"{prefix}observed"))
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == figure.title
    sentences = re.findall(r"[.!?](?: |$)", figure.caption)
    assert 2 <= len(sentences) <= 3, figure.caption
    assert 30 <= len(figure.caption.split()) <= 110
    assert not re.search(r"\b(nan|inf|None)\b", figure.caption), figure.caption
    assert re.search(r"\d", figure.caption)
    assert dict(matplotlib.rcParams) == before
    assert all(axes.has_data() or not axes.get_visible() for axes in figure.axes)


def test_nothing_of_pyplot_is_used() -> None:
    modules = list(Path(explain.__file__).parent.glob("*.py"))
    assert len(modules) >= 10
    for path in modules:
        imported = re.findall(r"^ *(?:from|import) .*$", path.read_text("utf-8"), re.MULTILINE)
        assert not any("pyplot" in line for line in imported), path.name


@pytest.mark.parametrize(
    "prompt", ["a $\\frac$ dog_^{", "<b>&amp;</b>", "狗 \x00\u202e", "", "w" * 400]
)
def test_prompts_are_drawn_as_they_are(pipe: LatentPipeline, prompt: str) -> None:
    seen = observe(pipe, prompt, steps=1, seed=1)
    for figure in (
        explain.embedding(pipe, prompt),
        explain.attention_maps(pipe, seen),
        explain.between_prompts(pipe, seen, "$x$"),
    ):
        assert figure.pixels().mode == "RGB"


def test_a_long_prompt_shows_its_first_tokens_and_words(pipe: LatentPipeline) -> None:
    prompt = " ".join(f"{first}{second}" for first in "abcdef" for second in "qrstuvwxyz")
    seen = observe(pipe, prompt, steps=1, seed=1)
    assert len(explain.attention_maps(pipe, seen).axes) == 20
    figure = explain.embedding(pipe, prompt)
    assert len(figure.axes[0].get_yticks()) == 20
    assert f"{len(pipe.tokenize(prompt))} x 32" in figure.axes[1].get_title(loc="left")


# --- numbers ---


@pytest.mark.parametrize("models", ["epsilon", "v_prediction"])
def test_one_timestep_of_equal_signal_and_noise_in_all_captions(
    models: str, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue("v_pipe" if models == "v_prediction" else "pipe")
    level = schedule_values(pipe)["alpha_bar"]
    equal = int(np.abs(level - 0.5).argmin())
    assert level[equal - 1] > 0.5 > level[equal + 1]
    assert f"equally strong at t = {equal}" in explain.noise_schedule(pipe).caption
    added = explain.added_noise(pipe, PICTURE, 1).caption
    assert f"After t = {equal} such latents hold more noise than signal" in added


def test_the_word_of_most_contrast_is_named_with_its_figure(
    pipe: LatentPipeline, observed: Observed
) -> None:
    maps = {n: m for n, m in word_maps(pipe, observed).items() if n.startswith('"')}
    spread = {name: float(one.std() / one.mean()) for name, one in maps.items()}
    most = max(spread, key=lambda name: spread[name])
    caption = explain.attention_maps(pipe, observed).caption
    assert f"relative to its mean, attention differs most from place to place for {most}" in caption
    assert f"standard deviation of {spread[most]:.0%}" in caption


def test_all_dots_of_the_difference_are_inside_the_axes(
    pipe: LatentPipeline, observed: Observed
) -> None:
    curve = explain.guidance_difference(pipe, observed).axes[-1]
    highest = max(float(max(line.get_ydata())) for line in curve.lines)
    assert curve.get_ylim()[0] == 0
    assert curve.get_ylim()[1] >= 1.05 * highest


def test_the_factor_of_the_straight_line_is_of_both_lengths(
    pipe: LatentPipeline, observed: Observed
) -> None:
    size = observed.recipe.width, observed.recipe.height
    seed = observed.recipe.seed
    one, other = (pipe.initial_noise(number, *size) for number in (seed, seed + 1))
    factor = float((one + other).norm() / 2) / float((one.norm() + other.norm()) / 2)
    assert f"a factor of {factor:.2f}." in explain.between_seeds(pipe, observed).caption


def test_captions_say_what_their_numbers_count(pipe: LatentPipeline) -> None:
    assert "bits per latent number" in explain.bound_terms(pipe, PICTURE, "", 1).caption
    figure = explain.timesteps(pipe, 5)
    assert "dots of equal timesteps lie on each other" in figure.caption
    assert any(
        len(set(line.get_xdata())) < len(line.get_xdata())
        for axes in figure.axes
        for line in axes.lines
    )


@pytest.mark.parametrize("name", ["pipe", "v_pipe"])
def test_schedule_curves_are_those_of_diffusers(name: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(name)
    config = pipe.components.scheduler_config
    known = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    ddpm = DDPMScheduler(num_train_timesteps=1000, **known)
    euler = EulerDiscreteScheduler(num_train_timesteps=1000, **known)
    level = ddpm.alphas_cumprod.numpy()
    figure = explain.noise_schedule(pipe)
    drawn = [lines(figure, number) for number in range(4)]
    sigmas = euler.sigmas[:-1].flip(0).numpy()  # as it is made, before any set_timesteps
    for found, expected in zip(
        drawn, (ddpm.betas.numpy(), level, sigmas, 1 / sigmas**2), strict=True
    ):
        assert np.allclose(found, expected, rtol=1e-4)
    values = schedule_values(pipe)
    assert list(values) == ["beta", "alpha_bar", "sigma", "snr"]
    assert f"t = {int(np.abs(level - 0.5).argmin())}" in figure.caption


def test_dots_are_the_timesteps_of_every_scheduler_that_we_offer(pipe: LatentPipeline) -> None:
    figure = explain.timesteps(pipe, 7)
    dots: dict[str, np.ndarray] = {}
    for axes in figure.axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        for name, line in zip(names, axes.lines, strict=True):
            dots[name] = np.asarray(line.get_xdata())
    assert tuple(dots) == schedulers.names()
    for name, found in dots.items():
        scheduler = pipe.make_scheduler(name)
        schedulers.set_steps(scheduler, 7)
        assert np.allclose(found, scheduler.timesteps.numpy()), name


def test_schedulers_that_cannot_run_the_model_are_named(
    model_factory: Callable[..., Any],
) -> None:
    pipe = LatentPipeline.from_pretrained(
        model_factory(prediction_type="sample"), device="cpu", dtype="float32", scheduler="ddim"
    )
    figure = explain.timesteps(pipe, 5)
    missing = figure.caption.partition("left out are ")[2]
    assert {"pndm", "euler_a", "dpm2"} <= set(re.findall(r"[\w+]+", missing))


def test_zero_terminal_schedules_are_drawn(pipe: LatentPipeline) -> None:
    import dataclasses

    config = {**pipe.components.scheduler_config, "rescale_betas_zero_snr": True,
              "prediction_type": "v_prediction"}  # fmt: skip
    other = LatentPipeline(dataclasses.replace(pipe.components, scheduler_config=config))
    assert schedule_values(other)["alpha_bar"][-1] == 0
    figure = explain.noise_schedule(other)
    assert np.isnan(lines(figure, 2)[-1])
    assert np.isfinite(lines(figure, 2)[:-1]).all()
    assert "exactly what the network was shown" in figure.caption
    explain.one_step(other, PICTURE, "a dog", 1).pixels()
    explain.bound_terms(other, PICTURE, "a dog", 1).pixels()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (512, 512), (768, 512)])
def test_the_compression_factor_is_computed(pipe: LatentPipeline, width: int, height: int) -> None:
    channels, rows, columns = pipe.pil_to_latents(PICTURE.resize((width, height))).shape[1:]
    assert compression(pipe, width, height) == 3 * width * height / (channels * rows * columns)
    assert compression(pipe, width, height) == 48


def test_the_autoencoders_numbers_are_the_reconstructions(pipe: LatentPipeline) -> None:
    figure = explain.autoencoder(pipe, PICTURE)
    again = pipe.latents_to_pil(pipe.pil_to_latents(PICTURE))[0]
    error = np.asarray(again, dtype=np.float64) - np.asarray(PICTURE, dtype=np.float64)
    ratio = 10 * np.log10(255**2 / np.square(error).mean())
    assert f"PSNR of {ratio:.1f} dB" in figure.caption
    assert f"{np.abs(error).mean():.1f} of 255" in figure.axes[2].get_xlabel()
    assert "48 times fewer" in figure.caption
    with pytest.raises(UserError, match="multiples of 8"):
        explain.autoencoder(pipe, PICTURE.resize((60, 64)))


def test_noise_is_added_as_the_pipeline_adds_it(pipe: LatentPipeline) -> None:
    figure = explain.added_noise(pipe, PICTURE, 7)
    first, last = figure.axes[7], figure.axes[13]
    latents = pipe.pil_to_latents(PICTURE)
    noise = pipe.initial_noise(7, 64, 64)
    for axes, time in ((first, 0), (last, 999)):
        expected = pipe.add_noise(latents, noise, torch.tensor([time]))[0, 0]
        assert np.allclose(axes.images[0].get_array(), expected, atol=1e-5)


def test_guidance_differences_make_the_guided_prediction(
    pipe: LatentPipeline, observed: Observed
) -> None:
    """unconditional + scale difference is the noise from which the step's x_0 follows."""
    differences = guidance.prediction_differences(pipe, observed)
    assert differences.shape == observed.inputs.shape
    empty = pipe.encode_prompt("")
    for place, step in enumerate(observed.steps):
        x_t = observed.inputs[place : place + 1]
        plain = pipe.predict_noise(x_t, step.timestep, empty)
        guided = plain + 5.0 * differences[place]
        level = observed.alpha_bar(place)
        x_0 = (x_t - (1 - level).sqrt() * guided) / level.sqrt()
        assert torch.allclose(x_0, step.denoised, atol=1e-3, rtol=1e-3)


def test_interpolations_begin_at_the_run(pipe: LatentPipeline, observed: Observed) -> None:
    for figure in (
        explain.between_seeds(pipe, observed),
        explain.between_prompts(pipe, observed, "a red car"),
    ):
        found = np.asarray(figure.axes[0].images[0].get_array(), dtype=np.int16)
        assert np.abs(found - np.asarray(observed.image, dtype=np.int16)).max() <= 1
    with pytest.raises(UserError, match="is the first"):
        explain.between_prompts(pipe, observed, observed.recipe.prompt)


def test_the_runs_own_scale_stands_among_the_others(
    pipe: LatentPipeline, observed: Observed
) -> None:
    labels = [axes.get_title() for axes in explain.guidance_scales(pipe, observed).axes]
    assert labels == ["1", "2", "4", "5 (this run)", "7.5", "12"]


def test_a_notebook_shows_the_picture(pipe: LatentPipeline) -> None:
    figure = explain.noise_schedule(pipe)
    with Image.open(io.BytesIO(figure._repr_png_())) as shown:
        assert shown.convert("RGB").tobytes() == figure.pixels().tobytes()


def test_labels_are_cut_and_harmless() -> None:
    assert picture.drawable("a  b\nc\x00", 40) == "a b c\ufffd"
    assert len(picture.drawable("word " * 50, 20)) <= 20
    assert (picture.quoted(" "), picture.quoted("x")) == ("the empty prompt", '"x"')
