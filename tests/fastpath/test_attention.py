"""What a run keeps of attention: the same bits, really used, really dropped, nobody else's."""

import dataclasses
import gc
import logging
import weakref
from collections import Counter

import pytest
import torch
import torch._dynamo.testing
from PIL import Image
from safetensors.torch import save_file

from ldm_toolkit import schedulers
from ldm_toolkit.errors import UserError
from ldm_toolkit.fastpath import reuse
from ldm_toolkit.fastpath.attention import State, beside, install, takes_state, words_of
from ldm_toolkit.fastpath.halves import Halves
from ldm_toolkit.fastpath.reuse import Reuse
from ldm_toolkit.models.components import sharing_copy
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.recipe import Recipe
from ldm_toolkit.replay import options_of

PROMPT = "a dog wearing a hat"
PROMPTS = [PROMPT, "a cat", "a red house"]
FAST = {"gate": 0.5, "attention_every": 2}


def diffusers_own(pipe):
    """The same networks with the processors that diffusers gives them: nothing is kept."""
    unet = sharing_copy(pipe.components.unet)
    unet.set_attn_processor({place: one.inner for place, one in unet.attn_processors.items()})
    assert not takes_state(unet)
    return LatentPipeline(dataclasses.replace(pipe.components, unet=unet))


@pytest.fixture
def counted(pipe):
    """(kind of layer, batch size) of each projection of attention layers: which were computed."""
    seen = Counter()

    def counting(kind):
        return lambda _, given, __: seen.update([(kind, len(given[0]))])

    handles = [
        module.register_forward_hook(counting(kind))
        for name, module in pipe.components.unet.named_modules()
        for kind in ("attn1.to_q", "attn2.to_q", "attn2.to_k", "attn2.to_v")
        if name.endswith(kind)
    ]
    yield seen
    for handle in handles:
        handle.remove()


def lora(folder, components):
    """A LoRA's file, on the keys and values of one cross-attention layer."""
    generator = torch.Generator().manual_seed(0)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    tensors = {}
    for name in ("to_k", "to_v"):
        out, width = components.unet.get_submodule(f"{layer}.{name}").weight.shape
        key = f"unet.{layer}.{name}.lora"
        tensors[f"{key}_A.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{key}_B.weight"] = torch.randn(out, 2, generator=generator)
    save_file(tensors, folder / "words.safetensors")
    return folder / "words.safetensors"


EXACT = {
    "plain": {},
    "unguided": {"guidance": 1.0},
    "guided at first": {"guidance_interval": (0, 0.5)},
    "guided at last": {"guidance_interval": (0.5, 1)},
    "two prompts of other lengths": {"prompt": [PROMPT, "a cat " * 60], "seed": [1, 2]},
    "reused deep features": {"reuse_every": 2},
    "two evaluations a step": {"scheduler": "heun"},
}


@pytest.mark.parametrize(
    ("second", "dtype", "way"),
    [
        (False, "float32", "sdpa"), (False, "float32", "sliced"),
        (False, "bfloat16", "sdpa"), (True, "bfloat16", "sdpa"),
    ],
)  # fmt: skip
def test_known_words_change_no_bit(model_factory, second, dtype, way):
    model = model_factory(second=True) if second else model_factory()
    pipe = LatentPipeline.from_pretrained(model, device="cpu", dtype=dtype, attention=way)
    plain = diffusers_own(pipe)
    for options in EXACT.values():
        asked = {"prompt": PROMPT, "seed": 1, "steps": 3} | options
        assert torch.equal(pipe(**asked).latents, plain(**asked).latents), options


def test_words_of_a_lora(pipe, tmp_path):
    with_lora = LatentPipeline(pipe.components)
    before = with_lora(PROMPT, steps=2, seed=1).latents
    with_lora.load_lora(lora(tmp_path, pipe.components))
    drawn = with_lora(PROMPT, steps=2, seed=1).latents
    assert torch.equal(drawn, diffusers_own(with_lora)(PROMPT, steps=2, seed=1).latents)
    assert not torch.equal(drawn, before)
    assert torch.isfinite(with_lora(PROMPT, steps=4, seed=1, **FAST).latents).all()
    with_lora.unload_loras()
    assert torch.equal(with_lora(PROMPT, steps=2, seed=1).latents, before)


