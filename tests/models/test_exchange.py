"""To diffusers and back, and folders that keep their bytes."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_toolkit.errors import CannotWrite, UserError
from ldm_toolkit.models import exchange
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.training.inputs import usual_latents

PROMPT = "a dog wearing a hat"
OPTIONS: dict[str, Any] = {"steps": 3, "seed": 4, "scheduler": "ddim"}
WEIGHTS = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


def test_to_diffusers_draws_the_same(pipe: LatentPipeline) -> None:
    theirs = pipe.to_diffusers()
    assert type(theirs) is diffusers.StableDiffusionPipeline
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        PROMPT,
        num_inference_steps=3,
        generator=[torch.Generator("cpu").manual_seed(4)],
        output_type="latent",
    ).images
    found = pipe(PROMPT, steps=3, seed=4).latents
    assert (expected - found).abs().max() <= 1e-4


def test_to_diffusers_says_nothing_of_image_processors(tiny_model: Path) -> None:
    """In a process of its own: the notes come at the first import only."""
    code = (
        "import sys; from ldm_toolkit import LatentPipeline; "
        "LatentPipeline.from_pretrained(sys.argv[1], device='cpu').to_diffusers()"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "torchvision" not in done.stderr
    assert "ImageProcessor" not in done.stderr


def test_other_warnings_pass() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.utils.import_utils")
    note = "`CLIPImageProcessor` requires torchvision (not installed); falling back to"
    logger.addHandler(handler)
    try:
        with exchange._without_notes_on_torchvision():
            logger.error(note)
            logger.error("something real")
        logger.error(note)
    finally:
        logger.removeHandler(handler)
    assert said == ["something real", note]


def test_what_a_scheduler_assumes_is_not_the_models_own(tiny_model: Path) -> None:
    """PNDM made in code assumes leading timesteps; Euler from its configuration does not."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    theirs.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    expected = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    found = LatentPipeline.from_diffusers(theirs).make_scheduler("euler")
    assert expected.config.timestep_spacing == "linspace"
    assert found.config.timestep_spacing == expected.config.timestep_spacing
    assert (found.config.steps_offset, found.config.beta_end) == (1, expected.config.beta_end)


def test_from_diffusers_draws_the_same(pipe: LatentPipeline, tiny_model: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    ours = LatentPipeline.from_diffusers(theirs)
    assert torch.equal(ours(PROMPT, **OPTIONS).latents, pipe(PROMPT, **OPTIONS).latents)
    assert ours.make_scheduler().config == pipe.make_scheduler().config
    with torch.no_grad():
        theirs.unet.conv_in.bias[0] += 1
    assert LatentPipeline.from_diffusers(theirs).identity.sha256 != ours.identity.sha256


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "DDIMPipeline", "object"])
def test_other_pipelines_are_refused(kind: str, pipe: LatentPipeline) -> None:
    other = type(kind, (), {"unet": pipe.components.unet, "config": {}})()
    if kind == "StableDiffusionXLPipeline":
        for name in ("tokenizer", "text_encoder", "vae"):
            setattr(other, name, getattr(pipe.components, name))
        other.scheduler, other.text_encoder_2 = pipe.make_scheduler(), object()
    with pytest.raises(UserError, match=f"{kind} is not a pipeline of Stable Diffusion"):
        LatentPipeline.from_diffusers(other)


@pytest.fixture
def half_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with float16 weights, as models are given out."""
    folder = tmp_path / "half"
    shutil.copytree(tiny_model, folder)
    for name in WEIGHTS:
        halves = {key: value.half() for key, value in load_file(folder / name).items()}
        save_file(halves, folder / name, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_unchanged_parts_keep_their_bytes(dtype: str, half_model: Path, tmp_path: Path) -> None:
    pipe = LatentPipeline.from_pretrained(half_model, device="cpu", dtype=dtype)
    saved = tmp_path / "saved"
    pipe.save_pretrained(saved)
    for name in WEIGHTS:
        assert (saved / name).read_bytes() == (half_model / name).read_bytes()
    again = LatentPipeline.from_pretrained(saved, device="cpu", dtype=dtype)
    assert torch.equal(again(PROMPT, **OPTIONS).latents, pipe(PROMPT, **OPTIONS).latents)
    assert again.identity.sha256 == pipe.identity.sha256
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(saved)
    assert type(theirs.scheduler).__name__ == "PNDMScheduler"


@pytest.mark.parametrize("own_vae", [True, False])
def test_what_latents_the_model_learned_is_kept(
    own_vae: bool, half_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Training goes on with them; the folder's other words are of the model that it was."""
    about = {"name": "one", "revision": "3", "latents": "mean"}
    (half_model / "ldm_toolkit.json").write_text(json.dumps(about))
    vae = None if own_vae else tiny_model / "vae"
    pipe = LatentPipeline.from_pretrained(half_model, device="cpu", vae=vae)
    pipe.save_pretrained(tmp_path / "saved")
    assert usual_latents(tmp_path / "saved") == ("mean" if own_vae else "sample")
    again = LatentPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert (again.identity.name, again.identity.revision) == ("saved", "")


def test_changed_tensors_alone_change(half_model: Path, tmp_path: Path) -> None:
    """bfloat16 has fewer bits than the float16 file: the others must not pass through it."""
    pipe = LatentPipeline.from_pretrained(half_model, device="cpu", dtype="bf16")
    with torch.no_grad():
        pipe.components.unet.conv_in.bias[0] = 3.0
    pipe.save_pretrained(tmp_path / "saved")
    before, after = (load_file(folder / WEIGHTS[1]) for folder in (half_model, tmp_path / "saved"))
    assert after.keys() == before.keys()
    assert all(after[name].dtype == torch.float16 for name in after)
    assert [name for name in after if not torch.equal(after[name], before[name])] == [
        "conv_in.bias"
    ]
    assert after["conv_in.bias"][0] == 3
    for name in (WEIGHTS[0], WEIGHTS[2]):
        assert (tmp_path / "saved" / name).read_bytes() == (half_model / name).read_bytes()


def test_a_folder_in_the_way_stays(pipe: LatentPipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        pipe.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "mine/x"])
def test_names_that_no_folder_can_have(name: str, pipe: LatentPipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CannotWrite, match="cannot write") as caught:
        pipe.save_pretrained(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("wrong", [5, None, b"folder", ["folder"]])
def test_what_is_no_path(wrong: Any, pipe: LatentPipeline) -> None:
    with pytest.raises(UserError, match="a folder is a text or a Path, not"):
        exchange.save_components(pipe.components, wrong, pipe.make_scheduler())


def test_a_pipeline_without_a_source_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe = LatentPipeline.from_diffusers(theirs)
    pipe.save_pretrained(tmp_path / "saved")
    again = LatentPipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    assert torch.equal(again(PROMPT, **OPTIONS).latents, pipe(PROMPT, **OPTIONS).latents)


def test_words_that_were_learned_are_saved(half_model: Path, tmp_path: Path) -> None:
    pipe = LatentPipeline.from_pretrained(half_model, device="cpu", dtype="float32")
    save_file({"<cat>": torch.randn(2, 32)}, tmp_path / "e.safetensors")
    pipe.load_embedding(tmp_path / "e.safetensors")
    pipe.save_pretrained(tmp_path / "saved")
    again = LatentPipeline.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.tokenize("a <cat>") == pipe.tokenize("a <cat>")
    found, expected = again.encode_prompt("a <cat>"), pipe.encode_prompt("a <cat>")
    assert (found - expected).abs().max() < 0.01  # float16 in the file
