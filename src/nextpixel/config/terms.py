"""Types shared by several settings, and validation of numbers."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from nextpixel.errors import InputError, shortened

Device = Literal["auto", "cpu", "cuda", "mps"]
KeepSide = Literal["top", "right", "bottom", "left"]
Part = Literal["random", "top", "bottom", "left", "right", "center"]
Fit = Literal["crop", "imagenet", "squash", "place"]
Anchor = Literal["center", "top", "bottom", "left", "right", "top-left", "top-right", "bottom-left", "bottom-right"]
Objective = Literal["autoregressive", "masked"]
Positions = Literal["learned", "rotary"]
Activation = Literal["quick-gelu", "squared-relu"]
Preset = Literal["classic", "modern"]
Switch = Literal["on", "off"]
Speed = Literal["auto", "exact"]
Pooling = Literal["mean", "mean-std", "grid"]  # from the simplest
HIGHEST_BAND = 65_535  # samples per pixel of a TIFF
Size = tuple[int, int]  # height and width, or rows and columns
HIGHEST_SIDE = 4096
AUGMENTATIONS = ("flip", "crop", "pad", "orient", "shift", "wrap", "recolour")


def augmentations(augment: str) -> frozenset[str]:
    """The parts of "shift,flip"; pad-flip is another name of "pad,flip". Raises InputError."""
    parts = [] if augment == "none" else str(augment).replace("pad-flip", "pad,flip").split(",")
    found = frozenset(parts)
    unknown = found.difference(AUGMENTATIONS)
    if unknown or not isinstance(augment, str):
        raise InputError(
            f"expected none, or some of {', '.join(AUGMENTATIONS)}, separated by commas, got {shortened(augment)}",
            argument="augment",
        )
    for group in ({"crop", "pad", "shift", "wrap"}, {"flip", "orient"}):
        if len(both := sorted(found & group)) > 1:
            expected = f"expected at most one of {', '.join(sorted(group))}"
            raise InputError(f"{expected}, got {' and '.join(both)}", argument="augment")
    return found


def to_size(side: Any, argument: str = "side") -> Size:
    """Rows and columns of 32, (24, 16), "32" or "24x16". Raises InputError."""
    pair = side.split("x") if isinstance(side, str) else [side] if isinstance(side, numbers.Integral) else side
    try:
        found = tuple(int(part) for part in pair)
    except (TypeError, ValueError):
        found = ()
    if len(found) not in (1, 2) or isinstance(side, bool) or not all(1 <= n <= HIGHEST_SIDE for n in found):
        raise InputError(
            f"expected at least 1 and at most {HIGHEST_SIDE} pixels, or rows and columns as in 24x16, got "
            f"{side if isinstance(side, str) else shortened(side)}",
            argument=argument,
        )
    return found[0], found[-1]


def to_side(size: Size) -> int | Size:
    """One number for squares, as settings and files have it."""
    return size[0] if size[0] == size[1] else size


def side_text(size: Size) -> str:
    """32, or 24x16 (rows x columns), as options have it."""
    return "x".join(str(n) for n in (size[:1] if size[0] == size[1] else size))


def channels_of(fit: Fit) -> int:
    """4, with alpha, for pictures that are placed; 3, red, green and blue, for those that are resized."""
    return 4 if fit == "place" else 3


def check_fit(fit: Fit, channels: int) -> None:
    """Raises InputError for an unknown fit, or one whose pictures a model of so many channels cannot take."""
    if fit not in get_args(Fit):
        raise InputError(f"expected one of {', '.join(get_args(Fit))}, got {shortened(fit)}", argument="fit")
    if channels_of(fit) != channels:
        raise InputError(
            f"expected {'place' if channels == 4 else 'crop, imagenet or squash'}, got {fit}: place is for models of "
            "exact colours, which resizing would mix",
            argument="fit",
        )


@dataclass(frozen=True)
class Levels:
    """How a file becomes pixels: values as colours where its format does not define that, see images.coloured, and the
    cutting and placing of pixel art, see images.sprites."""

    range: tuple[float, float] | None = None
    """The values shown as black and white; None: the range of the images."""
    bands: tuple[int, ...] | None = None
    """The bands used as red, green and blue (or one, as grey), counted from 1; None: the first three."""
    anchor: Anchor | None = field(default=None, repr=False)  # the repr is part of the keys of older caches
    """Where on the canvas pictures are placed; None: the center."""
    slice: Size | None = field(default=None, repr=False)
    """Rows and columns of pixels of the tiles that sheets are cut into; None: they are not cut."""
    scale: int | None = field(default=None, repr=False)
    """The factor by which pictures are enlarged in their files; None: that common to all."""

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())

    def __str__(self) -> str:
        placing = {name: value for name, value in self.values().items() if name not in ("range", "bands")}
        return f"{self!r} {placing}" if placing else repr(self)

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Levels:
        """The levels among other settings. Raises InputError."""
        return cls.of(**{name: values.get(name) for name in cls.__dataclass_fields__})

    @classmethod
    def of(
        cls, range: Any = None, bands: Any = None, anchor: Any = None, slice: Any = None, scale: Any = None
    ) -> Levels:
        """Parse strings such as "0,4095" and "3,2,1", or sequences of numbers. Raises InputError."""
        low_high, numbers = _numbers(range, float), _numbers(bands, int)
        if low_high is not None and not (
            len(low_high) == 2 and all(map(math.isfinite, low_high)) and low_high[0] < low_high[1]
        ):
            raise InputError(
                f"expected LOW,HIGH, two increasing numbers such as 0,4095, got {range!r}", argument="range"
            )
        if numbers is not None and not (len(numbers) in (1, 3) and 0 < min(numbers) <= max(numbers) <= HIGHEST_BAND):
            raise InputError(
                f"expected one or three whole numbers from 1 to {HIGHEST_BAND:,} such as 3,2,1, got {shortened(bands)}",
                argument="bands",
            )
        if anchor is not None and anchor not in get_args(Anchor):
            raise InputError(
                f"expected one of {', '.join(get_args(Anchor))}, got {shortened(anchor)}", argument="anchor"
            )
        if scale is not None:
            check_number("scale", scale, "at least 1", lambda value: value >= 1, whole=True)
        return cls(low_high, numbers, anchor, None if slice is None else to_size(slice, "slice"), scale)

    def values(self) -> dict[str, Any]:
        """The fields that are set, for JSON."""
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in found.items() if value is not None}

    def over(self, other: Levels) -> Levels:
        """These levels, with unset fields taken from `other`."""
        return Levels(*(a if a is not None else b for a, b in zip(vars(self).values(), vars(other).values())))


def _numbers(value: Any, kind: type) -> tuple[Any, ...] | None:
    """Numbers from a string or a sequence; () if it is invalid."""
    if value is None:
        return None
    try:
        return tuple(kind(part) for part in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError, OverflowError):
        return ()


PICTURES_AT_MOST = 100_000  # drawn by one call
COMPARED_AT_LEAST = 20  # pictures in a distance: ten subsets of two, for the kernel distance's error
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "at_least_one": ("at least 1", lambda value: value >= 1),
    "at_least_zero": ("0 or more", lambda value: value >= 0),
    "seed": ("0 to 4294967295", lambda value: 0 <= value < 2**32),  # all that scikit-learn takes
    "finite": ("a number of 0 or more", lambda value: 0 <= value < math.inf),
    "above_zero": ("a number above 0", lambda value: 0 < value < math.inf),
    "below_one": ("a fraction from 0 to less than 1", lambda value: 0 <= value < 1),
    "fraction": ("a number between 0 and 1", lambda value: 0 < value < 1),
    "share": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
}


def check_numbers(config: Any, **fields: str) -> None:
    """Raise InputError for a field outside its range, as in at_least_one="steps layers". None is always allowed.

    Fields whose type does not mention float take whole numbers alone.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for kind, names in fields.items():
        expected, allowed = RANGES[kind]
        for name in names.split():
            value = getattr(config, name)
            if value is not None:
                check_number(name, value, expected, allowed, whole="float" not in types[name])


