"""Lists of pictures, and how a notebook shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nextpixel.config import check_keywords
from nextpixel.errors import InputError, shortened
from nextpixel.images import canvas
from nextpixel.images.pixels import Picture

SHOWN_AT_MOST = 64  # pictures in a notebook
CELL_PIXELS = 96  # a picture's height in a grid


class PictureList(list[Picture]):
    """A list of PIL pictures, which a notebook shows as a grid."""

    def __repr__(self) -> str:
        sizes = {picture.size for picture in self}
        size = " of {} x {} pixels".format(*sizes.pop()) if len(sizes) == 1 else ""
        return f"<{len(self)} PIL picture{'' if len(self) == 1 else 's'}{size}>"

    def _repr_png_(self) -> bytes | None:
        return canvas.png_bytes(np.asarray(grid(self[:SHOWN_AT_MOST]))) if self else None


@check_keywords()
def grid(pictures: Sequence[Picture | np.ndarray], columns: int | None = None, *, zoom: int | None = None) -> Picture:
    """Pictures as one RGB picture, row by row, each pixel enlarged to a square.

    pictures  PIL pictures, or uint8 arrays (H, W, 3 or 4)
    columns   of the grid; default: as many as rows, or one more
    zoom      pixels of the grid for each pixel of a picture; default: the whole number that makes the first picture at
              most 96 pixels high, at least 1

    Raises InputError.
    """
    if len(pictures) == 0:
        raise InputError("a grid needs at least one image, got none")
    for name, value in (("columns", columns), ("zoom", zoom)):
        if value is not None and value < 1:
            raise InputError(f"expected at least 1, got {value}", argument=name)
    cells = [each if isinstance(each, np.ndarray) else _pixels(each) for each in pictures]
    columns = columns or math.ceil(math.sqrt(len(cells)))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return canvas.grid(rows, zoom or max(1, CELL_PIXELS // cells[0].shape[0]))


def _pixels(picture: Picture) -> np.ndarray:
    if not isinstance(picture, Picture):
        raise InputError(f"expected PIL pictures or arrays, got {shortened(picture)}", argument="pictures")
    return np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
