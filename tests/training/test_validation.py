"""The loss on held-out pictures depends on the weights and on nothing else."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from training_tools import lora_method, tiny_unet, unet_method, vae_method

from ldm_toolkit.errors import UserError
from ldm_toolkit.training import loop
from ldm_toolkit.training.config import UNetConfig, VAEConfig
from ldm_toolkit.training.data import ImageFolder
from ldm_toolkit.training.held_out import hold_out
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.validation import (
    UNetHeldOut,
    VAEHeldOut,
    Validation,
    _errors,
    summary,
)


def held_out(method, batch_size=8, pictures=5):
    """Held-out pictures that no method here was made with."""
    rng = torch.Generator().manual_seed(77)
    mean = torch.randn(pictures, 4, 8, 8, generator=rng)
    return UNetHeldOut(
        method,
        moments=torch.cat([mean, torch.full_like(mean, 3.0)], dim=1).half(),
        embeddings=torch.randn(1 + 2 * pictures, 7, 32, generator=rng).half(),
        caption_rows=[[1 + 2 * i, 2 + 2 * i] for i in range(pictures)],
        scaling_factor=0.5,
        batch_size=batch_size,
    )


@torch.no_grad()
def all_errors(held):
    return torch.stack([held.errors(picture) for picture in range(len(held))])


# --- the numbers ---


def test_the_summary_is_the_mean_and_students_interval():
    errors = torch.rand(9, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = summary(errors, [str(band) for band in range(10)])
    means = errors.mean(dim=1).numpy()
    assert found["loss"] == pytest.approx(means.mean())
    low, high = stats.t.interval(0.95, 8, loc=means.mean(), scale=stats.sem(means))
    assert found["margin"] == pytest.approx((high - low) / 2)
    assert list(found["bands"].values()) == pytest.approx(errors.mean(dim=0).tolist())


def test_one_picture_has_no_interval_and_one_band_is_no_list():
    assert summary(torch.tensor([[0.25]]), ["all"]) == {"loss": 0.25}


def test_the_interval_covers_the_mean():
    """Of 400 samples of 8 pictures about 95 % have the true mean inside."""
    rng = torch.Generator().manual_seed(3)
    inside = 0
    for _ in range(400):
        found = summary(torch.randn(8, 1, generator=rng, dtype=torch.float64), ["all"])
        inside += abs(found["loss"]) <= found["margin"]
    assert 0.92 <= inside / 400 <= 0.98


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_errors_are_those_of_the_formula(prediction, tmp_path):
    """A network that says 0 is wrong by the mean square of the target."""
    method, _ = unet_method(tmp_path, prediction=prediction, min_snr_gamma=5.0)
    held = held_out(method, pictures=2)
    seen = []

    def network(noisy, timesteps, encoder_hidden_states):
        seen.append((noisy, timesteps, encoder_hidden_states))
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    method.unet.forward = network
    errors = held.errors(1).double()
    timesteps = torch.cat([one[1] for one in seen])
    assert timesteps.tolist() == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    assert held.bands[0] == "0-99"
    assert held.bands[-1] == "900-999"
    level = method.alphas_cumprod.double()[timesteps].reshape(-1, 1, 1, 1)
    latents = 0.5 * held._moments[1, :4].double()[None]  # the mean of the posterior, scaled
    noisy = torch.cat([one[0] for one in seen]).double()
    noise = (noisy - level.sqrt() * latents) / (1 - level).sqrt()
    assert torch.allclose(noise, noise[5:6].expand_as(noise), atol=1e-3)  # one noise a picture
    noise = noise[-1:]
    target = {
        "epsilon": noise.expand_as(noisy),
        "v_prediction": level.sqrt() * noise - (1 - level).sqrt() * latents,
        "sample": latents.expand_as(noisy),
    }[prediction]
    assert torch.allclose(errors, target.square().mean(dim=(1, 2, 3)), rtol=1e-3)
    text = torch.cat([one[2] for one in seen])
    assert torch.equal(text, held._embeddings[3].float()[None].expand_as(text))  # first caption


def test_pictures_have_their_own_noise(tmp_path):
    method, _ = unet_method(tmp_path)
    held, noises = held_out(method, pictures=3), []
    method.module.errors = lambda **columns: noises.append(columns["noise"]) or torch.zeros(2)
    for picture in range(3):
        held.errors(picture)
    first = [noise[0] for noise in noises[::2]]
    assert not torch.equal(first[0], first[1])
    assert abs(float(torch.stack(first).mean())) < 0.15


def test_the_distance_of_reconstructions(pictures, tmp_path):
    method, config = vae_method(tmp_path, pictures)
    source = ImageFolder(pictures, config.size)
    found = {name: all_errors(VAEHeldOut(method, source, name)) for name in ("l1", "l2")}
    assert found["l1"].shape == (6, 1)
    assert (found["l1"] > 0).all()
    assert not torch.equal(found["l1"], found["l2"])


# --- nothing else changes it ---


def test_neither_seed_nor_weighting_nor_dropout_changes_it(tmp_path):
    plain, _ = unet_method(tmp_path)
    options = {"min_snr_gamma": 5.0, "caption_dropout": 1.0, "offset_noise": 0.3, "pictures": 3}
    other, _ = unet_method(tmp_path, seed=9, latents="mean", **options)
    torch.manual_seed(5)
    expected = all_errors(held_out(plain))
    torch.manual_seed(6)
    assert torch.equal(all_errors(held_out(other)), expected)
    again = held_out(other)
    with torch.no_grad():
        backwards = [again.errors(picture) for picture in reversed(range(5))]
    assert torch.equal(torch.stack(backwards[::-1]), expected)
    assert torch.allclose(all_errors(held_out(plain, batch_size=3)), expected, rtol=1e-4)
    changed, _ = unet_method(tmp_path, unet=tiny_unet(seed=1))
    assert not torch.allclose(all_errors(held_out(changed)), expected, rtol=1e-3)


def test_a_lora_that_changes_nothing_has_the_models_loss(tmp_path):
    lora, _ = lora_method(tmp_path)
    plain, _ = unet_method(tmp_path)
    expected = all_errors(held_out(plain))
    assert torch.allclose(all_errors(held_out(lora)), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_measuring_changes_no_bit_of_the_training(kind, accelerator, pictures, tmp_path):
    def run(name, every):
        (tmp_path / name).mkdir()
        options = {"steps": 7, "batch_size": 2, "warmup": 0, "ema": 0.9, "lr": 1e-3}
        if kind == "unet":
            method, settings = unet_method(tmp_path / name, **options)
            held = held_out(method)
        else:
            method, settings = vae_method(tmp_path / name, pictures, **options)
            held = VAEHeldOut(method, ImageFolder(pictures, settings.size), "l1")
        before = [module.training for module in method.module.modules()]
        validation = Validation(held, every) if every else None
        loop.train(method, settings, accelerator, validation=validation)
        assert [module.training for module in method.module.modules()] == before
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return method, held, [json.loads(line) for line in lines]

    plain, _, lines = run("plain", 0)
    assert not any("validation" in line for line in lines)
    method, held, lines = run("measured", 3)
    state = method.module.state_dict()
    assert all(torch.equal(value, state[n]) for n, value in plain.module.state_dict().items())
    assert [line["step"] for line in lines] == list(range(1, 8))
    measured = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert list(measured) == [3, 6, 7]
    for one in measured.values():
        assert one["pictures"] == len(held)
        assert one["raw"]["loss"] != one["averaged"]["loss"]
        assert ("bands" in one["raw"]) == (kind == "unet")
        assert math.isfinite(one["raw"]["margin"])
    expected = summary(all_errors(held).double(), held.bands)  # of the weights as they are
    assert measured[7]["raw"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_share_the_pictures_and_add_up_to_one(processes, tmp_path):
    """Each measures its own, and the sum over them is what one process finds, to the last bit."""
    method, _ = unet_method(tmp_path)
    held, tables, asked = held_out(method), [], []
    errors = held.errors
    held.errors = lambda picture: asked.append(picture) or errors(picture)

    def shared(rank, count):
        accelerator = SimpleNamespace(
            process_index=rank, num_processes=count, device=torch.device("cpu"),
            autocast=contextlib.nullcontext, reduce=lambda t, how: tables.append((t, how)) or t,
        )  # fmt: skip
        return _errors(held, SimpleNamespace(method=method, accelerator=accelerator))

    whole = shared(0, 1)
    assert not tables
    asked.clear()
    for rank in range(processes):
        shared(rank, processes)
    assert sorted(asked) == list(range(5))
    assert {how for _, how in tables} == {"sum"}
    assert torch.equal(sum(table.double() for table, _ in tables), whole)


def test_without_an_average_there_is_one_loss(accelerator, tmp_path):
    method, settings = unet_method(tmp_path, ema=0.0)
    run = RunState(method, settings, accelerator, {})
    found = Validation(held_out(method), 1).measure(run)
    assert found.keys() == {"pictures", "raw"}


def test_the_last_step_is_measured():
    validation = Validation(SimpleNamespace(bands=["all"]), 5)
    assert [step for step in range(1, 13) if validation.due(step, 12)] == [5, 10, 12]


# --- what is held out ---


def unet_config(**options):
    return UNetConfig(data="d", output="o", size=64, **options)


def test_pictures_are_in_one_part_and_the_choice_is_always_the_same(pictures):
    source = ImageFolder(pictures, 64)
    found = []
    for seed in (0, 1):
        config = unet_config(seed=seed, validation_count=2, validate_every=1)
        trained, held = hold_out(config, source, lambda other: None)
        assert (len(trained), len(held)) == (4, 2)
        captions = [[part.captions(i) for i in range(len(part))] for part in (trained, held)]
        everything = [source.captions(i) for i in range(6)]
        assert sorted(captions[0] + captions[1]) == sorted(everything)
        for part in (trained, held):
            for index in range(len(part)):
                whole = everything.index(part.captions(index))
                assert part.image(index).tobytes() == source.image(whole).tobytes()
        assert len({source.fingerprint, trained.fingerprint, held.fingerprint}) == 3
        found.append(captions)
    assert found[0] == found[1]


def test_other_pictures_leave_the_training_as_it_is(pictures):
    source, opened = ImageFolder(pictures, 64), []
    config = unet_config(validation_data="other", validate_every=3)
    trained, held = hold_out(config, source, lambda one: opened.append(one) or source)
    assert trained is source
    assert held is source
    assert [one.data for one in opened] == ["other"]
    assert hold_out(unet_config(), source, opened.append) == (source, None)


def test_something_has_to_be_left(pictures):
    source = ImageFolder(pictures, 64)
    config = VAEConfig(data="d", output="o", size=64, crop=64, validation_count=6)
    with pytest.raises(UserError, match=r"--validation-count 6 leaves .* are 6 pictures"):
        hold_out(config, source, lambda other: source)


@pytest.mark.parametrize("script", ["finetune_unet", "finetune_vae"])
def test_the_commands_measure(script, trainer, tiny_model, pictures, tmp_path):
    common = [script, "--model", tiny_model, "--size", 64, "--batch_size", 2, "--warmup", 0,
              "--threads", 1, "--steps", 2, "--validate-every", 1]  # fmt: skip
    if script == "finetune_vae":
        common += ["--crop", 32]
    found = {}
    for name, words in {
        "count": ["--data", pictures, "--validation-count", 2],
        "data": ["--data", "storybook", "--count", 3, "--validation-data", pictures],
    }.items():
        child = trainer.run(*common, *words, "--output", tmp_path / name)
        assert child.wait() == 0, child.errors
        assert "held-out pictures: raw" in child.errors
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(line)["validation"] for line in lines]
    assert [one["pictures"] for one in found["count"]] == [2, 2]
    assert [one["pictures"] for one in found["data"]] == [6, 6]
    words = ["--data", pictures, "--validation-count", 3, "--output", tmp_path / "count"]
    child = trainer.run(*common, *words)
    assert child.wait() == 2  # another part of the data is not the same training
    assert "--resume false" in child.errors
