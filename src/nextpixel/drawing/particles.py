"""Sequential Monte Carlo for holes: pictures given the pixels around a hole, by a model that only sees earlier ones.

Several particles draw the same picture. Where a pixel is known they take it, and each is weighed by how probable the
model finds it; where the weights grow too unequal, particles are drawn anew from each other by weight (systematic
resampling; Doucet & Johansen 2009, sections 3.4 and 3.5). As their number grows, a particle that is drawn by weight at
the end is a sample of the model's distribution given all known pixels, and the mean weight is an unbiased estimate of
the probability of these pixels, the evidence (Del Moral 2004, theorem 7.4.2).

A guide steers pixels toward what is known to their right and below, as in twisted particle filters (Guarniero et al.
2017): a pixel x of the hole is drawn from p(x) psi(x, y), normalised, for the next known pixel y; its particle's weight
is multiplied by the normaliser, and divided by psi(x, y) when y is reached. Any psi leaves the estimate unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import SamplingConfig
from nextpixel.drawing.guide import FREE, Guide, steered
from nextpixel.drawing.loop import Row, Table, distribution, invert, token_noise

ROWS_PAST = 2  # rows below a hole after which one particle is enough


@dataclass(eq=False, kw_only=True)
class Particle(Row):
    """A row of the table that draws one of several versions of a completion."""

    index: int
    """Its number among the particles."""


class Particles:
    """The particles of one completion: a Group of rows of a Table.

    known      (T,) the token of each known pixel, FREE for others, in the order in which the model draws
    columns    of the grid
    particles  N; 1 where no known pixel follows a free one, as there is nothing to weigh
    guide      None: plain particles
    solid      (T,) the tokens that are drawn as `allowed_there` says instead of `allowed`; None: none

    Free tokens are drawn as `sampling` and `allowed` say. `tokens` (N, T) are what the particles have drawn, `nats`
    (N,) the sums of -ln p of the free ones. Noise, steering and a copy of the tokens for each particle are kept only
    from the first use of `rows` to the last token.
    """

    def __init__(
        self,
        known: NDArray[np.int64],
        columns: int,
        sampling: SamplingConfig,
        *,
        particles: int,
        picture: int = 0,
        completion: int = 0,
        allowed: Tensor | None = None,
        guide: Guide | None = None,
        solid: NDArray[np.bool_] | None = None,
        allowed_there: Tensor | None = None,
    ) -> None:
        free = np.flatnonzero(known == FREE)
        self.count = count = particles if len(free) and (known[free[0] :] != FREE).any() else 1
        self.known, self.columns, self.guide = known, columns, guide
        self.solid, self.allowed_there = solid, allowed_there
        self.sampling, self.allowed, self._numbers = sampling, allowed, (picture, completion)
        self._ahead: dict[int, list[tuple[int, int]]] = {}  # (distance, known token) of what steers a position
        self._behind: dict[int, list[tuple[int, int]]] = {}  # (distance, position) of what a known position steers
        self.first = self.position = int(free[0]) if len(free) else len(known)
        self.last = int(free[-1]) + ROWS_PAST * columns if len(free) else len(known)
        """After this position one particle survives."""
        self.tokens = np.broadcast_to(known, (count, len(known)))
        self.nats, self.log_weights, self.ancestors = np.zeros(count), np.zeros(count), np.arange(count)
        self.log_evidence = 0.0
        self.chosen: int | None = None
        self.ancestors_left = count

    @cached_property
    def rows(self) -> list[Particle]:
        """What a Table draws."""
        for place, by, distance in steered(self.known, self.columns) if self.guide is not None else ():
            self._ahead.setdefault(place, []).append((distance, int(self.known[by])))
            self._behind.setdefault(by, []).append((distance, place))
        self.tokens = self.tokens.copy()
        *noise, self._resampling_noise = token_noise(
            self.sampling.seed, *self._numbers, (self.count + 1, len(self.known))
        )
        shared = self.sampling, self.position, self.allowed, self
        return [Particle(own, *shared, index=i) for i, own in enumerate(noise)]

    @property
    def prompt(self) -> Tensor:
        """The known tokens before the first free one, (1, P)."""
        return torch.from_numpy(self.known[None, : self.first].copy())

    @property
    def agreed(self) -> NDArray[np.bool_]:
        """Which tokens, (T,), are known or final: drawn, and the same in all particles."""
        if self.chosen is not None:
            return np.ones(len(self.known), bool)
        drawn = np.arange(len(self.known)) < self.position
        return (self.known != FREE) | (drawn & (self.tokens == self.tokens[0]).all(0))

    @property
    def final(self) -> NDArray[np.int64]:
        """The tokens of the completion, (T,); right where they are `agreed`."""
        return self.tokens[self.chosen or 0].copy()

    def choose(self, table: Table, numbers: list[int], own: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
        order = self._order(table, numbers)
        known = int(self.known[self.position])
        if known != FREE:
            self.log_weights[order] += logits[numbers].float().log_softmax(-1)[:, known].cpu().double().numpy()
            for distance, place in self._behind.get(self.position, ()):
                assert self.guide is not None
                self.log_weights -= self.guide.log_ratios(distance, known)[self.tokens[:, place]].numpy()
            return torch.full((len(numbers),), known, device=logits.device)
        there = self.solid is not None and self.solid[self.position]
        probabilities = distribution(logits[numbers], self.sampling, self.allowed_there if there else self.allowed)
        if self.guide is not None and self.position in self._ahead:
            total = probabilities.sum(-1)
            steering = torch.stack([self.guide.log_ratios(*other) for other in self._ahead[self.position]]).sum(0)
            probabilities = probabilities * steering.exp().to(probabilities)
            self.log_weights[order] += (probabilities.sum(-1) / total).log().cpu().double().numpy()
        last = self.position + 1 == len(self.known)  # where one is drawn by weight at once
        if not last and effective_size(self.log_weights) < len(self.log_weights) / 2:
            sources = self._resample()
            places = {index: i for i, index in enumerate(order)}
            for to in np.flatnonzero(sources != np.arange(len(sources))).tolist():
                source, target = places[int(sources[to])], places[to]
                table.decoder.copy(numbers[source], numbers[target])
                own[numbers[target]] = own[numbers[source]]  # so that nats are those of the copy
                probabilities[target] = probabilities[source]
        return invert(probabilities, noise[numbers])

    def record(self, numbers: list[int], tokens: Tensor, nats: Tensor) -> None:
        order = self._present
        if self.known[self.position] == FREE:
            self.tokens[order, self.position] = tokens.cpu().numpy()
            self.nats[order] += nats.cpu().double().numpy()
        self.position += 1
        if self.position == len(self.known) or (self.chosen is None and self.position > self.last):
            self._finish()
        if self.position == len(self.known):
            self.tokens = np.broadcast_to(self.final, self.tokens.shape)
            self.rows, self._ahead, self._behind = [], {}, {}

    def _order(self, table: Table, numbers: list[int]) -> list[int]:
        """The particles of these rows, which the table may have moved."""
        self._present = [row.index for number in numbers if isinstance(row := table.rows[number], Particle)]
        return self._present

    def _resample(self) -> NDArray[np.int64]:
        """Draw particles by weight; returns which one each is a copy of: those that remain keep their places."""
        self._take_evidence()
        count = len(self.log_weights)
        copies = systematic(self.log_weights, count, self._resampling_noise[self.position])
        sources = np.where(copies > 0, np.arange(count), -1)
        sources[copies == 0] = np.repeat(np.arange(count), np.maximum(copies - 1, 0))
        self.tokens, self.nats, self.ancestors = self.tokens[sources], self.nats[sources], self.ancestors[sources]
        self.log_weights = np.zeros(count)
        return sources

    def _take_evidence(self) -> None:
        """Move the mean weight into the estimate."""
        largest = self.log_weights.max()
        mean = largest + float(np.log(np.exp(self.log_weights - largest).mean()))
        self.log_evidence += mean

    def _finish(self) -> None:
        """Draw one particle by weight, the only survivor; at the end, take its last weights."""
        if self.chosen is not None:
            self.log_evidence += float(self.log_weights[self.chosen])
            return
        self._take_evidence()
        self.ancestors_left = len(np.unique(self.ancestors))
        noise = self._resampling_noise[min(self.position, len(self.known) - 1)]
        self.chosen = int(systematic(self.log_weights, 1, noise).argmax())
        self.log_weights = np.zeros(len(self.log_weights))
        for row in self.rows:
            row.cancelled = row.index != self.chosen


def effective_size(log_weights: NDArray[np.float64]) -> float:
    """(sum of weights)^2 / sum of squares, from 1 to N (Kong et al. 1994)."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / np.square(weights).sum())


def systematic(log_weights: NDArray[np.float64], count: int, noise: float) -> NDArray[np.int64]:
    """How many of `count` draws fall on each particle, (N,), by systematic resampling with noise in [0, 1)."""
    cumulative = np.exp(log_weights - log_weights.max()).cumsum()
    points = (np.arange(count) + noise) / count * cumulative[-1]
    found = np.searchsorted(cumulative, points, side="right").clip(max=len(cumulative) - 1)
    return np.bincount(found, minlength=len(cumulative))
