"""The CLIP score of a tiny random CLIP, against the cosine written out."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from albums import Album, noise
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import write_tokenizer

from ldm_toolkit.errors import InputError, ModelError
from ldm_toolkit.evaluation.clip import clip_score
from ldm_toolkit.evaluation.subject import Subject

SIDE = 24
CAPTIONS = ["a dog", "a red cat with glasses on the beach", "a hat " * 60]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights with its tokenizer and its image processor."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip") / "clip"
    vocabulary = write_tokenizer(folder)
    text = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 20,
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1, "projection_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8, "projection_dim": 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = CLIPModel(config)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    return folder


def by_hand(folder: Path, image: Image.Image, caption: str) -> float:
    """100 cos(E_i, E_c), pixels and words prepared by hand."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    levels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor((levels - mean) / deviation).permute(2, 0, 1)[None].float()
    ids = CLIPTokenizer.from_pretrained(folder)(caption)["input_ids"]
    ids = ids if len(ids) <= 20 else [*ids[:19], ids[-1]]
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        hidden = model.text_model(torch.tensor([ids])).last_hidden_state[0, len(ids) - 1]
        read = model.text_projection(hidden)
    return max(0.0, 100 * float(seen @ read / seen.norm() / read.norm()))


def test_the_score_is_the_cosine(subject: Callable[..., Subject], clip_folder: Path) -> None:
    pictures = Album(noise(6, size=SIDE), CAPTIONS * 2)
    found = clip_score(subject(pictures), clip_model=clip_folder)
    expected = [by_hand(clip_folder, pictures.images[i], pictures.captions[i]) for i in range(6)]
    assert len({round(one, 2) for one in expected}) > 3
    assert found.scores["clip"].value == pytest.approx(np.mean(expected), rel=1e-3)
    half = 1.96 * np.std(expected, ddof=1) / 6**0.5
    assert found.scores["clip"].high - found.scores["clip"].value == pytest.approx(half, rel=1e-2)
    assert len(found.settings["clip_sha256"]) == 64
    assert "24" in found.settings["resize"]


def test_other_captions_are_another_score(
    subject: Callable[..., Subject], clip_folder: Path
) -> None:
    images = noise(3, size=SIDE)
    one = clip_score(subject(Album(images, CAPTIONS)), clip_model=clip_folder)
    other = clip_score(subject(Album(images, CAPTIONS[::-1])), clip_model=clip_folder)
    assert one.scores["clip"].value != other.scores["clip"].value


def test_what_is_missing_is_said(
    subject: Callable[..., Subject], clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="3 of 3 pictures in album have none"):
        clip_score(subject(Album(noise(3))), clip_model=clip_folder)
    album = Album(noise(3), CAPTIONS)
    with pytest.raises(ModelError, match=r"no config\.json, no model\.safetensors"):
        clip_score(subject(album), clip_model=tmp_path)
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights of a CLIP model: visual_projection\.w"):
        clip_score(subject(album), clip_model=tmp_path / "clip")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        clip_score(subject(album), clip_model=tmp_path / "clip")
    shutil.copy(clip_folder / "model.safetensors", weights)
    (tmp_path / "clip" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be used"):
        clip_score(subject(album), clip_model=tmp_path / "clip")
