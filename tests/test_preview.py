"""Previews: near the picture in colour and place, without the VAE."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_toolkit.latents import pil_to_latents
from ldm_toolkit.models.load import load_components
from ldm_toolkit.preview import preview
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
