"""Masks of what is to be filled: white is filled, black is kept, as in diffusers.

Transparency is black where all else is white, and white otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextpixel.config import Fit, Levels, Size
from nextpixel.errors import InputError, shortened
from nextpixel.images import Picture, UnreadableImage, fit_image, read_frames, transparency
from nextpixel.images.sources import open_source, sprites_of
from nextpixel.images.sources.base import NO_LEVELS, Source
from nextpixel.images.sources.sprites import SpriteSource
from nextpixel.images.sprites import on_canvas

FILLED_FROM = 64  # of 255: a pixel a quarter of which is white, so that thin strokes are not lost
PROPORTIONS = 0.02  # by which those of a mask may differ from its picture's
ALPHA = "alpha"


def load_masks(
    mask: Any,
    pictures: Source,
    squares: NDArray[np.uint8],
    fit: Fit = "crop",
    *,
    invert: bool = False,
    levels: Levels = NO_LEVELS,
    names: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """Which pixels of pictures, read as squares (M, H, W, C), are to be filled: (1 or M, H, W).

    mask    an array (H, W) or (M, H, W) of booleans, of whole numbers up to 1 or 255, or of floats up to 1; a PIL
            picture, a path, or a list of these; or "alpha" for the transparent pixels of the pictures themselves.
            One is for all pictures; of other sizes than the squares' they are fitted as the pictures are. Masks of
            pixel art have the size of the picture, of the canvas, or of the sheet.
    invert  black is filled, white is kept; the margin of a smaller picture is kept, unless the mask covers the canvas
    levels  those that the squares were read with
    names   those of the squares, where some of the pictures cannot be read; masks may be as many as either

    Raises InputError, also where nothing or everything would be filled.
    """
    size: Size = squares.shape[1], squares.shape[2]
    if isinstance(mask, str) and mask == ALPHA:
        filled, colours = _transparent(pictures, squares, fit, names) ^ invert, ("transparent", "opaque")
    else:
        filled = fit_masks(mask, pictures, size, fit, invert=invert, levels=levels, names=names)
        colours = "white", "black"
    _check_count(len(filled), len(squares))
    check_filled(filled, *(colours[::-1] if invert else colours))
    return filled


def fit_masks(
    mask: Any,
    pictures: Source,
    size: Size,
    fit: Fit,
    *,
    invert: bool = False,
    levels: Levels = NO_LEVELS,
    names: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """Masks (M, H, W) at the model's size, fitted as the pictures are. Raises InputError where their sizes differ."""
    if fit == "place":
        return _placed_masks(mask, sprites_of(pictures, size, fit, levels), size, invert)
    return _of_masks(mask, pictures, size, fit, _numbers(pictures, names)) ^ invert


def check_filled(filled: NDArray[np.bool_], fills: str = "white", keeps: str = "black") -> None:
    """Raise InputError where one of these masks (M, H, W), of pixels called so, fills nothing or everything."""
    for i, one in enumerate(filled):
        which = f" in mask {i + 1} of {len(filled)}" if len(filled) > 1 else ""
        if not one.any():
            raise InputError(f"expected {fills} pixels, which are filled, got none{which}", argument="mask")
        if one.all():
            raise InputError(
                f"expected {keeps} pixels, which are kept, got none{which}; sample draws whole pictures",
                argument="mask",
            )


def _check_count(masks: int, pictures: int) -> None:
    if masks not in (1, pictures):
        raise InputError(f"expected one, or one for each of {pictures} pictures, got {masks}", argument="mask")


def box_mask(box: str, size: Size) -> NDArray[np.bool_]:
    """The mask (H, W) of "LEFT,TOP,RIGHT,BOTTOM" in pixels of the model, the last two excluded. Raises InputError."""
    height, width = size
    try:
        left, top, right, bottom = (int(part) for part in box.split(","))
    except ValueError:
        raise InputError(
            f"expected LEFT,TOP,RIGHT,BOTTOM as in 8,8,24,24, got {shortened(box)}", argument="box"
        ) from None
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"expected LEFT,TOP,RIGHT,BOTTOM within 0,0,{width},{height}, the model's pixels, got {box}", argument="box"
        )
    if (right - left, bottom - top) == (width, height):
        raise InputError(f"{box} covers the whole picture; sample draws whole pictures", argument="box")
    found = np.zeros(size, bool)
    found[top:bottom, left:right] = True
    return found


def _numbers(pictures: Source, names: Sequence[str] | None) -> list[int]:
    """The numbers of the pictures of these names."""
    if names is None:
        return list(range(len(pictures)))
    numbers = {name: number for number, name in enumerate(pictures.names)}
    return [numbers[name] for name in names]


def _of_masks(mask: Any, pictures: Source, size: Size, fit: Fit, numbers: Sequence[int]) -> NDArray[np.bool_]:
    """Masks of pictures of these numbers."""
    try:
        source = open_source(_eight_bits(mask))
        if source.unreadable:
            raise InputError(source.unreadable[0])
        own = numbers if len(source) == len(pictures) else range(len(source))
        found = np.empty((len(own), *size), bool)
        for i, number in enumerate(own):
            read = _read(source, number)
            if fit != "squash" and read.size != size[::-1]:
                _check_proportions(read, pictures, numbers if len(source) == 1 else numbers[i : i + 1], size)
            found[i] = fit_image(read, size, fit)[..., 0] >= FILLED_FROM
    except (InputError, UnreadableImage) as error:
        raise InputError(getattr(error, "message", str(error)), argument="mask") from None
    return found


