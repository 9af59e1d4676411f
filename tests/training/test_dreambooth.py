"""DreamBooth: the mix of subject and class, its loss, and the command, which draws the class."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from training_tools import dreambooth_method, metric, noise_schedule, tiny_unet

from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.training import loop, objectives
from ldm_toolkit.training.lora_output import KOHYA_FILE, LORA_FILE
from ldm_toolkit.training.methods.dreambooth import DreamBoothLora

UNET = Path("unet", "diffusion_pytorch_model.safetensors")
FEW = {"steps": 6, "batch_size": 2, "warmup": 0, "lr": 2e-3, "ema": 0.0, "lr_schedule": "constant"}


# --- the mix ---


def test_every_second_sample_is_one_of_the_class(tmp_path):
    """Six positions of the subject's two pictures and the class's three: each as often as it can be
    in every epoch of its own.
    """
    method, _ = dreambooth_method(tmp_path, instances=2, pictures=5)
    columns = method.batch(range(24))
    assert columns["prior"].dtype == torch.bool
    assert columns["prior"].tolist() == [False, True] * 12
    drawn = [method._index(position) for position in range(24)]
    assert [index >= 2 for index in drawn] == columns["prior"].tolist()
    assert sorted(drawn) == [0] * 6 + [1] * 6 + [2] * 4 + [3] * 4 + [4] * 4
    mean = method._moments.float().chunk(2, dim=1)[0] * 0.5
    distances = (columns["latents"][:, None] - mean[None]).square().mean(dim=(2, 3, 4))
    assert distances.argmin(dim=1).tolist() == drawn


def test_batches_do_not_depend_on_their_size_or_history(tmp_path):
    whole = dreambooth_method(tmp_path)[0].batch(range(40, 48))
    other, _ = dreambooth_method(tmp_path)
    halves = [other.batch(range(44, 48)), other.batch(range(40, 44))]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([halves[1][name], halves[0][name]])), name


def test_both_parts_see_the_whole_schedule(tmp_path):
    """Any 100 samples in a row of either part have 10 +- 3 timesteps in each tenth of it."""
    method, _ = dreambooth_method(tmp_path)
    drawn = [int(method.batch([position])["timesteps"][0]) for position in range(600)]
    for part in (drawn[::2], drawn[1::2]):
        for start in (0, 77, 200):
            counts = torch.histc(torch.tensor(part[start : start + 100]).float(), 10, 0, 1000)
            assert counts.sum() == 100
            assert counts.min() >= 7
            assert counts.max() <= 13


@pytest.mark.parametrize("options", [{}, {"min_snr_gamma": 5.0}, {"debiased": True}])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_subject_and_weighted_that_of_the_class(weight, options, tmp_path):
    """With each sample's own timestep weight, which the peers mix up."""
    method, _ = dreambooth_method(tmp_path, prior_weight=weight, **options)
    columns = method.batch(range(8))
    guess = torch.randn(columns["noise"].shape, generator=torch.Generator().manual_seed(4))
    method.module.unet.forward = lambda *_, **__: SimpleNamespace(sample=guess)
    loss, _ = method.loss(method.module(**columns), 0)
    errors = [
        objectives.prediction_errors(
            guess[i : i + 1], "epsilon", columns["latents"][i : i + 1],
            columns["noise"][i : i + 1], columns["alpha_bar"][i : i + 1],
            options.get("min_snr_gamma", 0.0), debiased=options.get("debiased", False),
        ).item()
        for i in range(8)
    ]  # fmt: skip
    expected = sum(errors[::2]) / 4 + weight * sum(errors[1::2]) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_two_ranks_are_one_with_twice_the_batch(tmp_path):
    """The mean of the losses and gradients of both halves is that of the whole batch."""
    method, _ = dreambooth_method(tmp_path, prior_weight=0.7, min_snr_gamma=5.0)

    def step(positions: range) -> tuple[float, torch.Tensor]:
        method.unet.zero_grad()
        loss, _ = method.loss(method.module(**method.batch(positions)), 0)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in method.unet.parameters()])
        return float(loss.detach()), gradient.clone()

    whole, first, second = step(range(8, 16)), step(range(8, 12)), step(range(12, 16))
    assert (first[0] + second[0]) / 2 == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close((first[1] + second[1]) / 2, whole[1], rtol=1e-3, atol=1e-6)


