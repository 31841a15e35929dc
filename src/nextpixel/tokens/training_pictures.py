"""The pictures that a model was trained on, kept beside its weights to find copies among what it draws."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextpixel.errors import InputError
from nextpixel.files import new_file
from nextpixel.limits import open_arrays

FILE = "training_pictures.npz"
PICTURES_AT_MOST = 50_000
TOKENS_AT_MOST = 50_000 * 1_024  # of all pictures
HELD_OUT_AT_MOST = 200
NEAR_PIXELS = 3

Tokens = NDArray[np.unsignedinteger]  # (N, T)


class TrainingPictures:
    """Tokens (N, T) of pictures on a grid of so many `columns`, with `blank`, the token of transparent pixels, or -1.

    The distance of two pictures is the number of pixels in which they differ once the blank margins above and to the
    left are removed, or in which one differs from the mirrored other where these are fewer. `held_out` are the
    distances of other real pictures to their nearest training picture.
    """

    def __init__(self, tokens: Tokens, columns: int, blank: int, held_out: NDArray[np.int64]) -> None:
        self.tokens, self.columns, self.blank, self.held_out = tokens, columns, blank, held_out

    @classmethod
    def of(
        cls, tokens: NDArray[np.integer], held_out: NDArray[np.integer], columns: int, blank: int, vocabulary: int
    ) -> TrainingPictures:
        """Those of a training set and of held-out pictures, int (N, T) and (M, T)."""
        kind = np.uint8 if vocabulary <= 256 else np.uint16
        made = cls(_cornered(tokens, columns, blank).astype(kind), columns, blank, np.empty(0, np.int64))
        made.held_out = made.distances(held_out[:HELD_OUT_AT_MOST])[0]
        return made

    @staticmethod
    def can_keep(pictures: int, tokens: int) -> bool:
        """Whether a set of so many pictures, each of so many tokens, is small enough."""
        return pictures <= PICTURES_AT_MOST and pictures * tokens <= TOKENS_AT_MOST

    @classmethod
    def read(cls, folder: Path, tokens: int, vocabulary: int) -> TrainingPictures | None:
        """Those in a checkpoint folder of a model of so many tokens; None where it has none. Raises InputError."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with open_arrays(path) as arrays:
                found = {name: arrays[name] for name in ("tokens", "grid", "held_out")}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: expected the tokens of training pictures, got a problem: {error}") from None
        own, grid, held_out = found.values()
        whole = all(array.dtype.kind in "iu" for array in found.values())
        if (
            not whole
            or own.ndim != 2
            or not len(own)
            or own.shape[1] != tokens
            or grid.shape != (2,)
            or held_out.ndim != 1
        ):
            raise InputError(f"{path}: expected whole numbers (pictures, {tokens}), got {own.dtype} {own.shape}")
        columns, blank = int(grid[0]), int(grid[1])
        if not 1 <= columns <= tokens or tokens % columns or not -1 <= blank < vocabulary:
            raise InputError(f"{path}: expected the columns of {tokens} tokens and a colour, got {columns} and {blank}")
        return cls(own, columns, blank, held_out.astype(np.int64))

    def write(self, folder: Path) -> None:
        with new_file(folder / FILE) as file:
            file.write(self._content)

    @functools.cached_property
    def _content(self) -> bytes:
        content = io.BytesIO()
        grid = np.array([self.columns, self.blank])
        np.savez_compressed(content, tokens=self.tokens, grid=grid, held_out=self.held_out)
        return content.getvalue()

    def distances(self, tokens: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each picture of tokens (B, T): the distance to the nearest training picture, and its index."""
        mirrored = tokens.reshape(len(tokens), -1, self.columns)[:, :, ::-1].reshape(tokens.shape)
        found, nearest = np.empty(len(tokens), np.int64), np.empty(len(tokens), np.int64)
        both = (_cornered(one, self.columns, self.blank).astype(self.tokens.dtype) for one in (tokens, mirrored))
        for row, pair in enumerate(zip(*both, strict=True)):
            each = np.minimum(*((self.tokens != one).sum(1) for one in pair))
            nearest[row] = each.argmin()
            found[row] = each[nearest[row]]
        return found, nearest


def _cornered(tokens: NDArray[np.integer], columns: int, blank: int) -> NDArray[np.integer]:
    """Pictures (N, T) moved to the top left by their blank margins."""
    grids = tokens.reshape(len(tokens), -1, columns)
    moved = np.empty_like(grids)
    for grid, into in zip(grids, moved, strict=True):
        drawn = grid != blank
        shift = (int(drawn.any(1).argmax()), int(drawn.any(0).argmax())) if blank >= 0 else (0, 0)
        into[:] = np.roll(grid, (-shift[0], -shift[1]), (0, 1))  # what is rolled around is blank
    return moved.reshape(tokens.shape)
