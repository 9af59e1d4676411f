"""PSNR, SSIM and LPIPS before and after the training of an autoencoder."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from diffusers import AutoencoderKL
from torch import nn
from training_tools import tiny_vae

from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.training import perceptual, quality
from ldm_toolkit.training.data import ImageFolder
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.held_out import a_few
from ldm_toolkit.training.quality import Quality


@pytest.fixture
def source(pictures):
    return a_few(ImageFolder(pictures, 64), 3)


def reconstructions(vae, source):
    """Pictures and what the network makes of them, in [0, 1]."""
    for index in range(len(source)):
        pixels = pil_to_pixels(source.image(index))[None]
        with torch.no_grad():
            made = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        yield (made.clamp(-1, 1) + 1) / 2, (pixels + 1) / 2


def measured(source, accelerator, file, vae, **options):
    found = Quality(source, True, file, accelerator, **options)
    found.before(vae)
    return json.loads(file.read_text())


def test_psnr_is_that_of_the_formula(source, accelerator, tmp_path):
    vae = tiny_vae()
    found = measured(source, accelerator, tmp_path / "quality.json", vae)
    values = []
    for made, pixels in reconstructions(vae, source):
        error = (made - pixels).double().numpy()
        values.append(-10 * np.log10(np.mean(error**2)))
    assert found["before"]["psnr"]["mean"] == pytest.approx(np.mean(values), rel=1e-5)
    assert found["before"]["psnr"]["std"] == pytest.approx(np.std(values), rel=1e-3)
    assert (found["pictures"], found["count"]) == ("held out", 3)
    assert "after" not in found


def windows_ssim(one, other):
    """Wang et al. 2004 for (3, H, W) in [0, 1]: a normal window of sigma 1.5, edges reflected."""
    place = np.arange(-5, 6)
    window = np.exp(-0.5 * (place / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2

    def mean(values):
        values = np.pad(values, ((0, 0), (5, 5), (5, 5)), mode="reflect")
        parts = np.lib.stride_tricks.sliding_window_view(values, (11, 11), axis=(-2, -1))
        return (parts * window).sum(axis=(-2, -1))

    m1, m2 = mean(one), mean(other)
    v1, v2, c = mean(one**2) - m1**2, mean(other**2) - m2**2, mean(one * other) - m1 * m2
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * m1 * m2 + c1) * (2 * c + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean()


def test_ssim_is_that_of_the_paper(source, accelerator, tmp_path):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    vae = tiny_vae()
    found = measured(source, accelerator, tmp_path / "quality.json", vae)
    pairs = reconstructions(vae, source)
    values = [windows_ssim(*(t[0].double().numpy() for t in pair)) for pair in pairs]
    assert found["before"]["ssim"]["mean"] == pytest.approx(np.mean(values), rel=1e-3)


def test_equal_pictures_have_a_psnr_that_json_knows():
    pixels = torch.zeros(1, 3, 8, 8)
    assert float(quality._psnr(pixels, pixels)) == 100.0


def test_without_torchmetrics_there_is_psnr_and_a_line(
    source, accelerator, tmp_path, monkeypatch, caplog
):
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    found = Quality(source, True, tmp_path / "quality.json", accelerator)
    found.before(tiny_vae())
    with caplog.at_level("INFO"):
        found.after(tiny_vae(1))
    told = json.loads((tmp_path / "quality.json").read_text())
    assert told["before"].keys() == told["after"].keys() == {"psnr"}
    assert "SSIM needs torchmetrics: pip install 'ldm-toolkit[train]'" in caplog.text


def test_lpips_that_is_loaded_is_measured(source, accelerator, tmp_path):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

    class Mean(nn.Module):
        def forward(self, made, pixels):
            return (made - pixels).abs().mean(dim=(1, 2, 3))

    vae = tiny_vae()
    found = measured(source, accelerator, tmp_path / "quality.json", vae, lpips=Mean())
    values = [float(2 * (a - b).abs().mean()) for a, b in reconstructions(vae, source)]
    assert found["before"]["lpips"]["mean"] == pytest.approx(np.mean(values), rel=1e-4)


class Features(nn.Module):
    """Stands in for Inception: three numbers a picture."""

    num_features = 3

    def forward(self, pixels):
        parts = pixels.mean(dim=(1, 2, 3)), pixels.std(dim=(1, 2, 3)), pixels[:, 0].mean(dim=(1, 2))
        return torch.stack(parts, dim=1)


def frechet(one, other):
    """Heusel et al. 2017, eq. 6, of two tables of features."""
    means, covariances = zip(*((t.mean(0), np.cov(t.T)) for t in (one, other)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return np.sum((means[0] - means[1]) ** 2) + np.trace(sum(covariances) - 2 * np.real(root))


def test_rfid_is_that_of_the_paper(accelerator, pictures, tmp_path, monkeypatch, caplog):
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    distance = fid.FrechetInceptionDistance(feature=Features(), normalize=True)
    monkeypatch.setattr(quality, "cached_frechet", lambda: distance)
    source, file = a_few(ImageFolder(pictures, 64), 6), tmp_path / "quality.json"
    plain = measured(source, accelerator, file, tiny_vae())
    assert "rfid" not in plain["before"]  # of few pictures it says nothing
    monkeypatch.setattr(quality, "_ENOUGH", 6)
    told = Quality(source, True, file, accelerator)
    told.before(tiny_vae())
    with caplog.at_level("INFO"):
        told.after(tiny_vae(1))
    found = json.loads(file.read_text())
    for when, seed in (("before", 0), ("after", 1)):
        tables = zip(*reconstructions(tiny_vae(seed), source), strict=True)
        made, real = (Features()(torch.cat(t)).double().numpy() for t in tables)
        assert found[when]["rfid"]["mean"] == pytest.approx(frechet(real, made), rel=1e-3)
        assert found["before"]["psnr"] == plain["before"]["psnr"]
    assert "rFID" in caplog.text


@pytest.mark.parametrize("kept", [None, b"another pickle"])
def test_weights_of_inception_are_those_of_their_name_or_none(kept, monkeypatch, tmp_path):
    """A file that is not the one of torch-fidelity is not read at all."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    stub = SimpleNamespace(URL_INCEPTION_V3="https://host/weights-inception-6726825d.pth")
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    if kept is not None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "weights-inception-6726825d.pth").write_bytes(kept)
    assert perceptual.cached_frechet() is None


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_torch_fidelity_gets_nothing_but_tensors(monkeypatch, tmp_path):
    """It reads a pickle as it is, and eight digits of a hash are soon forged."""
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    seen = []

    def reads(normalize, feature_extractor_weights_path):
        seen.append(torch.load(feature_extractor_weights_path, weights_only=False))
        return "a distance"

    monkeypatch.setattr(fid, "FrechetInceptionDistance", reads)
    for content, expected in (
        ({"w": torch.ones(2)}, "a distance"),
        (Harmful(tmp_path / "ran"), None),
    ):
        torch.save(content, tmp_path / "x.pth")
        name = f"weights-{hashlib.sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()[:8]}.pth"
        (tmp_path / "x.pth").rename(tmp_path / "checkpoints" / name)
        stub = SimpleNamespace(URL_INCEPTION_V3=f"https://host/{name}")
        for module in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
            monkeypatch.setitem(sys.modules, module, stub)
        assert perceptual.cached_frechet() == expected
    assert [found.keys() for found in seen] == [{"w"}]
    assert not (tmp_path / "ran").exists()


