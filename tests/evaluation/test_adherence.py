"""What a prompt asks for and what a picture shows, counted."""

import pytest

from ldm_toolkit.evaluation.adherence import Asked, adherence, held_out_prompts, worst
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, Verdict, labels


def verdict(scene: scenes.Scene, valid: bool = True, **wrong: str) -> Verdict:
    values = {**labels(scene), **wrong}
    return Verdict(valid, values, dict.fromkeys(values, 1.0))


def test_prompts_are_of_compositions_that_no_training_sees() -> None:
    prompts = held_out_prompts(60, seed=4)
    assert prompts == held_out_prompts(60, seed=4)
    assert prompts != held_out_prompts(60, seed=5)
    for one in prompts:
        assert scenes.is_held_out(one.scene.composition)
        assert one.wanted["subject"] == one.scene.subject
        assert one.wanted.items() <= labels(one.scene).items()
    assert any("weather" not in one.wanted for one in prompts)


def test_only_what_was_asked_for_counts() -> None:
    prompts = held_out_prompts(40, seed=1)
    named = [index for index, one in enumerate(prompts) if "colour" in one.wanted]
    verdicts = [
        verdict(one.scene, colour="none of the asked") if index % 2 else verdict(one.scene)
        for index, one in enumerate(prompts)
    ]
    found = adherence(verdicts, prompts)
    odd = sum(index % 2 for index in named)
    assert found.attributes["colour"].count == len(named)
    assert found.attributes["colour"].value == pytest.approx(1 - odd / len(named))
    assert found.everything.value == pytest.approx(1 - odd / 40)
    others = {name: one for name, one in found.attributes.items() if name != "colour"}
    assert all(one.value == 1 for one in others.values())
    assert found.refused.value == 0
    assert worst(verdicts, prompts) == [index for index in named if index % 2]


def test_a_refused_picture_shows_nothing() -> None:
    scene = scenes.sample_scene(0, 0, "test")
    asked = Asked("x", {"subject": scene.subject, "setting": scene.setting}, scene)
    both = [verdict(scene, valid=False), verdict(scene, setting="elsewhere"), verdict(scene)]
    found = adherence(both, [asked] * 3)
    assert found.attributes["subject"].value == pytest.approx(2 / 3)
    assert found.attributes["setting"].value == found.everything.value == pytest.approx(1 / 3)
    assert found.refused.value == pytest.approx(1 / 3)
    assert worst(both, [asked] * 3) == [0, 1]
    assert set(found.as_dict()) == {"subject", "setting", "everything", "refused"}


def test_every_attribute_has_a_label() -> None:
    scene = scenes.make_scene(scenes.Composition("car", "red", None, "room"), 0)
    found = labels(scene)
    assert found["accessory"] == found["weather"] == found["accessory_colour"] == "none"
    assert all(found[name] in values for name, values in ATTRIBUTES.items())
