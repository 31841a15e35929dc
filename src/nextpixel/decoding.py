"""Drawing pixel by pixel, fast: the same network, packed (packing.py), over a cache whose rows stand where they like.

`Decoder` serves sample, complete and stream: `start` reads prompts, `step` takes a token a row and scores the next. How
it works is a `Mode`, chosen once for a whole call; "plain" is the network as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nextpixel import kernels
from nextpixel.config import Speed
from nextpixel.model import ImageGPT, KVCache
from nextpixel.packing import can_round, packed_network, read_together

FAST_FROM = 3e8  # parameters times drawn pixels: a third of a second of plain drawing, where setting up begins to pay
BUCKET = 128  # a CUDA graph is recorded for each length of the cache, rounded up to this


@dataclass(frozen=True)
class Mode:
    """How a call draws."""

    weights: Literal["as they are", "fp32", "bf16", "int8"]
    """Of the matrices; "as they are" is the plain network in its own dtype."""
    attention: Literal["plain", "kernel", "graph"]
    """torch's; that of kernels.c, over an int8 cache and for int8 weights; or torch's within a CUDA graph of the whole
    step."""

    def __str__(self) -> str:
        return f"weights {self.weights}, attention {self.attention}"


PLAIN = Mode("as they are", "plain")


def choose_mode(model: ImageGPT, rows: int, pixels: int, speed: Speed = "auto") -> Mode:
    """The mode of a call that draws `pixels` pixels of each of `rows` pictures in all, however it is cut.

    "exact" is always the plain network. "auto" leaves it where packing and rounding repay themselves: on a CPU, from
    a third of a second of plain drawing on. CUDA graphs wait for a first run on a GPU before they are chosen here.
    """
    known = model.head.weight.dtype in (torch.float32, torch.bfloat16)
    if speed == "exact" or not known or rows * pixels * model.config.parameters < FAST_FROM:
        return PLAIN
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return PLAIN
    return Mode("int8", "kernel") if can_round(model) else Mode("fp32", "plain")


def cache_dtype(model: ImageGPT, mode: Mode) -> torch.dtype:
    """Of the cache that drawing reads; bytes for the C loop, which keeps a scale for each slot of a head."""
    if mode.attention == "kernel":
        return torch.uint8
    return {"as they are": model.head.weight.dtype, "fp32": torch.float32}.get(mode.weights, torch.bfloat16)


def row_bytes(model: ImageGPT, mode: Mode) -> int:
    """Memory of one row: its cache, the one it is read or selected from, and the prefill's widest activations."""
    c = model.config
    if mode.attention == "kernel":  # bytes, and a scale for each slot of a head
        cache = 2 * c.layers * c.heads * kernels.rounded(c.pixels) * (kernels.rounded(c.head_width) + 4)
    else:
        cache = 2 * c.layers * c.pixels * c.width * cache_dtype(model, mode).itemsize
    return 2 * cache + c.pixels * (12 * c.width + 3 * c.colors) * 4


