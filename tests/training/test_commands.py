"""The training scripts as processes: what they write, what they say, how they end."""

import json
import os
import re

import pytest
import torch
from data_tools import Sample, as_txt, encoded, noise
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from training_tools import steps_of

from ldm_toolkit.pipeline import LatentPipeline

SMALL = ["--size", 64, "--steps", 2, "--batch_size", 2, "--warmup", 0, "--threads", 1]


def draws(folder) -> None:
    """The folder is a model for us and for diffusers."""
    pipe = LatentPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    picture = pipe("a dog wearing hat", steps=2, seed=1, width=64, height=64).images[0]
    assert picture.size == (64, 64)
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    result = theirs("a dog", num_inference_steps=2, width=64, height=64, output_type="latent")
    assert torch.isfinite(result.images).all()


@pytest.mark.parametrize("script", ["finetune_unet", "finetune_vae"])
def test_the_result_is_a_model(script, trainer, tiny_v_model, pictures, tmp_path):
    extra = ["--crop", 32, "--train", "all"] if script == "finetune_vae" else []
    child = trainer.run(script, "--model", tiny_v_model, "--data", pictures, "--output", tmp_path,
                        *SMALL, *extra, "--lr", "1e-3")  # fmt: skip
    assert child.wait() == 0, child.errors
    assert child.out.read_text().splitlines() == [str(tmp_path)]
    draws(tmp_path)
    part = "unet" if script == "finetune_unet" else "vae"
    name = f"{part}/diffusion_pytorch_model.safetensors"
    before, after = load_file(tiny_v_model / name), load_file(tmp_path / name)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    if part == "vae":
        factor = json.loads((tmp_path / "vae" / "config.json").read_text())["scaling_factor"]
        assert (
            factor
            != json.loads((tiny_v_model / "vae" / "config.json").read_text())["scaling_factor"]
        )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"] == tiny_v_model.name
    assert config.get("latents") in (None, "sample")  # the model says nothing else
    card = (tmp_path / "README.md").read_text()
    assert "6 pictures" in card
    assert f"--model {tmp_path.name}" in card
    assert (tmp_path / "loss.png").is_file()
    described = [card, *(path.read_text() for path in tmp_path.glob("**/config.json"))]
    assert not any(str(place) in one for one in described for place in (tmp_path, tiny_v_model))
    assert json.loads((tmp_path / "ldm_toolkit.json").read_text()) == {"name": tmp_path.name}


def test_a_card_that_cannot_be_written_costs_nothing(trainer, tiny_model, pictures, tmp_path):
    (tmp_path / "README.md").mkdir()
    child = trainer.run("finetune_unet", "--model", tiny_model, "--data", pictures, "--output",
                        tmp_path, *SMALL)  # fmt: skip
    assert child.wait() == 0, child.errors
    assert "no model card: cannot write" in child.errors
    assert child.out.read_text().splitlines() == [str(tmp_path)]


def test_the_scheduler_is_saved_as_it_was_trained(trainer, tiny_v_model, pictures, tmp_path):
    """Zero-terminal SNR: PNDM, which the model came with, knows none of it."""
    child = trainer.run("finetune_unet", "--model", tiny_v_model, "--data", pictures, "--output",
                        tmp_path, *SMALL, "--zero-terminal-snr", "true", "--min-snr-gamma", 5,
                        "--timesteps", "logit_normal", "--timestep-mean", 0.5,
                        "--input-perturbation", 0.1)  # fmt: skip
    assert child.wait() == 0, child.errors
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "DDIMScheduler"
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    before = json.loads((tiny_v_model / "scheduler" / "scheduler_config.json").read_text())
    assert "rescale_betas_zero_snr" not in before
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    draws(tmp_path)
    scheduler = StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True).scheduler
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [999, 499]


