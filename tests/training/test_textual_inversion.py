"""Textual inversion: only the new vectors change, and every loader reads what was trained."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from training_tools import inversion_method, metric, tiny_unet
from transformers import CLIPTextModel, CLIPTokenizer

from ldm_toolkit.errors import UserError
from ldm_toolkit.models.adapters import load_embedding
from ldm_toolkit.models.components import Components
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.prompts import encode_prompt
from ldm_toolkit.tokens import tokenize
from ldm_toolkit.training import loop
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.folders import load_network
from ldm_toolkit.training.methods.textual_inversion import (
    EMBEDDING_FILE,
    TextualInversion,
    _start,
)
from ldm_toolkit.training.samples import draw_prompts

FEW = {"steps": 6, "batch_size": 2, "warmup": 0, "lr": 1e-2, "ema": 0.0, "lr_schedule": "constant"}
ROWS = "encoder.embeddings.token_embedding.rows"


def vectors(method: TextualInversion) -> torch.Tensor:
    """The learned vectors as they are now."""
    (rows,) = [p for p in method.trainable().parameters() if p.requires_grad]
    return rows.detach().clone()


def word_file(folder: Path, table: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"<x>": table}, folder / EMBEDDING_FILE)
    return folder / EMBEDDING_FILE


# --- what is trained ---


class Listener(nn.Module):
    """Stands where a UNet stands and draws from the text alone, so that a word is all that counts.

    A random UNet hardly listens: what it would learn from a word drowns in the noise.
    """

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(32, 256, generator=rng))

    def forward(self, noisy: Any, timesteps: Any, encoder_hidden_states: Any) -> SimpleNamespace:
        heard = encoder_hidden_states.mean(dim=1) @ self.weight
        return SimpleNamespace(sample=heard.reshape(-1, 4, 8, 8))

    def draw(self, caption: str, components: Components) -> torch.Tensor:
        with torch.no_grad():
            return self(None, None, encode_prompt(caption, components)).sample


def test_a_word_learns_a_picture(accelerator, tiny_model, pipe, tmp_path):
    """The picture is what another word, unknown to the training, draws: the loss of the last 10 of
    150 steps is below half of that of the first 10, and what the pipeline then draws of the learned
    word lies nearer to the picture than before, in squared distance by half.
    """
    caption, listener = "a <x> on the beach", Listener()
    secret = torch.randn(2, 32, generator=torch.Generator().manual_seed(8)) * 0.02
    components = load_embedding(pipe.components, word_file(tmp_path / "secret", secret))
    target = listener.draw(caption, components)
    method, settings = inversion_method(
        tmp_path, tiny_model, captions=[(caption,)], unet=listener, prediction="sample", vectors=2,
        moments=torch.cat([target / 0.5, torch.full_like(target, -8.0)], dim=1), latents="mean",
        steps=150, batch_size=2, lr=5e-3, warmup=5, caption_dropout=0.0, ema=0.0,
    )  # fmt: skip

    def distance(file: Path) -> float:
        found = listener.draw(caption, load_embedding(pipe.components, file))
        return float((found - target).square().mean())

    before = distance(word_file(tmp_path / "before", vectors(method)))
    loop.train(method, settings, accelerator)
    losses = metric(tmp_path, "loss")
    assert losses[0] == pytest.approx(before, rel=0.01)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert distance(tmp_path / EMBEDDING_FILE) < 0.5 * before


def test_all_else_stays_as_it_was_bit_for_bit(accelerator, tiny_model, tmp_path):
    method, settings = inversion_method(tmp_path, tiny_model, vectors=3, weight_decay=0.5, **FEW)
    start = vectors(method)
    loop.train(method, settings, accelerator)
    named = dict(method.trainable().named_parameters())
    assert (vectors(method) != start).any(dim=1).all()
    assert [name for name, p in named.items() if p.requires_grad] == [ROWS]
    encoder = load_network(CLIPTextModel, tiny_model / "text_encoder")
    before = {f"unet.{name}": value for name, value in tiny_unet().named_parameters()}
    before |= {f"encoder.{name}": value for name, value in encoder.named_parameters()}
    table = "encoder.embeddings.token_embedding"
    before[f"{table}.table.weight"] = before.pop(f"{table}.weight")
    assert named.keys() == before.keys() | {ROWS}
    assert all(torch.equal(value, named[name]) for name, value in before.items())


@pytest.mark.parametrize("dropped", [False, True])
def test_the_vectors_alone_get_a_gradient(dropped, tiny_model, tmp_path):
    """Of zeros where all captions of a batch are dropped."""
    dropout = 1.0 if dropped else 0.0
    method, _ = inversion_method(tmp_path, tiny_model, vectors=3, caption_dropout=dropout)
    loss, _ = method.loss(method.module(**method.batch(range(4))), 0)
    loss.backward()
    for name, parameter in method.trainable().named_parameters():
        assert (parameter.grad is not None) == (name == ROWS), name
    gradient = method.trainable().get_parameter(ROWS).grad
    assert torch.isfinite(gradient).all()
    assert gradient.any(dim=1).tolist() == [not dropped] * 3


def test_vectors_and_moments_are_float32_under_bf16(bf16, tiny_model, tmp_path):
    method, settings = inversion_method(
        tmp_path, tiny_model, mixed_precision="bf16", **(FEW | {"steps": 2, "ema": 0.9})
    )
    loop.train(method, settings, bf16)
    files = [*(tmp_path / "checkpoints").rglob("*.safetensors"), tmp_path / EMBEDDING_FILE]
    assert len(files) == 4
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}, file.name
    assert all(torch.isfinite(torch.tensor(metric(tmp_path, "loss"))))


# --- checkpoints ---


def test_checkpoints_hold_the_vectors_alone(accelerator, tiny_model, tmp_path):
    method, settings = inversion_method(tmp_path, tiny_model, vectors=2, **(FEW | {"ema": 0.9}))
    loop.train(method, settings, accelerator)
    folder = tmp_path / "checkpoints" / "step-00000006"
    weights = load_file(folder / "weights.safetensors")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {ROWS: (2, 32)}
    moments = load_file(folder / "optimizer.safetensors")
    assert {name: tuple(value.shape) for name, value in moments.items()} == {
        "0.step": (), "0.exp_avg": (2, 32), "0.exp_avg_sq": (2, 32)
    }  # fmt: skip
    shadow = load_file(folder / "ema.safetensors")["0"]
    assert torch.equal(load_file(tmp_path / EMBEDDING_FILE)["<x>"], shadow)
    assert not torch.equal(shadow, weights[ROWS])


def test_a_run_in_two_parts_has_the_same_bits(accelerator, tiny_model, tmp_path):
    for name, parts in (("whole", [8]), ("halves", [3, 8])):
        for steps in parts:
            (tmp_path / name).mkdir(exist_ok=True)
            options = FEW | {"ema": 0.9, "warmup": 3, "steps": steps, "vectors": 2}
            method, settings = inversion_method(tmp_path / name, tiny_model, **options)
            loop.train(method, settings, accelerator)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert (whole / EMBEDDING_FILE).read_bytes() == (halves / EMBEDDING_FILE).read_bytes()
    assert metric(whole, "loss") == metric(halves, "loss")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vectors": 2}, r"--vectors 1 \(now 2\)"),
        ({"token": "<y>"}, r"--token <x> \(now <y>\)"),
        ({"initial": "a dog"}, r"--initial None \(now a dog\)"),
        ({"unet": 1}, r"--model \(its content has changed\)"),
        ({"encoder": 1}, r"--model \(its content has changed\)"),
    ],
)
def test_another_word_or_model_is_not_gone_on_with(
    change, told, accelerator, tiny_model, model_factory, tmp_path
):
    method, settings = inversion_method(tmp_path, tiny_model, **(FEW | {"steps": 1}))
    loop.train(method, settings, accelerator)
    options, model = dict(change), tiny_model
    if "unet" in options:
        options["unet"] = tiny_unet(seed=1)
    if options.pop("encoder", None):
        model = model_factory(seed=1)
    method, settings = inversion_method(tmp_path, model, **FEW, **options)
    with pytest.raises(UserError, match=told):
        loop.train(method, settings, accelerator)


# --- the file ---


@pytest.fixture(params=[1, 3])
def learned(request, accelerator, tiny_model, tmp_path) -> TextualInversion:
    """A word of the tiny model, trained for a few steps; its file lies in ``tmp_path``."""
    method, settings = inversion_method(tmp_path, tiny_model, vectors=request.param, **FEW)
    loop.train(method, settings, accelerator)
    return method


def trained_text(method: TextualInversion, tokenizer: Any) -> torch.Tensor:
    """What the text encoder says of CAPTION in training; the pipeline's tokenizer reads it."""
    row = tokenize(CAPTION, tokenizer)
    assert row in method._embeddings.tolist()
    with torch.no_grad():
        return method.module.encoder(torch.tensor([row])).last_hidden_state


