"""The pictures of a source as pixel art: frames and tiles one by one, with their exact colours, on one canvas."""

from __future__ import annotations

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
from nextpixel.images.sprites import Sprite, common_factor, read_sprites

AGREE_FROM = 4  # pictures of more than one colour, whose common enlargement is no accident


class SpriteSource(Source):
    """Every picture in the files of another source, uint8 (H, W, 4), read at once and kept in memory.

    A picture is called as its file, or FILE#FRAME or FILE#ROW,COLUMN. Empty tiles and frames are dropped. A factor by
    which all pictures are enlarged is undone, as is one without which a picture does not fit on the canvas.

    levels      those given, with that factor
    files       the other source
    rows        the number of each picture's file in it
    note        a line about what was done, or None
    unreadable  lines for files of the other source, then for those that cannot be read and for pictures too large
    """

    def __init__(self, source: Source, size: Size, levels: Levels) -> None:
        numbers, sprites, lost, empty = _read(source, levels)
        art = [sprite for sprite in sprites if not sprite.is_flat and sprite.fits(size)]
        if levels.scale is None and len(art) >= AGREE_FROM:
            levels = replace(levels, scale=common_factor(art))
        self.size, self.levels, self.images = size, levels, []
        names, rows, undone = [], [], Counter[int]()
        for number, sprite in zip(numbers, sprites, strict=True):
            name = source.names[number] + f"#{sprite.part}" * bool(sprite.part)
            try:
                self.images.append(sprite.placed(size, levels.scale, levels.anchor))
            except ValueError as error:
                lost.append(str(UnreadableImage(name, str(error))))
                continue
            undone[sprite.reduction(size, levels.scale)] += 1
            names.append(name)
            rows.append(number)
        super().__init__(
            source.source_name, names, None if source.labels is None else source.labels[rows], source.classes
        )
        if not names and not lost:
            raise InputError(f"{source.source_name}: expected pictures, got only empty ones")
        self.files, self.rows = source, rows
        self.split, self.label_problem, self.skipped = source.split, source.label_problem, source.skipped
        self.unreadable = [*source.unreadable, *lost]
        self._fingerprint = source.fingerprint()
        notes = [
            f"{count:,} of {len(names):,} pictures were enlarged {factor} times, which is undone"
            for factor, count in sorted(undone.items())
            if factor > 1
        ]
        if notes and levels.scale != 1:
            notes[-1] += " (give scale=1 to keep what fits as it is)"
        if empty:
            notes.append(f"{empty:,} empty tiles or frames are dropped")
        self.note = f"{source.source_name}: {'; '.join(notes)}" if notes else None

    def content(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]

    def image(self, index: int, size: Size, fit: Fit, levels: Levels = NO_LEVELS) -> NDArray[np.uint8]:
        return self.images[index]

    def fingerprint(self) -> str:
        return self._fingerprint


def _read(source: Source, levels: Levels) -> tuple[list[int], list[Sprite], list[str], int]:
    """The numbers of files and their pictures, lines about unreadable files, and how many pictures were empty."""

    def one(number: int) -> list[Sprite] | UnreadableImage:
        try:
            return read_sprites(source.content(number), source.names[number], levels)
        except UnreadableImage as error:
            return error

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
    return numbers, sprites, lost, empty
