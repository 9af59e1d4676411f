"""LoRAs and textual inversions: against diffusers' own loaders and against merged weights."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm_toolkit.cli.model import _lora, _other_adapters
from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.files import sha256_file
from ldm_toolkit.models import identity
from ldm_toolkit.models.adapters import load_embedding, load_lora, unload_loras
from ldm_toolkit.models.components import Components
from ldm_toolkit.models.identity import EmbeddingIdentity, LoraIdentity
from ldm_toolkit.models.load import load_components
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.prompts import encode_prompt
from ldm_toolkit.tokens import tokenize

BLOCK = "down_blocks.0.attentions.0"
MODULES = {
    "unet": [
        f"{BLOCK}.transformer_blocks.0.attn1.to_q",
        f"{BLOCK}.transformer_blocks.0.attn2.to_k",
        f"{BLOCK}.transformer_blocks.0.attn1.to_out.0",
        f"{BLOCK}.transformer_blocks.0.ff.net.0.proj",
        f"{BLOCK}.proj_in",
        "down_blocks.0.resnets.0.conv1",
    ],
    "text_encoder": [
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.1.self_attn.out_proj",
        "encoder.layers.0.mlp.fc1",
    ],
}
Halves = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
File = Callable[..., Path]


@pytest.fixture(scope="module")
def components(pipe: LatentPipeline) -> Components:
    return pipe.components


def halves(components: Components, seed: int = 0, rank: int = 2, parts: Any = MODULES) -> Halves:
    """(network, module) -> random down and up."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for part in parts:
        for module in MODULES[part]:
            weight = getattr(components, part).get_submodule(module).weight
            one = (1,) * (weight.ndim - 2)
            down = torch.randn(rank, *weight.shape[1:], generator=generator)
            made[part, module] = down, torch.randn(len(weight), rank, *one, generator=generator) / 4
    return made


def in_peft(layers: Halves, prefix: str = "text_model.") -> dict[str, torch.Tensor]:
    tensors = {}
    for (part, module), (down, up) in layers.items():
        name = f"{part}.{prefix if part == 'text_encoder' else ''}{module}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def magnitudes(components: Components, layers: Halves) -> dict[tuple[str, str], torch.Tensor]:
    """Random lengths of each output's weights, in the shapes of a DoRA."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for part, module in layers:
        weight = getattr(components, part).get_submodule(module).weight
        shape = (1, len(weight), 1, 1) if weight.ndim == 4 else (len(weight),)
        made[part, module] = 0.5 + torch.rand(shape, generator=generator)
    return made


def in_dora(components: Components, layers: Halves) -> dict[str, torch.Tensor]:
    lengths = {f"{part}.{m}": v for (part, m), v in magnitudes(components, layers).items()}
    named = {f"{name}.lora_magnitude_vector": length for name, length in lengths.items()}
    return in_peft(layers, "") | named


def in_kohya(layers: Halves, alphas: Mapping[str, float]) -> dict[str, torch.Tensor]:
    tensors = {}
    for (part, module), (down, up) in layers.items():
        start = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        name = start + module.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if module in alphas:
            tensors[f"{name}.alpha"] = torch.tensor(float(alphas[module]))
    return tensors


def merged(components: Components, layers: Halves, factor: Callable[[str], float]) -> Components:
    """The model with the LoRA computed into its weights."""
    networks = {part: copy.deepcopy(getattr(components, part)) for part in MODULES}
    for (part, module), (down, up) in layers.items():
        weight = networks[part].get_submodule(module).weight
        change = up.flatten(1) @ down.flatten(1)
        weight.data += factor(module) * change.reshape(weight.shape)
    return dataclasses.replace(components, **networks)


def with_lengths(components: Components, layers: Halves) -> Components:
    """The model with each adapted output's weights brought to its magnitude."""
    networks = {part: copy.deepcopy(getattr(components, part)) for part in MODULES}
    for (part, module), lengths in magnitudes(components, layers).items():
        weight = networks[part].get_submodule(module).weight
        rows = weight.data.flatten(1)
        rows *= lengths.reshape(-1, 1) / rows.norm(dim=1, keepdim=True)
    return dataclasses.replace(components, **networks)


