"""Folders of every kind load into the networks that diffusers and transformers make of them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.files import sha256_file
from ldm_toolkit.models.checks import check_vae_folder
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.load import load_components

Factory = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "1.x": {},
    "2.x": {"second": True, "prediction_type": "v_prediction"},
    "inpainting": {"in_channels": 9},
    "2.x inpainting": {"second": True, "in_channels": 9},
}
NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def load(folder: Path, **options: Any) -> Components:
    return load_components(folder, device="cpu", **{"dtype": "float32", **options})


def states(source: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of the networks of Components, or of a folder through the libraries."""
    if isinstance(source, Components):
        return {part: getattr(source, part).state_dict() for part in NETWORKS}
    return {
        part: network.from_pretrained(source / part, use_safetensors=True).state_dict()
        for part, network in NETWORKS.items()
    }


def assert_equal(found: Any, expected: Any) -> None:
    one, other = states(found), states(expected)
    for part in NETWORKS:
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])


@torch.no_grad()
def answers(unet: Any, text_encoder: Any, vae: Any) -> list[torch.Tensor]:
    """What the networks compute for fixed inputs."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.arange(77)[None]
    text = text_encoder(ids).last_hidden_state
    latents = torch.randn((1, unet.config.in_channels, 8, 8), generator=draw)
    return [
        text,
        unet(latents, 500, text, return_dict=False)[0],
        vae.decode(latents[:, :4], return_dict=False)[0],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_those_of_the_libraries(kind: str, model_factory: Factory) -> None:
    folder = model_factory(**KINDS[kind])
    found = load(folder)
    assert_equal(found, folder)
    theirs = {part: net.from_pretrained(folder / part) for part, net in NETWORKS.items()}
    ours = {part: getattr(found, part) for part in NETWORKS}
    for one, other in zip(answers(**ours), answers(**theirs), strict=True):
        assert torch.equal(one, other)
    assert found.inpainting is ("inpainting" in kind)
    wanted = KINDS[kind].get("prediction_type", "epsilon")
    assert found.scheduler_config["prediction_type"] == wanted


class TestVariant:
    @pytest.fixture
    def folder(self, tiny_model: Path, tmp_path: Path) -> Path:
        """A model with plain weights and fp16 ones, the UNet's in shards."""
        folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        for part, network in NETWORKS.items():
            half = network.from_pretrained(folder / part).half()
            size = {"max_shard_size": "200KB"} if part == "unet" else {}
            half.save_pretrained(folder / part, variant="fp16", **size)
        assert len(list((folder / "unet").glob("*fp16-*.safetensors"))) > 1
        return folder

    def test_it_is_read_and_hashed(self, folder: Path, tiny_model: Path) -> None:
        found, plain = load(folder, variant="fp16"), load(tiny_model)
        for part, state in states(found).items():
            expected = states(plain)[part]
            assert all(torch.equal(state[n], expected[n].half().float()) for n in state)
        assert found.identity.sha256 != plain.identity.sha256
        assert load(folder).identity.sha256 == plain.identity.sha256

    def test_one_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(ModelError, match="choose with variant"):
            load(folder, variant="bf16")
        with pytest.raises(ModelError, match="variant must be a word"):
            load(folder, variant="../x")

    def test_a_folder_of_only_the_variant(self, folder: Path) -> None:
        for part in NETWORKS:
            for path in (folder / part).glob("*model.safetensors"):
                path.unlink()
        assert load(folder, variant="fp16").dtype == torch.float32
        with pytest.raises(ModelError, match="choose with variant"):
            load(folder)


class TestOtherVae:
    @pytest.fixture
    def other(self, tiny_model: Path, tmp_path: Path) -> Path:
        """A VAE's own folder whose weights are not the model's."""
        folder = Path(shutil.copytree(tiny_model / "vae", tmp_path / "other"))
        path = folder / "diffusion_pytorch_model.safetensors"
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
        return folder

    def test_it_replaces_the_models(self, tiny_model: Path, other: Path) -> None:
        found, own = load(tiny_model, vae=other), load(tiny_model)
        expected = load_file(other / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(found.vae.state_dict()[n], expected[n]) for n in expected)
        assert torch.equal(found.unet.conv_in.weight, own.unet.conv_in.weight)

    def test_the_hash_is_of_what_was_read(
        self, tiny_model: Path, other: Path, tmp_path: Path
    ) -> None:
        """The same as of a model folder into which the VAE was copied."""
        folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        shutil.copytree(other, folder / "vae", dirs_exist_ok=True)
        found = load(tiny_model, vae=other).identity.sha256
        assert found == load(folder).identity.sha256
        assert found == load(tiny_model, vae=folder).identity.sha256  # a model's VAE serves too
        assert found != load(tiny_model).identity.sha256

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda f: (f / "my.py").write_text("x"), "contains code"),
            (lambda f: (f / "config.json").write_text('{"_class_name": "X"}'), "is for 'X'"),
            (lambda f: (f / "config.json").write_text("{}"), "does not say"),
            (lambda f: (f / "config.json").unlink(), "lacks vae/config.json"),
            (lambda f: shutil.rmtree(f), "is not a folder"),
            (
                lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"x"),
                "broken or cut short",
            ),
        ],
    )
    def test_it_is_checked(
        self, change: Callable[[Path], object], words: str, tiny_model: Path, other: Path
    ) -> None:
        change(other)
        with pytest.raises(ModelError, match=words):
            load(tiny_model, vae=other)

    def test_files(self, other: Path) -> None:
        _, files = check_vae_folder(other)
        assert [sha256_file(file) for file in files] == [
            sha256_file(other / "diffusion_pytorch_model.safetensors")
        ]


def test_another_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model / "tokenizer", tmp_path / "words"))
    own = load(tiny_model).tokenizer("a dog")["input_ids"]
    assert load(tiny_model, tokenizer=folder).tokenizer("a dog")["input_ids"] == own
    assert load(tiny_model, tokenizer=tiny_model).tokenizer("a dog")["input_ids"] == own
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"lacks merges\.txt"):
        load(tiny_model, tokenizer=folder)


def test_revisions_are_for_the_hub(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="revision is for models of the hub"):
        load(tiny_model, revision="main")


def test_the_vae_of_a_model_folder_with_a_configuration_of_its_own(
    tiny_model: Path, tmp_path: Path
) -> None:
    """As a training leaves it: config.json holds the training's options."""
    shutil.copytree(tiny_model / "vae", tmp_path / "vae")
    (tmp_path / "config.json").write_text('{"steps": 3}')
    config, files = check_vae_folder(tmp_path)
    assert config["_class_name"] == "AutoencoderKL"
    assert [file.parent for file in files] == [tmp_path / "vae"]
