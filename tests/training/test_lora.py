"""LoRA training: what is trained, what is kept, and that every loader draws what was trained."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from training_tools import lora_method, metric, tiny_unet

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.headers import read_header
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.training import loop, run
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.lora_output import KOHYA_FILE, LORA_FILE
from ldm_toolkit.training.methods.lora import LoraUNet
from ldm_toolkit.training.samples import draw_prompts

KINDS: dict[str, dict[str, Any]] = {
    "attention": {},
    "alpha": {"rank": 6, "alpha": 5.0},
    "rslora": {"rank": 6, "rslora": True},
    "dora": {"rank": 4, "alpha": 3.0, "dora": True},
    "convolutions": {"rank": 4, "lora_targets": "conv1,conv_shortcut,downsamplers.0.conv"},
    "all with all": {"rank": 3, "alpha": 2.0, "dora": True, "rslora": True, "lora_targets": "all"},
}
FEW = {"steps": 6, "batch_size": 2, "warmup": 0, "lr": 2e-2, "ema": 0.0, "lr_schedule": "constant"}


def trained(method: LoraUNet) -> dict[str, torch.Tensor]:
    """The parameters that training may change, by name."""
    named = method.trainable().named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def frozen(method: LoraUNet) -> dict[str, torch.Tensor]:
    """All others, by the names that they have in the UNet itself."""
    return {
        name.replace(".base_layer.", "."): parameter.detach().clone()
        for name, parameter in method.trainable().named_parameters()
        if not parameter.requires_grad
    }


# --- what is trained ---


def test_a_lora_learns_a_handful_of_pictures(accelerator, tmp_path):
    """The loss of the last 30 of 200 steps is below 0.7 of that of the first 30."""
    method, settings = lora_method(
        tmp_path, pictures=2, steps=200, batch_size=8, lr=1e-2, warmup=10, checkpoint_every=200,
        caption_dropout=0.0, prediction="v_prediction", lora_targets="all",
    )  # fmt: skip
    loop.train(method, settings, accelerator)
    losses = metric(tmp_path, "loss")
    assert sum(losses[-30:]) < 0.7 * sum(losses[:30])


@pytest.mark.parametrize("kind", KINDS)
def test_the_unet_stays_as_it_was_bit_for_bit(kind, accelerator, tmp_path):
    method, settings = lora_method(tmp_path, weight_decay=0.5, **FEW, **KINDS[kind])
    start = {name: parameter.detach().clone() for name, parameter in trained(method).items()}
    loop.train(method, settings, accelerator)
    before = tiny_unet().state_dict()
    after = frozen(method)
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not torch.equal(start[name], now) for name, now in trained(method).items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_tensor_gets_a_gradient(kind, tmp_path):
    method, _ = lora_method(tmp_path, **KINDS[kind])
    with torch.no_grad():
        for name, parameter in trained(method).items():
            if "lora_B" in name:  # 0 at the start, which leaves lora_A without a gradient
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    loss, _ = method.loss(method.module(**method.batch(range(4))), 0)
    loss.backward()
    for name, parameter in method.trainable().named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_begins_with_the_model_as_it_is(kind, tmp_path):
    method, _ = lora_method(tmp_path, **KINDS[kind])
    inputs = method.batch(range(2))
    latents, timesteps, text = (inputs[name] for name in ("latents", "timesteps", "text"))
    found, expected = (
        unet(latents, timesteps, encoder_hidden_states=text).sample
        for unet in (method.unet, tiny_unet())
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_start_depends_on_the_seed_and_the_layer_alone(tmp_path):
    torch.manual_seed(3)
    first = trained(lora_method(tmp_path)[0])
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # the global generator was left alone
    again = trained(lora_method(tmp_path)[0])
    more = trained(lora_method(tmp_path, lora_targets="all")[0])
    other = trained(lora_method(tmp_path, seed=1)[0])
    assert first.keys() == again.keys() < more.keys()
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, more[name])
        assert torch.equal(value, other[name]) == ("lora_B" in name), name
        if "lora_A" in name:
            assert value.abs().max() <= value[0].numel() ** -0.5  # peft's bounds
            assert value.std() > 0.4 * value[0].numel() ** -0.5


@pytest.mark.parametrize("kind", ["attention", "all with all"])
def test_adapter_and_moments_are_float32_under_bf16(kind, bf16, tmp_path):
    method, settings = lora_method(
        tmp_path, mixed_precision="bf16", **(FEW | {"steps": 2, "ema": 0.9}), **KINDS[kind]
    )
    loop.train(method, settings, bf16)
    files = [*(tmp_path / "checkpoints").rglob("*.safetensors"), tmp_path / LORA_FILE]
    assert len(files) == 4
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}, file.name
    assert all(torch.isfinite(torch.tensor(metric(tmp_path, "loss"))))


@pytest.mark.parametrize(
    ("targets", "ends"),
    [
        ("attention", {"to_q", "to_k", "to_v", "to_out.0"}),
        ("to_q", {"to_q"}),
        ("attn2.to_k, ff.net.2", {"attn2.to_k", "ff.net.2"}),
        ("conv_in,time_embedding.linear_1", {"conv_in", "time_embedding.linear_1"}),
        (
            "all",
            {"to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
             "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"},
        ),
    ],
)  # fmt: skip
def test_targets(targets, ends, tmp_path):
    method, _ = lora_method(tmp_path, lora_targets=targets)
    found = {name.partition(".lora_")[0] for name in trained(method)}
    layers = {
        name
        for name, layer in tiny_unet().named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert found == {name for name in layers if any(f".{name}".endswith(f".{end}") for end in ends)}
    for end in ends:
        assert any(f".{name}".endswith(f".{end}") for name in found), end


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("toq", "--lora-targets 'toq'.*did you mean 'to_q'"),
        ("to_q,atention", "--lora-targets 'atention'.*did you mean 'attention'"),
        ("conv_norm_out", "--lora-targets 'conv_norm_out': the UNet has no linear layer or"),
        ("attn1", "--lora-targets 'attn1'"),
        ("q", "--lora-targets 'q'"),
    ],
)
def test_layers_that_are_not_there_are_told(targets, told, tmp_path):
    with pytest.raises(UserError, match=told) as caught:
        lora_method(tmp_path, lora_targets=targets)
    assert "\n" not in str(caught.value)
    config = UNetConfig(data="d", output="o", method="lora", lora_targets=targets)
    with pytest.raises(UserError, match=told):
        LoraUNet.check(config, tiny_unet().config)


def test_they_are_told_before_anything_is_written(pictures, tiny_model, tmp_path):
    config = UNetConfig(
        data=str(pictures), output=str(tmp_path / "out"), model=str(tiny_model), method="lora",
        lora_targets="toq",
    )  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'to_q'"):
        run.train_unet(config)
    assert not (tmp_path / "out").exists()


# --- checkpoints ---


def test_checkpoints_hold_the_adapter_alone(accelerator, tmp_path):
    method, settings = lora_method(tmp_path, **(FEW | {"ema": 0.9}))
    loop.train(method, settings, accelerator)
    folder = tmp_path / "checkpoints" / "step-00000006"
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == trained(method).keys()
    assert all(".lora_" in name for name in weights)
    assert len(load_file(folder / "ema.safetensors")) == len(weights)
    assert len(load_file(folder / "optimizer.safetensors")) == 3 * len(weights)
    whole = sum(parameter.numel() for parameter in tiny_unet().parameters())
    assert sum(tensor.numel() for tensor in weights.values()) < whole / 2


@pytest.mark.parametrize("kind", ["attention", "all with all"])
def test_a_run_in_two_parts_has_the_same_bits(kind, accelerator, tmp_path):
    options = FEW | {"ema": 0.9, "warmup": 3} | KINDS[kind]
    for name, parts in (("whole", [8]), ("halves", [3, 8])):
        for steps in parts:
            (tmp_path / name).mkdir(exist_ok=True)
            method, settings = lora_method(tmp_path / name, **(options | {"steps": steps}))
            loop.train(method, settings, accelerator)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert (whole / LORA_FILE).read_bytes() == (halves / LORA_FILE).read_bytes()
    assert metric(whole, "loss") == metric(halves, "loss")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rank": 8}, r"--rank 16 \(now 8\)"),
        ({"dora": True}, r"--dora False \(now True\)"),
        ({"lora_targets": "all"}, r"options: --lora-targets attention \(now all\); pass"),
        ({"unet": 1}, r"--model \(its content has changed\)"),
    ],
)
def test_another_lora_is_not_gone_on_with(change, told, accelerator, tmp_path):
    method, settings = lora_method(tmp_path, **(FEW | {"steps": 1}))
    loop.train(method, settings, accelerator)
    if "unet" in change:
        change = {"unet": tiny_unet(seed=change["unet"])}
    method, settings = lora_method(tmp_path, **FEW, **change)
    with pytest.raises(UserError, match=told):
        loop.train(method, settings, accelerator)


# --- the file ---


@pytest.fixture(params=KINDS)
def lora(request, accelerator, tiny_model, tmp_path) -> LoraUNet:
    """A LoRA of the tiny model, trained for a few steps; its file lies in ``tmp_path``."""
    unet = load_network(UNet2DConditionModel, tiny_model / "unet")
    method, settings = lora_method(tmp_path, unet=unet, **FEW, **KINDS[request.param])
    loop.train(method, settings, accelerator)
    return method


def test_our_pipeline_draws_what_was_trained(lora: LoraUNet, pipe: LatentPipeline, tmp_path):
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0, "seed": 1}
    itself = LatentPipeline(dataclasses.replace(pipe.components, unet=lora.unet))
    expected = itself("a dog", **options).latents
    plain = LatentPipeline(pipe.components)("a dog", **options).latents
    for file in tmp_path.glob("*.safetensors"):
        ours = LatentPipeline(pipe.components)
        ours.load_lora(file)
        drawn = ours("a dog", **options).latents
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)
        assert (drawn - plain).abs().max() > 1e-3


def test_diffusers_draws_what_was_trained(lora: LoraUNet, tiny_model: Path, tmp_path: Path):
    """From each file, from the folder, and from the tensors without the header."""

    def drawn(theirs: Any) -> torch.Tensor:
        theirs.set_progress_bar_config(disable=True)
        return theirs(
            "a dog", num_inference_steps=3, guidance_scale=2.0, width=64, height=64,
            generator=torch.Generator().manual_seed(1), output_type="latent",
        ).images  # fmt: skip

    expected = drawn(StableDiffusionPipeline.from_pretrained(tiny_model, unet=lora.unet))
    sources = [str(tmp_path / LORA_FILE), str(tmp_path), load_file(tmp_path / LORA_FILE)]
    if (tmp_path / KOHYA_FILE).exists():
        sources.append(str(tmp_path / KOHYA_FILE))
    for source in sources:
        theirs = StableDiffusionPipeline.from_pretrained(tiny_model)
        theirs.load_lora_weights(source)
        torch.testing.assert_close(drawn(theirs), expected, rtol=0, atol=1e-5)


def test_kohyas_keys(lora: LoraUNet, tmp_path: Path):
    """Every layer by the name that the web UIs make of it; none of a DoRA, which they misread."""
    if any("magnitude" in name for name in trained(lora)):
        assert not (tmp_path / KOHYA_FILE).exists()
        return
    peft, kohya = load_file(tmp_path / LORA_FILE), load_file(tmp_path / KOHYA_FILE)
    assert len(kohya) == 3 * len(peft) / 2
    for name, tensor in peft.items():
        layer, _, half = name.removeprefix("unet.").partition(".lora_")
        key = f"lora_unet_{layer.replace('.', '_')}"
        assert torch.equal(kohya[f"{key}.lora_{'down' if half[0] == 'A' else 'up'}.weight"], tensor)
        if half[0] == "A":
            assert kohya[f"{key}.alpha"].item() == len(tensor)


def test_layers_beside_the_blocks_in_kohyas_keys(tiny_model, pipe, tmp_path):
    unet = load_network(UNet2DConditionModel, tiny_model / "unet")
    targets = "conv_in,conv_out,time_embedding.linear_1,time_embedding.linear_2,time_emb_proj"
    method, _ = lora_method(tmp_path, unet=unet, lora_targets=targets)
    with torch.no_grad():
        for layer in trained(method).values():
            layer.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    method.save(tmp_path)
    drawn = []
    for name in (LORA_FILE, KOHYA_FILE):
        ours = LatentPipeline(pipe.components)
        ours.load_lora(tmp_path / name)
        drawn.append(ours("a dog", steps=2, seed=1).latents)
    assert torch.equal(*drawn)
    assert not torch.allclose(drawn[0], pipe("a dog", steps=2, seed=1).latents, atol=1e-3)


def test_a_dora_removes_the_file_of_a_lora_before(tmp_path):
    lora_method(tmp_path)[0].save(tmp_path)
    assert (tmp_path / KOHYA_FILE).is_file()
    lora_method(tmp_path, dora=True)[0].save(tmp_path)
    assert not (tmp_path / KOHYA_FILE).exists()


def test_keys_are_those_of_diffusers(lora: LoraUNet, tmp_path: Path):
    from peft import get_peft_model_state_dict

    found = load_file(tmp_path / LORA_FILE)
    expected = {f"unet.{k}": v for k, v in get_peft_model_state_dict(lora.unet).items()}
    assert found.keys() == expected.keys()
    assert all(found[key].shape == expected[key].shape for key in found)


@pytest.mark.parametrize(
    ("second", "prediction", "architecture", "version", "told"),
    [
        (False, "epsilon", "stable-diffusion-v1/lora", "sd_v1", "epsilon"),
        (False, "v_prediction", "stable-diffusion-v1/lora", "sd_v1_v", "v"),
        (True, "epsilon", "stable-diffusion-v2-512/lora", "sd_v2", "epsilon"),
        (True, "v_prediction", "stable-diffusion-v2-768-v/lora", "sd_v2_v", "v"),
    ],
)
def test_the_header(second, prediction, architecture, version, told, model_factory, tmp_path):
    from peft import LoraConfig

    folder = model_factory(second=second, prediction_type=prediction)
    unet = load_network(UNet2DConditionModel, folder / "unet")
    method, _ = lora_method(
        tmp_path, unet=unet, prediction=prediction, model=str(folder), rank=4, alpha=8.0
    )
    method.save(tmp_path)
    file = tmp_path / LORA_FILE
    tensors, metadata = read_header(file)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    settings = json.loads(metadata.pop("lora_adapter_metadata"))
    assert start % 8 == 0
    assert metadata == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": "LoRA for tiny",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": told,
        "modelspec.hash_sha256": "0x" + hashlib.sha256(data[start:]).hexdigest(),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_seed": "0",
        "ss_steps": "1000",
    }
    assert all(name.startswith("unet.") for name in settings)
    adapted = {name.partition(".lora_")[0] for name in tensors}
    assert {f"unet.{name}" for name in settings["unet.target_modules"]} == adapted
    config = LoraConfig(**{k.removeprefix("unet."): v for k, v in settings.items()})
    assert (config.r, config.lora_alpha, config.use_rslora, config.use_dora) == (4, 4, False, False)
    kohya, other = (tmp_path / KOHYA_FILE).read_bytes(), read_header(tmp_path / KOHYA_FILE)[1]
    start = 8 + int.from_bytes(kohya[:8], "little")
    digest = "0x" + hashlib.sha256(kohya[start:]).hexdigest()
    assert other == metadata | {"modelspec.hash_sha256": digest}
    for _ in range(3):
        method.save(tmp_path)
        assert file.read_bytes() == data
        assert (tmp_path / KOHYA_FILE).read_bytes() == kohya


# --- pictures, and the command ---


def test_sample_pictures_are_drawn_with_the_lora(tmp_path):
    method, _ = lora_method(tmp_path)
    seen = []

    def draw(model: Path, prompts: Any, lora: Path | None) -> list[Image.Image]:
        seen.append((model, prompts, load_file(lora).keys()))
        return [Image.new("RGB", (8, 8)) for _ in prompts]

    base = tmp_path / "base"
    draw_prompts(method, lambda folder: base, ["a", "b"], tmp_path / "s" / "1.png", draw)
    method.save(tmp_path)
    assert seen == [(base, ["a", "b"], load_file(tmp_path / LORA_FILE).keys())]
    with Image.open(tmp_path / "s" / "1.png") as picture:
        assert picture.size == (16, 8)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("other_vae", [False, True])
def test_the_model_of_the_sample_pictures(adapter, other_vae, tiny_model, tmp_path):
    vae = tiny_model / "vae"
    config = UNetConfig(data="d", output="o", vae=str(vae) if other_vae else None)
    parts = {"vae": vae, "text_encoder": tiny_model / "text_encoder"}
    trained = set() if adapter else {"unet"}
    found = run._completed(config, trained, tiny_model, parts, tmp_path)
    if adapter and not other_vae:
        assert found == tiny_model
        assert not list(tmp_path.iterdir())
    else:
        assert found == tmp_path
        assert (tmp_path / "model_index.json").is_file()
        assert (tmp_path / "unet").is_dir() == adapter  # the full method has saved its own there


def words(model: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return ["finetune_unet", "--method", "lora", "--rank", 4, "--model", model, "--data", data,
            "--output", output, "--size", 64, "--steps", 6, "--batch_size", 2, "--warmup", 0,
            "--lr", "1e-2", "--threads", 1, "--checkpoint_every", 2, *more]  # fmt: skip


def test_the_command_writes_a_file_and_survives_a_kill(trainer, tiny_model, pictures, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    targets = ["--lora-targets", "all", "--dora", "true"]
    child = trainer.run(*words(tiny_model, pictures, whole, *targets))
    assert child.wait() == 0, child.errors
    names = {path.name for path in whole.iterdir()}
    written = {"cache", "checkpoints", "config.json", "metrics.jsonl", LORA_FILE}
    assert names == written | {"README.md", "loss.png"}
    LatentPipeline.from_pretrained(tiny_model).load_lora(whole / LORA_FILE)
    in_a_save = ["ldm_toolkit.training.checkpoints", "save_file", 5]  # the second save
    again = words(tiny_model, pictures, killed, *targets)
    assert trainer.run(*again, die=in_a_save).wait() < 0
    child = trainer.run(*again)
    assert child.wait() == 0, child.errors
    assert "resumed at step 2" in child.errors
    assert (killed / LORA_FILE).read_bytes() == (whole / LORA_FILE).read_bytes()


@pytest.mark.parametrize("vae", [False, True])
def test_the_command_draws_sample_pictures(vae, trainer, tiny_model, pictures, tmp_path):
    more = ["--steps", 2, "--sample_every", 1, "--lora-targets", "all", "--lr", "5e-2"]
    more += ["--vae", tiny_model / "vae"] if vae else []
    child = trainer.run(*words(tiny_model, pictures, tmp_path, *more))
    assert child.wait() == 0, child.errors
    assert "no sample picture" not in child.errors
    drawn = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in drawn] == [f"step-0000000{step}.png" for step in (0, 1, 2)]
    assert len({path.read_bytes() for path in drawn}) == 3
    assert not (tmp_path / "unet").exists()


def test_wrong_targets_are_told_before_anything_takes_long(trainer, tiny_model, pictures, tmp_path):
    child = trainer.run(*words(tiny_model, pictures, tmp_path, "--lora-targets", "toq"))
    assert child.wait() == 2
    assert "did you mean 'to_q'?" in child.errors
    assert child.errors.splitlines()[-1].startswith("finetune_unet.py: error: --lora-targets")
    assert "Traceback" not in child.errors
    assert not (tmp_path / "cache").exists()