@torch.no_grad()
def outputs(components: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What UNet and text encoder make of fixed inputs; also of a diffusers pipeline."""
    generator = torch.Generator().manual_seed(1)
    dtype = components.unet.dtype
    latents = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    words = torch.randn(1, 77, 32, generator=generator).to(dtype)
    ids = torch.tensor([tokenize("a red dog", components.tokenizer)])
    noise = components.unet(latents, 500, words, return_dict=False)[0]
    return noise, components.text_encoder(ids).last_hidden_state


def close(one: Any, other: Any, tolerance: float = 2e-5) -> None:
    for ours, theirs in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def bits(components: Components) -> dict[str, bytes]:
    """Every weight by name."""
    return {
        f"{part}.{name}": tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for part in ("unet", "text_encoder", "vae")
        for name, tensor in getattr(components, part).state_dict().items()
    }


@pytest.fixture(autouse=True)
def _untouched(components: Components) -> Iterator[None]:
    """Whatever a test loads, well or badly: the components it started from stay as they were."""
    before, words = bits(components), len(components.tokenizer)
    yield
    assert bits(components) == before
    assert len(components.tokenizer) == words
    assert not any(p.requires_grad for p in components.unet.parameters())
    assert not hasattr(components.unet, "peft_config")


@pytest.fixture
def lora_file(tmp_path: Path) -> File:
    def write(tensors: dict[str, torch.Tensor], name: str = "my.v2", **metadata: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        if not tensors:  # safetensors fills up an empty header with what is no JSON
            path.write_bytes((8).to_bytes(8, "little") + b"{}      ")
            return path
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path

    return write


@pytest.fixture
def theirs(tiny_model: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_model)


# --- LoRAs ---


@pytest.mark.parametrize("form", ["peft", "peft, new names", "kohya"])
def test_same_as_diffusers(form: str, components: Components, lora_file: File, theirs: Any) -> None:
    layers = halves(components)
    if form == "kohya":
        path = lora_file(in_kohya(layers, {m: 1.0 for _, m in layers}))
    else:
        path = lora_file(in_peft(layers, "" if "new" in form else "text_model."))
    theirs.load_lora_weights(str(path), adapter_name="x")
    theirs.set_adapters(["x"], [0.7])
    ours = load_lora(components, path, 0.7)
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(outputs(ours), outputs(components), strict=True):
        assert (one - other).abs().max() > 1e-3
    assert ours.loras == (LoraIdentity("my.v2", 0.7, sha256_file(path)),)


def test_kohya_gives_the_same_as_its_peft_twin(components: Components, lora_file: File) -> None:
    """Their alphas in tensors, peft's in the header."""
    layers = halves(components, rank=4)
    modules = [module for _, module in layers]
    alphas = {module: 0.5 + index for index, module in enumerate(modules)}
    settings = {
        f"{part}.alpha_pattern": {f"^{module}": alphas[module] for module in MODULES[part]}
        for part in MODULES
    }
    peft = lora_file(in_peft(layers, ""), "p", lora_adapter_metadata=json.dumps(settings))
    kohya = lora_file(in_kohya(layers, alphas), "k")
    drawn = [LatentPipeline(load_lora(components, one, 0.8)) for one in (peft, kohya)]
    first, second = (pipe("a dog", steps=2, seed=1).latents for pipe in drawn)
    assert torch.equal(first, second)
    assert not torch.allclose(first, LatentPipeline(components)("a dog", steps=2, seed=1).latents)


@pytest.mark.parametrize("rank", [1, 3])
def test_same_as_merged_weights_with_alphas_of_every_kind(
    rank: int, components: Components, lora_file: File
) -> None:
    """Alphas that are given for some layers only, and differ from layer to layer."""
    layers = halves(components, rank=rank)
    modules = [module for _, module in layers]
    alphas = {module: 0.5 + index for index, module in enumerate(modules) if index % 4}
    ours = load_lora(components, lora_file(in_kohya(layers, alphas)), -0.3)
    expected = merged(components, layers, lambda m: -0.3 * alphas.get(m, rank) / rank)
    close(ours, expected)


def test_a_file_is_read_for_its_hash_once(
    components: Components, lora_file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a replay asks: for the scale of its LoRA, whether it made the picture, to load it."""
    path = lora_file(in_peft(halves(components), ""))
    read = []
    monkeypatch.setattr(
        identity, "sha256_file", lambda file: read.append(file) or sha256_file(file)
    )
    recorded = [{"name": "a", "scale": 0.25, "sha256": sha256_file(path)}]
    original: Any = SimpleNamespace(recipe=SimpleNamespace(loras=recorded, embeddings=[]))
    problems: list[str] = []
    given = _lora(str(path), recorded, problems)
    assert given == (path, 0.25)
    assert not problems + _other_adapters(original, (given,), ())
    loaded = load_lora(components, *given)
    assert loaded.loras == (LoraIdentity("my.v2", 0.25, sha256_file(path)),)
    assert read == [path.resolve()]
    path.write_bytes(path.read_bytes() + b" ")  # another file by the same name
    assert identity.adapter_sha256(path) == sha256_file(path) != recorded[0]["sha256"]


def test_two_loras_with_scales_and_other_ranks(components: Components, lora_file: File) -> None:
    first, second = halves(components), halves(components, 7, 4, ["unet"])
    one = load_lora(components, lora_file(in_peft(first), "a"), 0.5)
    both = load_lora(one, lora_file(in_peft(second), "b"), 2, name="other")
    step = merged(components, first, lambda _: 0.5)
    close(one, step)
    close(both, merged(step, second, lambda _: 2.0), 1e-4)
    assert [(lora.name, lora.scale) for lora in both.loras] == [("a", 0.5), ("other", 2.0)]
    close(one, step)  # the second changed nothing in the first
    assert not any(p.requires_grad for p in both.unet.parameters())
    assert not any(module.training for module in both.unet.modules())


def test_unloading_restores_every_bit(components: Components, lora_file: File) -> None:
    loaded = components
    for seed in (1, 2):
        loaded = load_lora(loaded, lora_file(in_peft(halves(components, seed)), f"n{seed}"))
    plain = unload_loras(loaded)
    assert bits(plain) == bits(components)
    assert plain.loras == ()
    assert all(map(torch.equal, outputs(plain), outputs(components)))
    assert len(loaded.loras) == 2
    assert unload_loras(components) is components
    again = load_lora(plain, lora_file(in_peft(halves(components, 1)), "again"))
    close(again, load_lora(components, lora_file(in_peft(halves(components, 1)), "n1")), 0)


def test_base_weights_are_shared_not_copied(components: Components, lora_file: File) -> None:
    ours = load_lora(components, lora_file(in_peft(halves(components))))
    base = {parameter.data_ptr() for parameter in components.unet.parameters()}
    new = [p for p in ours.unet.parameters() if p.data_ptr() not in base]
    assert len(new) == 2 * len(MODULES["unet"])


def test_alpha_of_a_peft_header(components: Components, lora_file: File) -> None:
    layers = halves(components, rank=4)
    first = MODULES["unet"][0]
    settings: dict[str, Any] = {
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {first: 2.0},
        "unet.r": 4,
        "unet.megatron_config": {"module": "os"},
        "text_encoder.lora_alpha": 6,
        "text_encoder.use_rslora": True,
    }
    path = lora_file(in_peft(layers), lora_adapter_metadata=json.dumps(settings))

    def factor(module: str) -> float:
        if module in MODULES["text_encoder"]:
            return 6 / 4**0.5
        return 2 / 4 if module == first else 8 / 4

    close(load_lora(components, path), merged(components, layers, factor), 1e-4)


def test_dora_as_its_paper_defines_it(components: Components, lora_file: File) -> None:
    """Liu et al. 2024, eq. 5: m (W + BA) / |W + BA|; the header's alpha counts as without DoRA."""
    layers = halves(components, rank=4)
    settings = {"unet.lora_alpha": 2, "unet.use_dora": True}
    path = lora_file(in_dora(components, layers), lora_adapter_metadata=json.dumps(settings))
    last = MODULES["text_encoder"]
    added = merged(components, layers, lambda module: 1.0 if module in last else 0.5)
    ours = load_lora(components, path)
    close(ours, with_lengths(added, layers), 1e-4)
    assert bits(unload_loras(ours)) == bits(components)


def test_dora_as_diffusers_reads_it(components: Components, lora_file: File, theirs: Any) -> None:
    path = lora_file(in_dora(components, halves(components, parts=["unet"])))
    theirs.load_lora_weights(str(path), adapter_name="x")
    theirs.set_adapters(["x"], [0.7])
    ours = load_lora(components, path, 0.7)
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"unet.use_dora": True}, "is a DoRA that lacks 6 of its magnitudes .*attn1.to_q"),
        ({"unet.use_qalora": True}, "its header asks for use_qalora, which is more than LoRA"),
        ({"unet.kasa_config": {"beta": 1}}, "its header asks for kasa_config"),
        ({"unet.init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
    ],
)
def test_headers_that_ask_for_more(
    settings: dict[str, Any], told: str, components: Components, lora_file: File
) -> None:
    text = json.dumps(settings)
    path = lora_file(in_peft(halves(components)), lora_adapter_metadata=text)
    with pytest.raises(ModelError, match=told):
        load_lora(components, path)
    plain = json.dumps({"unet.init_lora_weights": "gaussian", "unet.layer_replication": None})
    load_lora(components, lora_file(in_peft(halves(components)), lora_adapter_metadata=plain))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_stay_so(dtype: str, components: Components, lora_file: File) -> None:
    parts = {name: copy.deepcopy(getattr(components, name)) for name in MODULES}
    cast = {name: part.to(getattr(torch, dtype)) for name, part in parts.items()}
    half = dataclasses.replace(components, **cast)
    layers = halves(half)
    ours = load_lora(half, lora_file(in_peft(layers)), 0.5)
    assert {p.dtype for p in ours.unet.parameters()} == {half.dtype}
    close(ours, merged(half, layers, lambda _: 0.5), 0.1)


