"""Squares: crops, resizes and turns."""

import numpy as np
from PIL import Image, ImageOps

from nextpixel.config import Fit, Size
from nextpixel.errors import InputError
from nextpixel.images.pixels import Picture, to_rgb

IMAGENET_SIDE = 224  # Chen et al. 2020, section 3.1
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def orient(squares: np.ndarray, orientation: int) -> np.ndarray:
    """Squares (N, S, S, C) turned: by `orientation` % 4 quarter turns counter-clockwise, and from 4 on then mirrored.

    One turn brings the right side to the top, two the bottom, three the left.
    """
    turned = np.rot90(squares, orientation % 4, axes=(1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if orientation >= 4 else turned)


def upright(squares: np.ndarray, orientation: int) -> np.ndarray:
    """What `orient` made of squares, turned back."""
    turned = squares[:, :, ::-1] if orientation >= 4 else squares
    return np.ascontiguousarray(np.rot90(turned, -(orientation % 4), axes=(1, 2)))


def fit_size(picture: Picture, size: Size, fit: Fit = "crop") -> np.ndarray:
    """The picture at a height and width, uint8 (height, width, 3); a square as fit_square has it.

    Else it is squashed, or cut to these proportions around its centre, in one resize.
    """
    height, width = size
    if height == width:
        return fit_square(picture, height, fit=fit)
    picture = to_rgb(picture)
    if fit == "squash":
        return np.array(picture.resize((width, height), _filter("bilinear")))
    return np.array(ImageOps.fit(picture, (width, height), _filter("bilinear")))


def fit_square(picture: Picture, side: int, *, fit: Fit = "crop", filter: str = "bilinear") -> np.ndarray:
    """The picture as a square, uint8 (side, side, 3), antialiased.

    fit  crop: shorter side to `side`, then the centre; imagenet: the same at 224 and then down to `side`, which is how
         Chen et al. 2020 evaluate; squash: width and height to `side` each, which is what transformers does

    A crop is one resize of the centre square, so that a strip of 1 x 10,000 pixels costs no memory. A picture whose
    shorter side is `side` already is only cropped (unless squashed), bit for bit. Raises InputError.
    """
    picture = to_rgb(picture)
    shorter = min(picture.size)
    if shorter == 0:
        raise InputError(f"an image must have at least one pixel, got {picture.width} x {picture.height}")
    if fit == "squash":
        return np.array(picture.resize(_square(side), _filter(filter)))
    if fit == "imagenet" and shorter != side:
        square = fit_square(picture, IMAGENET_SIDE, filter=filter)
        return crop_resize(square, (0, 0, IMAGENET_SIDE, IMAGENET_SIDE), side, filter=filter)
    left, top = (picture.width - shorter) // 2, (picture.height - shorter) // 2
    box = (left, top, left + shorter, top + shorter)
    if shorter == side:
        return np.array(picture.crop(box))
    return np.array(picture.resize(_square(side), _filter(filter), box=box))


def crop_resize(
    square: np.ndarray, box: tuple[float, float, float, float], side: int, *, filter: str = "bilinear"
) -> np.ndarray:
    """The part `box` of a square: uint8 (S, S, 3) -> (side, side, 3), antialiased. Raises InputError.

    box  left, top, right, bottom in pixels of the square and fractions of them
    """
    left, top, right, bottom = box
    height, width = square.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(f"a crop box must lie within 0, 0, {width}, {height}; got {box}")
    return np.array(Image.fromarray(square).resize(_square(side), _filter(filter), box=box))


def _square(side: int) -> tuple[int, int]:
    if side < 1:
        raise InputError(f"side must be at least 1 pixel, got {side}")
    return side, side


def _filter(name: str) -> Image.Resampling:
    if name not in FILTERS:
        raise InputError(f"filter must be one of {', '.join(FILTERS)}; got {name!r}")
    return FILTERS[name]
