"""The text encoder trained beside the UNet: it moves at its own rate, every loader reads it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from training_tools import encoder_method, metric, steps_of, tiny_unet, unet_method
from transformers import CLIPTextModel

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.adapters import load_lora
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.prompts import encode_prompt
from ldm_toolkit.training import loop
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.lora_output import KOHYA_FILE, LORA_FILE
from ldm_toolkit.training.methods.full import FullUNet
from ldm_toolkit.training.methods.lora import LoraUNet
from ldm_toolkit.training.run_state import RunState
from ldm_toolkit.training.step import _add_gradients, _batches
from ldm_toolkit.training.validation import UNetHeldOut

FEW = {"steps": 4, "batch_size": 2, "warmup": 0, "lr": 1e-2, "ema": 0.0, "lr_schedule": "constant"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"kind": FullUNet},
    "lora": {"kind": LoraUNet, "method": "lora", "rank": 6, "alpha": 5.0},
    "rslora": {"kind": LoraUNet, "method": "lora", "rank": 6, "rslora": True},
    "dora": {"kind": LoraUNet, "method": "lora", "rank": 4, "alpha": 3.0, "dora": True},
}
LORAS = [name for name in KINDS if name != "full"]
PROMPT = "a red cat at night"


def state(method: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in method.trainable().named_parameters()}


def trained_names(method: Any) -> set[str]:
    return {name for name, p in method.trainable().named_parameters() if p.requires_grad}


# --- what is trained ---


@pytest.mark.parametrize("kind", KINDS)
def test_both_networks_move_and_nothing_else_does(kind, accelerator, tiny_model, tmp_path):
    method, settings = encoder_method(tmp_path, tiny_model, weight_decay=0.0, **FEW, **KINDS[kind])
    before, trained = state(method), trained_names(method)
    loop.train(method, settings, accelerator)
    after = state(method)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Of the table of words only the rows that captions hold get a gradient.
    assert moved == trained
    assert {name.partition(".")[0] for name in trained} == {"unet", "encoder"}
    assert trained == (before.keys() if kind == "full" else {n for n in before if ".lora_" in n})


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_gets_a_gradient(kind, accelerator, tiny_model, tmp_path):
    options = FEW | {"steps": 2} | KINDS[kind]
    method, settings = encoder_method(tmp_path, tiny_model, **options)
    loop.train(method, settings, accelerator)
    run = RunState(method, settings, accelerator, {})
    _add_gradients(run, _batches(run))
    for name, parameter in method.trainable().named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
            assert float(parameter.grad.abs().sum()) > 0, name


def test_a_lora_of_the_encoder_is_of_its_attention(tiny_model, tmp_path):
    method, _ = encoder_method(tmp_path, tiny_model, kind=LoraUNet, method="lora")
    layers = {n.partition(".lora_")[0] for n in trained_names(method) if n.startswith("encoder.")}
    assert {name.rpartition(".")[2] for name in layers} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
    }
    assert len(layers) == 4 * 2


def test_without_the_option_there_is_no_encoder_in_the_step(tmp_path):
    method, _ = unet_method(tmp_path)
    assert method.encoder is None
    assert method.trainable() is method.unet
    assert method.rates() == {}


def test_the_loss_is_that_of_cached_embeddings(tiny_model, tmp_path):
    """The same samples, noise, timesteps and dropped captions as without the option."""
    method, settings = encoder_method(tmp_path, tiny_model, caption_dropout=0.3)
    with torch.no_grad():
        embeddings = method.encoder(method._embeddings).last_hidden_state
    plain = FullUNet(
        tiny_unet(), settings, moments=method._moments, embeddings=embeddings,
        caption_rows=method._rows, scaling_factor=0.5,
        scheduler_config={"beta_start": 0.00085, "beta_end": 0.012,
                          "beta_schedule": "scaled_linear"},
    )  # fmt: skip
    positions = range(40, 64)
    ours, theirs = method.batch(positions), plain.batch(positions)
    assert ours["text"].dtype == torch.int64
    empty = method._embeddings[0]
    assert 2 <= sum(torch.equal(row, empty) for row in ours["text"]) <= 14
    for name in ours.keys() - {"text"}:
        assert torch.equal(ours[name], theirs[name]), name
    with torch.no_grad():
        found, expected = method.module(**ours), plain.module(**theirs)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_is_that_of_plain_autograd_in_float64(accelerator, tiny_model, tmp_path):
    """Of the text encoder, for the loss written out; the step's own is float32."""
    method, settings = encoder_method(tmp_path, tiny_model, batch_size=2, accumulate=2)
    run = RunState(method, settings, accelerator, {})
    _add_gradients(run, _batches(run))
    columns = method.batch(range(4))
    encoder = load_network(CLIPTextModel, tiny_model / "text_encoder").double().eval()
    unet = tiny_unet().double()
    text = encoder(columns["text"]).last_hidden_state
    level = columns["alpha_bar"].double().reshape(-1, 1, 1, 1)
    noisy = level.sqrt() * columns["latents"] + (1 - level).sqrt() * columns["noise"]
    guess = unet(noisy, columns["timesteps"], encoder_hidden_states=text).sample
    (guess - columns["noise"].double()).square().mean().backward()
    largest = max(float(p.grad.abs().max()) for p in encoder.parameters())
    for (name, ours), theirs in zip(
        method.encoder.named_parameters(), encoder.parameters(), strict=True
    ):
        # The keys' biases have none but rounding's: softmax does not see them.
        atol = 1e-3 * float(theirs.grad.abs().max()) + 1e-5 * largest
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=atol), name