def test_the_pipeline_draws_with_it(components: Components, lora_file: File) -> None:
    ours = load_lora(components, lora_file(in_peft(halves(components))))
    options: dict[str, Any] = {"steps": 2, "seed": 1}
    drawn = LatentPipeline(ours)("a dog", **options).latents
    expected = LatentPipeline(merged(components, halves(components), lambda _: 1.0))
    torch.testing.assert_close(drawn, expected("a dog", **options).latents, rtol=1e-3, atol=1e-3)
    plain = LatentPipeline(components)("a dog", **options).latents
    assert (drawn - plain).abs().max() > 1e-3


def broken(kind: str, components: Components) -> tuple[dict[str, torch.Tensor], str]:
    """A LoRA file that does not fit and what the error must name."""
    good = in_peft(halves(components))
    kohya = in_kohya(halves(components), {})
    key = f"unet.{MODULES['unet'][0]}.lora_A.weight"
    some = torch.zeros(2, 32)
    dora = in_dora(components, halves(components))
    length = f"unet.{MODULES['unet'][0]}.lora_magnitude_vector"
    table: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "unknown module": (good | {"unet.nowhere.lora_A.weight": some}, "unet.nowhere.lora_A"),
        "half of an unknown one": (good | {"unet.nowhere.lora_B.weight": some}, "1 keys .*nowhere"),
        "no LoRA": ({"model.weight": some}, "model.weight"),
        "no prefix": ({k.removeprefix("unet."): v for k, v in good.items()}, "down_blocks.0"),
        "one key more": (good | {"lora_extra": some}, "lora_extra"),
        "dora": (kohya | {"lora_unet_x.dora_scale": some}, "dora_scale"),
        "dora in pieces": (
            {k: v for k, v in dora.items() if k != length},
            "a DoRA that lacks 1 of its magnitudes .*attn1.to_q",
        ),
        "dora's lengths": (dora | {length: torch.ones(31)}, r"\(31,\), not \(32,\)"),
        "dora's alone": ({length: dora[length]}, "magnitude_vector without its other half"),
        "lycoris": (kohya | {"lora_unet_mid_block.hada_w1_a": some}, "hada_w1_a"),
        "XL's second encoder": (
            {
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": some,
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": some.T,
            },
            "lora_te2_",
        ),
        "XL's blocks": (
            {
                "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": some,
                "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight": some.T,
            },
            "lora_unet_input_blocks_4_1",
        ),
        "half": ({k: v for k, v in good.items() if k != key}, "without its other half"),
        "narrow": (good | {key: torch.zeros(2, 31)}, r"\(2, 31\), not \(2, 32\)"),
        "ranks differ": (good | {key: torch.zeros(3, 32)}, r"\(32, 2\), not \(32, 3\)"),
        "whole numbers": (
            good | {key: torch.zeros(2, 32, dtype=torch.int64)},
            r"1 tensors hold whole numbers \(.*attn1.to_q.* not quantised",
        ),
        "no rank": (good | {key: torch.zeros(())}, r"\(\), not"),
        "alpha": (
            in_kohya(halves(components), {MODULES["unet"][0]: float("nan")}),
            "alpha .* finite",
        ),
        "nothing": ({}, "no tensors"),
        "norm": (good | {"unet.conv_norm_out.lora_A.weight": some}, "conv_norm_out"),
    }
    return table[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "unknown module",
        "half of an unknown one",
        "no LoRA",
        "no prefix",
        "one key more",
        "dora",
        "dora in pieces",
        "dora's lengths",
        "dora's alone",
        "lycoris",
        "XL's second encoder",
        "XL's blocks",
        "half",
        "narrow",
        "ranks differ",
        "whole numbers",
        "no rank",
        "alpha",
        "nothing",
        "norm",
    ],
)
def test_what_does_not_fit_is_named(kind: str, components: Components, lora_file: File) -> None:
    tensors, message = broken(kind, components)
    with pytest.raises(ModelError, match=message) as caught:
        load_lora(components, lora_file(tensors))
    assert "my.v2.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_other_models_lora(wide_model: Path, components: Components, lora_file: File) -> None:
    """Every layer that reads words has another width."""
    wide = load_components(wide_model, device="cpu", dtype="float32")
    with pytest.raises(ModelError, match=r"do not fit .* 768"):
        load_lora(components, lora_file(in_peft(halves(wide))))


