"""The drawing loop: a table of rows, one token for each row at a time.

The noise of a token is a uniform number in [0, 1) that depends on (seed, picture, completion, token) only; the token is
where the cumulative distribution exceeds it. Rounding can change a token only where that number is almost equal to the
boundary between two tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nextpixel.config import SamplingConfig
from nextpixel.network.decoding import Decoder, Prefill
from nextpixel.network.losses import cross_entropy


class Group(Protocol):
    """Rows whose tokens are chosen together, see particles.Particles."""

    def choose(self, table: Table, numbers: list[int], own: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
        """Tokens (n,) for the group's rows, which have these numbers in the table.

        `own` and `logits`, (B, K) for all rows of the table, are the model's and those to draw from; noise is (B,).
        """

    def record(self, numbers: list[int], tokens: Tensor, nats: Tensor) -> None:
        """Record the tokens and nats (n,) of the group's rows."""


@dataclass(eq=False)
class Row:
    """A picture that is being drawn."""

    noise: NDArray[np.float64]
    """(T,), see token_noise."""
    sampling: SamplingConfig
    position: int
    """Index of the next token, after those given or drawn; at T the row is finished."""
    allowed: Tensor | None = None
    """Which tokens may be drawn, (K,); None: all."""
    group: Group | None = None
    """Chooses its tokens with those of other rows; None: it is drawn by itself."""
    cancelled: bool = False


R = TypeVar("R", bound=Row)


class Table(Generic[R]):
    """Rows that a decoder draws in parallel; those in use come first, so a step computes only them.

    Iterating draws: each round yields the rows, their tokens (B,) on the model's device, and the -ln p of these (B,) by
    the model itself, at temperature 1 and without guidance, until no row is left. Rows may be added or cancelled
    between two rounds.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.length = decoder, decoder.network.config.tokens
        self.rows: list[R] = []
        # of the rows, (B, K) or of a guided decoder (B, 2, K), and (B, T)
        self._logits, self._noise = torch.empty(0), torch.empty(0)
        self._tokens: Tensor | None = None  # (B,), not yet given to the decoder
        self._groups: list[list[int]] | None = None

    @property
    def free(self) -> int:
        return self.decoder.rows - len(self.rows)

    def begin(self, rows: Sequence[R], prompts: Tensor, of: Sequence[int], prefix: Tensor | None = None) -> None:
        """Prefill prompts (M, P), each once, and add rows; row i continues prompt of[i]. `prefix` is (1 or M, F, D)."""
        size = self.decoder.prompts_per_prefill(prompts.shape[1])
        unused = not self.decoder.cache.length and len(prompts) <= size
        if unused and list(of) == list(range(self.decoder.rows)):
            return self.add(rows, self.decoder.prefill(prompts, prefix, in_place=True), of)
        for first in range(0, len(prompts), size):
            group = prompts[first : first + size]
            own = [i for i, prompt in enumerate(of) if first <= prompt < first + len(group)]
            before = prefix if prefix is None or len(prefix) == 1 else prefix[first : first + size]
            self.add([rows[i] for i in own], self.decoder.prefill(group, before), [of[i] - first for i in own])

    def add(self, rows: Sequence[R], prefill: Prefill, of: Sequence[int]) -> None:
        """Add rows, at most as many as are free; row i continues prompt of[i] of the prefill."""
        self.step()
        (logits, cache), first = prefill, len(self.rows)
        new, prompts = (torch.tensor(i, device=logits.device) for i in (range(first, first + len(rows)), of))
        self.decoder.fill(new, cache, prompts)
        logits, noise = logits[prompts], torch.from_numpy(np.stack([row.noise for row in rows]))
        noise = noise.to(logits.device, wide_type(logits))
        self._logits = torch.cat([self._logits, logits]) if first else logits
        self._noise = torch.cat([self._noise, noise]) if first else noise
        self.rows += rows
        self._groups = None

    def drop_finished(self) -> None:
        """Free the rows that are finished or cancelled; the last rows move into them."""
        kept = list(range(len(self.rows)))
        for number in reversed(range(len(self.rows))):
            if self.rows[number].cancelled or self.rows[number].position == self.length:
                last = kept.pop()
                if number < len(kept):
                    self.decoder.copy(len(kept), number)
                    kept[number] = last
        if len(kept) < len(self.rows):
            self.rows[:] = [self.rows[number] for number in kept]
            self._logits, self._noise = self._logits[kept], self._noise[kept]
            self._tokens = None if self._tokens is None else self._tokens[kept]
            self._groups = None

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[list[R], Tensor, Tensor]]:
        while self.step():
            yield self._choose()

    def step(self) -> bool:
        """Give the last tokens to the decoder, if it has not had them. Returns whether rows are left."""
        self.drop_finished()
        if self.rows and self._tokens is not None:
            self.decoder.shorten(max(row.position for row in self.rows))
            self._logits = self.decoder.step(self._tokens)
        self._tokens = None
        return bool(self.rows)

    def _choose(self) -> tuple[list[R], Tensor, Tensor]:
        positions = [row.position for row in self.rows]
        if positions.count(positions[0]) == len(positions):
            noise = self._noise[:, positions[0]]
        else:
            noise = self._noise.gather(1, torch.tensor(positions, device=self._noise.device)[:, None])[:, 0]
        own, logits = self._guided()
        groups = self._by_sampling()
        tokens = torch.empty(len(positions), dtype=torch.int64, device=logits.device)
        for numbers in groups:
            part = slice(None) if len(groups) == 1 else numbers
            row = self.rows[numbers[0]]
            if row.group is None:
                tokens[part] = choose(logits[part], noise[part], row.sampling, row.allowed)
            else:
                tokens[part] = row.group.choose(self, numbers, own, logits, noise)
        nats = cross_entropy(own[:, None], tokens[:, None], reduction="none")[:, 0]
        for numbers in groups:
            if (group := self.rows[numbers[0]].group) is not None:
                group.record(numbers, tokens[numbers], nats[numbers])
        for row in self.rows:
            row.position += 1
        self._tokens = tokens
        return list(self.rows), tokens, nats

    def _guided(self) -> tuple[Tensor, Tensor]:
        """The model's logits (B, K), and those to draw from (Ho & Salimans 2022)."""
        if self._logits.ndim == 2:
            return self._logits, self._logits
        own, plain = self._logits.unbind(1)
        strength = torch.tensor([row.sampling.guidance - 1 for row in self.rows]).to(own)
        return own, own + strength[:, None] * (own - plain)

    def _by_sampling(self) -> list[list[int]]:
        """Row numbers grouped by how their tokens are chosen; cached until rows change."""
        if self._groups is None:
            groups: dict[tuple[SamplingConfig, int, int], list[int]] = {}
            for number, row in enumerate(self.rows):
                key = replace(row.sampling, seed=0, guidance=1), id(row.allowed), id(row.group)
                groups.setdefault(key, []).append(number)
            self._groups = list(groups.values())
        return self._groups