def _read(source: Source, number: int) -> Picture:
    """A mask; transparency beside white alone is black, as where white was drawn on a layer of its own."""
    read = source.read(number)
    try:
        [(_, pixels), *_] = read_frames(source.content(number), source.names[number])
    except UnreadableImage:  # of more than 8 bits
        return read
    opacity = pixels[..., 3]
    if opacity.all() or not (pixels[opacity > 0][:, :3] == 255).all():
        return read
    return Image.fromarray(opacity).convert("RGB")


def _placed_masks(mask: Any, pictures: Source, size: Size, invert: bool) -> NDArray[np.bool_]:
    """A mask for each picture, which lies on the canvas where its picture does."""
    try:
        source = open_source(_eight_bits(mask))
        given = [np.asarray(_read(source, i))[..., 0] for i in range(len(source))]
    except (InputError, UnreadableImage) as error:
        raise InputError(getattr(error, "message", str(error)), argument="mask") from None
    if isinstance(pictures, SpriteSource) and len(given) == len(pictures.files) != len(pictures):
        given = [given[row] for row in pictures.rows]
    _check_count(len(given), len(pictures))
    given = given * len(pictures) if len(given) == 1 else given
    return np.stack([_placed(one, pictures, i, size, invert) for i, one in enumerate(given)])


def _placed(mask: NDArray[np.uint8], pictures: Source, number: int, size: Size, invert: bool) -> NDArray[np.bool_]:
    if not isinstance(pictures, SpriteSource):
        (top, left), sheet, (height, width), factor, anchor = (0, 0), size, size, 1, None
    else:
        (top, left), sheet, (height, width), factor = pictures.parts[number]
        anchor = pictures.levels.anchor
    if mask.shape == size != (height, width):
        return (mask >= FILLED_FROM) ^ invert
    if mask.shape == sheet:
        mask = mask[top : top + height, left : left + width]
    if mask.shape == (height, width):
        mask = mask.reshape(height // factor, factor, width // factor, factor).mean((1, 3)).astype(np.uint8)
    if mask.shape != (height // factor, width // factor):
        raise InputError(
            f"expected {width} x {height} pixels as {pictures.names[number]}, or the model's {size[1]} x {size[0]}, "
            f"got {mask.shape[1]} x {mask.shape[0]}",
            argument="mask",
        )
    return on_canvas((mask >= FILLED_FROM) ^ invert, size, anchor)


def _check_proportions(mask: Picture, pictures: Source, numbers: Sequence[int], size: Size) -> None:
    for i in numbers:
        picture = pictures.read(i)
        ratio = (mask.width * picture.height) / (mask.height * picture.width)
        if abs(ratio - 1) > PROPORTIONS:
            raise InputError(
                f"expected the proportions of {pictures.names[i]}, {picture.width} x {picture.height}, or "
                f"{size[1]} x {size[0]} pixels, got {mask.width} x {mask.height}",
                argument="mask",
            )


def _transparent(
    pictures: Source, squares: NDArray[np.uint8], fit: Fit, names: Sequence[str] | None
) -> NDArray[np.bool_]:
    if squares.shape[3] == 4:
        if (squares[..., 3] > 0).all((1, 2)).any():
            raise InputError("expected transparent pixels, which are filled, got none in a picture", argument="mask")
        return np.asarray(squares[..., 3] == 0)
    size: Size = squares.shape[1], squares.shape[2]
    found = []
    for i in _numbers(pictures, names):
        name = pictures.names[i]
        try:
            white = transparency(pictures.content(i), name, size, fit)
        except UnreadableImage as error:
            raise InputError(str(error), argument="mask") from None
        if not white.any():
            raise InputError(f"expected transparent pixels, which are filled, got none in {name}", argument="mask")
        found.append(white[..., 0] >= FILLED_FROM)
    return np.stack(found)


def _eight_bits(mask: Any) -> Any:
    """Arrays as uint8 with white at 255; other masks as they are."""
    if isinstance(mask, str | os.PathLike | Picture):
        return mask
    if isinstance(mask, list | tuple) and mask and (isinstance(mask[0], str) or not np.isscalar(mask[0])):
        return [_eight_bits(one) for one in mask]
    values = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or not values.size:
        raise InputError(
            f"expected a picture, or an array of shape (H, W) or (pictures, H, W), got {shortened(mask)}"
            if values.ndim == 0
            else f"expected numbers of shape (H, W) or (pictures, H, W), got {values.dtype} {values.shape}",
            argument="mask",
        )
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= (1 if values.dtype.kind == "f" else 255)):
        expected = "0 to 1" if values.dtype.kind == "f" else "0 to 255"
        raise InputError(f"expected numbers from {expected}, got {low} to {high}", argument="mask")
    scaled = (values * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
    return scaled if scaled.ndim == 2 else list(scaled)
