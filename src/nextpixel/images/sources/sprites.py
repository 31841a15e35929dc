"""The pictures of a source as pixel art: frames and tiles one by one, with their exact colours, on one canvas."""

from __future__ import annotations

import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Fit, Levels, Size
from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage
from nextpixel.images.sources.base import NO_LEVELS, READ_TOGETHER, Source
from nextpixel.images.sprites import Sprite, is_lossy, read_sprites

AGREE_FROM = 4  # pictures of more than one colour, whose common enlargement is no accident
TOO_LARGE = "cut a sheet with `slice`, as in `slice=16x16`, or choose a larger side"
CANVAS_AT_MOST = (32, 32)  # where the pictures themselves choose; larger ones cost more than most expect


class SpriteSource(Source):
    """Every picture in the files of another source, uint8 (H, W, 4), read at once and kept in memory.

    A picture is called as its file, or FILE#FRAME or FILE#ROW,COLUMN. Empty tiles and frames are dropped. A factor by
    which all pictures are enlarged is undone, as is one without which a picture does not fit on the canvas, whose size
    is by default the smallest for all pictures that fit on CANVAS_AT_MOST.

    size        that of the canvas
    levels      those given, with that factor
    files       the other source
    rows        the number of each picture's file in it
    parts       of each picture: its corner in its sheet, the sizes of both, and the factor that is undone
    note        a line about what was done, or None
    unreadable  lines for files of the other source, then for those that cannot be read and for pictures too large
    """

    def __init__(self, source: Source, size: Size | None, levels: Levels) -> None:
        numbers, sprites, lost, empty, lossy = _read(source, levels)
        most, asked = size or CANVAS_AT_MOST, levels.scale
        fitting = [sprite for sprite in sprites if sprite.fits(most)]
        art = [sprite for sprite in fitting if not sprite.is_flat]
        if levels.scale is None and len(art) >= AGREE_FROM:
            levels = replace(levels, scale=math.gcd(*(sprite.factor for sprite in art)))
        if size is None and fitting:
            some_enlarged = asked is None and levels.scale in (None, 1)  # if any, not all by the same factor
            factors = [(sprite, sprite.factor) for sprite in art if some_enlarged] or [
                (sprite, sprite.reduction(most, levels.scale)) for sprite in fitting
            ]
            most = max(s.size[0] // factor for s, factor in factors), max(s.size[1] // factor for s, factor in factors)
        self.size, self.levels, self.images = most, levels, []
        self.parts: list[tuple[Size, Size, Size, int]] = []
        names, rows, undone = [], [], Counter[int]()
        for number, sprite in zip(numbers, sprites, strict=True):
            name = source.names[number] + f"#{sprite.part}" * bool(sprite.part)
            try:
                self.images.append(sprite.placed(most, levels.scale, levels.anchor))
            except ValueError as error:
                lost.append(str(UnreadableImage(name, f"{error}; {TOO_LARGE}")))
                continue
            factor = sprite.reduction(most, levels.scale)
            undone[factor] += 1
            self.parts.append((sprite.corner, sprite.sheet, sprite.size, factor))
            names.append(name)
            rows.append(number)
        super().__init__(
            source.source_name, names, None if source.labels is None else source.labels[rows], source.classes
        )
        if not names and not lost:
            raise InputError(f"{source.source_name}: expected pictures, got only empty ones")
        self.files, self.rows, self.file_names = source, rows, [source.names[row] for row in rows]
        self.split, self.label_problem, self.skipped = source.split, source.label_problem, source.skipped
        self.unreadable = [*source.unreadable, *lost]
        self._fingerprint = source.fingerprint()
        notes = [
            f"{count:,} of {len(names):,} pictures were enlarged {factor} times, which is undone"
            for factor, count in sorted(undone.items())
            if factor > 1
        ]
        if notes and levels.scale != 1:
            notes[-1] += " (give `scale=1` to keep what fits as it is)"
        if empty:
            notes.append(f"{empty:,} empty tiles or frames are dropped")
        notes += self._warning(lossy)
        self.note = f"{source.source_name}: {'; '.join(notes)}" if notes else None

    def content(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]

    def image(self, index: int, size: Size, fit: Fit, levels: Levels = NO_LEVELS) -> NDArray[np.uint8]:
        return self.images[index]

    def fingerprint(self) -> str:
        return self._fingerprint

    def _warning(self, lossy: set[int]) -> list[str]:
        """A line about these files, if they are among the pictures."""
        if not (files := sorted(lossy.intersection(self.rows))):
            return []
        colours: dict[bool, set[int]] = {True: set(), False: set()}
        for row, image in zip(self.rows, self.images, strict=True):
            colours[row in lossy].update(np.unique(image.view(np.uint32)).tolist())
        named = ", ".join(self.files.names[row] for row in files[:3])
        named += f", ... ({len(files):,} in all)" if len(files) > 3 else ""
        return [
            f"lossy JPEG or WebP files add {len(colours[True] - colours[False]):,} colours that no other picture has: "
            f"{named} (leave them out, or export them as PNG from the original)"
        ]


def _read(source: Source, levels: Levels) -> tuple[list[int], list[Sprite], list[str], int, set[int]]:
    """The numbers of files and their pictures, lines about unreadable files, how many pictures were empty, and the
    numbers of lossy files."""
    lossy: set[int] = set()

    def one(number: int) -> list[Sprite] | UnreadableImage:
        try:
            content = source.content(number)
            found = read_sprites(content, source.names[number], levels)
        except UnreadableImage as error:
            return error
        if is_lossy(content):
            lossy.add(number)
        return found

    numbers, sprites, lost, empty = [], [], [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), READ_TOGETHER):  # a stream is read in order
            together = range(start, min(start + READ_TOGETHER, len(source)))
            for number, found in zip(together, pool.map(one, together), strict=True):
                if isinstance(found, UnreadableImage):
                    lost.append(str(found))
                    continue
                kept = [sprite for sprite in found if len(found) == 1 or not sprite.is_empty]
                empty += len(found) - len(kept)
                sprites += kept
                numbers += [number] * len(kept)
    return numbers, sprites, lost, empty, lossy