def test_words_are_computed_once_a_run(pipe, counted):
    layers = len(words_of(pipe.components.unet, torch.zeros(1, 77, 32)))
    counted.clear()
    pipe(PROMPT, steps=5, seed=1, scheduler="ddim")
    assert counted[("attn2.to_k", 2)] == counted[("attn2.to_v", 2)] == layers
    assert counted[("attn2.to_q", 2)] == 5 * layers
    counted.clear()
    pipe(PROMPT, steps=5, seed=1, scheduler="ddim", guidance_interval=(0, 0.5))
    assert counted[("attn2.to_k", 2)] == counted[("attn2.to_k", 1)] == layers
    counted.clear()
    pipe([PROMPT, "a cat " * 60], steps=3, seed=[1, 2], scheduler="ddim")  # two parts, filled up
    assert counted[("attn2.to_k", 4)] == 2 * layers


def test_everything_is_dropped_after_the_run(pipe, monkeypatch):
    kept = []

    def remembering(self, *given, own=Reuse.__call__):
        answer = own(self, *given)
        kept.append(given[-1])
        return answer

    monkeypatch.setattr(Reuse, "__call__", remembering)
    run = pipe.stream(PROMPT, steps=4, seed=1, scheduler="ddim", reuse_every=2, **FAST)
    for _ in run:
        pass
    seen = kept.pop()
    tensors = [seen[reuse._DEEP], *(answer for _, answer in seen[reuse._ANSWERS].values())]
    tensors += [one for pair in seen[reuse._WORDS][2].values() for one in pair]
    assert len(tensors) > 10
    watched = [weakref.ref(tensor) for tensor in tensors]
    del seen, tensors, kept[:]
    gc.collect()
    assert not any(one() is not None for one in watched)
    assert run.result.images
    for processor in pipe.components.unet.attn_processors.values():
        assert set(vars(processor)) == {"inner", "place"}


@pytest.mark.parametrize(
    ("gate", "total", "frozen"),
    [
        (1.0, 4, []), (0.5, 4, [2, 3]), (0.0, 4, [1, 2, 3]),
        (0.4, 5, [2, 3, 4]), (0.9, 4, []), (0.5, 1, []),
    ],
)  # fmt: skip
def test_which_evaluations_are_frozen(gate, total, frozen):
    assert [k for k in range(total) if Reuse(gate=gate).frozen_at(k, total)] == frozen


@pytest.mark.parametrize(
    ("every", "total", "answered"),
    [
        (1, 10, []), (2, 10, [3, 5, 7, 9]), (3, 10, [3, 4, 6, 7, 9]),
        (2, 3, [2]), (100, 5, [2, 3, 4]), (2, 2, []),
    ],
)  # fmt: skip
def test_which_evaluations_answer_self_attention(every, total, answered):
    reused, computed, found = Reuse(attention_every=every), 0, []
    for k in range(total):
        if reused.broadcast_at(k, total, computed):
            found.append(k)
        else:
            computed = k
    assert found == answered


def test_frozen_layers_are_not_computed(pipe, counted):
    pipe(PROMPT, steps=2, seed=1, scheduler="ddim")
    cross, own = counted[("attn2.to_q", 2)] // 2, counted[("attn1.to_q", 2)] // 2
    counted.clear()
    result = pipe(PROMPT, steps=6, seed=1, scheduler="ddim", gate=0.5)
    assert counted[("attn2.to_q", 2)] == 3 * cross
    assert counted[("attn1.to_q", 2)] == 6 * own
    assert (result.recipes[0].gate, result.recipes[0].attention_every) == (0.5, 1)
    counted.clear()
    pipe(PROMPT, steps=10, seed=1, scheduler="ddim", attention_every=2)
    assert counted[("attn1.to_q", 2)] == 6 * own
    assert counted[("attn2.to_q", 2)] == 10 * cross


def test_the_end_of_guidance_keeps_the_positive_half(pipe, counted):
    options = {"steps": 6, "seed": 1, "scheduler": "ddim", "gate": 0.5}
    pipe(PROMPT, **options, guidance_interval=(0, 0.5))
    assert counted[("attn2.to_q", 1)] == 0
    counted.clear()
    pipe(PROMPT, **options, guidance_interval=(0.5, 1))  # nobody has the negative half's answers
    cross = counted[("attn2.to_q", 1)] // 3
    assert counted[("attn2.to_q", 2)] == cross


@torch.no_grad()
def test_answers_are_those_of_the_right_rows(pipe):
    """After the gate an unguided evaluation is that of the positive half alone."""
    unet = pipe.components.unet
    torch.manual_seed(0)
    x, text, time = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32), torch.tensor(5)
    plain = unet(x[1:], time, text[1:], return_dict=False)[0]
    state = State(words_of(unet, text), {}, dict.fromkeys(words_of(unet, text)))
    both = unet(x, time, **beside(text, state), return_dict=False)[0]
    positive = {place: answer[-1:] for place, answer in state.kept.items()}
    again = State({}, positive, {})
    frozen = unet(x[1:], time, **beside(text[1:], again), return_dict=False)[0]
    assert torch.allclose(frozen, plain, atol=1e-5)
    assert torch.allclose(both[1:], plain, atol=1e-5)
    other = State({}, {place: answer[:1] for place, answer in state.kept.items()}, {})
    wrong = unet(x[1:], time, **beside(text[1:], other), return_dict=False)[0]
    assert not torch.allclose(wrong, plain, atol=1e-5)


