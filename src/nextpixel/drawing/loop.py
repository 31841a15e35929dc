"""The loop that draws: a table of rows, one token of each at a time.

The noise of a token depends on (seed, picture, completion, token) only. It is one uniform number in [0, 1), and the
token is where the cumulative distribution passes it: rounding can change a token only where that number all but
touches the border between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import SamplingConfig
from nextpixel.network.decoding import Decoder, Read, RowDecoder
from nextpixel.network.model import cross_entropy


@dataclass(eq=False)
class Row:
    """A picture that is being drawn."""

    noise: NDArray[np.float64]
    """(T,) see token_noise."""
    sampling: SamplingConfig
    known: int
    """Tokens that are given or drawn; it is finished with the last of them."""
    over: bool = False
    """Nobody wants it any more."""


R = TypeVar("R", bound=Row)


class Table(Generic[R]):
    """Rows that are drawn side by side by a decoder. Those in use are the first ones, so a step costs what they cost.

    Iterating draws: each round yields the rows, the token of each (B,) on the model's device, and its -ln p at
    temperature 1 (B,), until no row is left. Rows may be added, or marked as over, between two rounds.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.length = decoder, decoder.network.config.tokens
        self.rows: list[R] = []
        self._logits, self._noise = torch.empty(0), torch.empty(0)  # of the rows, (B, K) and (B, T)
        self._tokens: Tensor | None = None  # (B,), where the decoder has not read them
        self._groups: list[tuple[SamplingConfig, list[int]]] | None = None

    @property
    def free(self) -> int:
        return self.decoder.rows - len(self.rows)

    def begin(self, rows: Sequence[R], prompts: Tensor, of: Sequence[int], prefix: Tensor | None = None) -> None:
        """Read prompts (M, P), each once, and draw rows behind them, row i behind prompt of[i]."""
        together = self.decoder.together(prompts.shape[1])
        for first in range(0, len(prompts), together):
            group = prompts[first : first + together]
            own = [i for i, prompt in enumerate(of) if first <= prompt < first + len(group)]
            self.add([rows[i] for i in own], self.decoder.read(group, prefix), [of[i] - first for i in own])

    def add(self, rows: Sequence[R], read: Read, of: Sequence[int]) -> None:
        """Draw these rows too, at most as many as are free, row i behind prompt of[i] of those that were read."""
        self.step()
        (logits, cache), first = read, len(self.rows)
        places, prompts = (
            torch.tensor(numbers, device=logits.device) for numbers in (range(first, first + len(rows)), of)
        )
        self.decoder.fill(places, cache, prompts)
        logits, noise = logits[prompts], torch.from_numpy(np.stack([row.noise for row in rows]))
        noise = noise.to(logits.device, wide_type(logits))
        self._logits = torch.cat([self._logits, logits]) if first else logits
        self._noise = torch.cat([self._noise, noise]) if first else noise
        self.rows += rows
        self._groups = None

    def leave(self) -> None:
        """Rows that are finished or over are free; the last ones take their places."""
        kept = list(range(len(self.rows)))
        for number in reversed(range(len(self.rows))):
            if self.rows[number].over or self.rows[number].known == self.length:
                last = kept.pop()
                if number < len(kept):
                    assert isinstance(self.decoder, RowDecoder)
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
        """Let the decoder read the tokens chosen last, where it has not; whether rows are left."""
        self.leave()
        if self.rows and self._tokens is not None:
            if isinstance(self.decoder, RowDecoder):
                self.decoder.shorten(max(row.known for row in self.rows))
            self._logits = self.decoder.step(self._tokens)
        self._tokens = None
        return bool(self.rows)

    def _choose(self) -> tuple[list[R], Tensor, Tensor]:
        known = [row.known for row in self.rows]
        if known.count(known[0]) == len(known):
            noise = self._noise[:, known[0]]
        else:
            noise = self._noise.gather(1, torch.tensor(known, device=self._noise.device)[:, None])[:, 0]
        groups = self._by_sampling()
        if len(groups) == 1:
            tokens = choose(self._logits, noise, groups[0][0])
        else:
            tokens = torch.empty(len(known), dtype=torch.int64, device=self._logits.device)
            for sampling, numbers in groups:
                tokens[numbers] = choose(self._logits[numbers], noise[numbers], sampling)
        for row in self.rows:
            row.known += 1
        self._tokens = tokens
        return list(self.rows), tokens, cross_entropy(self._logits[:, None], tokens[:, None], reduction="none")[:, 0]

    def _by_sampling(self) -> list[tuple[SamplingConfig, list[int]]]:
        """The numbers of the rows that are drawn alike; found again when rows have come or gone."""
        if self._groups is None:
            groups: dict[SamplingConfig, list[int]] = {}
            for number, row in enumerate(self.rows):
                groups.setdefault(replace(row.sampling, seed=0), []).append(number)
            self._groups = list(groups.items())
        return self._groups


def choose(logits: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
    """Tokens (B,) drawn from logits (B, K) by inversion of noise (B,) in [0, 1).

    top_k and then top_p narrow the distribution; top_p as in Holtzman et al. 2020. Of equally likely tokens the
    lower numbers stay.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(wide_type(logits))
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # the largest may not become infinite
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        places = logits.sort(dim=-1, descending=True, stable=True).indices
        logits = logits.scatter(-1, places[:, sampling.top_k :], float("-inf"))
    chances = logits.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, places = chances.sort(dim=-1, descending=True, stable=True)
        spare = ordered.cumsum(-1) - ordered >= sampling.top_p  # the likeliest colour always stays
        chances = chances.masked_fill(torch.zeros_like(spare).scatter(-1, places, spare), 0.0)
    below = chances.cumsum(-1)
    below_one = 1 - torch.finfo(below.dtype).eps / 2  # the number before 1, to which fp32 rounds some of the noise
    target = noise[:, None].to(below.dtype).clamp_max(below_one) * below[:, -1:]
    return torch.searchsorted(below, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def token_noise(seed: int, picture: int, completion: int, tokens: int) -> NDArray[np.float64]:
    """The noise (T,) in [0, 1) of one completion."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, picture, completion]))).random(tokens)


def wide_type(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