def test_wrong_use(components: Components, lora_file: File, tmp_path: Path) -> None:
    path = lora_file(in_peft(halves(components)))
    for scale in (float("nan"), float("inf"), 10**400, True, "1", None):
        with pytest.raises(UserError, match="finite number"):
            load_lora(components, path, scale)  # type: ignore[arg-type]
    once = load_lora(components, path)
    with pytest.raises(UserError, match=r"'my\.v2' is loaded already"):
        load_lora(once, path, name="my.v2")
    names = [lora.name for lora in load_lora(load_lora(once, path), path).loras]
    assert names == ["my.v2", "my.v2-2", "my.v2-3"]  # trainers give all files one name
    assert len(load_lora(once, path, name="twice").loras) == 2
    pickle = tmp_path / "x.pt"
    pickle.write_bytes(b"x")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-8])
    wrong = {"": "no LoRA file", tmp_path: "no LoRA file", tmp_path / "x": "no LoRA file"}
    wrong |= {pickle: "not a .safetensors", cut: "broken or cut short", "a\0b": "LoRA|path"}
    for file, message in wrong.items():
        with pytest.raises(ModelError, match=message):
            load_lora(components, file)
    huge = f'{{"unet.lora_alpha": 1{"0" * 400}}}'
    for text in ("{", "[]", huge, '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": true}'):
        odd = lora_file(in_peft(halves(components)), "odd", lora_adapter_metadata=text)
        with pytest.raises(ModelError, match=r"odd\.safetensors"):
            load_lora(components, odd)


