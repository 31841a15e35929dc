"""Pictures at a size: crops, resizes and rotations."""

import numpy as np
from PIL import Image

from nextpixel.config import Fit, Size
from nextpixel.errors import InputError
from nextpixel.images.pixels import Picture, to_rgb

IMAGENET_SIDE = 224  # Chen et al. 2020, section 3.1
RIM = 2  # pixels of a completion
FINE = 4  # of a pixel, at which the rim is computed


def orient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Images (N, H, W, C) rotated by `orientation` % 4 quarter turns counter-clockwise, and from 4 on then mirrored.

    One turn brings the right side to the top, two the bottom, three the left.
    """
    turned = np.rot90(images, orientation % 4, axes=(1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if orientation >= 4 else turned)


def undo_orient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Undo `orient`."""
    turned = images[:, :, ::-1] if orientation >= 4 else images
    return np.ascontiguousarray(np.rot90(turned, -(orientation % 4), axes=(1, 2)))


def fit_image(picture: Picture, size: Size, fit: Fit = "crop") -> np.ndarray:
    """The picture at a height and width, uint8 (height, width, 3), resized bilinearly with antialiasing.

    fit  crop: the largest part of these proportions around the centre, resized; imagenet: the same with a shorter side
         of 224 and then down to the size, as Chen et al. 2020 evaluate; squash: width and height resized independently,
         as transformers does

    A crop is one resize of its box, so that a strip of 1 x 10,000 pixels costs no memory. Where the box has the size
    already, its pixels are unchanged. Raises InputError.
    """
    picture = to_rgb(picture)
    height, width = size
    if min(size) < 1:
        raise InputError(f"expected a size of at least 1 x 1 pixels, got {height} x {width}")
    if min(picture.size) == 0:
        raise InputError(f"an image must have at least one pixel, got {picture.width} x {picture.height}")
    box = _box(picture, size, fit)
    if (box[2] - box[0], box[3] - box[1]) == (width, height):
        return np.array(picture.crop(box))
    if fit == "imagenet":
        scale = IMAGENET_SIDE / min(size)
        first = round(height * scale), round(width * scale)
        return _resize(Image.fromarray(_resize(picture, first, box)), size, (0, 0, first[1], first[0]))
    return _resize(picture, size, box)


def join_pictures(picture: Picture, drawn: np.ndarray, kept: np.ndarray, fit: Fit = "crop") -> Picture:
    """A picture at its own resolution joined to what was drawn from it, which is enlarged by a Lanczos filter.

    drawn  uint8 (h, w, 3), the completion of the picture, see fit_image
    kept   bool (h, w), the pixels that show the picture itself, exactly; the drawn ones beside them fade into it

    Returns the part of the picture that the model saw, at least w x h pixels. Raises InputError for `fit="place"`.
    """
    if fit == "place":
        raise InputError("expected pictures that are resized, got ones that are placed", argument="fit")
    size = drawn.shape[:2]
    left, top, right, bottom = _box(picture, size, fit)
    seen = to_rgb(picture).crop((round(left), round(top), round(right), round(bottom)))
    at_least = max(seen.width, size[1]), max(seen.height, size[0])
    if seen.size != at_least:
        seen = seen.resize(at_least, Image.Resampling.LANCZOS)
    enlarged = Image.fromarray(drawn).resize(seen.size, Image.Resampling.LANCZOS)
    soft = Image.fromarray((np.array(enlarged) + _rim(seen, enlarged, kept)).round().clip(0, 255).astype(np.uint8))
    return Image.composite(seen, soft, Image.fromarray(kept).resize(seen.size, Image.Resampling.NEAREST))


def _rim(seen: Picture, enlarged: Picture, kept: np.ndarray) -> np.ndarray:
    """What softens the edge of the drawn part, float32 (H, W, 3), to be added to it: how far enlarging is wrong."""
    known = kept.repeat(FINE, 0).repeat(FINE, 1)
    fine, coarse = (np.array(one.resize(known.shape[::-1]), np.float32) for one in (seen, enlarged))
    rest = spread(fine - coarse, known, RIM * FINE)
    channels = [Image.fromarray(channel).resize(seen.size) for channel in np.moveaxis(rest, -1, 0).copy()]
    return np.stack([np.array(channel) for channel in channels], -1)


def spread(values: np.ndarray, known: np.ndarray, reach: int) -> np.ndarray:
    """Values (H, W, C) of known pixels (H, W) spread over the others, where they fade within `reach` pixels."""

    def sums(values: np.ndarray) -> np.ndarray:  # over 3 x 3 neighbours
        padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
        rows = padded[:-2] + padded[1:-1] + padded[2:]
        return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]

    weights = known[..., None].astype(np.float32)
    values = values * weights
    for left in range(reach, 0, -1):
        count = sums(weights)
        beside = (count > 0) & (weights == 0)
        values = np.where(beside, sums(values) / np.maximum(count, 1) * (left / (left + 1)), values)
        weights = np.maximum(weights, beside)
    return values


def _box(picture: Picture, size: Size, fit: Fit) -> tuple[float, float, float, float]:
    """The part of the picture that is resized: all of it, or the largest part of these proportions."""
    if fit == "squash":
        return (0, 0, *picture.size)
    width = min(picture.width, picture.height * size[1] / size[0])
    height = min(picture.height, picture.width * size[0] / size[1])
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return (left, top, left + width, top + height)


def crop_resize(image: np.ndarray, box: tuple[float, float, float, float], size: Size) -> np.ndarray:
    """The part `box` of an image: uint8 (H, W, 3) -> (height, width, 3), antialiased. Raises InputError.

    box  left, top, right, bottom in pixels of the image and fractions of them
    """
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(f"a crop box must lie within 0, 0, {width}, {height}; got {box}")
    return _resize(Image.fromarray(image), size, box)


def _resize(picture: Picture, size: Size, box: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box))