# --- its learning rate ---


def test_the_two_learning_rates_hold(accelerator, tiny_model, tmp_path, monkeypatch):
    """With plain gradient descent every step is its gradient times its own rate."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, **_: torch.optim.SGD(p, lr=lr))
    options = FEW | {"steps": 1, "max_grad_norm": 1e9, "lr": 1.0, "text_encoder_lr": 0.25}
    method, settings = encoder_method(tmp_path, tiny_model, **options)
    before = state(method)
    probe, _ = encoder_method(tmp_path, tiny_model, **options)
    probe.module(**probe.batch(range(2))).backward()
    loop.train(method, settings, accelerator)
    after = state(method)
    for name, parameter in probe.trainable().named_parameters():
        rate = 0.25 if name.startswith("encoder.") else 1.0
        step = before[name] - after[name]
        assert torch.allclose(step, rate * parameter.grad, rtol=1e-2, atol=1e-6), name
    largest = max(float(p.grad.abs().max()) for p in probe.encoder.parameters())
    assert largest > 1e-4  # so that another rate would be seen


@pytest.mark.parametrize("given", [None, 1e-2, 1e-3])
def test_the_schedule_scales_both(given, accelerator, tiny_model, tmp_path):
    seen = []
    options = FEW | {"steps": 6, "warmup": 2, "lr_schedule": "linear", "text_encoder_lr": given}
    method, settings = encoder_method(tmp_path, tiny_model, **options)

    class Watching(torch.optim.AdamW):
        def step(self, closure=None):
            seen.append([(group["lr"], len(group["params"])) for group in self.param_groups])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Watching)
        loop.train(method, settings, accelerator)
    unet, encoder = (len(list(part.parameters())) for part in (method.unet, method.encoder))
    for step, groups in enumerate(seen):
        rate = loop.learning_rate(settings, step)
        if given == 1e-3:
            assert groups == [(rate, unet), (pytest.approx(0.1 * rate), encoder)]
        else:
            assert groups == [(rate, unet + encoder)]
    assert metric(tmp_path, "lr") == [loop.learning_rate(settings, step) for step in range(6)]


# --- checkpoints ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_two_parts_has_the_same_bits(kind, accelerator, tiny_model, tmp_path):
    options = FEW | {"ema": 0.9, "warmup": 3, "text_encoder_lr": 1e-3} | KINDS[kind]
    results = []
    for name, parts in (("whole", [6]), ("halves", [1, 3, 6])):
        for steps in parts:
            (tmp_path / name).mkdir(exist_ok=True)
            changed = options | {"steps": steps}
            method, settings = encoder_method(tmp_path / name, tiny_model, **changed)
            loop.train(method, settings, accelerator)
        results.append(state(method))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert metric(whole, "loss") == metric(halves, "loss")
    newest = whole / "checkpoints" / "step-00000006"
    trained = trained_names(method)
    assert load_file(newest / "weights.safetensors").keys() == trained
    assert len(load_file(newest / "ema.safetensors")) == len(trained)
    assert len(load_file(newest / "optimizer.safetensors")) == 3 * len(trained)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text_encoder_lr": 1e-4}, r"--text-encoder-lr None \(now 0\.0001\)"),
        ({"encoder": 1}, r"--model \(its content has changed\)"),
    ],
)
def test_another_run_is_not_gone_on_with(
    change, told, accelerator, tiny_model, model_factory, tmp_path
):
    options = FEW | KINDS["lora"]
    method, settings = encoder_method(tmp_path, tiny_model, **(options | {"steps": 1}))
    loop.train(method, settings, accelerator)
    model = model_factory(seed=change.pop("encoder")) if "encoder" in change else tiny_model
    method, settings = encoder_method(tmp_path, model, **options, **change)
    with pytest.raises(UserError, match=told):
        loop.train(method, settings, accelerator)


def test_a_run_without_it_is_not_gone_on_with(accelerator, tiny_model, tmp_path):
    method, settings = unet_method(tmp_path, **(FEW | {"steps": 1}))
    loop.train(method, settings, accelerator)
    method, settings = encoder_method(tmp_path, tiny_model, **FEW)
    with pytest.raises(UserError, match=r"--train-text-encoder False \(now True\)"):
        loop.train(method, settings, accelerator)


# --- the result ---


def text_of(method: Any, tokenizer: Any) -> torch.Tensor:
    """What the text encoder in training says of PROMPT."""
    tokens = tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        return method.encoder(tokens).last_hidden_state


@pytest.fixture(params=LORAS)
def lora(request, accelerator, tiny_model, tmp_path) -> Any:
    """A LoRA of both networks of the tiny model; its file lies in ``tmp_path``."""
    unet = load_network(UNet2DConditionModel, tiny_model / "unet")
    options = FEW | KINDS[request.param] | {"lr": 5e-2}
    method, settings = encoder_method(tmp_path, tiny_model, unet=unet, **options)
    loop.train(method, settings, accelerator)
    return method


def test_our_pipeline_reads_the_lora(lora, pipe, tmp_path):
    """`load_lora` refuses a file of which it does not use every key."""
    loaded = load_lora(pipe.components, tmp_path / LORA_FILE)
    found, expected = encode_prompt(PROMPT, loaded), text_of(lora, pipe.components.tokenizer)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - encode_prompt(PROMPT, pipe.components)).abs().max() > 1e-3
    itself = dataclasses.replace(pipe.components, unet=lora.unet, text_encoder=lora.encoder)
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0, "seed": 1}
    drawn = LatentPipeline(loaded)(PROMPT, **options).latents
    expected = LatentPipeline(itself)(PROMPT, **options).latents
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("header", [False, True])
def test_diffusers_reads_the_lora(header, lora, tiny_model, tmp_path):
    source = str(tmp_path / LORA_FILE) if header else load_file(tmp_path / LORA_FILE)
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model)
    theirs.load_lora_weights(source)
    found, _ = theirs.encode_prompt(PROMPT, "cpu", 1, False)
    torch.testing.assert_close(found, text_of(lora, theirs.tokenizer), rtol=0, atol=1e-5)


def test_keys_are_those_that_diffusers_writes(lora, tmp_path):
    from peft import get_peft_model_state_dict

    found = load_file(tmp_path / LORA_FILE)
    expected = {f"unet.{k}": v for k, v in get_peft_model_state_dict(lora.unet).items()}
    own = get_peft_model_state_dict(lora.encoder)
    for name, value in own.items():
        ending = ".weight" if name.endswith("magnitude_vector") else ""  # transformers 5 wants it
        expected[f"text_encoder.text_model.{name}{ending}"] = value
    assert found.keys() == expected.keys()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


def test_a_model_with_its_text_encoder(accelerator, tiny_model, tmp_path):
    method, settings = encoder_method(tmp_path, tiny_model, **FEW)
    loop.train(method, settings, accelerator)
    reread = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    expected = method.encoder.state_dict()
    assert reread.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in reread.state_dict().items())


def test_held_out_pictures_are_measured_with_the_encoder_of_the_moment(tiny_model, tmp_path):
    method, _ = encoder_method(tmp_path, tiny_model)
    held = UNetHeldOut(
        method, moments=method._moments, embeddings=method._embeddings,
        caption_rows=method._rows, scaling_factor=0.5, batch_size=4,
    )  # fmt: skip
    with torch.no_grad():
        before = held.errors(1)
        for parameter in method.encoder.parameters():
            parameter.mul_(3.0)
        after = held.errors(1)
    assert torch.isfinite(before).all()
    assert not torch.equal(before, after)


# --- the command ---


def words(model: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return ["finetune_unet", "--model", model, "--data", data, "--output", output, "--size", 64,
            "--steps", 4, "--batch_size", 2, "--warmup", 0, "--lr", "1e-2", "--threads", 1,
            "--checkpoint_every", 2, "--train-text-encoder", "--text-encoder-lr", "1e-3",
            *more]  # fmt: skip


WEIGHTS = Path("text_encoder", "model.safetensors")


def test_the_command_trains_both_and_survives_a_kill(trainer, tiny_model, pictures, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--validate_every", 2, "--validation_count", 2, "--sample_every", 4]
    child = trainer.run(*words(tiny_model, pictures, whole, *more))
    assert child.wait() == 0, child.errors
    assert "no sample picture" not in child.errors
    cached = {path.name.partition("-")[0] for path in (whole / "cache").iterdir()}
    assert cached == {"checked.jsonl", "latents"}
    before, after = load_file(tiny_model / WEIGHTS), load_file(whole / WEIGHTS)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    theirs = StableDiffusionPipeline.from_pretrained(whole)
    ours = LatentPipeline.from_pretrained(whole, device="cpu", dtype="float32")
    found, _ = theirs.encode_prompt(PROMPT, "cpu", 1, False)
    torch.testing.assert_close(encode_prompt(PROMPT, ours.components), found, rtol=0, atol=1e-6)
    in_a_save = ["ldm_toolkit.training.checkpoints", "save_file", 5]  # the second save
    again = words(tiny_model, pictures, killed, *more)
    assert trainer.run(*again, die=in_a_save).wait() < 0
    child = trainer.run(*again)
    assert child.wait() == 0, child.errors
    assert "resumed at step 2" in child.errors
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert steps_of(killed / "metrics.jsonl") == [1, 2, 3, 4]


def test_the_command_writes_one_file_for_both(trainer, tiny_model, pictures, tmp_path):
    subject = [
        "--class-prompt",
        "a dog",
        "--class-data",
        pictures,
        "--instance-prompt",
        "a sks dog",
    ]
    more = ["--method", "dreambooth-lora", "--rank", 2, *subject]
    child = trainer.run(*words(tiny_model, pictures, tmp_path, *more))
    assert child.wait() == 0, child.errors
    names = {path.name for path in tmp_path.iterdir()}
    beside = {"README.md", "cache", "checkpoints", "config.json", "loss.png", "metrics.jsonl"}
    assert names == {LORA_FILE, KOHYA_FILE, *beside}
    parts = {name.partition(".")[0] for name in load_file(tmp_path / LORA_FILE)}
    assert parts == {"unet", "text_encoder"}
    LatentPipeline.from_pretrained(tiny_model).load_lora(tmp_path / LORA_FILE)