# --- training ---


@torch.no_grad()
def drawn(method: Any, row: int) -> torch.Tensor:
    """Latents that the UNet makes of fixed noise for a caption, by ten steps without guidance."""
    scheduler = DDIMScheduler.from_config(noise_schedule("v_prediction"), clip_sample=False)
    scheduler.set_timesteps(10)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    text = method._embeddings[row].float().expand(4, -1, -1)
    for timestep in scheduler.timesteps:
        predicted = method.unet(latents, timestep, encoder_hidden_states=text).sample
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


def test_dreambooth_learns_a_subject(accelerator, tmp_path):
    """The loss of the last 30 of 200 steps is below half of that of the first 30, and what is then
    drawn of the subject's prompt lies nearer to its picture: the squared distance is below 0.7 of
    that before.
    """
    method, settings = dreambooth_method(
        tmp_path, instances=1, pictures=2, steps=200, batch_size=8, lr=4e-3, warmup=10,
        checkpoint_every=200, caption_dropout=0.0, prediction="v_prediction", ema=0.0,
    )  # fmt: skip
    subject = method._moments[0, :4].float() * 0.5

    def distance() -> float:
        return float((drawn(method, 1) - subject).square().mean())

    before = distance()
    loop.train(method, settings, accelerator)
    losses = metric(tmp_path, "loss")
    assert sum(losses[-30:]) < 0.5 * sum(losses[:30])
    assert distance() < 0.7 * before


def test_a_run_in_two_parts_has_the_same_bits(accelerator, tmp_path):
    for name, parts in (("whole", [6]), ("halves", [3, 6])):
        for steps in parts:
            (tmp_path / name).mkdir(exist_ok=True)
            options = FEW | {"ema": 0.9, "steps": steps}
            method, settings = dreambooth_method(tmp_path / name, **options)
            loop.train(method, settings, accelerator)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert (whole / UNET).read_bytes() == (halves / UNET).read_bytes()
    assert metric(whole, "loss") == metric(halves, "loss")


def test_with_a_lora_the_unet_stays_as_it_was_bit_for_bit(accelerator, tmp_path):
    method, settings = dreambooth_method(
        tmp_path, kind=DreamBoothLora, method="dreambooth-lora", rank=4, weight_decay=0.5, **FEW
    )
    loop.train(method, settings, accelerator)
    named = dict(method.trainable().named_parameters())
    before = tiny_unet().state_dict()
    found = {n.replace(".base_layer.", "."): p for n, p in named.items() if not p.requires_grad}
    assert found.keys() == before.keys()
    assert all(torch.equal(before[name], found[name]) for name in before)
    tensors = load_file(tmp_path / LORA_FILE)
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


# --- the command ---


