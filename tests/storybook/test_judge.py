"""The judge: its file, its verdicts, and the pictures that it must refuse."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ldm_toolkit.errors import ModelError
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, SIDE, Judge, JudgeNet, labels, prepare
from ldm_toolkit.storybook.render import render
from ldm_toolkit.storybook.spoiled import SPOILED, spoil


@pytest.fixture
def pictures():
    return [render(scenes.sample_scene(0, index), 96) for index in range(3)]


@pytest.mark.parametrize("kind", ["residual", "inverted"])
def test_a_judge_comes_back_from_its_file(kind, pictures, tmp_path):
    torch.manual_seed(1)
    made = Judge(JudgeNet(kind, (8, 16)), threshold=0.25)
    made.save(tmp_path / "a.safetensors")
    found = Judge.load(tmp_path / "a.safetensors")
    assert (found.threshold, found.net.config) == (0.25, made.net.config)
    torch.testing.assert_close(
        found.features(pictures), made.features(pictures), rtol=2e-2, atol=2e-2
    )
    for verdict in found.verdicts(pictures, batch_size=2):
        assert all(verdict.values[name] in values for name, values in ATTRIBUTES.items())
        assert all(0 < sure <= 1 for sure in verdict.probabilities.values())


def test_log_probabilities_are_those_of_the_verdicts(pictures):
    """Of what the judge saw itself, and of another value by softmax."""
    torch.manual_seed(1)
    judge = Judge(JudgeNet("residual", (8, 16)))
    features = judge.features(pictures)
    verdicts = judge.decide(features)
    with torch.inference_mode():
        logits = judge.net.decide(features)
    valid, sides = logits["valid"].double().sigmoid(), logits["place"].double().softmax(1)
    wanted = [dict(verdicts[0].values), {"place": "left"}, {}]
    found = judge.log_probabilities(features, wanted)
    assert found[0] == pytest.approx(
        math.log(valid[0] * math.prod(verdicts[0].probabilities.values())), abs=1e-4
    )
    left = ATTRIBUTES["place"].index("left")
    assert found[1] == pytest.approx(math.log(valid[1] * sides[1, left]), abs=1e-4)
    assert found[2] == pytest.approx(math.log(valid[2]), abs=1e-4)


def test_the_default_judge_is_small():
    count = sum(one.numel() for one in JudgeNet().parameters())
    assert 2 * count < 3_000_000  # bytes of half precision


def test_files_that_hold_no_judge_of_this_world(tmp_path):
    with pytest.raises(ModelError, match="is not there"):
        Judge.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    told = {"judge": json.dumps({"attributes": {"subject": ["dog"]}})}
    save_file({"x": torch.zeros(1)}, tmp_path / "first.safetensors", told)
    for name, message in (("text", "holds no"), ("other", "holds no"), ("first", "another ed")):
        with pytest.raises(ModelError, match=message):
            Judge.load(tmp_path / f"{name}.safetensors")


def test_pictures_of_any_size_become_one_tensor(pictures):
    large = [render(scenes.sample_scene(0, index), 3 * SIDE) for index in range(3)]
    pixels = prepare([*large, pictures[0]])
    assert pixels.shape == (4, 3, SIDE, SIDE)
    assert -1 <= float(pixels.min()) < float(pixels.max()) <= 1
    blocks = torch.nn.functional.avg_pool2d(prepare_full(large[0]), 3)
    torch.testing.assert_close(pixels[0], blocks[0], rtol=0, atol=0.01)


def prepare_full(picture):
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(1, *picture.size, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_places_are_seen_in_spite_of_the_mean():
    torch.manual_seed(0)
    net = JudgeNet("residual", (8, 16)).eval()
    left = torch.zeros(1, 3, SIDE, SIDE)
    left[..., 60:90, 10:40] = 1
    assert not torch.allclose(net.features(left), net.features(left.flip(-1)), atol=1e-4)


@pytest.mark.parametrize("kind", SPOILED)
def test_spoiled_pictures_are_pure_functions(kind):
    first = spoil(kind, 3, 48)
    assert (first.size, first.mode) == ((48, 48), "RGB")
    assert first.tobytes() == spoil(kind, 3, 48).tobytes()
    assert len({spoil(kind, seed, 48).tobytes() for seed in range(6)}) == 6


def test_the_judge_in_the_package_knows_held_out_scenes_and_refuses_the_rest():
    judge = Judge.load()
    drawn = [scenes.sample_scene(71, index, "test") for index in range(150)]
    verdicts = judge.verdicts([render(one, 256) for one in drawn])
    for name in ATTRIBUTES:
        right = sum(v.values[name] == labels(s)[name] for v, s in zip(verdicts, drawn, strict=True))
        assert right >= 0.95 * len(drawn), name
    assert sum(one.valid for one in verdicts) >= 0.95 * len(drawn)
    for kind in SPOILED:
        bad = judge.verdicts([spoil(kind, 5000 + k, SIDE, "test") for k in range(30)])
        assert sum(not one.valid for one in bad) >= 27, kind
