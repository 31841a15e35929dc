"""Recoloured pixel art: ramps of colours exchanged between pictures, and the colour words of captions with them."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RECOLOURED = 0.5  # share of the pictures
HUE_GAP = 25 / 360  # between two ramps
LEAST_SATURATION, LEAST_VALUE = 0.2, 0.15  # greys and outlines belong to no ramp
LUMINANCE = np.array([0.299, 0.587, 0.114])
BROWN = (8 / 360, 45 / 360, 0.65)  # hues from and to, and the value up to which they are brown

# The hue, in degrees, up to which each colour reaches, and its words; the first one is used for new colours.
WORDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "red": (14, ("red", "crimson", "scarlet", "ruby")),
    "orange": (40, ("orange", "amber")),
    "yellow": (68, ("yellow", "gold", "golden")),
    "green": (165, ("green", "emerald", "lime")),
    "cyan": (195, ("cyan", "teal", "turquoise", "aqua")),
    "blue": (252, ("blue", "navy", "azure", "sapphire")),
    "purple": (292, ("purple", "violet", "lilac")),
    "pink": (344, ("pink", "magenta", "rose")),
    "brown": (0, ("brown",)),
}
PALE_RED = (0.55, 0.7)  # the saturation below which, and the value from which, red is pink
OTHERS = frozenset(  # words for colours that are no hue, or of several
    "auburn beige black blond blonde coral cream dark gray grey ivory khaki light maroon mint olive pale peach salmon "
    "silver tan white".split()
)
OTHER = "other"
COLOURS = {word: colour for colour, (_, words) in WORDS.items() for word in words}


class Ramp(NamedTuple):
    """Colours of similar hue, from dark to light."""

    rgba: NDArray[np.uint8]  # (n, 4)
    colour: str
    """Its name, a key of WORDS."""


def find_ramps(image: NDArray[np.uint8]) -> list[Ramp]:
    """The ramps of an image (H, W, 4): runs of its opaque colours on the circle of hues, cut at gaps."""
    colours = np.unique(image.reshape(-1, 4), axis=0)
    colours = colours[colours[:, 3] == 255]
    hsv = np.array([colorsys.rgb_to_hsv(*colour[:3] / 255) for colour in colours]).reshape(-1, 3)
    own = (hsv[:, 1] >= LEAST_SATURATION) & (hsv[:, 2] >= LEAST_VALUE)
    order = np.argsort(hsv[own, 0], kind="stable")
    colours, hues = colours[own][order], hsv[own, 0][order]
    if not len(hues):
        return []
    gaps = np.diff(hues, append=hues[0] + 1) > HUE_GAP  # behind each colour, around the circle
    first = int(gaps.argmax()) + 1 if gaps.any() else 0
    parts = np.split(np.roll(colours, -first, 0), np.flatnonzero(np.roll(gaps, -first))[:-1] + 1)
    return [_ramp(part) for part in parts]


def _ramp(colours: NDArray[np.uint8]) -> Ramp:
    ordered = colours[np.argsort(colours[:, :3] @ LUMINANCE, kind="stable")]
    return Ramp(ordered, _name(ordered))


def _name(ramp: NDArray[np.uint8]) -> str:
    return colour_name(ramp[len(ramp) // 2])


def colour_name(rgba: NDArray[np.uint8]) -> str:
    """The key of WORDS that an opaque colour has."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgba[:3] / 255)
    if BROWN[0] <= hue < BROWN[1] and value < BROWN[2]:
        return "brown"
    name = next((name for name, (end, _) in WORDS.items() if hue * 360 < end), "red")
    return "pink" if name == "red" and saturation < PALE_RED[0] and value >= PALE_RED[1] else name