CAPTION = "a photo of <x>"


def test_the_file_is_one_tensor_by_the_words_name(learned: TextualInversion, tmp_path: Path):
    tensors = load_file(tmp_path / EMBEDDING_FILE)
    assert tensors.keys() == {"<x>"}
    assert torch.equal(tensors["<x>"], vectors(learned))
    data = (tmp_path / EMBEDDING_FILE).read_bytes()
    learned.save(tmp_path)
    assert (tmp_path / EMBEDDING_FILE).read_bytes() == data


def test_our_pipeline_reads_what_was_trained(
    learned: TextualInversion, pipe: LatentPipeline, tmp_path: Path
):
    ours = LatentPipeline(pipe.components)
    ours.load_embedding(tmp_path / EMBEDDING_FILE)
    found = encode_prompt(CAPTION, ours.components)
    expected = trained_text(learned, ours.components.tokenizer)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - encode_prompt(CAPTION, pipe.components)).abs().max() > 1e-2
    options: dict[str, Any] = {"steps": 2, "guidance": 2.0, "seed": 1}
    drawn = ours(CAPTION, **options).latents
    assert not torch.equal(drawn, LatentPipeline(pipe.components)(CAPTION, **options).latents)


def test_diffusers_reads_what_was_trained(
    learned: TextualInversion, pipe: LatentPipeline, tiny_model: Path, tmp_path: Path
):
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model)
    theirs.load_textual_inversion(str(tmp_path))
    found, _ = theirs.encode_prompt(CAPTION, "cpu", 1, False)
    tokenizer = load_embedding(pipe.components, tmp_path / EMBEDDING_FILE).tokenizer
    torch.testing.assert_close(found, trained_text(learned, tokenizer), rtol=0, atol=1e-6)


