"""What is promised takes effect, in every method: clipping, averaging, freezing, gradients.

Each of these was silently without effect in some published training script.
"""

import pytest
import torch
from safetensors.torch import load_file
from training_tools import Line, line_config, lora_method, metric, unet_method, vae_method
from transformers import CLIPTextConfig

from ldm_toolkit.training import loop
from ldm_toolkit.training.config import TextEncoderConfig
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.step import _add_gradients, _batches
from ldm_toolkit.training.text import AttributeText, train_tokenizer

KINDS = ["unet", "v unet", "lora", "dora", "decoder", "sharp decoder", "vae", "text"]
FEW = {"steps": 3, "batch_size": 2, "warmup": 0, "lr": 1e-3, "lr_schedule": "constant"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a dog wearing hat", "a cat", "a red bird"], limit=600)


@pytest.fixture
def make(tokenizer, pictures):
    """Makes a method of a kind with its configuration."""

    def made(kind, output, **options):
        output.mkdir(exist_ok=True)
        settings = FEW | options
        if kind == "text":
            encoder = CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
                intermediate_size=32, num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            config = TextEncoderConfig(from_config="", output=str(output), **settings)
            torch.manual_seed(0)
            return AttributeText(tokenizer, config, encoder), config
        if kind == "decoder":
            return vae_method(output, pictures, **settings)
        if kind == "sharp decoder":
            sharp = {"adversarial_weight": 0.5, "perceptual": "encoder"}
            return vae_method(output, pictures, **sharp, **settings)
        if kind == "vae":
            return vae_method(output, pictures, train="all", adversarial_weight=0.5, **settings)
        if kind in ("lora", "dora"):
            return lora_method(output, dora=kind == "dora", lora_targets="all", **settings)
        prediction = "v_prediction" if kind == "v unet" else "epsilon"
        return unet_method(output, prediction=prediction, min_snr_gamma=5.0, **settings)

    return made


def copied(method):
    """All parameters and buffers by name, and the names of those that are trained."""
    module = method.trainable()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: value.detach().clone() for name, value in module.state_dict().items()}, trained


def distance(method, before, trained):
    """How far the trained weights have gone."""
    after = method.trainable().state_dict()
    moves = [(after[name] - before[name]).double().flatten() for name in trained]
    return float(torch.cat(moves).norm())


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_moves_and_nothing_else_does(kind, make, accelerator, tmp_path):
    method, settings = make(kind, tmp_path, weight_decay=0.0)
    before, trained = copied(method)
    loop.train(method, settings, accelerator)
    after = method.trainable().state_dict()
    assert trained
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == before.keys() - trained
    assert all(parameter.grad is None for parameter in method.module.parameters())


@pytest.mark.parametrize("kind", ["lora", "dora", "decoder", "sharp decoder"])
def test_weight_decay_leaves_frozen_parts_alone(kind, make, accelerator, tmp_path):
    method, settings = make(kind, tmp_path, weight_decay=0.9, lr=1e-2)
    before, trained = copied(method)
    loop.train(method, settings, accelerator)
    after = method.trainable().state_dict()
    frozen = before.keys() - trained
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_weight_decay_shrinks_what_is_trained(accelerator, tmp_path):
    """Without gradients, w becomes w (1 - lr decay) in each step."""
    method = Line(scale=0.0)
    settings = line_config(tmp_path, warmup=0, weight_decay=0.2, lr_schedule="constant")
    loop.train(method, settings, accelerator)
    expected = torch.full((1, 2), 0.5 * (1 - 0.05 * 0.2) ** 12)
    assert torch.allclose(method.module.weight.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_gets_a_gradient(kind, make, accelerator, tmp_path):
    """After some steps, since a LoRA's first half gets none as long as the second is 0."""
    method, settings = make(kind, tmp_path, steps=2, weight_decay=0.0)
    loop.train(method, settings, accelerator)
    run = RunState(method, settings, accelerator, {})
    _add_gradients(run, _batches(run))
    for name, parameter in method.trainable().named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
            assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimiser_has_exactly_what_is_trained(kind, make, accelerator, tmp_path):
    """An iterator that was read once would leave clipping and averaging with nothing."""
    method, settings = make(kind, tmp_path)
    run = RunState(method, settings, accelerator, {})
    named = method.trainable().named_parameters()
    expected = [id(parameter) for _, parameter in named if parameter.requires_grad]
    optimised = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in run.parameters] == optimised == expected
    assert len(run.ema.shadow_params) == len(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_clips(kind, make, accelerator, tmp_path, monkeypatch):
    """With plain gradient descent a step is as long as the shortened gradient, times the rate."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, **_: torch.optim.SGD(p, lr=lr))
    norms = {}
    for name, longest in (("free", 1e9), ("clipped", 1e-3)):
        method, settings = make(kind, tmp_path / name, steps=1, lr=2.0, max_grad_norm=longest)
        before, trained = copied(method)
        loop.train(method, settings, accelerator)
        norms[name] = metric(tmp_path / name, "grad_norm")[0]
        assert norms[name] > 1e-3
        expected = 2.0 * min(norms[name], longest)
        assert distance(method, before, trained) == pytest.approx(expected, rel=0.01)
    assert norms["free"] == norms["clipped"]  # what is reported is the true length


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_moves_behind_the_weights(kind, make, accelerator, tmp_path):
    method, settings = make(kind, tmp_path, ema=0.9, weight_decay=0.0)
    before, trained = copied(method)
    names = [name for name, _ in method.trainable().named_parameters() if name in trained]
    loop.train(method, settings, accelerator)
    newest = tmp_path / "checkpoints" / "step-00000003"
    shadow, weights = (load_file(newest / f"{part}.safetensors") for part in ("ema", "weights"))
    for index, name in enumerate(names):
        average = shadow[str(index)]
        assert not torch.equal(average, before[name]), name
        assert not torch.equal(average, weights[name]), name


def test_the_average_is_that_of_the_weights_of_all_steps(accelerator, tmp_path):
    """Recomputed in float64 from the weights after each step; the first is taken as it is."""
    seen = []

    class Recording(Line):
        def batch(self, positions):
            seen.append(self.module.weight.detach().double().clone())
            return super().batch(positions)

    method = Recording()
    loop.train(method, line_config(tmp_path, ema=0.8, warmup=0), accelerator)
    after = [*seen[1:], method.module.weight.detach().double()]
    average = after[0]
    for step, weights in enumerate(after[1:], 1):
        decay = min(0.8, 1 - (1 + step) ** -0.75)
        average = decay * average + (1 - decay) * weights
    shadow = load_file(tmp_path / "checkpoints" / "step-00000012" / "ema.safetensors")["0"]
    assert torch.allclose(shadow.double(), average, rtol=1e-5)


def test_gradients_of_a_step_do_not_reach_the_next(accelerator, tmp_path):
    """The second step's norm is that of its own samples at its own weights."""
    for name, steps in (("two", 2), ("one", 1)):
        loop.train(Line(), line_config(tmp_path / name, steps=steps, batch_size=3), accelerator)
    second = metric(tmp_path / "two", "grad_norm")[1]
    start = load_file(tmp_path / "one" / "checkpoints" / "step-00000001" / "weights.safetensors")
    alone = Line()
    alone.module.load_state_dict(start)
    loss, _ = alone.loss(alone.module(**alone.batch(range(3, 6))), 1)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in alone.module.parameters()]).norm()
    assert float(norm) == pytest.approx(second, rel=1e-5)