class RowCache(KVCache):
    """A cache whose rows stand at slots of their own, so that pictures may join, leave and change places.

    `positions` (B,) is the slot each row fills next; at the end it stays on the last one, which makes a finished row
    harmless. `length` is at least the largest of them. A step moves the first `used` rows.
    """

    def __init__(self, model: ImageGPT, rows: int, mode: Mode) -> None:
        super().__init__(model.config, rows, dtype=cache_dtype(model, mode), device=model.device)
        self.kernel = mode.attention == "kernel"
        self.used = rows
        if self.kernel:
            shape = *self.keys.shape[:3], *map(kernels.rounded, self.keys.shape[3:])
            self.keys, self.values = self.keys.new_empty(shape), self.values.new_empty(shape)
            self.scales = torch.ones(2, *shape[:-1], dtype=torch.float32, device=model.device)  # of keys and values
        else:
            self.keys.zero_()  # attention with a mask multiplies what was never filled by zero
            self.values.zero_()
        self.positions = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.rows = torch.arange(rows, device=model.device)
        self.slots = torch.arange(model.config.pixels, device=model.device)

    @property
    def bytes(self) -> kernels.Cache:
        """What the C loops take."""
        return kernels.Cache(self.keys, self.values, *self.scales)

    def fill(self, rows: Tensor, other: KVCache, of: Tensor) -> None:
        """Put rows `of` of a freshly read cache into these rows."""
        end = other.length
        seen = slice(kernels.rounded(end) if self.kernel else end)
        for part, read in zip(self._parts, other._parts if isinstance(other, RowCache) else (other.keys, other.values)):
            part[:, rows, :, seen] = read[:, of, :, seen].to(part.dtype)
        self.positions[rows] = min(end, len(self.slots) - 1)
        self.length = min(max(self.length, end), len(self.slots) - 1)

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on as row rows[i] was."""
        for layer in range(len(self.keys)):
            for part in self._parts:
                part[layer] = part[layer, rows]
        self.positions.copy_(self.positions[rows])

    def copy(self, row: int, to: int) -> None:
        """Row `to` goes on as row `row` was."""
        for part in self._parts:
            part[:, to] = part[:, row]
        self.positions[to] = self.positions[row]

    @property
    def _parts(self) -> list[Tensor]:
        """All of the cache, (L, B, ...) each."""
        return [self.keys, self.values, *(self.scales if self.kernel else ())]

    def select(self, rows: Tensor) -> RowCache:
        chosen = copy.copy(self)
        chosen.keys, chosen.values, chosen.scales = self.keys[:, rows], self.values[:, rows], self.scales[:, :, rows]
        chosen.positions, chosen.rows, chosen.used = self.positions[rows], self.rows[: len(rows)], len(rows)
        return chosen

    def places(self, slots: int) -> slice | Tensor:
        return self.positions[: self.used, None] if slots == 1 else super().places(slots)

    def advance(self, slots: int) -> None:
        self.positions[: self.used].add_(slots).clamp_(max=len(self.slots) - 1)
        self.length = min(self.length + slots, len(self.slots) - 1)

    def rewind(self, length: int) -> None:
        self.length = min(length, len(self.slots) - 1)
        self.positions.clamp_(max=length)

    @property
    def bucket(self) -> int:
        """Slots that masked attention looks at: few different numbers."""
        return min(-(-(self.length + 1) // BUCKET) * BUCKET, len(self.slots))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.keys[layer, : self.used], self.values[layer, : self.used]
        rows, positions = self.rows[: self.used], self.positions[: self.used]
        keys[rows, :, positions] = k[:, :, 0].to(keys.dtype)
        values[rows, :, positions] = v[:, :, 0].to(keys.dtype)
        end = self.bucket
        seen = (self.slots[:end] <= positions[:, None])[:, None, None]  # (B, 1, 1, end)
        y = F.scaled_dot_product_attention(q.to(keys.dtype), keys[:, :, :end], values[:, :, :end], attn_mask=seen)
        return y.to(q.dtype)


class Decoder:
    """Draws `rows` pictures side by side in one mode.

    `apart`: rows start and leave each at its own time, which plain ones do not unless told.
    """

    def __init__(self, model: ImageGPT, rows: int, mode: Mode = PLAIN, *, apart: bool = False) -> None:
        self.mode, self.rows = mode, rows
        self.network = model if mode.weights == "as they are" else packed_network(model, mode.weights)
        self.cache = model.new_cache(0) if mode.weights == "as they are" and not apart else RowCache(model, rows, mode)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # and the logits it writes
        self._tokens = torch.zeros((rows, 1), dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def start(
        self, prompts: Tensor, of: Tensor | None = None, rows: Tensor | None = None, orientation: int = 0
    ) -> Tensor:
        """Logits (b, K) of the next pixel of `rows` (all unless told), which go on as prompts (M, P)[of].

        One prefill serves all completions of a picture. Rows in the middle of other pictures are left alone, but a
        plain decoder starts all rows at once unless its rows are apart.
        """
        every = torch.arange(len(prompts), device=prompts.device)
        of = every if of is None else of
        rows = torch.arange(self.rows, device=prompts.device) if rows is None else rows
        plain = None if isinstance(self.cache, RowCache) else self._new_cache(len(prompts))
        logits = []
        for group in every.split(self.together(prompts.shape[1])):
            first, end = int(group[0]), int(group[-1]) + 1
            read = self._new_cache(len(group)) if plain is None else plain.part(first, end)
            logits.append(self.network.extend(prompts[first:end], read, orientation)[:, -1])
            if isinstance(self.cache, RowCache):
                theirs = (of >= first) & (of < end)
                self.cache.fill(rows[theirs], read, of[theirs] - first)
        if plain is not None:
            plain.length = prompts.shape[1] + 1
            self.cache = plain if torch.equal(of, every) else plain.select(of)
        return torch.cat(logits)[of]

    def together(self, pixels: int) -> int:
        """How many prompts of that many pixels are read at once: on a CPU, as many as its cache can work on."""
        if self._tokens.device.type != "cpu":
            return self.rows
        return read_together(self.network.config.width, pixels + 1)

    @torch.inference_mode()
    def read(self, prompts: Tensor, orientation: int = 0) -> tuple[Tensor, KVCache]:
        """The prefill of prompts (M, P) alone: logits (M, K) of the next pixel, and what RowCache.fill takes."""
        read = self._new_cache(len(prompts))
        return self.network.extend(prompts, read, orientation)[:, -1], read

    def _new_cache(self, rows: int) -> KVCache:
        if self.mode.attention == "kernel":
            return RowCache(self.network, rows, self.mode)
        return self.network.new_cache(rows, self.cache.keys.dtype)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, K) of the pixel behind these tokens (B,), drawn or known.

        Fewer tokens than rows are those of the first rows; the others stand still, but a graph spoils them.
        """
        count = len(tokens)
        self._tokens[:count] = tokens[:, None]
        if self.mode.attention != "graph":
            if isinstance(self.cache, RowCache):
                self.cache.used = count
            return self.network.extend(self._tokens[:count], self.cache)[:, -1]
        assert isinstance(self.cache, RowCache)
        end, length = self.cache.bucket, self.cache.length
        if end not in self._graphs:
            self._record(end)
        graph, logits = self._graphs[end]
        graph.replay()
        self.cache.length = min(length + 1, len(self.cache.slots) - 1)  # the graph moves `positions` alone
        return logits[:count]

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on as row rows[i] was; a row may be taken often."""
        if isinstance(self.cache, RowCache):
            self.cache.reorder(rows)
        else:
            self.cache = self.cache.select(rows)

    def _record(self, end: int) -> None:
        """Record one step over `end` slots of the cache as a CUDA graph. Written without a GPU at hand: never run."""
        assert isinstance(self.cache, RowCache)
        before, length = self.cache.positions.clone(), self.cache.length
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # the first products choose their algorithms, which may not be recorded
            for _ in range(2):
                self.network.extend(self._tokens, self.cache)
                self.cache.positions.copy_(before)
                self.cache.length = length
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.network.extend(self._tokens, self.cache)[:, -1]
        self.cache.length = length
        self._graphs[end] = graph, logits