def check_no_keep(hole: str, keep: float, keep_side: KeepSide) -> None:
    """Raise InputError unless these have their defaults, which the argument `hole` excludes."""
    for name, value, default in (("keep", keep, 0.5), ("keep_side", keep_side, "top")):
        if value != default:
            raise InputError(f"cannot be combined with `{hole}`, which already says what is kept", argument=name)


def refuse_given(config: Any, names: str, why: str) -> None:
    """Raise InputError that says `why` for the first of these fields, as in "steps layers", without its default."""
    for name in names.split():
        if getattr(config, name) != getattr(type(config), name):
            raise InputError(why, argument=name)


def check_origin(origin: str) -> None:
    """Raise InputError unless this is the origin of a site, as browsers send it."""
    found = re.fullmatch(r"(https?)://([\w.-]+|\[[\da-f:]+\])(:[1-9]\d*)?", origin, re.ASCII)
    if found is None or origin != origin.lower():
        raise InputError(
            f"expected the origin of a site in lower case, as in https://pixels.example, got {shortened(origin)}",
            argument="allow_origin",
        )
    if (found[1], found[3]) in (("http", ":80"), ("https", ":443")):
        raise InputError(
            f"expected {found[1]}://{found[2]}, as browsers leave out the default port, got {shortened(origin)}",
            argument="allow_origin",
        )


def check_picture_count(n: int) -> None:
    """Raise InputError unless one call can draw so many pictures."""
    check_number("n", n, "at least 1", lambda n: n >= 1, whole=True)
    if n > PICTURES_AT_MOST:
        raise InputError(
            f"expected at most {PICTURES_AT_MOST:,}, got {n:,}; draw the rest with another `seed`", argument="n"
        )


def check_number(name: str, value: Any, expected: str, allowed: Callable[[Any], bool], *, whole: bool = False) -> None:
    """Raise InputError that names the argument unless the value is such a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        kind = "a whole number, " if whole else "" if expected.startswith("a number") else "a number, "
        raise InputError(f"expected {kind}{expected}, got {shortened(value)}", argument=name)
    if not allowed(value):
        raise InputError(f"expected {expected}, got {value}", argument=name)


@dataclass(frozen=True)
class Job:
    """Job `number` of `jobs`, counted from 1, that share the work."""

    number: int = 1
    jobs: int = 1

    @classmethod
    def parse(cls, text: str) -> Job:
        """The job written as 3/16. Raises InputError."""
        first, slash, second = text.partition("/")
        if slash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit():
            job = cls(int(first), int(second))
            if 1 <= job.number <= job.jobs:
                return job
        raise InputError(f"expected which one of how many jobs, as in 3/16, got {text!r}", argument="job")

    def chunks(self, count: int) -> range:
        """Its consecutive share of `count` chunks."""
        return range(count * (self.number - 1) // self.jobs, count * self.number // self.jobs)
