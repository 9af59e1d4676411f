"""The tokenizer takes any text; the text encoder learns what captions say."""

import json

import pytest
import torch
from training_tools import metric
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_toolkit.errors import ModelError
from ldm_toolkit.storybook import scenes
from ldm_toolkit.training import loop
from ldm_toolkit.training.config import TextEncoderConfig
from ldm_toolkit.training.text import AttributeText, start_from, train_tokenizer

TEXTS = [
    "a dog wearing hat", "", " ", "A DOG!", "Hündchen mit Hut", "犬と帽子", "🐶🎩👩‍👩‍👧",
    "\x00\x07\u202e", "a\nb\tc", "<|startoftext|>", "(dog:1.3)", "é" * 300, "x" * 5000, "١٢٣",
]  # fmt: skip


@pytest.fixture(scope="module")
def captions():
    drawn = (scenes.sample_scene(0, index) for index in range(2000))
    return [scenes.caption(scene, 0).text for scene in drawn]


@pytest.fixture(scope="module")
def tokenizer(captions):
    return train_tokenizer(captions, limit=900)


def test_any_text_becomes_at_most_77_known_tokens(tokenizer):
    for text in TEXTS:
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert len(ids) == 77
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id in ids
        assert 0 <= min(ids) <= max(ids) < len(tokenizer) <= 900


def test_special_tokens_stand_at_the_end_as_in_clip(tokenizer):
    size = len(tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (size - 2, size - 1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_captions_survive_a_round_trip(tokenizer, captions):
    for text in [*captions[:50], "hündchen", "🐶"]:
        ids = tokenizer(text)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.lower().replace(" ", "")


def test_captions_are_short(tokenizer, captions):
    """Frequent words are one token each."""
    lengths = [len(tokenizer(text)["input_ids"]) for text in captions[:300]]
    words = [len(text.replace(",", " ,").replace(".", " .").split()) + 2 for text in captions[:300]]
    assert sum(lengths) <= 1.1 * sum(words)


def test_both_file_formats_load_in_transformers(tokenizer, tmp_path):
    settings = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
                              intermediate_size=32, num_attention_heads=2)  # fmt: skip
    method = AttributeText(tokenizer, TextEncoderConfig(from_config="", output=""), settings)
    method.save(tmp_path)
    new = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    old = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    assert old.model_max_length == new.model_max_length == 77
    for text in TEXTS:
        expected = tokenizer(text)["input_ids"]
        assert new(text)["input_ids"] == expected
        assert old(text)["input_ids"] == expected
    CLIPTextModel.from_pretrained(tmp_path / "text_encoder", local_files_only=True)


def _encoder(size, width=32):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=width, num_hidden_layers=1, intermediate_size=32,
            num_attention_heads=2,
        )
    )  # fmt: skip


def test_known_words_keep_their_meaning_in_another_vocabulary(tokenizer, captions):
    wider = train_tokenizer([*captions, *["a zeppelin over the wigwam"] * 500], limit=950)
    trained, encoder = _encoder(len(tokenizer)), _encoder(len(wider))
    fresh = encoder.get_input_embeddings().weight.detach().clone()
    assert start_from(encoder, wider, trained, tokenizer) < len(wider)
    same = [text for text in captions[:100] if tokenizer.tokenize(text) == wider.tokenize(text)]
    assert len(same) > 20  # merges may differ elsewhere
    for text in same:
        shown = [
            model(words(text, return_tensors="pt")["input_ids"]).last_hidden_state
            for model, words in ((trained, tokenizer), (encoder, wider))
        ]
        assert torch.equal(*shown)
    new = wider.get_vocab()["zeppelin</w>"]
    assert torch.equal(encoder.get_input_embeddings().weight[new], fresh[new])


def test_a_text_encoder_of_another_shape_is_no_start(tokenizer):
    for other in (_encoder(len(tokenizer), width=64),
                  CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32,
                                               num_hidden_layers=2, intermediate_size=32,
                                               num_attention_heads=2))):  # fmt: skip
        with pytest.raises(ModelError, match="another shape"):
            start_from(other, tokenizer, _encoder(len(tokenizer)), tokenizer)


def test_the_labels_say_what_the_caption_says(tokenizer):
    settings = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
                              intermediate_size=32, num_attention_heads=2)  # fmt: skip
    method = AttributeText(tokenizer, TextEncoderConfig(from_config="", output=""), settings)
    batch = method.batch(range(20))
    for position in range(20):
        scene = scenes.sample_scene(0, position)
        caption = scenes.caption(scene, 0)
        tokens = batch["tokens"][position]
        end = int((tokens == tokenizer.eos_token_id).int().argmax())
        places = batch["places"][position].tolist()
        assert places[0] == end
        assert all(end <= place < 77 for place in places)
        for name, label in zip(method._values, batch["labels"][position].tolist(), strict=True):
            said = method._values[name][label]
            assert said == (getattr(scene, name) if name in caption.mentions else "(unsaid)")


def test_a_tiny_text_encoder_learns(accelerator, tokenizer, tmp_path):
    """The summed cross-entropy of eight attributes falls by a quarter within 80 steps."""
    settings = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, intermediate_size=64,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = TextEncoderConfig(
        from_config="", output=str(tmp_path), steps=80, batch_size=16, lr=5e-3, warmup=5,
        checkpoint_every=80,
    )  # fmt: skip
    torch.manual_seed(0)
    loop.train(AttributeText(tokenizer, config, settings), config, accelerator)
    losses = metric(tmp_path, "loss")
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_the_training_script_writes_both_parts(trainer, tmp_path):
    part = tmp_path / "config" / "text_encoder"
    part.mkdir(parents=True)
    settings = CLIPTextConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32,
                              num_attention_heads=2)  # fmt: skip
    (part / "config.json").write_text(json.dumps(settings.to_dict(), default=str))
    child = trainer.run(
        "train_text_encoder", "--from-config", tmp_path / "config", "--output", tmp_path / "out",
        "--steps", 2, "--batch_size", 2, "--caption_count", 200, "--warmup", 0,
    )  # fmt: skip
    assert child.wait() == 0, child.errors
    encoder = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert encoder.config.vocab_size == len(tokenizer)
    assert encoder.config.eos_token_id == tokenizer.eos_token_id
    assert child.out.read_text().splitlines() == [str(tmp_path / "out")]