class Recolouring:
    """Recolours the images `numbers` of a set (N, H, W, 4), as a function of (seed, epoch, image number) alone.

    In half of them, ramps take the colours of another picture's ramps of at least as many colours, dark for dark. Where
    the caption has words for colours, only a ramp that one of them names, and no other ramp has, is exchanged, for one
    of a colour in `known`; the word changes with it.
    """

    def __init__(self, images: NDArray[np.uint8], numbers: NDArray[np.int64], seed: int) -> None:
        self.images, self.numbers, self.seed = images, numbers, seed
        self._ramps: dict[int, list[Ramp]] = {}

    def __call__(
        self, number: int, epoch: int, named: Collection[str] = (), known: Collection[str] = tuple(WORDS)
    ) -> tuple[dict[int, int], dict[str, str]]:
        """The new 32-bit colour of each one that changes, and of each colour in `named` that changes its new one."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 0xC0104, epoch, number])))
        if rng.random() >= RECOLOURED:
            return {}, {}
        others = self._of(int(rng.choice(self.numbers)))
        own = self._of(number)
        counts = {ramp.colour: sum(other.colour == ramp.colour for other in own) for ramp in own}
        colours: dict[int, int] = {}
        words: dict[str, str] = {}
        for ramp in own:
            chosen = [_spread(other.rgba, len(ramp.rgba)) for other in others if len(other.rgba) >= len(ramp.rgba)]
            usable = [new for new in chosen if not named or _name(new) in known]
            place = int(rng.integers(len(usable))) if usable else -1
            if place < 0 or (named and (ramp.colour not in named or counts[ramp.colour] > 1)):
                continue
            colours |= dict(zip(_codes(ramp.rgba).tolist(), _codes(usable[place]).tolist(), strict=True))
            words[ramp.colour] = _name(usable[place])
        return colours, {old: new for old, new in words.items() if old in named and old != new}

    def _of(self, number: int) -> list[Ramp]:
        if number not in self._ramps:
            self._ramps[number] = find_ramps(self.images[number])
        return self._ramps[number]


def _spread(colours: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """So many of the colours (n, 4) of a ramp, from its dark to its light end; the middle one alone."""
    places = np.linspace(0, len(colours) - 1, count).round().astype(int) if count > 1 else [len(colours) // 2]
    return colours[places]


class ColourWords:
    """The words for colours in a set's captions: `tags` (N, t, w) of numbers of the words in `table`, from 1."""

    def __init__(self, tags: NDArray[np.integer], table: Sequence[str]) -> None:
        self.tags = tags
        numbers = {word: number for number, word in enumerate(table, 1)}
        self._colours = {numbers[word]: colour for word, colour in COLOURS.items() if word in numbers}
        self._named = self._colours | {numbers[word]: OTHER for word in OTHERS if word in numbers}
        self._numbers = {
            colour: numbers[known[0]]
            for colour, (_, words) in WORDS.items()
            if (known := [word for word in words if word in numbers])
        }

    @property
    def known(self) -> Collection[str]:
        """Colours, keys of WORDS, that the table has a word for."""
        return self._numbers.keys()

    def named(self, picture: int) -> set[str]:
        """Colours that the caption of a picture names, and OTHER for words that are none of them."""
        return {self._named[n] for n in self.tags[picture].ravel().tolist() if n in self._named}

    def changed(self, tags: NDArray[np.int64], words: Mapping[str, str]) -> NDArray[np.int64]:
        """Tags (TAGS, w) with each colour word that changes its colour replaced by one of the new colour."""
        found = tags.copy()
        for number, colour in self._colours.items():
            if colour in words:
                found[tags == number] = self._numbers[words[colour]]
        return found


def apply_colours(image: NDArray[np.uint8], colours: Mapping[int, int]) -> NDArray[np.uint8]:
    """The image (H, W, 4) with its 32-bit colours replaced."""
    codes = _codes(image)
    found = codes.copy()
    for old, new in colours.items():
        found[codes == old] = new
    return found.view(np.uint8).reshape(image.shape)


def _codes(rgba: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(rgba).view(np.uint32)[..., 0]
