"""Distances between features of a network that stays as it is."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_tools import tiny_vae, vae_method

from ldm_toolkit.errors import UserError
from ldm_toolkit.theory import variational
from ldm_toolkit.training import loop, run
from ldm_toolkit.training.config import VAEConfig
from ldm_toolkit.training.perceptual import EncoderDistance, cached_lpips, load_lpips
from ldm_toolkit.training.run_state import RunState

FEW = {"steps": 3, "batch_size": 2, "warmup": 0, "lr": 1e-2, "lr_schedule": "constant"}


def random_pixels(seed, count=2, side=32):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=rng) * 2 - 1


def expected_distance(encoder, made, pixels):
    """Zhang et al. 2018, eq. 1, on the residual blocks written out."""

    def features(values):
        found, values = [], encoder.conv_in(values)
        for block in encoder.down_blocks:
            for resnet in block.resnets:
                inside = resnet.conv1(nn.functional.silu(resnet.norm1(values)))
                inside = nn.functional.silu(resnet.norm2(inside))
                found.append(inside / inside.square().sum(1, keepdim=True).sqrt())
                short = resnet.conv_shortcut
                values = (values if short is None else short(values)) + resnet.conv2(inside)
            for sampler in block.downsamplers or []:
                values = sampler(values)
        return found

    pairs = zip(features(made), features(pixels), strict=True)
    return sum((one - other).square().sum(1).mean((1, 2)) for one, other in pairs)


def test_the_encoders_distance_is_that_of_the_formula():
    vae = tiny_vae()
    made, pixels = random_pixels(0), random_pixels(1)
    found = EncoderDistance(vae)(made, pixels)
    expected = expected_distance(vae.encoder.double(), made.double(), pixels.double())
    assert found.shape == (2,)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_equal_pictures_are_not_apart_and_a_picture_has_its_own_distance():
    distance = EncoderDistance(tiny_vae())
    made, pixels = random_pixels(0), random_pixels(1)
    assert distance(pixels, pixels).tolist() == [0.0, 0.0]
    assert torch.allclose(distance(made[:1], pixels[:1]), distance(made, pixels)[:1], rtol=1e-5)
    assert torch.allclose(distance(made, pixels), distance(pixels, made), rtol=1e-5)


def test_it_teaches_every_weight_of_the_decoder(pictures, tmp_path):
    """In diffusers' script the perceptual term is a constant."""
    weights = {"kl_weight": 0.0, "gradient_weight": 0.0, "perceptual": "encoder"}
    method, _ = vae_method(tmp_path, pictures, **weights)
    inputs = method.batch(range(4))
    made = method.module(**inputs)["made"]
    method._perceptual(made, inputs["pixels"]).mean().backward()
    for name, parameter in method.vae.named_parameters():
        taught = name.startswith(("decoder", "post_quant_conv"))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == taught, name
    assert all(parameter.grad is None for parameter in method._perceptual.parameters())


def test_its_weight_counts(pictures, tmp_path):
    losses, asked = [], {"perceptual": "encoder"}
    for options in ({}, asked, {**asked, "perceptual_weight": 3.0}):
        method, _ = vae_method(tmp_path, pictures, **options)
        inputs = method.batch(range(4))
        outputs = method.module(**inputs)
        loss, logs = method.loss(outputs, 0)
        losses.append(float(loss.detach()))
    far = EncoderDistance(method.vae)(outputs["made"], inputs["pixels"]).mean()
    assert logs["perceptual"] == pytest.approx(float(far.detach()), rel=1e-5)
    assert losses[1] - losses[0] == pytest.approx(float(far.detach()), rel=1e-3)
    assert losses[2] - losses[0] == pytest.approx(3 * float(far.detach()), rel=1e-3)


@pytest.mark.parametrize("train", ["decoder", "all"])
def test_the_network_stays_as_it_was_and_is_nowhere_saved(train, accelerator, pictures, tmp_path):
    options = {"train": train, "perceptual": "encoder", "adversarial_weight": 0.5}
    method, settings = vae_method(tmp_path, pictures, **options, **FEW)
    network = method._perceptual
    before = copy.deepcopy(network.state_dict())
    state = RunState(method, settings, accelerator, {})
    own = {id(parameter) for parameter in network.parameters()}
    assert own.isdisjoint(id(p) for group in state.optimizer.param_groups for p in group["params"])
    assert own.isdisjoint(id(parameter) for parameter in method.module.parameters())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    loop.train(method, settings, accelerator)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    trained = {n for n, p in method.module.named_parameters() if p.requires_grad}
    newest = tmp_path / "checkpoints" / "step-00000003"
    assert load_file(newest / "weights.safetensors").keys() == trained
    saved = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == method.vae.state_dict().keys()
    # A run that goes on compares with the same network, though its own encoder has learned.
    method, settings = vae_method(tmp_path, pictures, **options, **FEW)
    RunState(method, settings, accelerator, {}).restore()
    again = method._perceptual.state_dict()
    assert all(torch.equal(before[name], value) for name, value in again.items())
    learned = method.vae.encoder.conv_in.weight
    assert torch.equal(learned, before["first.weight"]) == (train == "decoder")


