"""Pixels whose range the format does not define, such as 12 bits in a 16-bit file, and their mapping to colours."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from nextpixel.config import Levels
from nextpixel.images.profiles import to_srgb

OUTLIERS = 1000  # at each end, one value in this many may be an outlier
FEWEST_VALUES = 16  # needed to recognise an outlier
SAMPLED_VALUES = 1 << 14  # of a picture
ROWS_AT_ONCE = 1 << 20  # values
WHOLE_RANGES = {  # common ranges, by kind of number
    "iub": (1, 255, 1023, 4095, 16383, 65535),
    "f": (1, 255, 65535),
}
NO_DATA = (-9999, -99999, -32768, -(2**31), 65535, 32767)  # and any number beyond HUGE
HUGE = 1e30


@dataclass(frozen=True)
class Numbers:
    """A picture with the values of its file, upright."""

    values: np.ndarray
    """(H, W, 1 or 3), any numeric type; NaN is no value."""
    opacity: np.ndarray | None = None
    """(H, W), 0 to 1."""
    stated: tuple[float, float] | None = None
    """The values of black and white, if the format defines them."""
    window: np.ndarray | None = None
    """uint8 (H, W, 1): the display that the file specifies, used if no range is given."""
    negative: bool = False
    """Whether the lowest number is white."""
    no_data: float | None = None
    """The number that stands for no value."""
    bands: tuple[int, ...] = ()
    """The chosen bands of `band_count`, counted from 1; empty if there was no choice."""
    band_count: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)
    """PIL's info about colours, see profiles.to_srgb."""

    def sample(self) -> np.ndarray:
        """A deterministic sample of the visible finite values, float64 (N,)."""
        height, width = self.values.shape[:2]
        step = max(1, int(np.ceil(np.sqrt(height * width / SAMPLED_VALUES))))
        values = self.values[::step, ::step]
        if self.opacity is not None:
            values = values[self.opacity[::step, ::step] > 0]
        found = values.astype(np.float64).ravel()
        return found[np.isfinite(found) & (found != self.no_data)]


def coloured(numbers: Numbers, levels: Levels) -> Image.Image:
    """RGB, the range mapped to 0..255, opacity over white. Default: the picture's own range."""
    if numbers.window is not None and levels.range is None:
        pixels = numbers.window
    else:
        pixels = _scaled(numbers, *(numbers.stated or levels.range or find_range([numbers]) or (0.0, 1.0)))
    pixels = 255 - pixels if numbers.negative else pixels
    picture = to_srgb(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), numbers.info)
    if numbers.opacity is None:
        return picture
    opacity = numbers.opacity[..., None].astype(np.float32)
    return Image.fromarray(np.rint(np.asarray(picture) * opacity + 255 * (1 - opacity)).astype(np.uint8))


def _scaled(numbers: Numbers, low: float, high: float) -> np.ndarray:
    values = numbers.values
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, ROWS_AT_ONCE // max(1, values[0].size)) if len(values) else 1
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.float64)
        part[~np.isfinite(part) | (part == numbers.no_data)] = low
        with np.errstate(over="ignore"):
            part = (np.clip(part, low, high) - low) / (high - low) if high > low else np.zeros_like(part)
        pixels[start : start + rows] = np.rint(part * 255)
    return pixels


def find_range(pictures: Iterable[Numbers]) -> tuple[float, float] | None:
    """The values of black and white for a set, from a sample; None if all formats define theirs.

    The central 99.8% of the values, extended to the lowest and highest if these are near, and widened to a common
    range such as 0..4095 or 0..1 if they fill it.
    """
    samples, kinds = [], set()
    for numbers in pictures:
        if numbers.stated is None and numbers.window is None:
            samples.append(numbers.sample())
            kinds.add("f" if numbers.values.dtype.kind == "f" else "iub")
    if not samples:
        return None
    low, high = _robust(np.sort(np.concatenate(samples)))
    for top in WHOLE_RANGES["f" if "f" in kinds else "iub"]:
        if low >= 0 and high <= top and (high == low or (high >= top / 2 and low <= top / 4)):
            return 0.0, float(top)
    return low, high


def _robust(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of sorted values, without no-data values and outliers."""
    while len(values):
        marks = [end for end in (values[0], values[-1]) if _means_no_data(end, values)]
        if not marks:
            break
        values = values[values != marks[0]]
    if len(values) == 0:
        return 0.0, 0.0
    trimmed = max(1, len(values) // OUTLIERS)
    core = values[trimmed:-trimmed] if len(values) >= FEWEST_VALUES else values[:0]
    low, high = float(values[0]), float(values[-1])
    if len(core) and (span := float(core[-1] - core[0])) > 0:
        low = low if core[0] - low <= span / 2 else float(core[0])
        high = high if high - core[-1] <= span / 2 else float(core[-1])
    return low, high


def _means_no_data(end: float, values: np.ndarray) -> bool:
    """Whether the lowest or highest of sorted values is a common no-data value, frequent and far from the others."""
    others = values[values != end]
    if end not in NO_DATA or len(others) == 0 or len(values) - len(others) <= max(1, len(values) // OUTLIERS):
        return bool(abs(end) > HUGE)
    gap = min(abs(others[0] - end), abs(others[-1] - end))
    return bool(gap > others[-1] - others[0] > 0)
