"""Pictures in memory and numpy files."""

import os
import re
from math import isqrt

import numpy as np

from nextpixel.errors import InputError
from nextpixel.images import Numbers, Picture, read_pixels
from nextpixel.images.sources.base import Numbered, Source, identity, sha256
from nextpixel.images.sources.splits import choose_split, refuse_split
from nextpixel.limits import open_array, open_arrays

BANDS_AT_MOST = 256
OPENAI_TOKENS = re.compile(r"(imagenet|cifar10)_(tr|va|te)X\.npy")


class PictureSource(Source):
    """One PIL picture."""

    def __init__(self, picture: Picture) -> None:
        super().__init__("the picture", ["0"])
        self.picture = picture

    def content(self, index: int) -> Picture:
        return self.picture

    def fingerprint(self) -> str:
        pixels = read_pixels(self.picture, self.names[0])
        values = pixels.values if isinstance(pixels, Numbers) else np.asarray(pixels)
        return sha256([f"{values.shape} {values.dtype}".encode(), np.ascontiguousarray(values)])


class ArraySource(Source):
    """Numbers (B, H, W) or (B, H, W, C); `stamp` identifies the content if it is in a file."""

    def __init__(self, source_name: str, array: np.ndarray, stamp: str | None = None) -> None:
        super().__init__(source_name, Numbered([("", len(array))]))
        self.array, self.stamp = array, stamp

    def content(self, index: int) -> np.ndarray:
        return self.array[index]

    def fingerprint(self) -> str:
        if self.stamp is not None:
            return sha256([os.fsencode(self.stamp)])
        images = (np.ascontiguousarray(image) for image in self.array)
        return sha256([f"{self.array.shape} {self.array.dtype}".encode(), *images])


def batch(array: np.ndarray, name: str, *, may_be_single: bool = True) -> np.ndarray:
    """Check an array and add the axis B if it is missing: real numbers (B, H, W) or (B, H, W, C). Raises InputError.

    With `may_be_single`, three axes are one image if the last has length 1, 3 or 4, or is by far the shortest and the
    values are not uint8.
    """
    if array.dtype.kind not in "uifb":
        raise InputError(f"{name} must hold real numbers, such as uint8 values 0..255, got {array.dtype}")
    if array.ndim == 2 or (may_be_single and array.ndim == 3 and _is_single(array)):
        array = array[None]
    channels_first = array.ndim == 4 and array.shape[3] not in (1, 3, 4) and array.shape[1] in (1, 3, 4)
    if array.ndim not in (3, 4) or channels_first or (array.ndim == 4 and array.shape[3] > BANDS_AT_MOST):
        raise InputError(
            f"{name} must have the shape (H, W, 3), (H, W), (B, H, W, 3) or (B, H, W), channels last; got {array.shape}"
        )
    if array.size == 0:
        raise InputError(f"{name} holds no image: its shape is {array.shape}")
    return array


def _is_single(array: np.ndarray) -> bool:
    rows, columns, last = array.shape
    return last in (1, 3, 4) or (array.dtype != np.uint8 and last <= BANDS_AT_MOST and min(rows, columns) >= 2 * last)


def open_npy(path: str) -> Source:
    """A .npy file, memory-mapped: pixels, or tokens (N, T) of squares in OpenAI's 512 colours.

    Tokens are known by OpenAI's file names, or as whole numbers below 512 of which some exceed 255.
    """
    try:
        array = open_array(path)
    except ValueError as error:
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from error
    may_be_tokens = array.ndim == 2 and array.dtype.kind in "iu" and array.dtype != np.uint8 and array.size > 0
    if OPENAI_TOKENS.fullmatch(os.path.basename(path)) or (may_be_tokens and _are_tokens(array)):
        from nextpixel.images.sources.tokens import TokenSource  # which needs torch

        return TokenSource(path)
    return ArraySource(path, batch(array, path), stamp=identity(path))


def _are_tokens(array: np.ndarray) -> bool:
    """Whether the rows can be pictures in OpenAI's 512 colours, rather than the rows of one picture of 8 bits."""
    return isqrt(array.shape[1]) ** 2 == array.shape[1] and array.min() >= 0 and 256 <= array.max() < 512


def open_npz(path: str, split: str | None) -> Source:
    """One split of a .npz file, images and labels, train_images and train_labels, x_train and y_train.

    A single array may have any key, and class_names is optional. The array is loaded whole: a large set is
    better kept as .npy.
    """
    try:
        with open_arrays(path) as arrays:
            key, label_key, chosen = _npz_keys(list(arrays), split, path)
            found = arrays[key]
            if found.ndim == 3 and label_key not in arrays and min(found.shape[:2]) > found.shape[2] in (3, 4):
                found = found[None]  # one picture
            images = batch(found, f"{key} in {path}", may_be_single=False)
            try:
                labels = arrays.get(label_key)
            except ValueError:  # objects, which need pickle: neither numbers nor names
                labels = np.full(len(images), object())
            classes = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a .npz file of plain arrays: {error}") from error
    source = ArraySource(path, images, stamp=identity(path, key))
    if labels is not None:
        source.take_labels(labels, classes)
    source.split = chosen
    return source


def _npz_keys(keys: list[str], split: str | None, path: str) -> tuple[str, str, str | None]:
    """The keys of images and labels, and the split if there are several."""
    splits: dict[str, tuple[str, str]] = {}
    for key in keys:
        if match := re.fullmatch(r"(\w+)_images", key):
            splits[match[1]] = key, f"{match[1]}_labels"
        elif match := re.fullmatch(r"x_(\w+)", key):
            splits[match[1]] = key, f"y_{match[1]}"
    if "images" in keys and (split is None or not splits):
        refuse_split(split, path)
        return "images", "labels", None
    if splits:
        chosen = choose_split(splits, split, path)
        return *splits[chosen], chosen if len(splits) > 1 else None
    refuse_split(split, path)
    if len(keys) == 1:
        return keys[0], "", None
    found = ", ".join(keys) or "nothing"
    raise InputError(f"{path} holds {found}; expected an array 'images', 'train_images' or 'x_train'")
