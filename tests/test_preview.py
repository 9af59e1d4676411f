"""Previews: near the picture in colour and place, without the VAE."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from tiny_models import make_preview_vae

from ldm_toolkit.errors import ModelError
from ldm_toolkit.latents import pil_to_latents
from ldm_toolkit.models.load import load_components
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.preview import preview, with_preview_vae
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.render import render


@pytest.fixture(scope="module")
def bundled():
    return load_components("storybook", device="cpu", dtype="float32")


def test_a_preview_shows_the_colours_where_they_are(bundled):
    pictures = [render(scenes.sample_scene(0, index), 256) for index in range(2)]
    shown = preview(pil_to_latents(pictures, bundled), bundled)
    for picture, soft in zip(pictures, shown, strict=True):
        assert soft.size == picture.size
        pair = [np.asarray(one.resize((32, 32), Image.Resampling.BOX), float)
                for one in (picture, soft)]  # fmt: skip
        assert np.abs(pair[0] - pair[1]).mean() < 25
        assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.9
    assert shown[0].tobytes() != shown[1].tobytes()


def test_the_vae_is_asked_once_in_its_life(bundled, monkeypatch):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first = preview(latents, bundled)
    for name in ("encode", "decode"):
        monkeypatch.setattr(bundled.vae, name, None)
    again = preview(latents, bundled)
    assert [one.tobytes() for one in first] == [one.tobytes() for one in again]


def test_a_model_that_is_gone_takes_its_map_along(tiny_model):
    components = load_components(tiny_model, device="cpu")
    assert preview(torch.zeros(1, 4, 8, 8), components)[0].size == (64, 64)
    gone = weakref.ref(components.vae)
    del components
    gc.collect()
    assert gone() is None


def test_a_compiled_vae_is_not_compiled_for_it(tiny_model: Path) -> None:
    plain, compiled = (load_components(tiny_model, device="cpu") for _ in range(2))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def compiling(*_: object, **__: object) -> None:
        raise RuntimeError("a minute")

    compiled.vae.encoder._compiled_call_impl = compiling
    shown, expected = (preview(latents, one)[0] for one in (compiled, plain))
    assert shown.tobytes() == expected.tobytes()
    assert compiled.vae.encoder._compiled_call_impl is compiling


def counted(monkeypatch: pytest.MonkeyPatch, network: object, name: str) -> list[int]:
    """The batch of each call of a network's method."""
    calls: list[int] = []
    original = getattr(network, name)

    def call(x, *arguments, **named):
        calls.append(len(x))
        return original(x, *arguments, **named)

    monkeypatch.setattr(network, name, call)
    return calls


def test_a_preview_of_each_step_never_decodes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32")
    decoded = counted(monkeypatch, pipe.components.vae, "decode")
    encoded = counted(monkeypatch, pipe.components.vae, "encode")
    run = pipe.stream("a dog", steps=5, seed=1, scheduler="ddim")
    shown = [step.preview().tobytes() for step in run]
    assert len(set(shown)) == 5
    assert (decoded, encoded) == ([], [1])  # once in the model's life, to fit the map
    assert run.result.images
    assert decoded == [1]


@pytest.mark.parametrize("config", [{}, {"scaling_factor": 0.5}], ids=str)
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_decoder_shows_what_diffusers_does(
    config: dict, alone: bool, dtype: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = make_preview_vae(tmp_path / "taesd", **config)
    place = folder / "diffusion_pytorch_model.safetensors" if alone else folder
    components = load_components(tiny_model, device="cpu", dtype=dtype)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    shown = preview(latents, with_preview_vae(components, place))
    theirs = AutoencoderTiny.from_pretrained(folder)
    with torch.no_grad():
        pixels = theirs.decode(latents / theirs.config.scaling_factor).sample
    expected = VaeImageProcessor().postprocess(pixels)
    most = 1 if dtype == "float32" else 6
    for ours, other in zip(shown, expected, strict=True):
        assert ours.size == (64, 64)
        assert np.abs(np.asarray(ours, int) - np.asarray(other, int)).max() <= most
    assert shown[0].tobytes() != preview(latents, components)[0].tobytes()


def test_a_pipelines_steps_use_it_and_its_pictures_do_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32")
    before = pipe("a dog", steps=3, seed=1).images[0].tobytes()
    pipe.load_preview_vae(make_preview_vae(tmp_path / "taesd"))
    decoded = counted(monkeypatch, pipe.components.preview_vae, "decode")
    run = pipe.stream("a dog", steps=3, seed=1, images_per_prompt=2, scheduler="ddim")
    for step in run:
        assert [one.size for one in step.previews()] == [(64, 64)] * 2
    assert decoded == [1] * 6
    assert pipe("a dog", steps=3, seed=1).images[0].tobytes() == before


def test_a_decoder_of_another_model(tiny_model: Path, tmp_path: Path) -> None:
    components = load_components(tiny_model, device="cpu")
    shallow = {"decoder_block_out_channels": (8, 8), "num_decoder_blocks": (1, 1)}
    with pytest.raises(ModelError, match=r"it makes 2 pixels .* the model's VAE 8"):
        with_preview_vae(components, make_preview_vae(tmp_path / "shallow", **shallow))
    wide = make_preview_vae(tmp_path / "wide")
    (wide / "config.json").unlink()  # then it is TAESD's
    file = wide / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ModelError, match=r"preview_vae: .*mismatched keys"):
        with_preview_vae(components, file)
