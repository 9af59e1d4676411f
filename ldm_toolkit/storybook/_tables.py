"""The words and colours of the storybook world: one row for each thing that can be drawn or said.

To add a subject or an accessory: one row in the table here, one drawing function in
`_subjects.py` or `_accessories.py`.
"""

from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """A thing that can be drawn: its names and what it may wear."""

    names: tuple[str, ...]
    accessories: tuple[str, ...]
    adjectives: tuple[str, ...]


@dataclass(frozen=True)
class Accessory:
    """A thing that can be worn: its names, where it sits, and the colours it comes in."""

    names: tuple[str, ...]
    article: str
    place: str
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A background: phrases that end a caption, and single words for terse ones."""

    phrases: tuple[str, ...]
    words: tuple[str, ...]


COLOURS: dict[str, RGB] = {
    "red": (220, 38, 42),
    "orange": (250, 138, 24),
    "yellow": (252, 216, 42),
    "green": (34, 150, 66),
    "blue": (40, 100, 228),
    "purple": (146, 66, 190),
    "brown": (128, 78, 42),
    "white": (250, 250, 252),
}

ACCESSORY_RGB: dict[str, RGB] = {**COLOURS, "black": (52, 48, 60), "pink": (250, 130, 180)}

TOO_NEAR: dict[str, tuple[str, ...]] = {
    "red": ("orange", "pink", "brown"),
    "orange": ("red", "yellow", "brown"),
    "yellow": ("orange", "white"),
    "green": (),
    "blue": ("purple",),
    "purple": ("blue", "pink"),
    "brown": ("orange", "red", "black"),
    "white": ("yellow",),
}

LOST_IN: dict[str, tuple[str, ...]] = {"night": ("black",)}

_LIVELY = ("cute", "happy", "friendly", "lovely", "funny", "nice")
_PLAIN = ("nice", "lovely", "pretty", "cute")
_ALL_ACCESSORIES = ("hat", "scarf", "glasses", "crown", "bow tie")

SUBJECTS: dict[str, Subject] = {
    "dog": Subject(("dog", "dog", "dog", "puppy", "doggy", "doggo"), _ALL_ACCESSORIES, _LIVELY),
    "cat": Subject(("cat", "cat", "cat", "kitten", "kitty"), _ALL_ACCESSORIES, _LIVELY),
    "rabbit": Subject(("rabbit", "rabbit", "rabbit", "bunny", "hare"), _ALL_ACCESSORIES, _LIVELY),
    "bear": Subject(("bear", "bear", "bear", "teddy bear", "teddy"), _ALL_ACCESSORIES, _LIVELY),
    "bird": Subject(("bird", "bird", "bird", "birdie"), _ALL_ACCESSORIES, _LIVELY),
    "fish": Subject(("fish", "fish", "fish", "fishy"), ("hat", "glasses", "crown", "bow tie"),
                    _LIVELY),
    "car": Subject(("car", "car", "car", "automobile", "auto"), ("hat",), _PLAIN),
    "house": Subject(("house", "house", "house", "home", "cottage"), ("hat",), _PLAIN),
    "boat": Subject(("boat", "boat", "boat", "sailboat", "ship", "sailing boat"), ("hat",),
                    _PLAIN),
    "tree": Subject(("tree", "tree", "tree", "leafy tree"), ("hat",), _PLAIN),
}  # fmt: skip

ACCESSORIES: dict[str, Accessory] = {
    "hat": Accessory(("hat", "hat", "hat", "top hat"), "a", "on top",
                     ("black", "red", "blue", "green", "purple", "yellow")),
    "scarf": Accessory(("scarf", "scarf", "scarf", "neck scarf"), "a", "around the neck",
                       ("red", "yellow", "green", "blue", "purple", "pink")),
    "glasses": Accessory(("glasses", "glasses", "glasses", "spectacles", "eyeglasses"),
                         "a pair of", "on the nose", ("red", "blue", "green", "yellow", "purple")),
    "crown": Accessory(("crown", "crown", "crown", "royal crown"), "a", "on top",
                       ("yellow", "yellow", "yellow", "red", "white", "purple")),
    "bow tie": Accessory(("bow tie", "bow tie", "bow tie", "bowtie"), "a", "at the neck",
                         ("red", "yellow", "green", "blue", "purple", "black")),
}  # fmt: skip

SETTINGS: dict[str, Setting] = {
    "meadow": Setting(("in a meadow", "in the meadow", "on the grass", "in a field", "on a meadow",
                       "on a lawn", "in the grass", "in a flower field", "in the countryside"),
                      ("meadow", "grass", "field")),
    "beach": Setting(("on the beach", "at the beach", "on a beach", "by the sea", "on the sand",
                      "at the seaside", "by the ocean", "on a sandy beach"),
                     ("beach", "sand", "seaside")),
    "snow": Setting(("in the snow", "in snow", "in winter", "on a snowy day", "on the snow",
                     "while it snows", "in a snowy landscape", "on a snowy hill"),
                    ("snow", "winter", "snowy")),
    "night": Setting(("at night", "under the stars", "on a starry night", "in the moonlight",
                      "under the moon", "in the night", "at night under the moon"),
                     ("night", "stars", "moonlight")),
    "city": Setting(("in the city", "in a city", "in town", "on a street", "on the street",
                     "in front of tall buildings", "in the big city", "downtown"),
                    ("city", "town", "street")),
}  # fmt: skip
