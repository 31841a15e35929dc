"""The choices that several settings share, and how settings are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from nextpixel.errors import InputError

Device = Literal["auto", "cpu", "cuda", "mps"]
Augment = Literal["none", "flip", "crop", "pad", "pad-flip", "orient"]
KeepSide = Literal["top", "right", "bottom", "left"]
Fit = Literal["crop", "imagenet", "squash"]
Objective = Literal["autoregressive", "masked"]
Positions = Literal["learned", "rotary"]
Activation = Literal["quick-gelu", "squared-relu"]
Preset = Literal["classic", "modern"]
Switch = Literal["on", "off"]
Speed = Literal["auto", "exact"]
Pooling = Literal["mean", "mean-std"]
Size = tuple[int, int]  # height and width, or rows and columns


@dataclass(frozen=True)
class Levels:
    """Which numbers become which colours, for pictures whose format does not state it; see images.coloured."""

    range: tuple[float, float] | None = None
    """What is black and what is white; None: looked for over the set."""
    bands: tuple[int, ...] | None = None
    """Of more than three bands, which are red, green and blue (or one, grey), counted from 1; None: the first."""

    def __bool__(self) -> bool:
        return self.range is not None or self.bands is not None

    @classmethod
    def of(cls, range: Any = None, bands: Any = None) -> Levels:
        """From texts such as "0,4095" and "3,2,1", or from sequences of numbers. Raises InputError."""
        low_high, numbers = _numbers(range, float), _numbers(bands, int)
        if low_high is not None and not (
            len(low_high) == 2 and all(map(math.isfinite, low_high)) and low_high[0] < low_high[1]
        ):
            raise InputError(
                f"expected LOW,HIGH, two numbers in rising order such as 0,4095, got {range!r}", argument="range"
            )
        if numbers is not None and not (len(numbers) in (1, 3) and min(numbers) > 0):
            raise InputError(
                f"expected one or three whole numbers from 1 such as 3,2,1, got {bands!r}", argument="bands"
            )
        return cls(low_high, numbers)

    def values(self) -> dict[str, list[float] | list[int]]:
        """What is given, for JSON."""
        return {name: list(value) for name, value in vars(self).items() if value is not None}

    def over(self, other: Levels) -> Levels:
        """These, and where they leave something open, the other ones."""
        return Levels(self.range or other.range, self.bands or other.bands)


def _numbers(value: Any, kind: type) -> tuple[Any, ...] | None:
    """Numbers from a text or a sequence; () for what is neither."""
    if value is None:
        return None
    try:
        return tuple(kind(part) for part in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        return ()


def check_numbers(config: Any, at_least_one: str, at_least_zero: str = "") -> None:
    """Raises InputError for a field among these names that is set and too small."""
    for name in at_least_one.split():
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"expected at least 1, got {value}", argument=name)
    for name in at_least_zero.split():
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise InputError(f"expected 0 or more, got {value}", argument=name)
