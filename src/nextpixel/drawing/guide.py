"""The guide of particles: how well colours go together that are a few tokens apart."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.tokens import Tokenizer

FREE = -1  # in place of a known token
REACH = 4  # tokens
TOKENS_AT_ONCE = 512  # whose distances to others are in memory
COMPARED = (1024, 512)  # of more tokens than the first, each is compared with a sample of the second
POWER = 0.5  # 0.25 and 0.35 left larger seams on every second line of CIFAR-10
AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])  # brightness, two of hue
SCALES = np.array([25.0, 8.0, 8.0])  # of colours 0 to 255: neighbours differ in brightness rather than in hue
UNRELATED = 0.1  # of neighbours, which go with any colour; near the likeliest of CIFAR-10 and pixel art


class Guide:
    """psi(x, y): how well a token x of a hole goes with a known one y to its right or below.

    From one token to the next, colours become others with probabilities that fall exponentially with their distance, or
    any other; over n tokens distances grow by the square root of n. psi is the probability of y, to the power POWER.
    It is made from the tokens' mean colours alone. A token of a hole is steered by the first known one to its right and
    by the first one below, up to REACH tokens away.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        colours = token_colours(tokenizer)
        scaled = np.hstack([colours[:, :3] @ AXES.T / SCALES, colours[:, 3:] / SCALES[0]])
        self._colours = torch.from_numpy(scaled)
        others, (all_up_to, sample) = self._colours, COMPARED
        if len(others) > all_up_to:
            others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:sample]]
        totals = []
        for part in self._colours.split(TOKENS_AT_ONCE):
            distances = torch.cdist(part, others)
            totals.append(torch.stack([_near(distances, tokens).sum(1) for tokens in range(1, REACH + 1)]))
        scale = len(self._colours) / len(others)
        self._totals = (torch.cat(totals, 1) * scale).clamp(min=1)  # (REACH, K); each token is near to itself

    def log_ratios(self, tokens: int, known: int) -> Tensor:
        """ln psi (K,) of every token so many tokens before a known one."""
        distances = (self._colours - self._colours[known]).norm(dim=1)
        near = _near(distances, tokens) / self._totals[tokens - 1]
        related = (1 - UNRELATED) ** tokens
        return POWER * (related * near + (1 - related) / len(near)).log()


_MADE: WeakKeyDictionary[Tokenizer, Guide] = WeakKeyDictionary()


def guide_of(tokenizer: Tokenizer) -> Guide:
    """The guide of a tokenizer, cached."""
    if tokenizer not in _MADE:
        _MADE[tokenizer] = Guide(tokenizer)
    return _MADE[tokenizer]


def _near(distances: Tensor, tokens: int) -> Tensor:
    """How likely colours become others at these distances, over so many tokens; not normalised."""
    return (-distances / tokens**0.5).exp()


def steered(known: NDArray[np.int64], columns: int) -> Iterator[tuple[int, int, int]]:
    """(position, position of a known token, distance) wherever the second steers the first."""
    grid = known.reshape(-1, columns)
    for row, column in np.argwhere(grid == FREE).tolist():
        for line, stride in ((grid[row, column + 1 :], 1), (grid[row + 1 :, column], columns)):
            found = np.flatnonzero(line[:REACH] != FREE)
            if len(found):
                distance = int(found[0]) + 1
                place = row * columns + column
                yield place, place + distance * stride, distance


def token_colours(tokenizer: Tokenizer) -> NDArray[np.float64]:
    """The mean colour (K, 3 or 4) of what each token stands for, 0 to 255, premultiplied where it has opacity."""
    colours = tokenizer.decode(np.arange(len(tokenizer))[:, None], 1).astype(np.float64).mean((1, 2))
    if colours.shape[1] == 4:
        colours[:, :3] *= colours[:, 3:] / 255
    return colours