@pytest.mark.parametrize("wrong", [5, 0, b"x", ["x"], Path("x"), "\udcff"])
def test_names_and_words_are_text(wrong: Any, components: Components, lora_file: File) -> None:
    lora = lora_file(in_peft(halves(components)))
    embedding = lora_file({"<x>": torch.zeros(32)}, "e")
    with pytest.raises(UserError, match=r"a LoRA's name (must be|is not valid)"):
        load_lora(components, lora, name=wrong)
    with pytest.raises(UserError, match=r"the embedding's word \(token\) (must be|is not valid)"):
        load_embedding(components, embedding, token=wrong)


@pytest.mark.parametrize("wrong", [5, None, b"x.safetensors", ["x.safetensors"], "x" * 5000])
def test_what_is_no_path(wrong: Any, components: Components) -> None:
    for load in (load_lora, load_embedding):
        with pytest.raises(ModelError, match="is not a path") as caught:
            load(components, wrong)
        assert "\n" not in str(caught.value)


# --- textual inversion ---


@pytest.mark.parametrize("vectors", [1, 3])
def test_words_as_diffusers_reads_them(
    vectors: int, components: Components, lora_file: File, theirs: Any
) -> None:
    table = torch.randn(vectors, 32, generator=torch.Generator().manual_seed(3))
    path = lora_file({"<cat-toy>": table if vectors > 1 else table[0]})
    theirs.load_textual_inversion(str(path))
    ours = load_embedding(components, path)
    assert ours.embeddings == (EmbeddingIdentity("<cat-toy>", sha256_file(path)),)
    text = "a <cat-toy> on a <cat-toy>, red"
    expected, _ = theirs.encode_prompt(text, "cpu", 1, False)
    assert torch.equal(encode_prompt(text, ours), expected)
    assert not torch.equal(expected, encode_prompt(text, components))
    for plain in ("a dog", "<cat> toy"):
        assert torch.equal(encode_prompt(plain, ours), encode_prompt(plain, components))
    ids = tokenize("<cat-toy>", ours.tokenizer)[1 : 1 + vectors]
    assert ids == list(range(len(components.tokenizer), len(components.tokenizer) + vectors))
    weighted = encode_prompt("a (<cat-toy>:1.3)", ours)
    assert not torch.equal(weighted, encode_prompt("a <cat-toy>", ours))