@pytest.mark.parametrize("options", [{"gate": 0.5}, {"attention_every": 2}, FAST], ids=str)
def test_it_composes_with_deep_features(pipe, counted, options):
    plain = {"steps": 8, "seed": 1, "scheduler": "ddim"}
    both = pipe(PROMPT, **plain, reuse_every=2, **options).latents
    computed = counted.total()
    counted.clear()
    assert not torch.equal(both, pipe(PROMPT, **plain, reuse_every=2).latents)
    assert computed < counted.total()
    assert not torch.equal(both, pipe(PROMPT, **plain, **options).latents)
    assert torch.equal(both, pipe(PROMPT, **plain, reuse_every=2, **options).latents)


@pytest.mark.parametrize(
    ("steps", "every", "attention_every", "outer", "deep"),
    [
        (15, 2, 2, [0, 1, 2, 3, 5, 7, 9, 11, 13], [0, 2, 4, 6, 8, 10, 12, 14]),
        (16, 3, 3, [0, 1, 2, 3, 4, 7, 10, 13], [0, 3, 6, 9, 12, 15]),
        (16, 2, 4, [0, 1, 2, 3, 4, 8, 12], [0, 2, 4, 8, 12]),
    ],
)
def test_a_deep_layer_answers_no_longer_than_it_may(
    pipe, monkeypatch, steps, every, attention_every, outer, deep
):
    """However the evaluations that compute it lie to those that compute self-attention."""
    seen, now = {}, []

    def told(self, *given, own=Reuse.__call__):
        now.append(given[-2].evaluation)
        return own(self, *given)

    def noting(place):
        return lambda *_: seen.setdefault(place, []).append(now[-1])

    monkeypatch.setattr(Reuse, "__call__", told)
    places = {"up_blocks.1.attentions.1": outer, "mid_block.attentions.0": deep}
    handles = [
        pipe.components.unet.get_submodule(
            f"{place}.transformer_blocks.0.attn1.to_q"
        ).register_forward_hook(noting(place))
        for place in places
    ]
    options = {"reuse_every": every, "attention_every": attention_every}
    try:
        pipe(PROMPT, steps=steps, seed=1, scheduler="ddim", **options)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == places


def test_more_is_nearer(pipe):
    plain = {"steps": 10, "seed": 1, "scheduler": "ddim"}
    exact = pipe(PROMPT, **plain).latents

    def off(**options):
        return float((pipe(PROMPT, **plain, **options).latents - exact).norm())

    assert 0 < off(gate=0.8) < off(gate=0.2)
    assert 0 < off(attention_every=2) < off(attention_every=6)


def test_two_runs_at_once_keep_what_is_theirs(pipe):
    kinds = [{"gate": 0.3}, {"attention_every": 2}, {}, FAST | {"reuse_every": 2}]
    prompts = [*PROMPTS, PROMPT]
    options = {"steps": 6, "scheduler": "ddim"}
    alone = [
        pipe(prompt, seed=k, **options, **kind).latents
        for k, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    runs = [
        pipe.stream(prompt, seed=k, **options, **kind)
        for k, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    for _ in range(6):
        for run in runs:
            next(run)
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(run.result.latents, expected)


def test_rows_have_the_same_bits_in_any_company(pipe):
    options = {"steps": 6, "batch_size": 3, **FAST}
    together = pipe(PROMPTS, seed=[4, 5, 6], **options)
    alone = pipe(PROMPTS[1], seed=5, **options)
    assert torch.equal(together.latents[1], alone.latents[0])


@pytest.mark.parametrize("name", sorted(schedulers.names()))
def test_every_scheduler(pipe, name):
    drawn = pipe(PROMPT, steps=4, seed=1, scheduler=name, **FAST).latents
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_drawn_over(pipe, counted, masked):
    image = Image.new("RGB", (64, 64), "red")
    mask = {"mask": Image.linear_gradient("L").resize((64, 64))} if masked else {}
    options = {"steps": 8, "seed": 1, "scheduler": "ddim", "strength": 0.5}
    pipe(PROMPT, image=image, **mask, **options)
    everything = counted[("attn2.to_q", 2)]
    counted.clear()
    pipe(PROMPT, image=image, **mask, **options, gate=0.5)
    assert counted[("attn2.to_q", 2)] == everything // 2


def test_a_recipe_replays(pipe):
    made = pipe(PROMPT, steps=6, seed=3, **FAST)
    asked = options_of(made.recipes[0])
    names = [f.name for f in dataclasses.fields(asked) if f.name != "prompt"]
    again = pipe(PROMPT, **{name: getattr(asked, name) for name in names})
    assert torch.equal(made.latents, again.latents)
    assert Recipe.from_json(made.recipes[0].to_json()) == made.recipes[0]


def test_a_recipe_from_before_means_what_it_meant(pipe):
    made = pipe.stream(PROMPT, steps=6, seed=3, speed="exact").recipes[0]
    text = made.to_json()
    assert '"gate": 1.0, "attention_every": 1, ' in text
    assert Recipe.from_json(text.replace('"gate": 1.0, "attention_every": 1, ', "")) == made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gate": 1.5}, "gate must be"),
        ({"gate": float("nan")}, "gate must be"),
        ({"gate": "early"}, "gate must be"),
        ({"attention_every": 0}, "attention_every must be"),
        ({"attention_every": 2.0}, "attention_every must be"),
    ],
    ids=str,
)
def test_wrong_options(pipe, options, said):
    with pytest.raises(UserError, match=said):
        pipe.stream(PROMPT, **options)