# --- captions and the start ---


def test_captions_that_name_the_word_are_used_as_they_are(tiny_model, pipe, tmp_path):
    long = " ".join(["dog"] * 74)
    captions = [
        ("a <x> on the beach", "a <x> at night, <x>", "a dog"),
        ("a red cat",),
        (f"{long} <x>",),  # one of the two vectors is beyond what the encoder reads
    ]
    method, _ = inversion_method(tmp_path, tiny_model, captions=captions, vectors=2)
    method.save(tmp_path)
    tokenizer = load_embedding(pipe.components, tmp_path / EMBEDDING_FILE).tokenizer
    first, *_ = tokenize("<x>", tokenizer)[1:]
    rows = [[method._embeddings[row].tolist() for row in of] for of in method._rows]
    assert rows[0] == [tokenize(caption, tokenizer) for caption in captions[0][:2]]
    assert [row.count(first) for row in rows[0]] == [1, 2]
    assert rows[1] == rows[2]
    assert len(rows[1]) == len({tuple(row) for row in rows[1]}) >= 5
    assert tokenize(CAPTION, tokenizer) in rows[1]
    assert all(row.count(first) == row.count(first + 1) == 1 for row in rows[1])
    assert method._embeddings[0].tolist() == tokenize("", tokenizer)
    assert tuple(method._embeddings.shape) == (1 + 2 + len(rows[1]), 77)


