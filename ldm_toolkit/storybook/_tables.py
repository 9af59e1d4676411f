"""The words and colours of the storybook world: one row for each thing that can be drawn or said.

To add a subject or an accessory: one row in the table here, one drawing function in `_animals.py`,
`_things.py` or `_accessories.py`.
"""

from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """A thing that can be drawn: its names, what it may wear or hold, and whether it lives."""

    names: tuple[str, ...]
    accessories: tuple[str, ...]
    lively: bool = True

    @property
    def adjectives(self) -> tuple[str, ...]:
        """Words that say nothing of the picture, as people put them in."""
        return _LIVELY if self.lively else _PLAIN


@dataclass(frozen=True)
class Accessory:
    """A thing that can be worn or held: its names, where it sits, the colours it comes in."""

    names: tuple[str, ...]
    article: str
    place: str
    colours: tuple[str, ...]
    held: bool = False


@dataclass(frozen=True)
class Setting:
    """A background: phrases that end a caption, single words for terse ones, its weathers."""

    phrases: tuple[str, ...]
    words: tuple[str, ...]
    weathers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weather:
    """A time of day or weather: how it is said, its sky from top to bottom, its light.

    Every colour of the background goes `share` of the way to `light`.
    """

    phrases: tuple[str, ...]
    words: tuple[str, ...]
    sky: tuple[RGB, RGB]
    light: RGB
    share: float


COLOURS: dict[str, RGB] = {
    "red": (220, 38, 42),
    "orange": (250, 138, 24),
    "yellow": (252, 216, 42),
    "green": (34, 150, 66),
    "blue": (40, 100, 228),
    "purple": (146, 66, 190),
    "brown": (128, 78, 42),
    "white": (250, 250, 252),
    "pink": (250, 130, 180),
    "grey": (132, 138, 150),
}

ACCESSORY_RGB: dict[str, RGB] = {**COLOURS, "black": (52, 48, 60)}

TOO_NEAR: dict[str, tuple[str, ...]] = {
    "red": ("orange", "pink", "brown"),
    "orange": ("red", "yellow", "brown"),
    "yellow": ("orange", "white"),
    "green": (),
    "blue": ("purple",),
    "purple": ("blue", "pink"),
    "brown": ("orange", "red", "black"),
    "white": ("yellow",),
    "pink": ("red", "purple"),
    "grey": ("black", "white"),
}

LOST_IN: dict[str, tuple[str, ...]] = {"night": ("black",)}

_LIVELY = ("cute", "happy", "friendly", "lovely", "funny", "nice")
_PLAIN = ("nice", "lovely", "pretty", "cute")
_WORN = ("hat", "scarf", "glasses", "crown", "bow tie")
_ALL_ACCESSORIES = (*_WORN, "headphones", "balloon", "umbrella")

SUBJECTS: dict[str, Subject] = {
    "dog": Subject(("dog", "dog", "dog", "puppy", "doggy", "doggo"), _ALL_ACCESSORIES),
    "cat": Subject(("cat", "cat", "cat", "kitten", "kitty"), _ALL_ACCESSORIES),
    "rabbit": Subject(("rabbit", "rabbit", "rabbit", "bunny", "hare"),
                      (*_WORN, "headphones", "balloon")),
    "bear": Subject(("bear", "bear", "bear", "teddy bear", "teddy"), _ALL_ACCESSORIES),
    "bird": Subject(("bird", "bird", "bird", "birdie"), _WORN),
    "fish": Subject(("fish", "fish", "fish", "fishy"), ("hat", "glasses", "crown", "bow tie")),
    "car": Subject(("car", "car", "car", "automobile", "auto"), ("hat", "balloon"), lively=False),
    "house": Subject(("house", "house", "house", "home", "cottage"), ("hat", "balloon"),
                     lively=False),
    "boat": Subject(("boat", "boat", "boat", "sailboat", "ship", "sailing boat"),
                    ("hat", "balloon"), lively=False),
    "tree": Subject(("tree", "tree", "tree", "leafy tree"), ("hat", "balloon"), lively=False),
    "elephant": Subject(("elephant", "elephant", "elephant", "baby elephant"),
                        ("hat", "glasses", "crown", "balloon", "umbrella")),
    "penguin": Subject(("penguin", "penguin", "penguin", "penguin chick"), _ALL_ACCESSORIES),
    "turtle": Subject(("turtle", "turtle", "turtle", "tortoise"),
                      ("hat", "scarf", "glasses", "crown", "bow tie")),
    "snail": Subject(("snail", "snail", "snail", "garden snail"),
                     ("hat", "scarf", "glasses", "crown", "bow tie")),
    "mushroom": Subject(("mushroom", "mushroom", "mushroom", "toadstool"), ("hat", "glasses"),
                        lively=False),
    "rocket": Subject(("rocket", "rocket", "rocket", "spaceship", "space rocket"),
                      ("hat", "balloon"), lively=False),
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
    "headphones": Accessory(("headphones", "headphones", "headphones", "earphones"), "a pair of",
                            "on the ears", ("red", "yellow", "green", "blue", "black", "white")),
    "balloon": Accessory(("balloon", "balloon", "balloon", "party balloon"), "a", "on a string",
                         ("red", "yellow", "green", "blue", "purple", "pink"), held=True),
    "umbrella": Accessory(("umbrella", "umbrella", "umbrella", "parasol"), "an", "overhead",
                          ("red", "yellow", "green", "blue", "purple", "pink"), held=True),
}  # fmt: skip