def test_attention_of_another_kind(pipe, caplog):
    other = diffusers_own(pipe)
    expected = pipe(PROMPT, steps=2, seed=1).latents
    with caplog.at_level(logging.WARNING):
        assert torch.equal(other(PROMPT, steps=2, seed=1).latents, expected)
    assert not caplog.records
    with pytest.raises(UserError, match="gate and attention_every must be 1 with this model"):
        other.stream(PROMPT, **FAST)
    with pytest.raises(UserError, match=r"reuse_depth must .*; gate must be 1 with"):
        other.stream(PROMPT, gate=0.5, reuse_every=2, reuse_depth=50)


def test_what_is_not_known_stays_as_it_is(pipe):
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            return hidden_states

    unet = sharing_copy(pipe.components.unet)
    first, *rest = unet.attn_processors
    processors = dict(unet.attn_processors)
    unet.set_attn_processor(processors | {first: Foreign()})
    install(unet)
    assert type(unet.attn_processors[first]).__name__ == "Foreign"
    assert not takes_state(unet)
    assert all(unet.attn_processors[place].inner is processors[place].inner for place in rest)


def test_from_and_to_diffusers(pipe):
    theirs = pipe.to_diffusers()
    back = LatentPipeline.from_diffusers(theirs)
    drawn = back(PROMPT, steps=4, seed=1, **FAST).latents
    assert torch.equal(drawn, pipe(PROMPT, steps=4, seed=1, **FAST).latents)
    # As diffusers' load_ip_adapter makes processors of the classes that it finds.
    made = [type(one)() for one in theirs.unet.attn_processors.values()]
    assert type(made[0].inner).__name__ == "AttnProcessor2_0"


def test_a_compiled_unet_has_few_versions(pipe):
    """Static shapes: one graph where answers are kept, one where they come in; no break."""
    unet = sharing_copy(pipe.components.unet)
    counter = torch._dynamo.testing.CompileCounter()
    text, time = torch.randn(2, 77, 32), torch.tensor(5)
    with torch.no_grad():
        words = words_of(unet, text)
        cut = Halves(unet, 1)
        parts = {
            "plain": lambda x, state: unet(x, time, **beside(text, state), return_dict=False)[0],
            "whole": lambda x, state: cut.whole(x, time, text, state)[0],
        }
        for name, part in parts.items():
            torch._dynamo.reset()
            counter.clear()
            compiled = torch.compile(part, backend=counter, fullgraph=True, dynamic=False)
            for step in range(3):
                x = torch.randn(2, 4, 8, 8)
                keeping = [State(words, {}, dict.fromkeys(words)) for _ in range(2)]
                assert torch.equal(compiled(x, keeping[0]), part(x, keeping[1]))
                answers, expected = (dict(state.kept) for state in keeping)
                assert all(torch.equal(answers[place], expected[place]) for place in words)
                known = State(words, answers, dict.fromkeys(words))
                other = torch.randn(2, 4, 8, 8)
                assert torch.equal(compiled(other, known), part(other, known))
                assert set(known.kept.values()) == {None}
                assert counter.frame_count == 2, (name, step)
    torch._dynamo.reset()