def test_every_caption_and_the_empty_one_are_drawn(tiny_model, tmp_path):
    method, _ = inversion_method(tmp_path, tiny_model, captions=[("a dog",)], caption_dropout=0.3)
    texts = [tuple(text) for text in method.batch(range(400))["text"].tolist()]
    assert set(texts) == {tuple(row) for row in method._embeddings.tolist()}
    empty = tuple(method._embeddings[0].tolist())
    assert texts.count(empty) / len(texts) == pytest.approx(0.3, abs=0.08)


def test_the_start():
    table = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(_start(table, [4, 1], 2, 0), table[[4, 1]])
    assert torch.equal(_start(table, [4], 3, 0), table[[4, 4, 4]])
    assert torch.equal(_start(table, [4, 1], 3, 0), table[[4, 1, 4]])
    assert torch.equal(_start(table, [0, 1, 2], 1, 0), table[[1]])
    assert torch.equal(_start(table, [0, 2, 5], 2, 0), torch.stack([table[1], table[5]]))


def test_the_start_without_words_is_like_a_word_and_of_the_seed():
    rng = torch.Generator().manual_seed(0)
    table = 3.0 + torch.tensor([0.1, 1.0]) * torch.randn(500, 2, generator=rng)
    many = _start(table, [], 600, 0)
    torch.testing.assert_close(many.mean(0), table.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(many.std(0), table.std(0), rtol=0.15, atol=0)
    assert torch.equal(_start(table, [], 3, 0), many[:3])
    assert not torch.equal(_start(table, [], 3, 1), many[:3])


def test_the_start_is_that_of_the_words(tiny_model, tmp_path):
    encoder = load_network(CLIPTextModel, tiny_model / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_model / "tokenizer"))
    tokens = tokenizer("a dog").input_ids[1:-1]
    method, _ = inversion_method(tmp_path, tiny_model, initial="a dog", vectors=len(tokens))
    assert torch.equal(vectors(method), encoder.get_input_embeddings().weight[tokens])


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("dog", "--token 'dog': the tokenizer knows this word already; .* such as <dog>"),
        ("Dog", "--token 'Dog': the tokenizer knows this word already"),
        ("dog</w>", "'dog</w>' already"),
        ("my cat", "--token 'my cat': the embedding's word must be short, without spaces"),
        ("(x)", r"--token '\(x\)': the embedding's word must be"),
    ],
)
def test_words_that_cannot_be_new(token, told, tiny_model, tmp_path):
    config = UNetConfig(data="d", output="o", method="textual-inversion", token=token)
    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_model / "tokenizer"))
    with pytest.raises(UserError, match=told) as caught:
        TextualInversion.check_words(config, tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=told):
        inversion_method(tmp_path, tiny_model, token=token)


def test_another_schedule_is_refused():
    config = UNetConfig(
        data="d", output="o", method="textual-inversion", token="<x>", zero_terminal_snr=True
    )
    with pytest.raises(UserError, match="--zero-terminal-snr changes the model's own schedule"):
        TextualInversion.check(config, {})


# --- pictures, and the command ---


