"""The guide of particles: how well colours go together that are a few rows apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.tokens import Tokenizer

FREE = -1  # in place of a known token
REACH = 4  # rows
POWER = 0.35  # of 0.25 to 1 measured on every second line of CIFAR-10, among the best
SCALE = 25.0  # of colour distances, 0 to 255 a channel; of 8 to 40 measured there, the best


class Guide:
    """psi(x, y): how well a token x of a hole goes with a known one y a few rows below.

    From one row to the next, colours become others with probabilities that fall exponentially with their distance;
    psi is the probability of y after so many rows, to the power POWER. It is made from the tokens' mean colours alone.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        colours = token_colours(tokenizer)
        distances = np.sqrt(np.square(colours[:, None] - colours).sum(-1))  # (K, K)
        step = torch.from_numpy(distances / -SCALE).softmax(1)
        powers = [torch.linalg.matrix_power(step, rows) for rows in range(1, REACH + 1)]
        self._logs = POWER * torch.stack(powers).clamp_min(1e-30).log()  # (REACH, K, K)

    def log_ratios(self, rows: int, known: int) -> Tensor:
        """ln psi (K,) of every token so many rows above a known one."""
        return self._logs[rows - 1, :, known]

    def tilt(self, known: NDArray[np.int64], position: int, columns: int) -> Tensor | None:
        """psi (K,) of every token at this position; None where no known one is at most REACH rows below."""
        for rows in range(1, REACH + 1):
            below = position + rows * columns
            if below >= len(known):
                return None
            if known[below] != FREE:
                return self.log_ratios(rows, int(known[below])).exp()
        return None

    def above(self, known: NDArray[np.int64], position: int, columns: int) -> Iterator[tuple[int, int]]:
        """(rows, position) of each free token that the known one at this position has steered."""
        for rows in range(1, REACH + 1):
            place = position - rows * columns
            if place < 0 or known[place] != FREE:
                return
            yield rows, place


def token_colours(tokenizer: Tokenizer) -> NDArray[np.float64]:
    """The mean colour (K, 3 or 4) of what each token stands for, 0 to 255, premultiplied where it has opacity."""
    colours = tokenizer.decode(np.arange(len(tokenizer))[:, None], 1).astype(np.float64).mean((1, 2))
    if colours.shape[1] == 4:
        colours[:, :3] *= colours[:, 3:] / 255
    return colours