def test_before_is_measured_once(source, accelerator, tmp_path, pictures, monkeypatch):
    """Again only where the weights or the pictures are others, or the file is not whole."""
    file, calls = tmp_path / "quality.json", []
    real = Quality._measured
    monkeypatch.setattr(Quality, "_measured", lambda self, vae: calls.append(0) or real(self, vae))
    first = measured(source, accelerator, file, tiny_vae())
    finished = Quality(source, True, file, accelerator)
    finished.before(tiny_vae())
    finished.after(tiny_vae(1))
    assert len(calls) == 2
    assert json.loads(file.read_text())["before"] == first["before"]
    assert json.loads(file.read_text())["after"] != first["before"]
    assert measured(source, accelerator, file, tiny_vae()) == first  # no old "after" either
    assert len(calls) == 2
    changed = measured(source, accelerator, file, tiny_vae(2))
    assert changed["before"] != first["before"]
    other = a_few(ImageFolder(pictures, 64), 2)
    assert measured(other, accelerator, file, tiny_vae(2))["count"] == 2
    for damage in ("", "[]", '{"before": 3}', file.read_text()[:-9]):
        file.write_text(damage)
        measured(other, accelerator, file, tiny_vae(2))
    assert len(calls) == 8


def test_a_few_pictures_are_always_the_same(pictures):
    source = ImageFolder(pictures, 64)
    assert len(a_few(source)) == 6
    first, again = a_few(source, 3), a_few(source, 3)
    assert first.fingerprint == again.fingerprint
    assert len({first.image(index).tobytes() for index in range(3)}) == 3


# --- through the command ---

SMALL = ["--size", 64, "--crop", 32, "--batch_size", 2, "--warmup", 0, "--threads", 1]


