"""The judge's training: its batches, labels and losses."""

import numpy as np
import pytest
import torch
from training_tools import tiny_vae

from ldm_toolkit.errors import ModelError
from ldm_toolkit.storybook import judge, scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, JudgeNet
from ldm_toolkit.storybook.render import render
from ldm_toolkit.training import judging
from ldm_toolkit.training.config import JudgeConfig
from ldm_toolkit.training.judging import JudgeTraining, weathered


@pytest.fixture
def training(tmp_path):
    config = JudgeConfig(output=str(tmp_path), decoded=1, seed=2)
    return JudgeTraining(config, tiny_vae().eval())


def test_a_batch_depends_on_its_positions_alone(training):
    whole = training.batch([4, 5, 6])["pixels"]
    labels, valid = training._labels.clone(), training._valid.clone()
    assert torch.equal(training.batch([6])["pixels"][0], whole[2])
    assert torch.equal(training._labels[0], labels[2])
    assert torch.equal(training._valid[0], valid[2])


def test_all_kinds_of_pictures_come_with_the_right_labels(training):
    positions = range(120)
    training.batch(positions)
    valid, labels = training._valid.bool(), training._labels
    assert 0.65 < float(valid.float().mean()) < 0.85
    assert bool((labels[valid] >= 0).all())
    assert bool((labels[~valid] == -1).all())
    for row, position in zip(labels[valid], [p for p in positions if valid[p]], strict=True):
        scene = scenes.sample_scene(2, position)
        own = [ATTRIBUTES[name].index(value) for name, value in judge.labels(scene).items()]
        pool = [
            [ATTRIBUTES[name].index(value) for name, value in judge.labels(one).items()]
            for one in training._scenes
        ]
        assert row.tolist() in [own, *pool]


def test_spoiled_pictures_teach_no_attribute(training):
    training.batch(range(40))
    training._valid[:] = 0
    training._labels[:] = -1
    outputs = {
        name: torch.randn(40, len(values), requires_grad=True)
        for name, values in ATTRIBUTES.items()
    }
    outputs["valid"] = torch.randn(40, requires_grad=True)
    loss, logs = training.loss(outputs, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert logs["subject"] == 0
    assert all(float(outputs[name].grad.abs().max()) == 0 for name in ATTRIBUTES)
    assert float(outputs["valid"].grad.abs().max()) > 0


def test_decoded_pictures_are_computed_once(training, tmp_path):
    file = tmp_path / "decoded.safetensors"
    before = file.stat().st_mtime_ns
    again = JudgeTraining(JudgeConfig(output=str(tmp_path), decoded=1, seed=2), None)
    assert file.stat().st_mtime_ns == before
    assert torch.equal(again.batch([1, 2])["pixels"], training.batch([1, 2])["pixels"])


def test_a_judge_goes_on_from_another(training, tmp_path):
    torch.manual_seed(3)
    first = judge.Judge(JudgeNet("inverted", (8, 16)))
    first.save(tmp_path / "first.safetensors")
    config = JudgeConfig(
        output=str(tmp_path), decoded=1, seed=2, start=str(tmp_path / "first.safetensors")
    )
    module = JudgeTraining(config, None).module
    assert module.config == first.net.config
    assert module.training
    for name, value in first.net.state_dict().items():
        assert torch.equal(module.state_dict()[name], value.half().float()), name
    config.start = str(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="is not there"):
        JudgeTraining(config, None)


def test_wobbles_bend_lines_and_leave_what_is_shown_in_its_place():
    picture = render(scenes.sample_scene(1, 3), 96)
    plain = np.asarray(picture, float)
    for draw in (weathered, judging._wobbly):
        changes = []
        for seed in range(12):
            drawn = draw(picture, scenes.generator("wobble", seed))
            assert (drawn.mode, drawn.size) == ("RGB", (96, 96))
            assert drawn.tobytes() == draw(picture, scenes.generator("wobble", seed)).tobytes()
            pixels = np.asarray(drawn, float)
            changes.append(np.abs(pixels - plain).mean())
            assert np.corrcoef(pixels.ravel(), plain.ravel())[0, 1] > 0.8
        assert np.median(changes) > 2


def test_it_learns_a_few_scenes(training):
    torch.manual_seed(0)
    net = JudgeNet("residual", (8, 16, 16))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    pixels = training.batch(range(8))["pixels"]
    losses = []
    for _ in range(25):
        loss, _ = training.loss(net(pixels), 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.4 * losses[0]
