"""Pictures stored as tokens: the arrays of openai/image-gpt, {imagenet,cifar10}_{tr,va,te}{X,Y}.npy."""

import os
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from nextpixel.errors import InputError
from nextpixel.images.sources.base import Numbered, Source, identity
from nextpixel.limits import open_array
from nextpixel.tokens.palette import Palette

ROWS_AT_ONCE = 1 << 14


class TokenSource(Source):
    """Rows of tokens as pictures in OpenAI's colours; encoding them gives the same tokens."""

    def __init__(self, path: str) -> None:
        self.palette = Palette.openai()
        self.tokens, labels = read_openai_tokens(path, len(self.palette))
        super().__init__(path, Numbered([("", len(self.tokens))]), labels)
        self.path = path

    def content(self, index: int) -> np.ndarray:
        return self.palette.decode(self.tokens[index][None])[0]

    def fingerprint(self) -> str:
        return identity(self.path, self.palette.hash)


def read_openai_tokens(path: str, colors: int = 512) -> tuple[NDArray[np.integer], NDArray[np.int64] | None]:
    """Tokens (N, T) in 0..colors-1, and labels int64 (N,) where the labels lie beside them.

    The tokens stay in the file, in the integer type it has: ImageNet's would take 10 GB as int64. The labels of
    ..X.npy are the one-hot rows of ..Y.npy. Raises InputError.
    """
    tokens = _open(path)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.size == 0:
        raise InputError(f"{path}: expected whole numbers of shape (images, pixels), got {tokens.dtype} {tokens.shape}")
    pixels = tokens.shape[1]
    if isqrt(pixels) ** 2 != pixels:
        raise InputError(f"{path}: expected a square number of pixels in each image, got {pixels}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= colors:
        raise InputError(f"{path}: expected tokens in 0..{colors - 1}, got {low if low < 0 else high}")
    stem, end = os.path.splitext(path)
    labels_path = f"{stem[:-1]}Y{end}"
    if not stem.endswith("X") or not os.path.isfile(labels_path):
        return tokens, None
    return tokens, _labels(labels_path, len(tokens))


def _labels(path: str, count: int) -> NDArray[np.int64]:
    rows = _open(path)
    if rows.ndim != 2 or rows.dtype.kind not in "fiub" or len(rows) != count or rows.shape[1] == 0:
        raise InputError(f"{path}: expected one-hot labels of shape ({count}, classes), got {rows.dtype} {rows.shape}")
    labels = np.empty(count, np.int64)
    for start in range(0, count, ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        labels[start : start + len(part)] = part.argmax(1)
        if not ((part != 0).sum(1) == 1).all() or not (part.max(1) == 1).all():
            raise InputError(f"{path}: expected one 1 in each row and zeros besides, got other labels")
    return labels


def _open(path: str) -> np.ndarray:
    try:
        return open_array(path)
    except ValueError as error:
        raise InputError(f"{path}: expected a .npy file of numbers, got a problem: {error}") from None
