"""Model folders of strangers: every one that cannot be used is refused, in one clear line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.models.checks import check_model_folder
from ldm_toolkit.models.identity import bundled_models, find_model, weights_sha256
from ldm_toolkit.models.load import load_components
from ldm_toolkit.pipeline import LatentPipeline

Change = Callable[[Path], object]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def edit(name: str, **values: Any) -> Change:
    """Change values of a JSON file; None removes the key."""

    def change(folder: Path) -> None:
        path = folder / name
        data = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: data[key] for key in data if data[key] is not REMOVED}))

    return change


def write(name: str, text: str = "") -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def rename(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def tensors(name: str, edit_state: Callable[[dict], object]) -> Change:
    def change(folder: Path) -> None:
        state = load_file(folder / name)
        edit_state(state)
        save_file(state, folder / name)

    return change


def shards(weight_map: Any) -> Change:
    """An index beside no single file, as sharded models have."""

    def change(folder: Path) -> None:
        (folder / UNET).rename(folder / "unet/real.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{UNET}.index.json").write_text(json.dumps(index))

    return change


def wrap(state: dict[str, Any]) -> None:
    """Names below text_model., as before transformers 5.6."""
    for name in list(state):
        state[f"text_model.{name.removeprefix('text_model.')}"] = state.pop(name)


def name_as_in_2022(state: dict[str, Any]) -> None:
    """A VAE's attention under its first names."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in list(state):
        for new, before in old.items():
            if f".{new}." in name:
                state[name.replace(f".{new}.", f".{before}.")] = state.pop(name)


