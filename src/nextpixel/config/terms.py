"""The choices that several settings share, and how settings are checked."""

from __future__ import annotations

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
