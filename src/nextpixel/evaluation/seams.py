"""Whether pictures repeat without a seam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.evaluation.likelihood import square_nats
from nextpixel.network.model import ImageGPT


@dataclass(frozen=True)
class Seam:
    """Mean nats of the pixels at a seam; those of pictures that repeat are alike."""

    across: float
    """Of the pixels whose upper or left neighbour lies across the border of their picture."""
    inside: float
    """Of the pixels at the same places, in the middle, of the pictures as they are."""

    def __str__(self) -> str:
        return f"seam: {self.across:.3f} nats per pixel across the border, {self.inside:.3f} inside"


def measure_seam(model: ImageGPT, squares: NDArray[np.uint8], tags: Tensor | None = None) -> Seam:
    """The seam between pictures (N, H, W, C) and copies of themselves below and to the right.

    The pictures are rolled by half, so that their borders meet in the middle, where the model has seen as much of the
    picture as it has of the pixels inside. `tags` (1 or N, TAGS, w) are those of their captions.
    """
    row, column = (length // 2 for length in squares.shape[1:3])
    cross = np.zeros(squares.shape[1:3], bool)
    cross[row], cross[:, column] = True, True
    means = [
        float(np.concatenate([part[:, cross] for part in square_nats(model, shown, tags=tags)]).mean(dtype=np.float64))
        for shown in (np.roll(squares, (row, column), (1, 2)), squares)
    ]
    return Seam(*means)