REMOVED = object()
INDEX = "model_index.json"
CANARY = "import pathlib; pathlib.Path(__file__).with_name('canary').write_text('ran')"
REFUSED: dict[str, tuple[Change, str]] = {
    # what it is
    "xl": (edit(INDEX, _class_name="StableDiffusionXLPipeline"), "Stable Diffusion XL"),
    "sd3": (edit(INDEX, _class_name="StableDiffusion3Pipeline"), "Stable Diffusion 3"),
    "flux": (edit(INDEX, _class_name="FluxPipeline"), "Flux"),
    "xl inpaint": (edit(INDEX, _class_name="StableDiffusionXLInpaintPipeline"), "Diffusion XL"),
    "pixart": (edit(INDEX, _class_name="PixArtAlphaPipeline"), "PixArt"),
    "upscaler": (edit(INDEX, _class_name="StableDiffusionUpscalePipeline"), "upscaler"),
    "instruct": (edit(INDEX, _class_name="StableDiffusionInstructPix2PixPipeline"), "Pix2Pix"),
    "depth": (edit(INDEX, _class_name="StableDiffusionDepth2ImgPipeline"), "depth-to-image"),
    "unknown pipeline": (edit(INDEX, _class_name="MyPipeline"), "MyPipeline"),
    "no pipeline": (edit(INDEX, _class_name=REMOVED), "StableDiffusionPipeline"),
    "custom pipeline": (edit(INDEX, _class_name=["pipeline", "My"]), "StableDiffusionPipeline"),
    "second encoder": (
        edit(INDEX, text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        "Stable Diffusion XL",
    ),
    "unknown part": (edit(INDEX, extra=["diffusers", "X"]), "unknown part 'extra'"),
    "no unet": (edit(INDEX, unet=REMOVED), "lacks the part 'unet'"),
    "null unet": (edit(INDEX, unet=[None, None]), "unet must be"),
    "flux part": (edit(INDEX, unet=["diffusers", "FluxTransformer2DModel"]), "unet must be"),
    "own unet": (edit(INDEX, unet=["my_code", "UNet2DConditionModel"]), "no code is run"),
    "own vae": (edit(INDEX, vae=["diffusers", "os.system"]), "no code is run"),
    "long part": (edit(INDEX, vae=["diffusers", "AutoencoderKL", "x"]), "vae"),
    "own scheduler": (edit(INDEX, scheduler=["diffusers", "FlowMatchEuler"]), "scheduler must be"),
    "index no object": (write(INDEX, "[]"), "must hold a JSON object"),
    "index no JSON": (write(INDEX, "{"), "is not JSON"),
    "index deep": (write(INDEX, "[" * 100_000), "is not JSON"),
    "index binary": (lambda f: (f / INDEX).write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "no index": (remove(INDEX), "no model_index.json"),
    # code
    "python at the root": (write("pipeline.py", CANARY), "contains code"),
    "python in a part": (write("unet/my_unet.py", CANARY), "contains code"),
    "python in the depth": (write("a/b/c/x.PY", CANARY), "contains code"),
    "compiled python": (write("unet/my_unet.cpython-311.pyc", CANARY), "contains code"),
    "library": (write("vae/fast.so", CANARY), "contains code"),
    "custom pipeline named": (
        edit(INDEX, custom_pipeline="lpw_stable_diffusion"),
        "no code is run",
    ),
    "community pipeline": (edit(INDEX, _class_name="lpw_stable_diffusion"), "unknown kind"),
    "trust in the index": (edit(INDEX, trust_remote_code=True), "no code is run"),
    "scheduler's code": (
        edit("scheduler/scheduler_config.json", auto_map={"S": "x.Y"}),
        "no code is run",
    ),
    "auto_map": (edit("text_encoder/config.json", auto_map={"AutoModel": "x.Y"}), "no code is run"),
    "trust": (edit("unet/config.json", trust_remote_code=True), "no code is run"),
    "tokenizer's code": (
        edit("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "no code is run",
    ),
    "other class in the part": (edit("unet/config.json", _class_name="MyUNet"), "is for 'MyUNet'"),
    "other text model": (edit("text_encoder/config.json", model_type="t5"), "CLIP text model"),
    # values
    "9 channels": (edit("unet/config.json", in_channels=9), "1 mismatched keys"),
    "8 channels": (edit("unet/config.json", in_channels=8), "Pix2Pix"),
    "5 channels": (edit("unet/config.json", in_channels=5), "depth-to-image"),
    "text channels": (edit("unet/config.json", in_channels="4"), "in_channels"),
    "heads that do not divide": (edit("unet/config.json", attention_head_dim=0), "unet cannot be"),
    "text heads": (edit("text_encoder/config.json", num_attention_heads=5), "text_encoder cannot"),
    "text activation": (edit("text_encoder/config.json", hidden_act="os.system"), "text_encoder"),
    "text width": (edit("unet/config.json", cross_attention_dim=768), "of different models"),
    "width list": (edit("unet/config.json", cross_attention_dim=[32, 32]), "of different models"),
    "xl conditioning": (edit("unet/config.json", addition_embed_type="text_time"), "XL"),
    "distilled": (edit("unet/config.json", time_cond_proj_dim=256), "guidance-distilled"),
    "giant": (edit("unet/config.json", block_out_channels=[10**9]), "block_out_channels"),
    "deep": (edit("unet/config.json", layers_per_block=10**6), "layers_per_block"),
    "sample size": (edit("unet/config.json", sample_size=10**6), "sample_size"),
    "16 latents": (edit("vae/config.json", latent_channels=16), "Flux"),
    "scale 0": (edit("vae/config.json", scaling_factor=0), "scaling_factor"),
    "scale text": (edit("vae/config.json", scaling_factor="1"), "scaling_factor"),
    "scale NaN": (edit("vae/config.json", scaling_factor=float("nan")), "scaling_factor"),
    "80 tokens": (edit("text_encoder/config.json", max_position_embeddings=80), "77"),
    "layers": (edit("text_encoder/config.json", num_hidden_layers=10**7), "num_hidden_layers"),
    "flow": (
        edit("scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        "prediction_type",
    ),
    "betas": (edit("scheduler/scheduler_config.json", beta_schedule="x"), "beta_schedule"),
    "beta": (edit("scheduler/scheduler_config.json", beta_end=2), "beta_end"),
    "timesteps": (edit("scheduler/scheduler_config.json", num_train_timesteps=0), "num_train"),
    "dynamic": (edit("scheduler/scheduler_config.json", use_flow_sigmas=True), "flow-matching"),
    # files
    "no config": (remove("unet/config.json"), "lacks unet/config.json"),
    "no weights": (remove(UNET), "lacks unet/diffusion_pytorch_model.safetensors"),
    "pickle only": (rename(UNET, "unet/diffusion_pytorch_model.bin"), "pickled weights"),
    "variant only": (
        rename(UNET, "unet/diffusion_pytorch_model.fp16.safetensors"),
        "choose with variant",
    ),
    "tokenizer's own files": (
        edit("tokenizer/tokenizer_config.json", fast_tokenizer_files=["../tokenizer.x.json"]),
        "fast_tokenizer_files",
    ),
    "no vocabulary": (remove("tokenizer/vocab.json"), "lacks tokenizer/vocab.json"),
    "weights are a folder": (
        lambda f: ((f / UNET).unlink(), (f / UNET).mkdir()),
        "not a regular file",
    ),
    "link out": (link(UNET, "/etc/hostname"), "leads out"),
    "link up": (link(UNET, "../../../x"), "leads out"),
    "link loop": (link(UNET, Path(UNET).name), "diffusion_pytorch_model.safetensors"),
    "device": (link(TEXT, "/dev/zero"), "leads out"),
    "fifo": (lambda f: ((f / TEXT).unlink(), os.mkfifo(f / TEXT)), "not a regular file"),
    "shard up": (shards({"a": "../x.safetensors"}), "a safetensors file beside it"),
    "shard absolute": (shards({"a": "/etc/x.safetensors"}), "a safetensors file beside it"),
    "shard backslash": (shards({"a": "..\\x.safetensors"}), "a safetensors file beside it"),
    "shard drive": (shards({"a": "C:\\x.safetensors"}), "a safetensors file beside it"),
    "shard UNC": (shards({"a": "\\\\host\\share\\x.safetensors"}), "safetensors file beside it"),
    "shard case": (shards({"a": "real.safetensors", "b": "REAL.safetensors"}), "lacks unet/REAL"),
    "shard linked out": (
        lambda f: (shards({"a": "x.safetensors"})(f), link("unet/x.safetensors", "/etc/hosts")(f)),
        "leads out",
    ),
    "part linked out": (
        lambda f: (shutil.move(f / "unet", f.parent / "unet"), link("unet", "../unet")(f)),
        "leads out",
    ),
    "config linked out": (link("unet/config.json", "/etc/hostname"), "leads out"),
    "vocabulary linked out": (link("tokenizer/vocab.json", "/etc/hostname"), "leads out"),
    "shard missing": (shards({"a": "no.safetensors"}), "lacks unet/no.safetensors"),
    "shard NUL": (shards({"a": "a\0b.safetensors"}), "a safetensors file beside it"),
    "shard long": (shards({"a": "x" * 5000 + ".safetensors"}), "a safetensors file beside it"),
    "shard pickle": (shards({"a": "x.bin"}), "a safetensors file beside it"),
    "shard number": (shards({"a": 5}), "a safetensors file beside it"),
    "shards empty": (shards({}), "no weight_map"),
    "shards no map": (shards(["a"]), "no weight_map"),
    # tensors
    "missing tensor": (tensors(UNET, lambda s: s.pop("conv_in.weight")), "missing keys"),
    "unexpected tensor": (
        tensors(UNET, lambda s: s.update({"lora.down": torch.zeros(2)})),
        "unexpected keys",
    ),
    "other shape": (
        tensors(UNET, lambda s: s.update({"conv_in.bias": torch.zeros(5)})),
        "1 mismatched keys, the first is 'conv_in.bias'",
    ),
    "missing text tensor": (
        tensors(TEXT, lambda s: s.pop(next(iter(s)))),
        "text_encoder: 1 missing keys",
    ),
    "text shape": (
        tensors(TEXT, lambda s: s.update({next(iter(s)): torch.zeros(5)})),
        "text_encoder",
    ),
    # the card
    "card's name": (write("ldm_toolkit.json", '{"name": "a\\nb"}'), "short text"),
    "card's size": (write("ldm_toolkit.json", '{"defaults": {"width": 13}}'), "multiple of 8"),
    "card's scheduler": (
        write("ldm_toolkit.json", '{"defaults": {"scheduler": "os:system"}}'),
        "no scheduler",
    ),
    "card's rescale": (
        write("ldm_toolkit.json", '{"defaults": {"guidance_rescale": 9}}'),
        "0 to 1",
    ),
    "card's defaults": (write("ldm_toolkit.json", '{"defaults": 5}'), "must be an object"),
}


REMOTE_CODE = [
    *("python at the root", "python in a part", "python in the depth", "compiled python"),
    *("library", "custom pipeline", "custom pipeline named", "community pipeline", "auto_map"),
    *("trust", "trust in the index", "tokenizer's code", "scheduler's code", "own unet", "own vae"),
    *("own scheduler", "other class in the part", "unknown part"),
]
TRAVERSAL = [
    *("link out", "link up", "link loop", "device", "fifo", "weights are a folder", "shard up"),
    *("shard absolute", "shard backslash", "shard drive", "shard UNC", "shard NUL", "shard long"),
    *("shard case", "shard missing", "shard linked out", "shards empty", "shard number"),
    *("tokenizer's own files", "part linked out", "config linked out", "vocabulary linked out"),
]


def test_the_tables_are_as_long_as_promised() -> None:
    assert len({*REMOTE_CODE} & {*REFUSED}) == len(REMOTE_CODE) >= 12
    assert len({*TRAVERSAL} & {*REFUSED}) == len(TRAVERSAL) >= 16


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and links need a POSIX system")
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, folder: Path) -> None:
    change, words = REFUSED[case]
    change(folder)
    with pytest.raises(UserError) as caught:
        LatentPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 600
    assert not list(folder.rglob("canary"))


ACCEPTED: dict[str, Change] = {
    "safety checker": edit(
        INDEX,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=[None, None],
    ),
    "fast tokenizer": edit(INDEX, tokenizer=["transformers", "CLIPTokenizerFast"]),
    "other scheduler": edit(INDEX, scheduler=["diffusers", "EulerDiscreteScheduler"]),
    "pickle beside": write("unet/diffusion_pytorch_model.bin", "not read"),
    "readme and root checkpoint": write("v1-5-pruned.ckpt", "not read"),
    "position ids": tensors(
        TEXT,
        lambda s: s.update(
            {
                f"{'text_model.' if any(k.startswith('text_model.') for k in s) else ''}"
                "embeddings.position_ids": torch.arange(77)[None]
            }
        ),
    ),
    "half precision": tensors(UNET, lambda s: s.update({k: v.half() for k, v in s.items()})),
    "shards": shards("filled below"),
    "no maximum": edit("tokenizer/tokenizer_config.json", model_max_length=REMOVED),
    # diffusers itself would prefer the index
    "index beside the weights": write(f"{UNET}.index.json", '{"weight_map": {"a": "../x"}}'),
    "image-to-image": edit(INDEX, _class_name="StableDiffusionImg2ImgPipeline"),
    "inpainting with 4 channels": edit(INDEX, _class_name="StableDiffusionInpaintPipeline"),
    "wrapped text model": tensors(TEXT, lambda s: wrap(s)),
    "attention of 2022": tensors(VAE, lambda s: name_as_in_2022(s)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, folder: Path) -> None:
    if case == "shards":
        names = load_file(folder / UNET)
        shards(dict.fromkeys(names, "real.safetensors"))(folder)
    else:
        ACCEPTED[case](folder)
    pipe = LatentPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    assert len(pipe.tokenize("a dog")) == 77
    if case == "other scheduler":
        assert pipe.components.defaults.scheduler == "euler"


def test_hub_cache_layout(tiny_model: Path, tmp_path: Path) -> None:
    """snapshots/<commit>/… linking into blobs/ is how the hub's cache looks."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny_model.rglob("*"))):
        if path.is_file():
            shutil.copy(path, blobs / str(number))
            place = snapshot / path.relative_to(tiny_model)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    found = load_components(snapshot, device="cpu", dtype="float32")
    assert found.identity.sha256 == load_components(tiny_model, device="cpu").identity.sha256


def test_hub_cache_with_shared_blobs(tiny_model: Path, tmp_path: Path) -> None:
    """Equal files of several models lie once in the cache's own blobs/ab/."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "models--a--b" / "snapshots" / "abc"))
    shared = tmp_path / "blobs" / "ab" / "abcdef"
    shared.parent.mkdir(parents=True)
    (model / UNET).rename(shared)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "1").symlink_to("../../blobs/ab/abcdef")
    (model / UNET).symlink_to("../../../blobs/1")
    assert check_model_folder(model).files[UNET] == model / UNET
    (model / UNET).unlink()
    (model / UNET).symlink_to("../../../../elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"x")
    with pytest.raises(ModelError, match="leads out"):
        check_model_folder(model)


class TestIdentity:
    def test_hash_is_sha256sum_of_sha256sums(self, tiny_model: Path) -> None:
        checked = check_model_folder(tiny_model)
        assert list(checked.weights) == ["unet", "vae", "text_encoder"]
        done = subprocess.run(
            ["sha256sum", *sorted(checked.files)], cwd=tiny_model, capture_output=True, check=True
        )
        assert weights_sha256(checked.files) == hashlib.sha256(done.stdout).hexdigest()

    def test_hash_changes_with_any_weight(self, folder: Path) -> None:
        before = load_components(folder, device="cpu", dtype="float32").identity
        tensors(UNET, lambda s: s["conv_in.bias"].add_(1e-3))(folder)
        after = load_components(folder, device="cpu", dtype="float32").identity
        assert before.sha256 != after.sha256
        assert before.name == after.name == "model"

    def test_card(self, folder: Path) -> None:
        card = {
            "name": "storybook",
            "revision": "3",
            "defaults": {"scheduler": "DPM++ 2M", "width": 128, "guidance_rescale": 0.5},
        }
        (folder / "ldm_toolkit.json").write_text(json.dumps(card))
        found = load_components(folder, device="cpu", dtype="float32")
        assert (found.identity.name, found.identity.revision) == ("storybook", "3")
        assert found.defaults.scheduler == "dpm++_2m"
        assert (found.defaults.width, found.defaults.height) == (128, 64)
        assert found.defaults.guidance_rescale == 0.5

    def test_find_model(self, tmp_path: Path, tiny_model: Path) -> None:
        assert find_model(tiny_model) == tiny_model
        assert find_model(str(tiny_model)) == tiny_model
        with pytest.raises(ModelError, match="neither a folder nor a bundled model"):
            find_model(tmp_path / "no")
        with pytest.raises(ModelError, match="is a file"):
            find_model(tiny_model / INDEX)
        for wrong in ("", "a\0b", "x" * 5000, "runwayml/stable-diffusion-v1-5"):
            if wrong:
                with pytest.raises(ModelError):
                    find_model(wrong)

    def test_bundled(self) -> None:
        for name, folder in bundled_models().items():
            assert find_model(name) == folder

    def test_diffusers_draws_with_it_as_it_is(self) -> None:
        """Without a word about dtypes, although the files are float16."""
        pipe = StableDiffusionPipeline.from_pretrained(bundled_models()["storybook"])
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
        pipe.set_progress_bar_config(disable=True)
        small = {"num_inference_steps": 1, "height": 64, "width": 64}
        assert pipe("a red car", **small).images[0].size == (64, 64)


def test_weights_are_loaded_in_the_target_dtype(tiny_model: Path) -> None:
    found = load_components(tiny_model, device="cpu", dtype="bf16")
    for network in (found.unet, found.vae, found.text_encoder):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_are_the_files(tiny_model: Path) -> None:
    found = load_components(tiny_model, device="cpu", dtype="float32")
    stored = load_file(tiny_model / UNET)
    state = found.unet.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[key], state[key]) for key in stored)


def test_loading_opens_no_socket_and_prints_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_components(tiny_model, device="cpu", dtype="float32")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