@pytest.mark.parametrize("train", ["decoder", "all"])
def test_all_terms_and_gradients_in_float64(train, pictures, tmp_path):
    """The whole loss with its adaptive weight, put together anew, against autograd's float64."""
    weights = {"kl_weight": 0.01, "gradient_weight": 0.0, "perceptual_weight": 0.3}
    options = {"perceptual": "encoder", "adversarial_weight": 0.5, "train": train, **weights}
    options["reconstruction"] = "l2"  # smooth, so that rounding turns no gradient around
    method, _ = vae_method(tmp_path, pictures, **options)
    inputs = method.batch(range(4))
    exact = copy.deepcopy(method.module).double()
    loss, _ = method.loss(method.module(**inputs), 0)
    loss.backward()

    pixels, eps = inputs["pixels"].double(), inputs["noise"].double()
    posterior = exact.vae.encode(pixels).latent_dist
    made = exact.vae.decode(posterior.mean + posterior.std * eps).sample
    fit = (made - pixels).square().mean()
    encoder = copy.deepcopy(exact.vae.encoder).requires_grad_(False)
    fit = fit + 0.3 * expected_distance(encoder, made, pixels).mean()
    variance = posterior.logvar.exp()
    kl = 0.5 * (posterior.mean**2 + variance - 1 - posterior.logvar).mean()
    fooled = -exact.critic(made).mean()
    decoder = [p for p in exact.vae.parameters() if p.requires_grad]
    last = exact.vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (fit, fooled)]
    taught = fit + 0.01 * kl + 0.5 * norms[0] / (norms[1] + 1e-6) * fooled
    real, fake = exact.critic(pixels), exact.critic(made.detach())
    judged = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    assert float(loss.detach()) == pytest.approx(float((taught + judged).detach()), rel=1e-4)
    expected = dict(zip(map(id, decoder), torch.autograd.grad(taught, decoder), strict=True))
    critic = list(exact.critic.parameters())
    expected |= dict(zip(map(id, critic), torch.autograd.grad(judged, critic), strict=True))
    found = dict(method.module.named_parameters())
    for name, parameter in exact.named_parameters():
        if id(parameter) in expected:
            wanted, got = expected[id(parameter)], found[name].grad.double()
            assert float((got - wanted).norm()) <= 1e-3 * float(wanted.norm()) + 1e-7, name
        else:
            assert found[name].grad is None, name


def test_the_hinge_and_its_gradient_in_float64():
    rng = torch.Generator().manual_seed(0)
    real, fake = (2 * torch.randn(50, generator=rng) for _ in range(2))
    real.requires_grad_()
    fake.requires_grad_()
    loss = variational.discriminator_hinge(real, fake)
    loss.backward()
    r, f = real.detach().double().numpy(), fake.detach().double().numpy()
    expected = 0.5 * (sum(max(0, 1 - x) for x in r) + sum(max(0, 1 + x) for x in f)) / 50
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert real.grad.tolist() == pytest.approx([-0.01 if x < 1 else 0 for x in r])
    assert fake.grad.tolist() == pytest.approx([0.01 if x > -1 else 0 for x in f])


# --- LPIPS ---


def test_without_its_packages_lpips_refuses_before_anything_heavy(monkeypatch, pictures, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setattr(run, "model_folder", lambda name: pytest.fail("the model was looked at"))
    monkeypatch.setattr(run.prepare, "open_data", lambda *_: pytest.fail("the data was read"))
    config = VAEConfig(
        data=str(pictures), output=str(tmp_path), size=64, crop=32, perceptual="lpips"
    )
    with pytest.raises(UserError, match=r"\[lpips\]', or pass --perceptual encoder") as caught:
        run.train_vae(config)
    assert "\n" not in str(caught.value)


@pytest.fixture
def without_weights(monkeypatch, tmp_path):
    """Both packages, an empty cache, no network."""
    for package in ("torchmetrics", "torchvision"):
        pytest.importorskip(package, reason=f"{package} is not installed; pip install '.[lpips]'")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_without_its_weights_lpips_refuses_in_one_line(without_weights):
    with pytest.raises(UserError, match="cannot have the weights of its network") as caught:
        load_lpips()
    told = str(caught.value)
    assert "\n" not in told
    assert "--perceptual encoder" in told
    assert "put https://download.pytorch.org/models/vgg16" in told
    assert str(without_weights) in told
    assert cached_lpips() is None


def test_damaged_weights_of_lpips_are_told(without_weights):
    without_weights.mkdir(parents=True)
    (without_weights / "vgg16-397923af.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot have the weights"):
        load_lpips()
    assert cached_lpips() is None


def test_lpips_teaches_the_decoder_and_stays_as_it_is(
    without_weights, monkeypatch, accelerator, pictures, tmp_path
):
    """With random weights in place of VGG16's; where they come from is the test above."""
    import torchvision

    def random_vgg16(weights):
        torch.manual_seed(0)
        vgg = torchvision.models.vgg
        return SimpleNamespace(features=vgg.make_layers(vgg.cfgs["D"], batch_norm=False))

    monkeypatch.setattr(torchvision.models, "vgg16", random_vgg16)
    network = load_lpips()
    assert not any(p.requires_grad for p in network.parameters())
    before = copy.deepcopy(network.state_dict())
    method, config = vae_method(tmp_path, pictures, perceptual_weight=1.0, **FEW)
    method._perceptual = network
    inputs = method.batch(range(2))
    made = method.module(**inputs)["made"] * 3  # beyond [-1, 1] too
    far = network(made, inputs["pixels"])
    assert far.shape == (2,)
    assert (far > 0).all()
    assert network(inputs["pixels"], inputs["pixels"]).tolist() == [0.0, 0.0]
    far.sum().backward()
    assert bool(method.vae.decoder.conv_in.weight.grad.any())
    method.vae.zero_grad()
    loop.train(method, config, accelerator)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not [name for name in method.module.state_dict() if "network" in name]
