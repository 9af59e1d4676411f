"""The backend openvino: torch's pictures within a tolerance, whatever is drawn; what is kept."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm_toolkit import schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath import openvino
from ldm_toolkit.models.components import sharing_copy
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import Recipe

# Not pytest's importorskip, which would import its telemetry too.
pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is missing: pip install 'ldm-toolkit[openvino]'"
)

PROMPT = "a dog wearing a hat"
LONG = "a dog" + " a" * 100  # two chunks
KINDS = {
    "first": {},
    "second, inpainting": {"second": True, "prediction_type": "v_prediction", "in_channels": 9},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A user's cache folder of this file's own."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        openvino._cache.cache_clear()
        yield home
    openvino._cache.cache_clear()


def load(model, dtype="float32"):
    return LatentPipeline.from_pretrained(model, device="cpu", dtype=dtype, backend="openvino")


@pytest.fixture(scope="module")
def ours(tiny_model):
    return load(tiny_model)


@pytest.fixture
def conversions(monkeypatch):
    """What of a UNet is converted."""
    seen = []
    own = openvino._Part._convert

    def counted(self, *rest):
        seen.append(self._method)
        own(self, *rest)

    monkeypatch.setattr(openvino._Part, "_convert", counted)
    return seen


def off(found, expected):
    """The distance, relative to what was expected."""
    return float((found - expected).norm() / expected.norm())


# --- the networks ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_unet_predicts_what_torchs_does(kind, model_factory):
    model = model_factory(**KINDS[kind])
    found = load(model)
    expected = LatentPipeline.from_pretrained(model, device="cpu", dtype="float32")
    channels = found.components.unet.config.in_channels
    for rows, height, width, prompt in [
        (2, 8, 8, PROMPT), (1, 8, 8, PROMPT), (3, 12, 8, PROMPT), (4, 7, 13, LONG),
    ]:  # fmt: skip
        text = expected.encode_prompt([prompt] * rows)
        noise = torch.randn(rows, channels, height, width)
        for timestep in (999, 3.5):
            one, other = (pipe.predict_noise(noise, timestep, text) for pipe in (found, expected))
            assert one.shape == other.shape
            assert off(one, other) < 1e-4


def test_bfloat16_is_as_near_as_torchs_and_keeps_the_timestep(tiny_model, pipe):
    found = load(tiny_model, "bfloat16")
    torchs = LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="bfloat16")
    noise, text = torch.randn(2, 4, 8, 8), pipe.encode_prompt([PROMPT, "a cat"])
    answers = {}
    for timestep in (999, 998, 4):
        expected = pipe.predict_noise(noise, timestep, text)
        answers[timestep] = found.predict_noise(noise, timestep, text)
        distance = off(torchs.predict_noise(noise, timestep, text), expected)
        assert off(answers[timestep], expected) < 2 * distance
    assert not torch.equal(answers[999], answers[998])  # bfloat16 would round both to 1000


def test_what_is_asked_beyond_a_prediction_is_torchs(ours, pipe):
    x, text = torch.randn(1, 4, 8, 8), pipe.encode_prompt(PROMPT)
    with torch.no_grad():
        found, expected = (one.components.unet(x, torch.tensor(5), text) for one in (ours, pipe))
    assert torch.equal(found.sample, expected.sample)


# --- pictures ---


def test_the_picture_and_its_recipe(ours, pipe):
    found, expected = (one(PROMPT, steps=4, seed=1) for one in (ours, pipe))
    assert off(found.latents, expected.latents) < 1e-3
    recipe = found.recipes[0]
    assert (recipe.backend, expected.recipes[0].backend) == ("openvino", "torch")
    assert "openvino" in recipe.versions
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert ours(PROMPT, steps=4, seed=1).recipes[0] == recipe  # the pixels' hash is in it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_a_picture_has_the_same_bits_in_any_company(tiny_model, dtype, guidance):
    pipe = load(tiny_model, dtype)
    options = {"steps": 3, "scheduler": "euler_a", "guidance": guidance, "batch_size": 4}
    prompts = [PROMPT, LONG, "a cat", "a red house"]
    together = pipe(prompts, seed=[4, 5, 6, 7], **options)
    turned = pipe(prompts[::-1], seed=[7, 6, 5, 4], **options)
    assert turned.recipes[::-1] == together.recipes
    assert pipe("a cat", seed=6, **options).recipes[0] == together.recipes[2]


@pytest.mark.parametrize(
    "options",
    [
        {"reuse_every": 3, "reuse_depth": 2},
        {"reuse_every": 2, "reuse_depth": 2, "guidance_interval": (0, 0.5)},
        {"guidance_interval": (0.3, 0.6)},
        {"speed": "balanced", "width": 104},
    ],
)
def test_what_is_reused_is_what_torch_reuses(ours, pipe, options):
    found, expected = (one(PROMPT, steps=6, seed=1, **options).latents for one in (ours, pipe))
    assert off(found, expected) < 1e-3
    assert off(found, pipe(PROMPT, steps=6, seed=1, width=options.get("width")).latents) > 1e-3


@pytest.mark.parametrize("name", sorted(schedulers.names()))
def test_every_scheduler(ours, pipe, name):
    found, expected = (one(PROMPT, steps=3, seed=1, scheduler=name) for one in (ours, pipe))
    assert off(found.latents, expected.latents) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_drawn_over(kind, model_factory):
    model = model_factory(**KINDS[kind])
    image, mask = Image.new("RGB", (64, 72), "red"), Image.new("L", (64, 72), 255)
    mask.paste(0, (0, 0, 32, 72))
    expected = LatentPipeline.from_pretrained(model, device="cpu", dtype="float32")
    found, expected = (
        one(PROMPT, steps=4, seed=1, image=image, mask=mask, strength=0.8)
        for one in (load(model), expected)
    )
    assert off(found.latents, expected.latents) < 1e-3


def lora(folder, components):
    """A LoRA of every attention layer's queries, in the peft format."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in components.unet.named_modules():
        if name.endswith("to_q"):
            rows, columns = module.weight.shape
            for side, shape in (("A", (2, columns)), ("B", (rows, 2))):
                tensors[f"unet.{name}.lora_{side}.weight"] = torch.randn(shape, generator=generator)
    save_file(tensors, folder / "queries.safetensors")
    return folder / "queries.safetensors"