def choose(logits: Tensor, noise: Tensor, sampling: SamplingConfig, allowed: Tensor | None = None) -> Tensor:
    """Tokens (B,) of the distribution of these logits (B, K), see `distribution`, by inversion of noise (B,)."""
    return invert(distribution(logits, sampling, allowed), noise)


def distribution(logits: Tensor, sampling: SamplingConfig, allowed: Tensor | None = None) -> Tensor:
    """Probabilities (B, K), float64, of logits (B, K), where `allowed` (K,) is True, and 0 elsewhere.

    top_k and then top_p truncate the distribution (top_p: Holtzman et al. 2020); of equally probable tokens they keep
    the lower numbers. They need not sum to 1.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    wide = wide_type(logits)
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(wide)
    logits = logits.to(wide)
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # avoids overflow
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        logits = logits.scatter(-1, order[:, sampling.top_k :], float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        excess = ordered.cumsum(-1) - ordered >= sampling.top_p  # the most probable token stays
        probabilities = probabilities.masked_fill(torch.zeros_like(excess).scatter(-1, order, excess), 0.0)
    return probabilities


def invert(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Tokens (B,): where the cumulative sums of probabilities (B, K) exceed noise (B,) in [0, 1) times their total."""
    cumulative = probabilities.cumsum(-1)
    below_one = 1 - torch.finfo(cumulative.dtype).eps / 2  # fp32 rounds some of the noise to 1
    target = noise[:, None].to(cumulative.dtype).clamp_max(below_one) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(cumulative.shape[-1] - 1)


def token_noise(seed: int, picture: int, completion: int, tokens: int | tuple[int, int]) -> NDArray[np.float64]:
    """The noise (T,) in [0, 1) of one completion, or (N, T) of several rows for it, of which the first is the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, picture, completion]))).random(tokens)


def wide_type(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
