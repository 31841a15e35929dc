"""What is measured over a whole set: the range of its values, and the enlargement of pixel art."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nextpixel.config import Fit, Levels, Size, side_text, to_size
from nextpixel.errors import InputError
from nextpixel.images import Numbers, UnreadableImage, find_range, read_pixels
from nextpixel.images.sources.base import Source
from nextpixel.images.sources.maps import MapSource
from nextpixel.images.sources.sprites import SpriteSource
from nextpixel.progress import say

PICTURES_SAMPLED = 64
PICTURES_CHECKED = 8  # against a given range
SHADES_USED = 0.25  # with less of the range, pictures are nearly black or white


def sprites_of(source: Source, size: Size, fit: Fit, levels: Levels) -> Source:
    """The frames and tiles of a source, one by one, where they are placed; else the source."""
    return settle(source, size, fit, levels)[0] if fit == "place" else source


def with_canvas(source: Source, side: int | Size | None, levels: Levels) -> tuple[Source, Size]:
    """A source of pixel art and its canvas: `side`, or by default the size that the pictures need, see SpriteSource."""
    if side is not None:
        return source, to_size(side)
    if isinstance(source, MapSource):
        return source, source.size
    sprites = SpriteSource(source, None, levels)
    if len(sprites):
        say(
            f"Side {side_text(sprites.size)}, by the largest of {len(sprites):,} pictures "
            "(give a `side` to change that)"
        )
    return sprites, sprites.size


def settle(source: Source, size: Size, fit: Fit, levels: Levels) -> tuple[Source, Levels, str | None]:
    """The pictures of a source, `levels` with what is to be found over the whole set, and a line that says what.

    That is the range of values, where the set has one and none is given, or for pixel art (`place`) the enlargement;
    its pictures are those of SpriteSource. The line also tells of a range, such as a model's, that is not this set's.
    A set of more than PICTURES_SAMPLED pictures is judged by as many, evenly spaced ones. Pictures of 8 bits have no
    say and are left alone. Raises InputError for a prepared set that was made with another range or other bands.
    """
    if isinstance(source, MapSource):
        for name in ("range", "bands", "anchor"):
            asked, made = getattr(levels, name), getattr(source.levels, name)
            if asked and made and asked != made:
                raise InputError(f"{source.source_name}: expected images prepared with {name} {asked}, got {made}")
        return source, source.levels.over(levels), None
    if isinstance(source, SpriteSource):
        return source, source.levels, source.note
    _check_effect(fit, levels)
    if fit == "place":
        sprites = SpriteSource(source, size, levels)
        return sprites, sprites.levels, sprites.note
    notes: list[str] = []

    def numbers() -> Iterator[Numbers]:
        for index in source.sampled(PICTURES_SAMPLED if levels.range is None else PICTURES_CHECKED):
            try:
                pixels = read_pixels(source.content(index), source.names[index], bands=levels.bands, peek=True)
            except UnreadableImage:
                continue
            if isinstance(pixels, Numbers):
                if pixels.bands and not notes:
                    shown = ", ".join(map(str, pixels.bands))
                    notes.append(f"bands {shown} of {pixels.band_count} are shown (give bands to change that)")
                yield pixels

    found = find_range(numbers())
    if levels.range is None and found is not None:
        levels = replace(levels, range=found)
        notes.append(f"{found[0]:g} is black and {found[1]:g} white (give a range to change that)")
    elif levels.range is not None and found is not None:
        (low, high), (lowest, highest) = levels.range, found
        if min(high, highest) - max(low, lowest) < SHADES_USED * (high - low):
            notes.append(
                f"{low:g} is black and {high:g} white, but the numbers run from {lowest:g} to {highest:g} "
                "(give another range to change that)"
            )
    return source, levels, f"{source.source_name}: {'; '.join(notes)}" if notes else None


def _check_effect(fit: Fit, levels: Levels) -> None:
    """Raise InputError for levels that pictures of this fit ignore."""
    ignored = ("range", "bands") if fit == "place" else ("anchor", "slice", "scale")
    for name in ignored:
        if getattr(levels, name) is not None:
            needed = "pictures that are resized" if fit == "place" else "exact colours (`fit=place`, `palette=exact`)"
            raise InputError(f"has no effect here, as it is for {needed}", argument=name)