def test_a_lora_is_seen_at_once(ours, pipe, tmp_path, conversions):
    file, noise = lora(tmp_path, pipe.components), torch.randn(1, 4, 8, 8)
    text = pipe.encode_prompt(PROMPT)
    before = ours.predict_noise(noise, 500, text)
    conversions.clear()
    both = [LatentPipeline(one.components) for one in (ours, pipe)]
    for one in both:
        one.load_lora(file, 0.5)
    found, expected = (one.predict_noise(noise, 500, text) for one in both)
    assert off(found, expected) < 1e-4
    assert off(found, before) > 1e-3
    both[0].unload_loras()
    assert torch.equal(both[0].predict_noise(noise, 500, text), before)
    assert conversions == ["forward"]


def test_the_names_of_what_is_kept_hold_a_loras_scale(ours, tmp_path):
    file, names = lora(tmp_path, ours.components), set()
    for scale in (1, 1, 0.5):
        pipe = LatentPipeline(ours.components)
        pipe.load_lora(file, scale)
        names.add(openvino._Part(pipe.components.unet, "forward", 0)._key())
    assert len(names) == 2


def test_the_names_do_not_hold_where_a_model_comes_from(ours):
    unet = ours.components.unet
    moved = sharing_copy(unet)
    moved.register_to_config(_name_or_path="elsewhere", _use_default_values=["b", "a"])
    one, other = (openvino._Part(network, "forward", 0)._key() for network in (unet, moved))
    assert one == other


def test_copies_are_torchs(ours):
    assert ours.components.unet._compiled_call_impl is not None
    assert sharing_copy(ours.components.unet)._compiled_call_impl is None


# --- what is kept ---


def test_the_next_pipeline_converts_nothing_nor_does_another_size(tiny_model, ours, conversions):
    first = ours(PROMPT, steps=2, seed=1)
    conversions.clear()
    again = load(tiny_model)
    assert again(PROMPT, steps=2, seed=1).recipes == first.recipes
    again(PROMPT, steps=1, seed=1, width=88, guidance=1)
    assert not conversions


