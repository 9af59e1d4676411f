"""Scenes of the storybook world: what may be drawn, what it is called, and which part is held out.

Data and pure functions of the standard library only, so that the command line and the prompt
checks can use them without loading torch. The tables are in `_tables.py`.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ldm_toolkit.storybook._tables import (
    ACCESSORIES,
    COLOURS,
    LOST_IN,
    PLACES,
    SETTINGS,
    SIZES,
    SUBJECTS,
    TOO_NEAR,
    WEATHERS,
    Setting,
    Weather,
)
from ldm_toolkit.storybook._tables import ACCESSORY_RGB as ACCESSORY_RGB

SPLIT_VERSION = 1
SPLITS = ("train", "test", "all")
TEST_SHARE = 9  # one composition in nine is held out

ACCESSORY_OMITTED = 0.03  # a caption without an accessory should nearly always mean none is there
WEATHER_OMITTED = 0.05
COLOUR_OMITTED = 0.22
SETTING_OMITTED = 0.28
ACCESSORY_COLOUR_NAMED = 0.4
SIZE_NAMED = {"big": 0.12, "small": 0.85}
PLACE_NAMED = {"left": 0.6, "middle": 0.04, "right": 0.6}

NO_ACCESSORY = 0.2  # at least; half of the subjects that can wear a single thing wear none
SMALL = 0.22
WEATHER = 0.33


@dataclass(frozen=True)
class Composition:
    """What the split is made of: the four attributes that a prompt can ask for."""

    subject: str
    colour: str
    accessory: str | None
    setting: str

    @property
    def key(self) -> str:
        """The four values as one line, `none` for no accessory."""
        worn = self.accessory if self.accessory is not None else "none"
        return f"{self.subject}|{self.colour}|{worn}|{self.setting}"


@dataclass(frozen=True)
class Scene:
    """One picture: a composition, what the split leaves open, and the seed of everything else."""

    subject: str
    colour: str
    accessory: str | None
    setting: str
    accessory_colour: str | None = None
    weather: str | None = None
    size: str = "big"
    place: str = "middle"
    seed: int = 0

    @property
    def composition(self) -> Composition:
        """The part of the scene that the split looks at."""
        return Composition(self.subject, self.colour, self.accessory, self.setting)


@dataclass(frozen=True)
class Caption:
    """A text and the attributes of the scene that it names; the others are free in the picture."""

    text: str
    mentions: frozenset[str]


def generator(*parts: object) -> random.Random:
    """A random generator that depends on `parts` alone, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def is_held_out(composition: Composition) -> bool:
    """Whether this composition is in the test split: a fixed hash, about one in nine.

    Adding subjects, colours, accessories or settings never moves an existing composition.
    """
    digest = hashlib.sha256(f"storybook-{SPLIT_VERSION}|{composition.key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % TEST_SHARE == 0


@cache
def compositions(split: str = "all") -> tuple[Composition, ...]:
    """All compositions of a split ("train", "test" or "all") in the order of the tables."""
    return tuple(found for found in _every_composition() if in_split(found, split))


def in_split(composition: Composition, split: str) -> bool:
    """Whether a composition belongs to "train", "test" or "all"."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    return split == "all" or is_held_out(composition) == (split == "test")


def accessory_colours(composition: Composition) -> tuple[str, ...]:
    """The colours the accessory may have: not near the subject's, nor lost in the background."""
    colour, worn = composition.colour, composition.accessory
    avoided = (colour, *TOO_NEAR[colour], *LOST_IN.get(composition.setting, ()))
    return tuple(
        name
        for name in (ACCESSORIES[worn].colours if worn is not None else ())
        if name not in avoided
    )


def make_scene(composition: Composition, seed: int) -> Scene:
    """The plain scene of a composition for a seed, which chooses the accessory's colour too."""
    worn = composition.accessory
    colour = None
    if worn is not None:
        colour = _pick(generator("accessory", seed), accessory_colours(composition))
    subject, setting = composition.subject, composition.setting
    return Scene(subject, composition.colour, worn, setting, colour, seed=seed)


def sample_scene(seed: int, index: int, split: str = "train") -> Scene:
    """Scene number `index` of the endless stream `seed`: a pure function of its arguments.

    Subjects, colours and settings are equally frequent before the split takes its share.
    """
    draw = generator("scene", seed, index, split)
    while True:
        subject = _pick(draw, tuple(SUBJECTS))
        wearable, accessory = SUBJECTS[subject].accessories, None
        if draw.random() >= max(NO_ACCESSORY, 1 / (len(wearable) + 1)):
            accessory = _pick(draw, wearable)
        colour, setting = _pick(draw, tuple(COLOURS)), _pick(draw, tuple(SETTINGS))
        composition = Composition(subject, colour, accessory, setting)
        if in_split(composition, split):
            scene = make_scene(composition, int(draw.random() * 2**32))
            return _in_circumstances(scene, draw)


def _in_circumstances(scene: Scene, draw: random.Random) -> Scene:
    """The scene in some weather, its subject sometimes small and to one side."""
    known = SETTINGS[scene.setting].weathers
    weather = _pick(draw, known) if known and draw.random() < WEATHER else None
    if draw.random() >= SMALL:
        return replace(scene, weather=weather)
    return replace(scene, weather=weather, size="small", place=_pick(draw, tuple(PLACES)))


def canonical_caption(scene: Scene) -> str:
    """The plainest full caption: "a brown dog wearing a hat on the beach"."""
    size = scene.size if scene.size == "small" else ""
    words = [_article(size or scene.colour), size, scene.colour, scene.subject]
    if scene.accessory is not None:
        row = ACCESSORIES[scene.accessory]
        article = "" if row.article.endswith(" of") else row.article
        words += ["with" if row.held else "wearing", article, scene.accessory]
    words.append(SETTINGS[scene.setting].phrases[0])
    words += [WEATHERS[scene.weather].phrases[0]] if scene.weather is not None else []
    words += [PLACES[scene.place][0]] if scene.place != "middle" else []
    return _join(*words)


_OPENINGS = ("a picture of", "a drawing of", "an image of", "a painting of", "a cartoon of",
             "an illustration of", "picture of", "drawing of", "a photo of",
             "image of")  # fmt: skip
_PRESENTING = ("there is", "here is", "this is", "i see", "look at", "draw", "show me",
               "i want", "paint")  # fmt: skip
_WEARING = ("wearing", "wearing", "wearing", "wearing", "with", "with", "in", "that wears",
            "who wears", "dressed in", "who is wearing", "that has", "has", "having")  # fmt: skip
_VERBS = ("wears", "is wearing", "has", "has got", "wear")
_HOLDING = ("with", "with", "with", "holding", "and", "that has", "carrying", "that holds", "has")
_HOLDS = ("has", "holds", "is holding", "carries", "has got")
_BEING = ("is", "is", "is", "stands", "sits", "is standing", "is sitting")
_ARTICLES = ("the", "one", "my", "some")
_GLUE = ("a", "an", "and", "on", "wearing", "with", "is", "coloured", "colored", "that", "in")


def caption(scene: Scene, seed: int) -> Caption:
    """One of very many ways to say what the scene shows; a pure function of scene and seed.

    Terse lists, short broken English and whole sentences; colour, setting and (rarely) the
    accessory may be left out, and `mentions` says which attributes are named.
    """
    draw = generator("caption", scene, seed)
    named = _choose_mentions(scene, draw)
    style = draw.random()
    if style < 0.14:
        text = _terse(scene, named, draw)
    elif style < 0.28:
        text = _sentence(scene, named, draw)
    else:
        text = _phrase(scene, named, draw)
    if draw.random() < 0.12:
        text = text[0].upper() + text[1:]
    if draw.random() < 0.12:
        text += "."
    return Caption(text, named)


@cache
def known_words() -> frozenset[str]:
    """Every word, in lower case, that a caption can contain."""
    texts: list[str] = [*COLOURS, *_OPENINGS, *_PRESENTING, *_WEARING, *_VERBS, *_ARTICLES, *_GLUE]
    texts += (*_HOLDING, *_HOLDS, *_BEING, "holding")
    for subject in SUBJECTS.values():
        texts += (*subject.names, *subject.adjectives)
    for accessory in ACCESSORIES.values():
        texts += (*accessory.names, accessory.article, accessory.place, *accessory.colours)
    for setting in SETTINGS.values():
        texts += (*setting.phrases, *setting.words)
    for weather in WEATHERS.values():
        texts += (*weather.phrases, *weather.words)
    texts += sum((*SIZES.values(), *PLACES.values()), ())
    return frozenset(word for text in texts for word in re.findall(r"[a-z]+", text))


def _every_composition() -> Iterator[Composition]:
    for subject, row in SUBJECTS.items():
        for colour in COLOURS:
            for accessory in (None, *row.accessories):
                for setting in SETTINGS:
                    yield Composition(subject, colour, accessory, setting)


def _pick(draw: random.Random, choices: Sequence[str]) -> str:
    """One of `choices`; built on random() alone, whose stream Python promises to keep."""
    return choices[int(draw.random() * len(choices))]


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _article(following: str) -> str:
    return "an" if following[:1] in "aeiou" else "a"


def _choose_mentions(scene: Scene, draw: random.Random) -> frozenset[str]:
    """Which attributes a caption names; the subject always."""
    named = {"subject"}
    if draw.random() >= COLOUR_OMITTED:
        named.add("colour")
    if draw.random() >= SETTING_OMITTED:
        named.add("setting")
    if scene.accessory is not None and draw.random() >= ACCESSORY_OMITTED:
        named.add("accessory")
        if draw.random() < ACCESSORY_COLOUR_NAMED:
            named.add("accessory_colour")
    if scene.weather is not None and draw.random() >= WEATHER_OMITTED:
        named.add("weather")
        if scene.weather in SETTINGS:  # "at night" alone is the setting of that name
            named.add("setting")
    if draw.random() < SIZE_NAMED[scene.size]:
        named.add("size")
    if draw.random() < PLACE_NAMED[scene.place]:
        named.add("place")
    return frozenset(named)


def _subject_words(
    scene: Scene, named: frozenset[str], draw: random.Random, plain: bool = False
) -> str:
    """The noun phrase of the subject: article, adjective, colour, noun."""
    row = SUBJECTS[scene.subject]
    noun = _pick(draw, row.names)
    adjective = _pick(draw, row.adjectives) if draw.random() < 0.12 else ""
    if "size" in named:
        adjective = _pick(draw, SIZES[scene.size])
    colour = scene.colour if "colour" in named else ""
    if colour and draw.random() < 0.04:
        colour = _join(colour, _pick(draw, ("coloured", "colored")))
    words = _join(adjective, colour, noun)
    chance = draw.random()
    if plain or chance < 0.15:
        return words
    if chance < 0.25:
        return _join(_pick(draw, _ARTICLES), words)
    return _join(_article(words), words)


def _accessory_words(scene: Scene, named: frozenset[str], draw: random.Random) -> str:
    """The noun phrase of what is worn, its article sometimes dropped as people do."""
    row = ACCESSORIES[scene.accessory or ""]
    colour = scene.accessory_colour or "" if "accessory_colour" in named else ""
    words = _join(colour, _pick(draw, row.names))
    chance = draw.random()
    if row.article.endswith(" of"):
        return _join(row.article, words) if chance < 0.25 else words
    if chance < 0.3:
        return words
    return _join("the" if chance < 0.36 else _article(words), words)


def _terse(scene: Scene, named: frozenset[str], draw: random.Random) -> str:
    """Key words: "brown dog, hat, beach", "dog in hat, snow"."""
    parts = [_subject_words(scene, named, draw, plain=True)]
    if "accessory" in named:
        colour = scene.accessory_colour or "" if "accessory_colour" in named else ""
        worn = _join(colour, _pick(draw, ACCESSORIES[scene.accessory or ""].names))
        if draw.random() < 0.5:
            parts.append(worn)
        elif draw.random() < 0.25:
            held = ACCESSORIES[scene.accessory or ""].held
            parts[0] = _join(worn, "holding" if held else "wearing", parts[0])
        else:
            parts[0] = _join(parts[0], _pick(draw, _links(scene)[:4]), worn)
    for row in _surroundings(scene, named):
        parts.append(_pick(draw, row.words if draw.random() < 0.7 else row.phrases))
    if "place" in named:
        parts.append(_pick(draw, PLACES[scene.place]))
    return _pick(draw, (", ", ", ", " ")).join(parts)


def _links(scene: Scene) -> tuple[str, ...]:
    """What joins a subject to the thing that it wears or holds."""
    return _HOLDING if ACCESSORIES[scene.accessory or ""].held else _WEARING


def _surroundings(scene: Scene, named: frozenset[str]) -> Iterator[Setting | Weather]:
    if "setting" in named:
        yield SETTINGS[scene.setting]
    if "weather" in named:
        yield WEATHERS[scene.weather or ""]


def _where(scene: Scene, named: frozenset[str], draw: random.Random) -> str:
    """Setting, weather and side: "on the beach at sunset on the left"."""
    said = [_pick(draw, row.phrases) for row in _surroundings(scene, named)]
    if len(said) == 2 and draw.random() < 0.15:
        said.reverse()
    if "place" in named:
        said.insert(0 if draw.random() < 0.3 else len(said), _pick(draw, PLACES[scene.place]))
    return _join(*said)


def _sentence(scene: Scene, named: frozenset[str], draw: random.Random) -> str:
    """A whole sentence: "the brown dog wears a hat on the beach"."""
    subject = _subject_words(scene, named, draw)
    where = _where(scene, named, draw)
    if "accessory" in named:
        held = ACCESSORIES[scene.accessory or ""].held
        verb = _pick(draw, _HOLDS if held else _VERBS)
        worn = _accessory_words(scene, named, draw)
        if where and draw.random() < 0.2:
            return _join(subject, "with", worn, _being(scene, draw), where)
        return _join(subject, verb, worn, where)
    if where:
        return _join(subject, _being(scene, draw) if draw.random() < 0.7 else "", where)
    return _join(_pick(draw, _PRESENTING), subject)


def _being(scene: Scene, draw: random.Random) -> str:
    """ "is", "stands", "sits": a word for being somewhere."""
    return _pick(draw, _BEING if SUBJECTS[scene.subject].lively else _BEING[:4])


def _phrase(scene: Scene, named: frozenset[str], draw: random.Random) -> str:
    """What people type most: "a brown dog wearing a hat on the beach", opened in many ways."""
    if "colour" in named and draw.random() < 0.05:
        without = named - {"colour"}
        subject = _join(_subject_words(scene, without, draw), "that is", scene.colour)
        link = ""
        if scene.accessory is not None:
            link = "and with" if ACCESSORIES[scene.accessory].held else "and wearing"
    else:
        subject = _subject_words(scene, named, draw)
        link = _pick(draw, _links(scene)) if "accessory" in named else ""
    worn = ""
    if "accessory" in named:
        where = ACCESSORIES[scene.accessory or ""].place if draw.random() < 0.08 else ""
        worn = _join(link, _accessory_words(scene, named, draw), where)
    place = _where(scene, named, draw)
    chance = draw.random()
    opening = ""
    if chance < 0.22:
        opening = _pick(draw, _OPENINGS)
    elif chance < 0.3:
        opening = _pick(draw, _PRESENTING)
    if place and draw.random() < 0.12:
        return _join(place + _pick(draw, (",", "")), opening, subject, worn)
    if place and worn and draw.random() < 0.12:
        return _join(opening, subject, place, worn)
    return _join(opening, subject, worn, place)