def test_the_command_measures_before_and_after(trainer, tiny_model, pictures, tmp_path):
    words = ["--model", tiny_model, "--data", pictures, "--output", tmp_path, *SMALL,
             "--steps", 3, "--lr", "1e-2", "--perceptual", "encoder"]  # fmt: skip
    child = trainer.run("finetune_vae", *words)
    assert child.wait() == 0, child.errors
    told = child.errors
    assert "quality on 6 training pictures: before, after" in told
    found = json.loads((tmp_path / "quality.json").read_text())
    assert (found["pictures"], found["count"]) == ("training", 6)
    table = [line.split() for line in told.splitlines() if line.startswith("PSNR, dB")]
    means = [found[when]["psnr"]["mean"] for when in ("before", "after")]
    assert [float(value) for value in table[0][2:]] == pytest.approx(means, abs=0.006)
    # What is measured is what lies there.
    source = a_few(ImageFolder(pictures, 64))
    for folder, mean in zip((tiny_model, tmp_path), means, strict=True):
        vae = load_network(AutoencoderKL, folder / "vae")
        errors = [(a - b).square().mean() for a, b in reconstructions(vae, source)]
        assert float((-10 * torch.stack(errors).log10()).mean()) == pytest.approx(mean, abs=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["perceptual"] > 0 for line in lines)
    assert "--train all changes" not in told
    # Other terms are another run.
    child = trainer.run("finetune_vae", *words[:-2], "--steps", 4)
    assert child.wait() == 2
    assert "--perceptual encoder (now none)" in child.errors


def test_held_out_pictures_are_measured(trainer, tiny_model, pictures, tmp_path):
    words = ["--model", tiny_model, "--data", pictures, *SMALL, "--steps", 1]
    child = trainer.run("finetune_vae", *words, "--validation-count", 2, "--output", tmp_path / "a")
    assert child.wait() == 0, child.errors
    found = json.loads((tmp_path / "a" / "quality.json").read_text())
    assert (found["pictures"], found["count"]) == ("held out", 2)
    assert "quality on 2 held out pictures" in child.errors
    words = ["--model", tiny_model, "--data", "storybook", "--count", 2, *SMALL, "--steps", 1]
    child = trainer.run(
        "finetune_vae", *words, "--validation-data", pictures, "--output", tmp_path / "b"
    )
    assert child.wait() == 0, child.errors
    found = json.loads((tmp_path / "b" / "quality.json").read_text())
    assert (found["pictures"], found["count"]) == ("held out", 6)


def test_before_survives_a_kill(trainer, tiny_model, pictures, tmp_path):
    words = ["--model", tiny_model, "--data", pictures, "--output", tmp_path, *SMALL,
             "--steps", 4, "--checkpoint_every", 2, "--lr", "1e-2"]  # fmt: skip
    count = ["ldm_toolkit.training.loop", "advance", 4]
    child = trainer.run("finetune_vae", *words, die=count)
    assert child.wait() == -9
    file = tmp_path / "quality.json"
    before = json.loads(file.read_text())
    assert "after" not in before
    strange = {name: {"mean": 1.0, "std": 0.0} for name in ("psnr", "ssim", "lpips")}
    mark = {**before, "before": strange}  # were it measured again, this would be gone
    file.write_text(json.dumps(mark))
    child = trainer.run("finetune_vae", *words)
    assert child.wait() == 0, child.errors
    assert "resumed at step 2" in child.errors
    found = json.loads(file.read_text())
    assert found["before"] == mark["before"]
    assert found["after"]["psnr"]["mean"] != before["before"]["psnr"]["mean"]


def test_training_all_warns_of_the_unets(trainer, tiny_model, pictures, tmp_path):
    words = ["--model", tiny_model, "--data", pictures, "--output", tmp_path, *SMALL]
    child = trainer.run("finetune_vae", *words, "--steps", 1, "--train", "all")
    assert child.wait() == 0, child.errors
    told = [line for line in child.errors.splitlines() if line.startswith("--train all changes")]
    assert len(told) == 1
    assert "no UNet that learned the old ones fits them" in told[0]
    assert f"finetune_unet.py --model {tmp_path}" in told[0]
    assert "--train decoder" in told[0]


def test_the_table_tells_both_means():
    found = {
        "pictures": "held out", "count": 3,
        "before": {"psnr": {"mean": 20.004}, "ssim": {"mean": 0.5}},
        "after": {"psnr": {"mean": 21.236}, "ssim": {"mean": 0.61234}},
    }  # fmt: skip
    assert quality._table(found).splitlines() == [
        "quality on 3 held out pictures: before, after",
        "PSNR, dB        20.00    21.24",
        "SSIM           0.5000   0.6123",
    ]


# --- that it learns ---


@pytest.mark.slow
def test_the_bundled_decoder_learns_a_handful_of_pictures(trainer, pictures, tmp_path):
    """Six pictures of a kind that it does not know: at least 1 dB more on them."""
    child = trainer.run(
        "finetune_vae", "--data", pictures, "--output", tmp_path, "--size", 96, "--crop", 96,
        "--batch_size", 2, "--steps", 80, "--lr", "1e-4", "--warmup", 10, "--ema", 0,
        "--perceptual", "encoder", "--perceptual-weight", 0.1, "--threads", 1,
    )  # fmt: skip
    assert child.wait() == 0, child.errors
    found = json.loads((tmp_path / "quality.json").read_text())
    gain = found["after"]["psnr"]["mean"] - found["before"]["psnr"]["mean"]
    assert gain > 1.0, found