def test_fresh_weights_from_configurations(trainer, tiny_model, pictures, tmp_path):
    parts = ["--vae", tiny_model / "vae", "--text-encoder", tiny_model]
    child = trainer.run("finetune_unet", "--from-config", tiny_model, *parts, "--data", pictures,
                        "--output", tmp_path / "unet", *SMALL)  # fmt: skip
    assert child.wait() == 0, child.errors
    draws(tmp_path / "unet")


def test_storybook_data_sample_pictures_and_bf16(trainer, tiny_model, tmp_path):
    common = ["--model", tiny_model, "--data", "storybook", "--count", 4, *SMALL, "--sample_every",
              1, "--mixed_precision", "bf16"]  # fmt: skip
    child = trainer.run("finetune_unet", *common, "--output", tmp_path / "u", "--captions", 2)
    assert child.wait() == 0, child.errors
    child = trainer.run("finetune_vae", *common, "--output", tmp_path / "v", "--crop", 64)
    assert child.wait() == 0, child.errors
    for name in "uv":
        samples = sorted(path.name for path in (tmp_path / name / "samples").iterdir())
        assert samples == [f"step-0000000{step}.png" for step in (0, 1, 2)]
    assert len(list((tmp_path / "u" / "cache").iterdir())) == 2


def test_caches_are_shared_and_follow_the_content(trainer, tiny_model, pictures, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in pictures.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    common = ["--model", tiny_model, "--data", data, *SMALL, "--cache", tmp_path / "cache"]

    def folders(output):
        child = trainer.run("finetune_unet", *common, "--output", tmp_path / output)
        assert child.wait() == 0, child.errors
        return {path.name for path in (tmp_path / "cache").iterdir()}

    first = folders("a")
    assert folders("b") == first
    (data / "0.txt").write_text("something else")
    changed = folders("c") - first
    assert sorted(name.split("-")[0] for name in changed) == ["embeddings", "latents"]


@pytest.fixture
def data(tmp_path):
    """A folder of eleven pictures to change."""
    made = [Sample(f"{n}.png", encoded(noise(n, 72, 72)), f"a dog, {n}") for n in range(11)]
    return as_txt(tmp_path / "data", made)


@pytest.mark.parametrize("script", ["finetune_unet", "finetune_vae"])
def test_the_data_can_be_checked_alone(script, trainer, tiny_model, data, tmp_path):
    words = ["--model", tiny_model, "--data", data, "--output", tmp_path / "o", "--size", 64,
             *(["--crop", 32] if script == "finetune_vae" else []), "--check-data"]  # fmt: skip
    (data / "3.txt").write_text("hat " * 90)
    child = trainer.run(script, *words)
    assert child.wait() == 0, child.errors
    told = child.out.read_text()
    assert f"{data}: 11 pictures, 0 of them bad" in told
    cut = "1 caption is longer than 77 tokens and cut: 3.png (92)"
    assert (cut in told) == (script == "finetune_unet")
    assert ("the cache takes" in told) == (script == "finetune_unet")
    (data / "5.png").write_bytes((data / "5.png").read_bytes()[:99])
    child = trainer.run(script, *words)
    assert child.wait() == 2, child.errors
    assert "\n  5.png: is damaged" in child.out.read_text()
    assert child.errors.strip().endswith("error: bad: 1 of 11 pictures; see the report")
    assert not (tmp_path / "o").exists()


def test_bad_pictures_stop_the_run_unless_they_are_skipped(trainer, tiny_model, data, tmp_path):
    words = ["--model", tiny_model, "--data", data, "--output", tmp_path / "o", *SMALL]
    (data / "5.png").write_bytes(b"")
    child = trainer.run("finetune_unet", *words)
    assert child.wait() == 2
    assert "5.png: is not a picture" in child.errors.strip().splitlines()[-1]
    child = trainer.run("finetune_unet", *words, "--skip-bad")
    assert child.wait() == 0, child.errors
    assert "  5.png: is not a picture" in child.errors
    assert "left out: the 1 bad picture above" in child.errors
    assert steps_of(tmp_path / "o" / "metrics.jsonl") == [1, 2]
    (data / "6.png").write_bytes(b"")
    child = trainer.run("finetune_unet", *words, "--skip-bad", "--resume", "false")
    assert child.wait() == 2
    assert "more than --max-bad 0.1" in child.errors


def test_buckets_for_a_new_word(trainer, tiny_model, data, tmp_path):
    """Both shapes are trained on, and the captions are made."""
    for index in range(5):
        Image.new("RGB", (150, 50), (50 * index, 9, 9)).save(data / f"{index}.png")
    words = ["--method", "textual-inversion", "--token", "<x>", "--model", tiny_model, "--data",
             data, "--output", tmp_path / "o", *SMALL, "--buckets", "--size", 128]  # fmt: skip
    child = trainer.run("finetune_unet", *words, "--steps", 7)
    assert child.wait() == 0, child.errors
    assert "192x64: 5 pictures" in child.errors
    assert load_file(tmp_path / "o" / "learned_embeds.safetensors")["<x>"].isfinite().all()


def test_buckets_held_out_pictures_and_accumulation(trainer, tiny_model, data, tmp_path):
    """A step is of one shape, as it is with the large batch; both shapes may be held out."""
    for index in range(5):
        Image.new("RGB", (150, 50), (50 * index, 9, 9)).save(data / f"{index}.png")
    losses = []
    for name, size in (("large", ["--batch_size", 4]), ("small", ["--accumulate", 2])):
        child = trainer.run(
            "finetune_unet", "--model", tiny_model, "--data", data, "--output", tmp_path / name,
            *SMALL, "--buckets", "--size", 128, "--validation-count", 4, "--validate-every", 2,
            "--steps", 4, *size,
        )  # fmt: skip
        assert child.wait() == 0, child.errors
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        assert [one["step"] for one in found if "validation" in one] == [2, 4]
        assert found[-1]["validation"]["pictures"] == 4
        losses.append([one["loss"] for one in found])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_pictures_of_a_subject_are_checked_without_captions(trainer, tiny_model, data, tmp_path):
    for path in data.glob("*.txt"):
        path.unlink()
    words = ["--model", tiny_model, "--data", data, "--output", tmp_path / "o", "--size", 64,
             "--check-data"]  # fmt: skip
    subject = ["--method", "dreambooth", "--class-prompt", "a dog"]
    word = ["--method", "textual-inversion", "--token", "<x>"]
    for more, code in (
        ([], 2), (subject, 2), ([*subject, "--instance-prompt", "a sks dog"], 0), (word, 0),
    ):  # fmt: skip
        child = trainer.run("finetune_unet", *words, *more)
        assert child.wait() == code, child.errors
        assert f"{data}: 11 pictures, {11 if code else 0} of them bad" in child.out.read_text()


def test_buckets_from_pictures_to_a_model(trainer, tiny_model, data, tmp_path):
    for index in range(5):
        Image.new("RGB", (150, 50), (50 * index, 9, 9)).save(data / f"{index}.png")
    words = ["--model", tiny_model, "--data", data, "--output", tmp_path / "o", *SMALL, "--buckets",
             "--size", 128, "--steps", 7]  # fmt: skip
    child = trainer.run("finetune_unet", *words)
    assert child.wait() == 0, child.errors
    assert "192x64: 5 pictures, 0% of the area is cut off, 1 of them shown again" in child.errors
    assert "128x128: 6 pictures, 0% of the area is cut off\n" in child.errors
    folders = sorted(path.name.split("-")[0] for path in (tmp_path / "o" / "cache").iterdir())
    assert folders == ["checked.jsonl", "embeddings", "latents", "latents"]
    draws(tmp_path / "o")


def test_threads_are_the_usable_cores_in_spite_of_omp(trainer, tiny_model, pictures, tmp_path):
    words = [word for word in SMALL if word not in ("--threads", 1)]
    child = trainer.run("finetune_unet", "--model", tiny_model, "--data", pictures, "--output",
                        tmp_path, *words, report="torch.get_num_threads")  # fmt: skip
    assert child.wait() == 0, child.errors
    assert f"torch.get_num_threads: {len(os.sched_getaffinity(0))}" in child.errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "none", "--data", "{data}"], "none is neither a folder nor a bundled model"),
        (["--model", "{model}", "--data", "nowhere"], "--data nowhere is not a folder"),
        (["--model", "{data}", "--data", "{data}"], "holds no"),
        (["--model", "{model}", "--data", "{data}", "--stepz", "3"], "did you mean 'steps'?"),
        (["--model", "{model}"], "data"),
        (
            ["--model", "{model}", "--data", "{data}", "--zero-terminal-snr", "true"],
            "--zero-terminal-snr needs a model that predicts v or the sample",
        ),
        (["--model", "{model}", "--data", "{data}", "--vae", "{model}"], "holds no config.json"),
        (["--model", "{model}", "--data", "{data}", "--text-encoder", "{data}"], "{data}/tok"),
        (
            ["--from-config", "{data}", "--vae", "x", "--text-encoder", "y", "--data", "{data}"],
            "holds no scheduler_config.json",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, told, trainer, tiny_model, pictures, tmp_path):
    places = {"model": tiny_model, "data": pictures}
    words = [word.format(**places) for word in words]
    child = trainer.run("finetune_unet", "--output", tmp_path / "o", *SMALL, *words)
    assert child.wait() == 2, child.errors
    last = child.errors.strip().splitlines()[-1]
    assert last.startswith("finetune_unet.py: error: ")
    assert told.format(**places) in last
    assert "Traceback" not in child.errors
    assert not child.out.read_text()
    assert steps_of(tmp_path / "o" / "metrics.jsonl") == []