def test_sample_pictures_are_drawn_with_the_word(tiny_model, tmp_path):
    method, _ = inversion_method(tmp_path, tiny_model)
    seen = []

    def draw(model: Path, prompts: Any, adapter: Path | None) -> list[Image.Image]:
        seen.append((model, prompts, adapter.name, load_file(adapter)["<x>"]))
        return [Image.new("RGB", (8, 8)) for _ in prompts]

    draw_prompts(method, lambda folder: tiny_model, ["a <x>"], tmp_path / "s.png", draw)
    ((model, prompts, name, table),) = seen
    assert (model, prompts, name) == (tiny_model, ["a <x>"], EMBEDDING_FILE)
    assert torch.equal(table, vectors(method))


def words(model: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return ["finetune_unet", "--method", "textual-inversion", "--token", "<x>", "--model", model,
            "--data", data, "--output", output, "--size", 64, "--steps", 6, "--batch_size", 2,
            "--warmup", 0, "--lr", "1e-2", "--threads", 1, "--checkpoint_every", 2,
            *more]  # fmt: skip


def test_the_command_writes_a_file_and_survives_a_kill(trainer, tiny_model, pictures, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--vectors", 2, "--initial", "a dog"]
    child = trainer.run(*words(tiny_model, pictures, whole, *more))
    assert child.wait() == 0, child.errors
    assert "6 of 6 pictures have no caption with <x>" in child.errors
    names = {path.name for path in whole.iterdir()}
    written = {"cache", "checkpoints", "config.json", "metrics.jsonl", EMBEDDING_FILE}
    assert names == written | {"README.md", "loss.png"}
    cached = {path.name.partition("-")[0] for path in (whole / "cache").iterdir()}
    assert cached == {"checked.jsonl", "latents"}
    pipe = LatentPipeline.from_pretrained(tiny_model)
    pipe.load_embedding(whole / EMBEDDING_FILE)
    assert pipe("a photo of <x>", steps=2, seed=1).images
    in_a_save = ["ldm_toolkit.training.checkpoints", "save_file", 5]  # the second save
    again = words(tiny_model, pictures, killed, *more)
    assert trainer.run(*again, die=in_a_save).wait() < 0
    child = trainer.run(*again)
    assert child.wait() == 0, child.errors
    assert "resumed at step 2" in child.errors
    assert (killed / EMBEDDING_FILE).read_bytes() == (whole / EMBEDDING_FILE).read_bytes()


def test_the_command_draws_sample_pictures(trainer, tiny_model, pictures, tmp_path):
    more = ["--steps", 2, "--sample_every", 1, "--sample_prompts", '["a <x>", "a dog"]']
    child = trainer.run(*words(tiny_model, pictures, tmp_path, *more))
    assert child.wait() == 0, child.errors
    assert "no sample picture" not in child.errors
    drawn = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert drawn == [f"step-0000000{step}.png" for step in (0, 1, 2)]


def test_pictures_need_no_captions(trainer, tiny_model, pictures, tmp_path):
    """All or none: where some have captions, those without are told as elsewhere."""
    data = tmp_path / "data"
    data.mkdir()
    for path in pictures.glob("[0-2].png"):
        shutil.copy(path, data)
    child = trainer.run(*words(tiny_model, data, tmp_path / "out", "--steps", 2))
    assert child.wait() == 0, child.errors
    assert "3 of 3 pictures have no caption with <x>" in child.errors
    assert load_file(tmp_path / "out" / EMBEDDING_FILE)["<x>"].shape == (1, 32)
    (data / "0.txt").write_text("a photo of <x>")
    child = trainer.run(*words(tiny_model, data, tmp_path / "out"))
    assert child.wait() == 2
    assert "1.png: no caption" in child.errors


def test_a_known_word_is_told_before_anything_takes_long(trainer, tiny_model, pictures, tmp_path):
    child = trainer.run(*words(tiny_model, pictures, tmp_path, "--token", "dog"))
    assert child.wait() == 2
    last = child.errors.splitlines()[-1]
    assert last.startswith("finetune_unet.py: error: --token 'dog': the tokenizer knows this word")
    assert "Traceback" not in child.errors
    assert not (tmp_path / "cache").exists()
