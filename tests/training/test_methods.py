"""Batches are functions of the position, cover what they should, and train what they should."""

import math
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
from training_tools import tiny_vae, unet_method, vae_method

from ldm_toolkit.errors import UserError
from ldm_toolkit.theory import diffusion
from ldm_toolkit.training import objectives
from ldm_toolkit.training.config import UNET_METHODS
from ldm_toolkit.training.methods import method_class
from ldm_toolkit.training.methods.unet_step import UNetMethod, trained_scheduler
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.rng import BucketIndex


@pytest.mark.parametrize("name", UNET_METHODS)
def test_every_row_of_the_table_is_a_method(name):
    kind = method_class(name)
    assert issubclass(kind, UNetMethod)
    assert not kind.__abstractmethods__
    assert f"methods.{UNET_METHODS[name]}" in f"{kind.__module__}.{kind.__name__}"


def test_batches_do_not_depend_on_their_size_or_history(tmp_path):
    method, _ = unet_method(tmp_path, captions=3)
    whole = method.batch(range(40, 48))
    torch.manual_seed(99)
    other, _ = unet_method(tmp_path, captions=3)
    halves = [other.batch(range(44, 48)), other.batch(range(40, 44))]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([halves[1][name], halves[0][name]])), name


def test_pictures_of_several_sizes_train_in_batches_of_one(tmp_path):
    method, _ = unet_method(tmp_path, pictures=6)
    sizes = [(64, 64)] * 4 + [(128, 64)] * 2
    method._moments = [torch.zeros(8, high // 8, wide // 8).half() for wide, high in sizes]
    method._index = BucketIndex(0, sizes, 2)
    shapes = []
    for step in range(3):
        batch = method.batch([2 * step, 2 * step + 1])
        shapes.append(tuple(batch["latents"].shape[2:]))
        assert torch.isfinite(method.module(**batch))
    assert sorted(shapes) == [(8, 8), (8, 8), (8, 16)]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_timesteps_cover_the_schedule_evenly(seed, tmp_path):
    """Any window of 200 positions has 2 +- 2 timesteps in each hundredth of [0, 1000)."""
    method, _ = unet_method(tmp_path, seed=seed)
    drawn = [int(method.batch([position])["timesteps"][0]) for position in range(1200)]
    for start in (0, 333, 1000):
        window = torch.tensor(drawn[start : start + 200])
        counts = torch.histc(window.float(), 100, 0, 1000)
        assert counts.sum() == 200
        assert counts.min() >= 1
        assert counts.max() <= 3
    assert min(drawn) < 5
    assert max(drawn) >= 995
    assert max(drawn) < 1000


def test_small_batches_are_stratified(tmp_path):
    """Eight neighbours fall into at least five eighths of the schedule."""
    method, _ = unet_method(tmp_path)
    for start in range(0, 400, 8):
        eighths = (method.batch(range(start, start + 8))["timesteps"] // 125).unique()
        assert len(eighths) >= 5


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_captions_are_dropped_at_the_configured_rate(rate, tmp_path):
    method, _ = unet_method(tmp_path, caption_dropout=rate)
    empty = method._embeddings[0].float()
    dropped = [torch.equal(method.batch([p])["text"][0], empty) for p in range(1500)]
    assert sum(dropped) / len(dropped) == pytest.approx(rate, abs=0.025)


def test_dropout_and_captions_are_drawn_anew_each_epoch(tmp_path):
    count, epochs = 6, 60
    method, _ = unet_method(tmp_path, pictures=count, captions=2, caption_dropout=0.3)
    rows = {tuple(row.flatten().tolist()): i for i, row in enumerate(method._embeddings.float())}
    seen = {index: [] for index in range(count)}
    for position in range(count * epochs):
        text = tuple(method.batch([position])["text"][0].flatten().tolist())
        seen[method._index(position)].append(rows[text])
    for index, drawn in seen.items():
        assert len(drawn) == epochs
        assert set(drawn) == {0, 1 + 2 * index, 2 + 2 * index}


def test_latents_are_drawn_from_the_posterior_and_scaled(tmp_path):
    method, _ = unet_method(tmp_path, pictures=1)
    drawn = torch.stack([method.batch([position])["latents"][0] for position in range(400)])
    mean, log_variance = method._moments[0].float().chunk(2)
    assert torch.allclose(drawn.mean(0) / 0.5, mean, atol=0.01)
    spread = drawn.std(0).mean() / 0.5
    assert float(spread) == pytest.approx(float((0.5 * log_variance[0, 0, 0]).exp()), rel=0.05)
    noise = torch.stack([method.batch([position])["noise"][0] for position in range(400)])
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_latents_can_be_the_posteriors_mean(tmp_path):
    method, _ = unet_method(tmp_path, pictures=1, latents="mean")
    mean = method._moments[0].float().chunk(2)[0]
    for position in range(3):
        assert torch.equal(method.batch([position])["latents"][0], mean * 0.5)


def test_latents_and_offset_leave_the_other_draws_as_they_are(tmp_path):
    """Comparing two settings compares them on the same noise."""
    plain, _ = unet_method(tmp_path)
    changed, _ = unet_method(tmp_path, latents="mean", offset_noise=0.3)
    for position in range(20):
        one, other = plain.batch([position]), changed.batch([position])
        offset = other["noise"][0] - one["noise"][0]
        assert torch.allclose(offset, offset[:, :1, :1].expand_as(offset), atol=1e-6)
        assert torch.equal(one["timesteps"], other["timesteps"])
        assert torch.equal(one["text"], other["text"])


def test_offset_noise_has_the_configured_deviation(tmp_path):
    """One draw a sample and channel, independent of the others."""
    plain, _ = unet_method(tmp_path)
    changed, _ = unet_method(tmp_path, offset_noise=0.3)
    noises = [method.batch(range(1500))["noise"] for method in (plain, changed)]
    offsets = (noises[1] - noises[0]).mean((2, 3))
    assert torch.allclose(offsets.mean(0), torch.zeros(4), atol=0.03)
    assert torch.allclose(offsets.std(0), torch.full((4,), 0.3), atol=0.02)
    assert torch.allclose(torch.corrcoef(offsets.T), torch.eye(4), atol=0.1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_weight_of_the_unet_gets_a_gradient(prediction, tmp_path):
    method, _ = unet_method(tmp_path, prediction=prediction, min_snr_gamma=5.0)
    loss, _ = method.loss(method.module(**method.batch(range(4))), 0)
    loss.backward()
    without = [n for n, p in method.trainable().named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in method.trainable().parameters())


def test_input_perturbation_keeps_the_target(tmp_path):
    """The input's noise gets more, the noise to predict and every other draw stay."""
    plain, _ = unet_method(tmp_path)
    changed, _ = unet_method(tmp_path, input_perturbation=0.1)
    before, after = plain.batch(range(300)), changed.batch(range(300))
    assert before.keys() == {"latents", "noise", "timesteps", "text", "alpha_bar"}
    for name, values in before.items():
        assert torch.equal(values, after[name]), name
    added = (after["input_noise"] - after["noise"]) / 0.1
    assert float(added.mean()) == pytest.approx(0, abs=0.02)
    assert float(added.std()) == pytest.approx(1, abs=0.02)
    pairs = torch.stack([added.flatten(), after["noise"].flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(0, abs=0.02)
    with_offset, _ = unet_method(tmp_path, input_perturbation=0.1, offset_noise=0.3)
    other = with_offset.batch(range(300))
    assert torch.allclose((other["input_noise"] - other["noise"]) / 0.1, added, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_only_the_input_of_the_network_is_perturbed(prediction, tmp_path):
    method, _ = unet_method(tmp_path, prediction=prediction, input_perturbation=0.1)
    columns, seen = method.batch(range(4)), {}

    def network(noisy, timesteps, encoder_hidden_states):
        seen["noisy"] = noisy
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    method.module.unet.forward = network
    loss = method.module(**columns)
    latents, noise, alpha_bar = (columns[name] for name in ("latents", "noise", "alpha_bar"))
    assert torch.equal(
        seen["noisy"], diffusion.add_noise(latents, columns["input_noise"], alpha_bar)
    )
    expected = objectives.prediction_errors(
        torch.zeros_like(noise), prediction, latents, noise, alpha_bar
    ).mean()
    assert torch.equal(loss, expected)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-0.5, 0.8)])
def test_logit_normal_timesteps_stay_stratified(mean, scale, tmp_path):
    """Any window of 200 positions has 10 +- 3 timesteps in each twentieth of the distribution."""
    options = {"timesteps": "logit_normal", "timestep_mean": mean, "timestep_scale": scale}
    method, _ = unet_method(tmp_path, **options)
    drawn = [int(method.batch([position])["timesteps"][0]) for position in range(600)]
    logits = [math.log((t + 0.5) / (999.5 - t)) for t in drawn]
    quantiles = torch.tensor([NormalDist(mean, scale).cdf(logit) for logit in logits])
    for start in (0, 111, 400):
        counts = torch.histc(quantiles[start : start + 200], 20, 0, 1)
        assert counts.sum() == 200
        assert counts.min() >= 7
        assert counts.max() <= 13


def test_epsilon_cannot_have_zero_terminal_snr(tmp_path):
    with pytest.raises(UserError, match="--zero-terminal-snr needs a model that predicts v"):
        unet_method(tmp_path, zero_terminal_snr=True)


@pytest.mark.parametrize("weighting", [{}, {"min_snr_gamma": 5.0}, {"debiased": True}])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_last_step_of_a_zero_terminal_schedule_learns(prediction, weighting, tmp_path):
    method, _ = unet_method(tmp_path, prediction=prediction, zero_terminal_snr=True, **weighting)
    plain, _ = unet_method(tmp_path, prediction=prediction)
    columns = method.batch(range(2))
    levels = method._alphas_cumprod
    assert torch.equal(columns["alpha_bar"], levels[columns["timesteps"]])
    assert levels[0] == plain._alphas_cumprod[0]
    columns["timesteps"][:], columns["alpha_bar"][:] = 999, levels[999]
    assert not columns["alpha_bar"].any()
    method.module(**columns).backward()
    gradients = [p.grad for p in method.trainable().parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert float(method.trainable().conv_out.weight.grad.abs().max()) > 1e-4


def test_the_scheduler_follows_the_training(tmp_path):
    _, plain = unet_method(tmp_path)
    _, config = unet_method(tmp_path, prediction="v_prediction", zero_terminal_snr=True)
    before = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_end": 0.012}
    assert trained_scheduler(plain, before) == before
    changed = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert trained_scheduler(config, before) == {**before, **changed}
    pndm = {**before, "_class_name": "PNDMScheduler", "timestep_spacing": "leading"}
    expected = {**before, **changed, "clip_sample": False}
    assert trained_scheduler(config, pndm) == expected
    for kind in ({"prediction_type": "epsilon"}, {}):
        model = {"_class_name": "DDIMScheduler", **kind}
        assert trained_scheduler(plain, model) == model
        with pytest.raises(UserError, match="predicts epsilon"):
            trained_scheduler(config, model)


@pytest.mark.parametrize("train", ["decoder", "all"])
def test_what_of_the_autoencoder_gets_a_gradient(train, pictures, tmp_path):
    method, _ = vae_method(tmp_path, pictures, train=train, adversarial_weight=0.5)
    loss, logs = method.loss(method.module(**method.batch(range(4))), 0)
    loss.backward()
    for name, parameter in method.module.named_parameters():
        frozen = train == "decoder" and name.startswith(("vae.encoder", "vae.quant_conv"))
        assert (parameter.grad is None) == frozen, name
    assert logs.keys() == {"psnr", "kl", "critic"}


def test_the_distance_of_the_reconstruction_is_an_option(pictures, tmp_path):
    losses = {}
    for distance in ("l1", "l2"):
        options = {"reconstruction": distance, "gradient_weight": 0.0, "kl_weight": 0.0}
        method, _ = vae_method(tmp_path, pictures, **options)
        columns = method.batch(range(4))
        outputs = method.module(**columns)
        error = (outputs["made"] - columns["pixels"]).detach().double()
        expected = error.abs().mean() if distance == "l1" else error.square().mean()
        losses[distance] = float(method.loss(outputs, 0)[0].detach())
        assert losses[distance] == pytest.approx(float(expected), rel=1e-5)
    assert losses["l1"] != losses["l2"]


def test_the_critic_teaches_the_decoder_only_after_its_start(pictures, tmp_path):
    method, _ = vae_method(tmp_path, pictures, adversarial_weight=0.5, adversarial_start=10)
    outputs = method.module(**method.batch(range(4)))
    before, after = method.loss(outputs, 9)[0], method.loss(outputs, 10)[0]
    assert float(before.detach()) != float(after.detach())


def test_the_critics_and_the_decoders_gradients_do_not_mix(pictures, tmp_path):
    """Fooling the critic must not train the critic, judging must not train the decoder."""
    method, _ = vae_method(tmp_path, pictures, adversarial_weight=1.0)
    outputs = method.module(**method.batch(range(4)))
    decoder, critic = method.vae.decoder.conv_out.weight, method.module.critic[0].weight
    fooled = torch.autograd.grad(
        outputs["fooled"].sum(), [decoder, critic], allow_unused=True, retain_graph=True
    )
    judged = torch.autograd.grad(outputs["fake"].sum(), [decoder, critic], allow_unused=True)
    assert fooled[0] is not None
    assert fooled[1] is None
    assert judged[0] is None
    assert judged[1] is not None


def test_crops_come_from_the_pictures(pictures, tmp_path):
    method, config = vae_method(tmp_path, pictures, crops=2)
    pixels = method.batch(range(10, 14))["pixels"]
    again = method.batch(range(10, 14))["pixels"]
    assert torch.equal(pixels, again)
    assert pixels.shape == (4, 3, 32, 32)
    for place, crop in zip(range(10, 14), pixels, strict=True):
        whole = method._picture(place // config.crops)
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4)
        found = [(windows == side).all(dim=(2, 3, 4)).any() for side in (crop, crop.flip(-1))]
        assert any(found)


def test_a_vae_without_quant_conv_trains(pictures, tmp_path):
    _, config = vae_method(tmp_path, pictures)
    vae = tiny_vae()
    vae.quant_conv = None
    method = VAEMethod(vae, config, vae_method(tmp_path, pictures)[0]._source)
    assert all(not p.requires_grad for p in method.vae.encoder.parameters())