@pytest.mark.slow
def test_a_data_set_of_the_hub_without_a_network(trainer, tiny_model, tmp_path):
    pytest.importorskip("datasets")
    child = trainer.run("finetune_unet", "--model", tiny_model, "--data", "nobody/nothing",
                        "--output", tmp_path / "o", *SMALL)  # fmt: skip
    assert child.wait() == 2, child.errors
    last = child.errors.strip().splitlines()[-1]
    assert last.startswith("finetune_unet.py: error: there is no folder nobody/nothing here")
    assert "Traceback" not in child.errors


def test_an_output_that_cannot_be_made(trainer, tiny_model, pictures, tmp_path):
    (tmp_path / "file").write_text("x")
    child = trainer.run("finetune_vae", "--model", tiny_model, "--data", pictures, "--output",
                        tmp_path / "file" / "below", *SMALL, "--crop", 32)  # fmt: skip
    assert child.wait() == 2
    assert "cannot be made" in child.errors
    assert "Traceback" not in child.errors


@pytest.mark.parametrize("script", ["finetune_unet", "finetune_vae"])
def test_a_run_that_falls_apart_names_its_pictures(script, trainer, tiny_model, pictures, tmp_path):
    extra = ["--crop", 32, "--crops", 1] if script == "finetune_vae" else []
    words = [
        script,
        "--model",
        tiny_model,
        "--data",
        pictures,
        "--output",
        tmp_path,
        *SMALL,
        *extra,
    ]
    child = trainer.run(*words, "--steps", 9, "--lr", "1e30")
    assert child.wait() == 1, child.errors
    told = re.findall(
        r"step \d, positions \d+ to \d+ \((\d)\.png, (\d)\.png\) skipped", child.errors
    )
    assert len(told) == 3
    assert len({*told[0], *told[1], *told[2]}) > 2
    last = child.errors.strip().splitlines()[-1]
    assert "3 steps in a row without finite gradients" in last
    assert ".png)" in last
    assert "Traceback" not in child.errors
