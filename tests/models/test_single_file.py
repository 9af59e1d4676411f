"""Checkpoints in one file: bit for bit the model in the diffusers layout they were made of."""

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants
from ldm_layout import State, checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_toolkit.cli.model import choose_model
from ldm_toolkit.cli.options import parse
from ldm_toolkit.cli.request import check
from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.files import sha256_file
from ldm_toolkit.models import single_file, vocabulary
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.conversion import convert, measured_prediction
from ldm_toolkit.models.identity import bundled_models
from ldm_toolkit.models.load import load_components
from ldm_toolkit.models.tokenizer import model_tokenizer, published_tokenizer

Factory = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "1.x": {},
    "2.x": {"second": True, "prediction_type": "v_prediction"},
    "1.x inpainting": {"in_channels": 9},
    "2.x inpainting": {"second": True, "in_channels": 9},
}
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def stored(folder: Path) -> dict[str, State]:
    return {part: load_file(folder / name) for part, name in WEIGHTS.items()}


def tiny_checkpoint(folder: Path, *, second: bool) -> State:
    parts = stored(folder)
    return checkpoint(
        parts["unet"], parts["vae"], parts["text_encoder"], layers=1, levels=4, second=second
    )


@pytest.fixture
def as_published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let the package's configurations be those of a tiny model."""

    def patch(folder: Path) -> None:
        def configurations(kind: str) -> dict[str, Any]:
            names = {part: f"{part}/config.json" for part in WEIGHTS}
            names["scheduler"] = "scheduler/scheduler_config.json"
            configs = {
                part: json.loads((folder / name).read_text()) for part, name in names.items()
            }
            configs["unet"] |= {"in_channels": 4, "sample_size": 12 if kind == "2.x" else 8}
            return configs

        monkeypatch.setattr(single_file, "_configurations", configurations)

    return patch


@pytest.fixture
def write(
    model_factory: Factory, as_published: Callable[[Path], None], tmp_path: Path
) -> Callable[..., tuple[Path, Path]]:
    """Writes a tiny checkpoint of a kind; returns the file and the folder it was made of."""

    def make(
        kind: str = "1.x",
        change: Callable[[State], object] = lambda state: None,
        metadata: dict[str, str] | None = None,
    ) -> tuple[Path, Path]:
        folder = model_factory(**KINDS[kind])
        as_published(folder)
        state = tiny_checkpoint(folder, second="2.x" in kind)
        change(state)
        path = tmp_path / "my model.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, path, metadata)
        return path, folder

    return make