def test_words_beside_loras(components: Components, lora_file: File) -> None:
    word = lora_file({"emb_params": torch.ones(2, 32)}, "style-a")
    other = lora_file({"<b>": torch.zeros(32)}, "b")
    lora = lora_file(in_peft(halves(components)), "lora")
    all_ = load_embedding(load_lora(load_embedding(components, word), lora), other, "<other>")
    assert [one.token for one in all_.embeddings] == ["style-a", "<other>"]
    plain = unload_loras(all_)
    assert plain.embeddings == all_.embeddings
    expected = load_embedding(load_embedding(components, word), other, "<other>")
    assert bits(plain) == bits(expected)
    text = "a style-a <other> dog"
    assert torch.equal(encode_prompt(text, plain), encode_prompt(text, expected))
    assert not torch.equal(encode_prompt(text, all_), encode_prompt(text, expected))


def test_words_that_cannot_be(components: Components, lora_file: File) -> None:
    def file(**tensors: torch.Tensor) -> Path:
        return lora_file(tensors, "e")

    table = [
        (file, {"x": torch.zeros(31)}, "32 numbers; it is of another model"),
        (file, {"x": torch.zeros(1, 2, 32)}, "of another model"),
        (file, {"x": torch.zeros(0, 32)}, "of another model"),
        (file, {"clip_l": torch.zeros(32), "clip_g": torch.zeros(64)}, "holds 2 tensors"),
        (file, {}, "holds 0 tensors"),
        (file, {"x": torch.full((32,), float("nan"))}, "finite"),
        (file, {"x": torch.zeros(32, dtype=torch.int32)}, "floating-point"),
    ]
    for write, tensors, message in table:
        with pytest.raises(ModelError, match=message):
            load_embedding(components, write(**tensors), "<new>")
    good = file(x=torch.zeros(2, 32))
    for word in ("", "two words", "(x)", "[x", "a\\b", "\n", "w" * 101):
        with pytest.raises(UserError, match="the embedding's word must be"):
            load_embedding(components, good, word)
    with pytest.raises(UserError, match="'dog</w>' already"):
        load_embedding(components, good, "dog</w>")
    once = load_embedding(components, good, "<x>")
    for word in ("<x>", "<x>_1", "<x>_7"):
        with pytest.raises(UserError, match="already; give the embedding another word"):
            load_embedding(once, good, word)
    with pytest.raises(ModelError, match="no embedding file"):
        load_embedding(components, "nowhere.safetensors")