@pytest.mark.parametrize("harm", ["a bit", "no sums"])
def test_a_damaged_file_is_made_anew(harm, tiny_model, ours, conversions):
    first = ours(PROMPT, steps=2, seed=1)
    conversions.clear()
    folder = openvino._cache() / openvino._Part(ours.components.unet, "forward", 0)._key()
    weights = (folder / "model.bin").read_bytes()
    if harm == "a bit":
        (folder / "model.bin").unlink()  # a pipeline that goes on has it mapped
        (folder / "model.bin").write_bytes(weights[:-9] + bytes([weights[-9] ^ 1]) + weights[-8:])
    else:
        (folder / "sha256").unlink()
    assert load(tiny_model)(PROMPT, steps=2, seed=1).recipes == first.recipes
    assert conversions == ["forward"]
    assert (folder / "model.bin").read_bytes() == weights


def test_what_another_process_converts_meanwhile_is_taken(
    tiny_model, ours, conversions, monkeypatch
):
    first = ours(PROMPT, steps=2, seed=1)
    conversions.clear()
    folder = openvino._cache() / openvino._Part(ours.components.unet, "forward", 0)._key()
    away = folder.rename(folder.with_name("away"))

    @contextlib.contextmanager
    def waiting(place):
        assert place == folder.parent
        away.rename(folder)
        yield

    monkeypatch.setattr(openvino, "folder_lock", waiting)
    assert load(tiny_model)(PROMPT, steps=2, seed=1).recipes == first.recipes
    assert not conversions


def test_without_a_cache_folder_it_converts_in_silence(
    tiny_model, monkeypatch, tmp_path, pipe, capfd
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    openvino._cache.cache_clear()
    noise, text = torch.randn(1, 4, 8, 8), pipe.encode_prompt(PROMPT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = load(tiny_model).predict_noise(noise, 5, text)
    finally:
        openvino._cache.cache_clear()
    assert off(found, pipe.predict_noise(noise, 5, text)) < 1e-4
    assert capfd.readouterr() == ("", "")
    assert sys.modules["openvino_telemetry"] is None  # which would tell others


# A process of its own, as the next start is one.
START = """
import json, sys
from ldm_toolkit.fastpath import openvino
converted = []
own = openvino._Part._convert
def counted(self, *rest):
    converted.append(self._method)
    own(self, *rest)
openvino._Part._convert = counted
from ldm_toolkit.pipeline import LatentPipeline
pipe = LatentPipeline.from_pretrained(
    sys.argv[1], device="cpu", dtype="float32", backend="openvino")
result = pipe("a dog", steps=1, seed=1, reuse_every=2)
print(json.dumps([converted, result.recipes[0].pixels_sha256]))
"""


@pytest.mark.slow
def test_the_next_process_converts_nothing(tiny_model, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", START, str(tiny_model)]
    (first, pixels), (second, same) = (
        json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        for _ in range(2)
    )
    assert (first, second, pixels) == (["whole"], [], same)


# --- what cannot be ---


def test_not_on_a_gpu():
    with pytest.raises(UserError, match="computes on CPUs, not on cuda"):
        openvino.check_backend("openvino", torch.device("cuda"), compile=False, attention="auto")


@pytest.mark.parametrize("options", [{"gate": 0.5}, {"attention_every": 2}])
def test_what_lives_in_attention_layers_is_refused(ours, options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be 1 with the backend open"):
        ours.stream(PROMPT, **options)


def test_a_failure_is_one_line(ours, monkeypatch):
    def fails(self, rows):
        raise RuntimeError("\nException from src/core.cpp:1\nmore")

    monkeypatch.setattr(openvino._Part, "_compile", fails)
    pipe = LatentPipeline(
        dataclasses.replace(ours.components, unet=sharing_copy(ours.components.unet))
    )
    with pytest.raises(Exception, match=r"^OpenVINO failed: Exception from .*:1; go on with the"):
        pipe(PROMPT, steps=1)