_SKIES = ("rain", "sunset", "night")

SETTINGS: dict[str, Setting] = {
    "meadow": Setting(("in a meadow", "in the meadow", "on the grass", "in a field", "on a meadow",
                       "on a lawn", "in the grass", "in a flower field", "in the countryside"),
                      ("meadow", "grass", "field"), ("rain", "sunset")),
    "beach": Setting(("on the beach", "at the beach", "on a beach", "by the sea", "on the sand",
                      "at the seaside", "by the ocean", "on a sandy beach"),
                     ("beach", "sand", "seaside"), _SKIES),
    "snow": Setting(("in the snow", "in snow", "in winter", "on a snowy day", "on the snow",
                     "while it snows", "in a snowy landscape", "on a snowy hill"),
                    ("snow", "winter", "snowy"), ("sunset", "night")),
    "night": Setting(("at night", "under the stars", "on a starry night", "in the moonlight",
                      "under the moon", "in the night", "at night under the moon"),
                     ("night", "stars", "moonlight")),
    "city": Setting(("in the city", "in a city", "in town", "on a street", "on the street",
                     "in front of tall buildings", "in the busy city", "downtown"),
                    ("city", "town", "street"), _SKIES),
    "forest": Setting(("in the forest", "in a forest", "in the woods", "among the trees",
                       "between the trees", "in the wood", "deep in the forest"),
                      ("forest", "woods"), _SKIES),
    "desert": Setting(("in the desert", "in a desert", "on a dune", "among cacti", "by the cactus",
                       "in the dunes", "in the hot desert"),
                      ("desert", "dunes", "cactus"), ("sunset", "night")),
    "room": Setting(("in a room", "in the room", "indoors", "at home", "in the living room",
                     "by the window", "inside", "in a cosy room"),
                    ("room", "indoors", "inside")),
}  # fmt: skip

WEATHERS: dict[str, Weather] = {
    "rain": Weather(("in the rain", "in the rain", "on a rainy day", "while it rains", "in rain"),
                    ("rain", "rainy"), ((116, 128, 148), (166, 176, 190)), (110, 122, 144), 0.36),
    "sunset": Weather(("at sunset", "at sunset", "in the evening", "at dusk", "at sundown"),
                      ("sunset", "evening"), ((228, 96, 104), (255, 202, 110)), (226, 110, 80),
                      0.3),
    "night": Weather(("at night", "at night", "in the dark", "in the night"), ("night", "dark"),
                     ((24, 28, 76), (72, 72, 136)), (30, 34, 92), 0.58),
}  # fmt: skip

SIZES: dict[str, tuple[str, ...]] = {
    "big": ("big", "big", "large", "huge"),
    "small": ("small", "small", "little", "tiny"),
}

PLACES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left", "on the left side", "to the left"),
    "middle": ("in the middle", "in the centre"),
    "right": ("on the right", "on the right", "on the right side", "to the right"),
}
