"""Pixel art: the exact pixels of every picture in a file, and their place on a canvas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Anchor, Fit, Levels, Size
from nextpixel.images.fitting import fit_image
from nextpixel.images.pixels import PIXEL_LIMIT, Content, Picture, UnreadableImage, decode, read_frames

Pixels = NDArray[np.uint8]  # (H, W, 4)
LOSSY_BYTES = 1 << 16  # of a WebP, before which its kind is stated


@dataclass(frozen=True)
class Sprite:
    """A picture of a file, without its enlargement."""

    part: str
    """What distinguishes it in the file: a frame, row,column in a sheet; "" for a single picture."""
    pixels: Pixels
    """One pixel for each block of `factor` x `factor` equal ones."""
    factor: int
    corner: Size
    """Its top and left in the sheet."""
    sheet: Size
    """Of the frame that it is cut from, its own where it is not cut."""

    @property
    def size(self) -> Size:
        """In the file."""
        return self.pixels.shape[0] * self.factor, self.pixels.shape[1] * self.factor

    @property
    def is_flat(self) -> bool:
        return bool((self.pixels == self.pixels[0, 0]).all())

    @property
    def is_empty(self) -> bool:
        return not self.pixels[..., 3].any()

    def fits(self, size: Size) -> bool:
        """Whether it fits on a canvas of that size, reduced by its whole factor."""
        return self.pixels.shape[0] <= size[0] and self.pixels.shape[1] <= size[1]

    def reduction(self, size: Size, scale: int | None) -> int:
        """The factor to undo on a canvas of that size: `scale` where it holds, or the smallest that is enough.

        Raises ValueError where none is.
        """
        height, width = self.size
        first = scale if scale and self.factor % scale == 0 else 1
        for factor in (first, *(f for f in range(1, self.factor + 1) if self.factor % f == 0)):
            if height // factor <= size[0] and width // factor <= size[1]:
                return factor
        raise ValueError(f"its {height} x {width} pixels do not fit on {size[0]} x {size[1]}")

    def placed(self, size: Size, scale: int | None, anchor: Anchor | None) -> Pixels:
        """The picture on a transparent canvas of that size, (H, W, 4). Raises ValueError where it is too large."""
        repeats = self.factor // self.reduction(size, scale)
        return on_canvas(self.pixels.repeat(repeats, 0).repeat(repeats, 1), size, anchor)


def on_canvas(pixels: NDArray[Any], size: Size, anchor: Anchor | None) -> NDArray[Any]:
    """Pixels (H, W, ...) at their place on a canvas of zeros of that size."""
    words = (anchor or "center").split("-")
    top, left = (
        0 if begin in words else space if end in words else space // 2
        for begin, end, space in (
            ("top", "bottom", size[0] - pixels.shape[0]),
            ("left", "right", size[1] - pixels.shape[1]),
        )
    )
    canvas = np.zeros((*size, *pixels.shape[2:]), pixels.dtype)
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def read_sprites(
    content: Content,
    name: str,
    levels: Levels = Levels(),  # noqa: B008
    *,
    pixel_limit: int = PIXEL_LIMIT,
    formats: tuple[str, ...] | None = None,
) -> list[Sprite]:
    """The pictures of a file, an array or a PIL picture: its frames, cut into tiles of `slice`. Raises UnreadableImage.

    A picture of at most the size of a tile is not cut.
    """
    found = []
    for part, pixels in read_frames(content, name, pixel_limit=pixel_limit, formats=formats):
        try:
            found += [
                _sprite("#".join(filter(None, (part, place))), tile, corner, pixels.shape[:2])
                for place, corner, tile in _tiles(pixels, levels.slice)
            ]
        except ValueError as error:
            raise UnreadableImage(name, str(error)) from None
    return found


def read_image(
    content: Content,
    name: str,
    size: Size,
    fit: Fit,
    levels: Levels = Levels(),  # noqa: B008
    *,
    pixel_limit: int = PIXEL_LIMIT,
    formats: tuple[str, ...] | None = None,
) -> Pixels:
    """The first picture of a file at a size, uint8 (H, W, 3), or placed, (H, W, 4). Raises UnreadableImage."""
    if fit != "place":
        return fit_image(decode(content, name, levels=levels, pixel_limit=pixel_limit, formats=formats), size, fit)
    sprite = read_sprites(content, name, levels, pixel_limit=pixel_limit, formats=formats)[0]
    try:
        return sprite.placed(size, levels.scale, levels.anchor)
    except ValueError as error:
        raise UnreadableImage(name, str(error)) from None


def is_lossy(content: Content) -> bool:
    """Whether a file is a JPEG or a lossy WebP, whose colours are not those that were drawn."""
    if isinstance(content, str):
        with open(content, "rb") as file:
            content = file.read(LOSSY_BYTES)
    if isinstance(content, Picture):
        return content.format in ("JPEG", "MPO")
    if isinstance(content, np.ndarray):
        return False
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return content.startswith(b"\xff\xd8\xff") or (is_webp and b"VP8 " in content[:LOSSY_BYTES])


def transparency(
    content: Content,
    name: str,
    size: Size,
    fit: Fit,
    levels: Levels = Levels(),  # noqa: B008
    *,
    pixel_limit: int = PIXEL_LIMIT,
    formats: tuple[str, ...] | None = None,
) -> Pixels:
    """The first picture of a file as a mask, white where it is transparent, like read_image."""
    _, pixels = read_frames(content, name, pixel_limit=pixel_limit, formats=formats)[0]
    return read_image(255 - pixels[..., [3, 3, 3]], name, size, fit, levels, pixel_limit=pixel_limit)


def _sprite(part: str, pixels: Pixels, corner: Size, sheet: Size) -> Sprite:
    factor = math.gcd(_run(pixels), _run(pixels.swapaxes(0, 1)))
    return Sprite(part, np.ascontiguousarray(pixels[::factor, ::factor]), factor, corner, sheet)


def _run(pixels: Pixels) -> int:
    """The largest number of which the length of every run of equal rows is a multiple."""
    changes = np.flatnonzero((pixels[1:] != pixels[:-1]).any((1, 2))) + 1
    return math.gcd(len(pixels), *changes.tolist())


def _tiles(pixels: Pixels, tile: Size | None) -> Iterator[tuple[str, Size, Pixels]]:
    """ "row,column", corner and pixels of each tile of a sheet; "" and the picture itself where nothing is cut."""
    height, width = pixels.shape[:2]
    if tile is None or (height <= tile[0] and width <= tile[1]):
        yield "", (0, 0), pixels
        return
    if height % tile[0] or width % tile[1]:
        raise ValueError(f"its {height} x {width} pixels are not whole tiles of {tile[0]} x {tile[1]}; change `slice`")
    for row in range(height // tile[0]):
        for column in range(width // tile[1]):
            top, left = row * tile[0], column * tile[1]
            yield f"{row},{column}", (top, left), pixels[top : top + tile[0], left : left + tile[1]]