@pytest.fixture(scope="module")
def subject(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without captions."""
    folder = tmp_path_factory.mktemp("subject")
    for path in pictures.glob("[0-2].png"):
        shutil.copy(path, folder)
    return folder


def words(model: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return ["finetune_unet", "--method", "dreambooth", "--model", model, "--data", data,
            "--instance-prompt", "a photo of sks dog", "--class-prompt", "a dog",
            "--class-count", 3, "--output", output, "--size", 64, "--steps", 4, "--batch_size", 2,
            "--warmup", 0, "--lr", "1e-3", "--threads", 1, "--checkpoint_every", 2,
            "--lr_schedule", "constant", *more]  # fmt: skip


def class_pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_pictures_of_the_class_are_drawn_once(trainer, tiny_model, subject, tmp_path):
    output = tmp_path / "out"
    child = trainer.run(*words(tiny_model, subject, output))
    assert child.wait() == 0, child.errors
    assert f"drawing pictures of 'a dog' into {output / 'class'}, missing: 3" in child.errors
    first = class_pictures(output / "class")
    assert list(first) == ["00000.png", "00001.png", "00002.png"]
    assert len(set(first.values())) == 3  # of different seeds
    record = json.loads((output / "class" / "class.json").read_text())
    assert record == {"prompt": "a dog", "seed": 0}
    caches = sorted(path.name.partition("-")[0] for path in (output / "cache").iterdir())
    assert caches == ["checked.jsonl", "embeddings", "latents", "latents"]
    pipe = LatentPipeline.from_pretrained(output, device="cpu", dtype="float32")
    assert pipe("a photo of sks dog", steps=2, seed=1, width=64, height=64).images
    before, after = load_file(tiny_model / UNET), load_file(output / UNET)
    assert any(not torch.equal(before[key], after[key]) for key in before)

    times = [path.stat().st_mtime_ns for path in (output / "class").iterdir()]
    child = trainer.run(*words(tiny_model, subject, output, "--steps", 6))
    assert child.wait() == 0, child.errors
    assert "resumed at step 4" in child.errors
    assert "drawing pictures" not in child.errors
    assert class_pictures(output / "class") == first
    assert [path.stat().st_mtime_ns for path in (output / "class").iterdir()] == times

    other = tmp_path / "other"  # a second run uses the folder of the first
    more = ["--class-data", output / "class", "--class-count", 4, "--seed", 9]
    child = trainer.run(*words(tiny_model, subject, other, *more))
    assert child.wait() == 0, child.errors
    assert "missing: 1" in child.errors
    assert not (other / "class").exists()
    found = class_pictures(output / "class")
    assert found.keys() == first.keys() | {"00003.png"}
    assert all(found[name] == data for name, data in first.items())


def test_a_kill_while_drawing_costs_one_picture(trainer, tiny_model, subject, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = trainer.run(*words(tiny_model, subject, whole))
    assert child.wait() == 0, child.errors
    third = ["ldm_toolkit.training.prior", "write_atomic", 3]  # the record, a picture, a picture
    assert trainer.run(*words(tiny_model, subject, killed), die=third).wait() < 0
    assert list(class_pictures(killed / "class")) == ["00000.png"]
    child = trainer.run(*words(tiny_model, subject, killed))
    assert child.wait() == 0, child.errors
    assert "missing: 2" in child.errors
    assert class_pictures(killed / "class") == class_pictures(whole / "class")
    assert (killed / UNET).read_bytes() == (whole / UNET).read_bytes()


def test_ones_own_pictures_and_a_lora(trainer, tiny_model, pictures, tmp_path):
    """Captions of --data count where there is no instance prompt; a class folder is only read."""
    own = tmp_path / "own"
    own.mkdir()
    for path in pictures.glob("[3-5].png"):
        shutil.copy(path, own)
    line = words(tiny_model, pictures, tmp_path / "out", "--class-data", own)
    line[line.index("--method") + 1] = "dreambooth-lora"
    place = line.index("--instance-prompt")
    del line[place : place + 2]
    child = trainer.run(*line, "--rank", 4, "--class-count", 50)
    assert child.wait() == 0, child.errors
    assert sorted(path.name for path in own.iterdir()) == ["3.png", "4.png", "5.png"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    written = {"cache", "checkpoints", "config.json", "metrics.jsonl", LORA_FILE, KOHYA_FILE}
    assert names == written | {"README.md", "loss.png"}
    LatentPipeline.from_pretrained(tiny_model).load_lora(tmp_path / "out" / LORA_FILE)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--class-data", "{file}"], "--class-data {file} is not a folder"),
        (["--class-data", "{drawn}"], "holds pictures of 'a cat', not of the class prompt 'a dog'"),
        (["--batch-size", 3], "--batch-size must be even"),
    ],
)
def test_mistakes_are_one_line(more, told, trainer, tiny_model, subject, tmp_path):
    places = {"file": tmp_path / "file", "drawn": tmp_path / "drawn"}
    places["file"].write_text("x")
    places["drawn"].mkdir()
    (places["drawn"] / "class.json").write_text('{"prompt": "a cat", "seed": 0}')
    more = [str(word).format(**places) for word in more]
    child = trainer.run(*words(tiny_model, subject, tmp_path / "out", *more))
    assert child.wait() == 2, child.errors
    last = child.errors.strip().splitlines()[-1]
    assert last.startswith("finetune_unet.py: error: ")
    assert told.format(**places) in last
    assert "Traceback" not in child.errors
    assert not (tmp_path / "out" / "cache").exists()
