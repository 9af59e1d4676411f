"""Scenes, the fixed split and the captions."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from ldm_toolkit.storybook import scenes

FIRST_EDITION = {
    *("dog", "cat", "rabbit", "bear", "bird", "fish", "car", "house", "boat", "tree"),
    *("red", "orange", "yellow", "green", "blue", "purple", "brown", "white"),
    *("none", "hat", "scarf", "glasses", "crown", "bow tie"),
    *("meadow", "beach", "snow", "night", "city"),
}
HELD_OUT_FIRST_SHA256 = "0cc55d1332fd66edd2db46e0a02ca32655848d833cfa0557a0af11b2577526aa"
HELD_OUT_SHA256 = "bafe8afd20b6576fb707c7e3299d3f9135ef83166a151f9592ce6c8b83e8be10"
CIRCUMSTANCES = {
    "weather": {name: (*row.phrases, *row.words) for name, row in scenes.WEATHERS.items()},
    "size": scenes.SIZES,
    "place": scenes.PLACES,
}
NAMES = {"colour": scenes.COLOURS, "accessory": scenes.ACCESSORIES, "setting": scenes.SETTINGS}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _contains(text: str, phrase: str) -> bool:
    return f" {' '.join(_words(phrase))} " in f" {' '.join(_words(text))} "


@pytest.fixture(scope="module")
def sampled() -> list[tuple[scenes.Scene, scenes.Caption]]:
    drawn = [scenes.sample_scene(3, index, "all") for index in range(4000)]
    return [(scene, scenes.caption(scene, 5)) for scene in drawn]


def test_the_split_never_changes():
    held_out = sorted(found.key for found in scenes.compositions("test"))
    assert scenes.SPLIT_VERSION == 1
    assert hashlib.sha256("\n".join(held_out).encode()).hexdigest() == HELD_OUT_SHA256
    of_the_first = [
        key for key in held_out if all(word in FIRST_EDITION for word in key.split("|"))
    ]
    digest = hashlib.sha256("\n".join(of_the_first).encode()).hexdigest()
    assert digest == HELD_OUT_FIRST_SHA256


def test_the_split_divides_the_world():
    train, test = set(scenes.compositions("train")), set(scenes.compositions("test"))
    assert not train & test
    assert train | test == set(scenes.compositions("all"))
    assert 0.09 < len(test) / len(train | test) < 0.135
    assert all(map(scenes.is_held_out, test))
    assert not any(map(scenes.is_held_out, train))


def test_training_holds_every_value_and_every_pair():
    def pairs(split: str) -> set[tuple[str, ...]]:
        rows = (found.key.split("|") for found in scenes.compositions(split))
        labelled = ([f"{place}:{value}" for place, value in enumerate(row)] for row in rows)
        return {pair for row in labelled for pair in combinations(row, 2)}

    assert pairs("all") == pairs("train")


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        scenes.sample_scene(0, 0, "dev")


def test_sampling_is_a_pure_function():
    assert scenes.sample_scene(0, 7) == scenes.sample_scene(0, 7)
    assert (
        len({scenes.sample_scene(seed, index) for seed in range(5) for index in range(50)}) == 250
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_sampling_stays_in_its_split_and_reaches_all_values(split):
    drawn = [scenes.sample_scene(1, index, split) for index in range(1500)]
    assert {scenes.is_held_out(scene.composition) for scene in drawn} == {split == "test"}
    subjects = Counter(scene.subject for scene in drawn)
    assert set(subjects) == set(scenes.SUBJECTS)
    assert min(subjects.values()) > 50
    for attribute, table in (NAMES | CIRCUMSTANCES).items():
        assert {getattr(scene, attribute) for scene in drawn} - {None} == set(table)
    for scene in drawn:
        assert scene.weather is None or scene.weather in scenes.SETTINGS[scene.setting].weathers
        assert scene.size == "small" or scene.place == "middle"


def test_accessories_fit_and_stay_visible(sampled):
    for scene, _ in sampled:
        if scene.accessory is None:
            assert scene.accessory_colour is None
            continue
        assert scene.accessory in scenes.SUBJECTS[scene.subject].accessories
        assert scene.accessory_colour != scene.colour
        assert scene.accessory_colour not in scenes.TOO_NEAR[scene.colour]


def test_every_composition_has_a_choice_of_accessory_colours():
    for found in scenes.compositions("all"):
        if found.accessory is not None:
            assert len(scenes.accessory_colours(found)) >= 2, found


def test_colours_are_far_apart():
    for first, second in combinations(scenes.COLOURS.values(), 2):
        assert sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5 > 75


def test_captions_use_known_words_only(sampled):
    known = scenes.known_words()
    assert all(word == word.lower() for word in known)
    for scene, said in sampled:
        for text in (said.text, scenes.canonical_caption(scene)):
            assert set(_words(text)) <= known, text
            assert len(text.split()) <= 77


def test_every_known_word_is_said(sampled):
    said = {word for _, caption in sampled for word in _words(caption.text)}
    assert scenes.known_words() - said <= {"some"}


def test_captions_say_what_the_scene_shows_and_nothing_else(sampled):
    for scene, said in sampled:
        assert _contains_one(said.text, scenes.SUBJECTS[scene.subject].names)
        expected = {getattr(scene, name) for name in said.mentions & {"colour", "accessory_colour"}}
        found = {name for name in scenes.ACCESSORY_RGB if _contains(said.text, name)}
        assert found == expected, said
        for name, row in scenes.ACCESSORIES.items():
            expected = "accessory" in said.mentions and name == scene.accessory
            assert _contains_one(said.text, row.names) == expected, said
        for name, setting in scenes.SETTINGS.items():
            found = _contains_one(said.text, (*setting.phrases, *setting.words))
            if "setting" not in said.mentions or name == scene.setting:
                assert found == ("setting" in said.mentions), said
        for attribute, phrases in CIRCUMSTANCES.items():
            for name, words in phrases.items():
                expected_here = attribute in said.mentions and getattr(scene, attribute) == name
                if expected_here or (attribute, name) != ("weather", "night"):
                    assert _contains_one(said.text, words) == expected_here, (said, name)


def _contains_one(text: str, phrases: tuple[str, ...]) -> bool:
    return any(_contains(text, phrase) for phrase in phrases)


def test_captions_vary_and_seldom_hide_an_accessory(sampled):
    assert len({said.text for _, said in sampled}) > 2500
    worn = [said for scene, said in sampled if scene.accessory is not None]
    hidden = sum("accessory" not in said.mentions for said in worn) / len(worn)
    assert 0.01 < hidden < 0.05
    scene = scenes.sample_scene(0, 0)
    assert scenes.caption(scene, 1) == scenes.caption(scene, 1)
    assert len({scenes.caption(scene, seed).text for seed in range(100)}) > 60


def test_canonical_caption():
    scene = scenes.make_scene(scenes.Composition("dog", "brown", "hat", "beach"), 0)
    assert scenes.canonical_caption(scene) == "a brown dog wearing a hat on the beach"
    scene = scenes.make_scene(scenes.Composition("cat", "orange", "glasses", "night"), 0)
    assert scenes.canonical_caption(scene) == "an orange cat wearing glasses at night"
    scene = scenes.make_scene(scenes.Composition("bear", "red", "umbrella", "city"), 0)
    scene = replace(scene, weather="rain", size="small", place="left")
    said = "a small red bear with an umbrella in the city in the rain on the left"
    assert scenes.canonical_caption(scene) == said


def test_scenes_need_the_standard_library_only():
    code = (
        "import sys, json, ldm_toolkit.storybook.scenes;"
        "print(json.dumps([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