def load(path: Path, folder: Path, **options: Any) -> Components:
    options = {"tokenizer": folder / "tokenizer", **options}
    return load_components(path, device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_knows_the_defaults_before_loading(
    kind: str, write: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = write(kind)
    monkeypatch.chdir(path.parent)
    known = check(parse(["a dog", "--model", path.name])).defaults
    settled = single_file.check_single_file(path).prediction is not None
    assert known == (load(path, folder).defaults if settled else None)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_those_of_the_folder(
    kind: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    path, folder = write(kind)
    found = load(path, folder)
    for part, expected in stored(folder).items():
        state = getattr(found, part).state_dict()
        wrapped = "text_model." if any(n.startswith("text_model.") for n in state) else ""
        expected = {
            f"{wrapped}{name.removeprefix('text_model.')}" if part == "text_encoder" else name: v
            for name, v in expected.items()
        }
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert found.inpainting is ("inpainting" in kind)
    assert found.identity.name == "my model"
    assert found.identity.sha256 == sha256_file(path)
    assert str(path.parent) not in str(found.identity)
    # Random weights answer noise with something else: 2.x without a word about it is v.
    wanted = "v_prediction" if kind == "2.x" else "epsilon"
    assert found.scheduler_config["prediction_type"] == wanted
    assert found.defaults.width == (96 if kind == "2.x" else 64)


@pytest.mark.parametrize(
    ("kind", "metadata", "wanted"),
    [
        ("2.x", {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("2.x", {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ("2.x", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("1.x", {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("1.x", {"modelspec.prediction_type": "nonsense"}, "epsilon"),
    ],
)
def test_a_stated_prediction_type_holds(
    kind: str, metadata: dict[str, str], wanted: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    path, _ = write(kind, metadata=metadata)
    found = single_file.check_single_file(path)
    assert found.prediction == wanted
    configs = found.settled(wanted)
    assert configs["scheduler"]["prediction_type"] == wanted
    assert configs["unet"]["sample_size"] == (12 if wanted == "v_prediction" and "2" in kind else 8)


class TestMeasuredPrediction:
    class Answering(torch.nn.Linear):
        """A UNet that has seen enough: at the noisiest step the noise is its input."""

        def __init__(self, sign: float) -> None:
            super().__init__(1, 1)
            self.sign = sign
            self.config = SimpleNamespace(cross_attention_dim=8)

        def forward(self, latents: Any, timestep: Any, text: Any, return_dict: bool) -> Any:
            picture = torch.linspace(-1, 1, latents.numel()).reshape(latents.shape)
            answer = latents + 0.1 * picture if self.sign > 0 else 0.07 * latents - picture
            return (answer,)

    @pytest.mark.parametrize(("sign", "wanted"), [(1, "epsilon"), (-1, "v_prediction")])
    def test_of_what_theory_says(self, sign: float, wanted: str) -> None:
        assert measured_prediction(self.Answering(sign)) == wanted

    def test_of_a_trained_model(self) -> None:
        folder = bundled_models()["storybook"]
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
        config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        assert measured_prediction(unet) == config["prediction_type"]


IN = "model.diffusion_model.input_blocks.0.0.weight"
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
QUANT = "first_stage_model.quant_conv.weight"
FIRST_TEXT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"


def put(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: state.update({name: torch.zeros(shape)})


def drop(start: str) -> Callable[[State], object]:
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(start)]


WRONG: dict[str, tuple[Callable[[State], object], str]] = {
    "xl": (put("conditioner.embedders.1.model.ln_final.weight", 2), "Stable Diffusion XL"),
    "sd3": (put("model.diffusion_model.joint_blocks.0.x_block.w", 2), "Stable Diffusion 3"),
    "flux": (put("double_blocks.0.img_attn.norm.key_norm.scale", 2), "Flux"),
    "controlnet": (put("control_model.time_embed.0.weight", 2), "ControlNet"),
    "lora": (put("lora_unet_down_blocks_0.lora_down.weight", 2), "a LoRA"),
    "one part": (put("down_blocks.0.resnets.0.conv1.weight", 2), "diffusers layout"),
    "depth": (put(IN, 32, 5, 3, 3), "depth-to-image"),
    "upscaler": (put(IN, 32, 7, 3, 3), "upscaler"),
    "instruct": (put(IN, 32, 8, 3, 3), "InstructPix2Pix"),
    "6 channels": (put(IN, 32, 6, 3, 3), "6 input channels"),
    "flat": (put(IN, 32), "no UNet"),
    "no unet": (drop("model.diffusion_model."), "no UNet"),
    "no text": (drop("cond_stage_model."), "no text encoder"),
    "no vae": (drop("first_stage_model."), "holds no vae"),
    "wide text": (put(TO_K, 32, 2048), "of different models"),
    "strange root": (put("my_model.weight", 2), "1 unexpected tensors, the first is 'my_model."),
    "unet more": (put("model.diffusion_model.my.weight", 2), "unet: 1 unexpected keys"),
    "unet deep": (put("model.diffusion_model.input_blocks.1.5.weight", 2), "unet: 1 unexpected"),
    "vae more": (put("first_stage_model.my.weight", 2), "vae: 1 unexpected keys"),
    "text more": (put("cond_stage_model.transformer.my.weight", 2), "text_encoder: 1 unexpected"),
    "unet less": (drop("model.diffusion_model.out.2.bias"), "unet: 1 missing keys"),
    "block less": (drop("model.diffusion_model.middle_block."), "missing keys"),
    "vae less": (drop(QUANT), "vae: 1 missing keys"),
    "text less": (drop(FIRST_TEXT), "text_encoder: 1 missing keys"),
    "vae shape": (put(QUANT, 3, 3, 1, 1), "vae: 1 mismatched keys"),
    "text shape": (put(FIRST_TEXT, 3), "text_encoder: 1 mismatched keys"),
    "vae attention flat": (put("first_stage_model.encoder.mid.attn_1.q.weight", 2), "vae:"),
    "text ids": (
        lambda s: s.update({FIRST_TEXT: torch.zeros(32, dtype=torch.int32)}),
        "text_encoder: 1 mismatched keys",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(case: str, write: Callable[..., tuple[Path, Path]]) -> None:
    change, words = WRONG[case]
    path, folder = write(change=change)
    with pytest.raises(ModelError) as caught:
        load(path, folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_strange_tensors_of_the_second_text_encoder(
    write: Callable[..., tuple[Path, Path]],
) -> None:
    path, folder = write("2.x", put("cond_stage_model.model.my.weight", 2))
    with pytest.raises(ModelError, match="text_encoder: 1 unexpected keys"):
        load(path, folder)


def test_broken_files_are_refused_before_reading(
    write: Callable[..., tuple[Path, Path]],
) -> None:
    path, folder = write()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="broken or cut short"):
        load(path, folder)
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ModelError, match="broken or cut short"):
        load(path, folder)
    with pytest.raises(UserError, match="variant is for folders"):
        load(path, folder, variant="fp16")


def test_another_vae(write: Callable[..., tuple[Path, Path]]) -> None:
    """A file without one is whole with it, and the hash is of both."""
    path, folder = write(change=drop("first_stage_model."))
    found = load(path, folder, vae=folder / "vae")
    expected = load_file(folder / WEIGHTS["vae"])
    assert all(torch.equal(found.vae.state_dict()[name], expected[name]) for name in expected)
    assert found.identity.sha256 not in (sha256_file(path), load(folder, folder).identity.sha256)


@pytest.mark.parametrize("vae", [False, True])
def test_the_hash_without_loading(vae: bool, write: Callable[..., tuple[Path, Path]]) -> None:
    path, folder = write()
    for model in (path, folder):
        options = {"vae": folder / "vae"} if vae else {}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        choice, _ = choose_model(parse(["x", "--model", str(model), *words]), None)
        assert choice.weights_sha256() == load(model, folder, **options).identity.sha256


def test_an_ending_in_capitals_is_no_pickle(write: Callable[..., tuple[Path, Path]]) -> None:
    path, folder = write()
    before = load(path, folder).identity
    path = path.rename(path.with_suffix(".SAFETENSORS"))
    assert load(path, folder).identity == before


def test_a_pickled_checkpoint(write: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    path, folder = write("2.x")
    pickled = tmp_path / "old.ckpt"
    torch.save({"state_dict": load_file(path), "epoch": 3, "global_step": 875000}, pickled)
    with pytest.raises(ModelError, match=r"old\.ckpt is a pickle"):
        load(pickled, folder)
    found, expected = load(pickled, folder, allow_pickle=True), load(path, folder)
    for part in WEIGHTS:
        one, other = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert found.identity.name == "old"
    assert found.identity.sha256 == sha256_file(pickled)
    assert found.scheduler_config == expected.scheduler_config


# --- the published architectures ---

# Parameters as the models' own files have them.
PARAMETERS = {
    ("1.x", 4): {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    ("1.x", 9): {"unet": 859_535_364, "vae": 83_653_863, "text_encoder": 123_060_480},
    ("2.x", 4): {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    ("2.x", 9): {"unet": 865_925_124, "vae": 83_653_863, "text_encoder": 340_387_840},
}


@pytest.mark.parametrize(("kind", "channels"), PARAMETERS)
def test_published_architectures(kind: str, channels: int) -> None:
    """Right sizes, and every tensor of the full layout finds its place; no byte is computed."""
    configs = single_file._configurations(kind)
    configs["unet"]["in_channels"] = channels
    with init_empty_weights():
        networks = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        }
    counts = {part: sum(p.numel() for p in net.parameters()) for part, net in networks.items()}
    assert counts == PARAMETERS[kind, channels]
    states = {
        part: {n: torch.empty(v.shape, dtype=torch.bfloat16) for n, v in net.state_dict().items()}
        for part, net in networks.items()
    }
    state = checkpoint(
        states["unet"],
        states["vae"],
        states["text_encoder"],
        layers=2,
        levels=4,
        second=kind == "2.x",
    )
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found = single_file.describe("x.safetensors", shapes, {})
    assert (found.kind, found.configs["unet"]["in_channels"]) == (kind, channels)
    for part, expected in states.items():
        got = convert(part, configs[part], {name: state[name] for name in found.names[part]})
        got = {name.removeprefix("text_model."): value.shape for name, value in got.items()}
        assert got == {n.removeprefix("text_model."): v.shape for n, v in expected.items()}


# --- tokenizers ---


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no open_clip."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path / "hub"


@pytest.fixture
def open_clip(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_cache: Path
) -> Path:
    """A package open_clip that must not be imported, with the tiny model's merges."""
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('open_clip was imported')")
    merges = (tiny_model / "tokenizer/merges.txt").read_text().split("\n", 1)[1]
    with gzip.open(package / "bpe_simple_vocab_16e6.txt.gz", "wt") as file:
        file.write('"bpe_simple_vocab_16e6.txt#version: 0.2\n' + merges)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return package


def test_the_published_vocabulary(open_clip: Path, tiny_model: Path) -> None:
    path = vocabulary.find_published()
    assert path.parent == open_clip
    ours = published_tokenizer(path)
    theirs = CLIPTokenizer.from_pretrained(str(tiny_model / "tokenizer"))
    for text in ("a dog wearing a hat", "Ein Käfer, 7 €! \n\n🐶 dog's", "beachhouse", ""):
        got = ours(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
        expected = theirs(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert ours.convert_ids_to_tokens(got) == theirs.convert_ids_to_tokens(expected)
    # Ids that anybody can look up in CLIP's vocabulary.
    ids = ours.convert_tokens_to_ids(["!", "a", "a</w>", "!</w>", "Ġ", "<|startoftext|>"])
    assert ids[:5] == [0, 64, 320, 256, 220]
    assert ids[5] == len(ours) - 2
    assert ours.model_max_length == 77
    assert published_tokenizer(path, "!").pad_token_id == 0


@pytest.mark.parametrize("kind", ["1.x", "2.x"])
def test_a_file_takes_it(
    kind: str, open_clip: Path, write: Callable[..., tuple[Path, Path]]
) -> None:
    path, _ = write(kind)
    found = load_components(path, device="cpu", dtype="float32")
    assert found.tokenizer.pad_token == ("!" if kind == "2.x" else "<|endoftext|>")
    assert "open_clip" not in sys.modules


def test_the_hubs_cache_comes_first(
    open_clip: Path, no_cache: Path, tiny_model: Path, write: Callable[..., tuple[Path, Path]]
) -> None:
    (open_clip / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"not read")
    repository = no_cache / "models--openai--clip-vit-large-patch14"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs/main").write_text("a" * 40)
    for path in (tiny_model / "tokenizer").iterdir():
        shutil.copy(path, repository / "blobs" / path.stem)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.stem}")
    path, _ = write()
    found = load_components(path, device="cpu", dtype="float32")
    own = CLIPTokenizer.from_pretrained(str(tiny_model / "tokenizer"))
    assert found.tokenizer("a dog")["input_ids"] == own("a dog")["input_ids"]
    (snapshot / "merges.txt").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_components(path, device="cpu", dtype="float32")


def test_the_tokenizer_alone(open_clip: Path, write: Callable[..., tuple[Path, Path]]) -> None:
    path, folder = write("2.x")
    text = "a dog wearing a hat"
    expected = load_components(path, device="cpu", dtype="float32").tokenizer(text)["input_ids"]
    assert model_tokenizer(path)(text)["input_ids"] == expected
    given = model_tokenizer(path, tokenizer=folder / "tokenizer")
    own = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    assert given(text)["input_ids"] == own(text)["input_ids"]


def test_no_tokenizer_at_all(no_cache: Path, write: Callable[..., tuple[Path, Path]]) -> None:
    path, _ = write()
    for load in (lambda: load_components(path, device="cpu"), lambda: model_tokenizer(path)):
        with pytest.raises(ModelError) as caught:
            load()
        for way in ("a folder with tokenizer", "hf download openai/clip", "toolkit[single-file]"):
            assert way in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"no gzip", gzip.compress(b"#\nthree words here\n", mtime=0)]
)
def test_a_broken_vocabulary(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(data)
    if data:
        with pytest.raises(ModelError, match="bpe_simple"):
            vocabulary.read_published(path)
    else:
        assert len(vocabulary.read_published(path)[0]) == 514
