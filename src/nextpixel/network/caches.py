"""Caches of keys and values: KVCache for rows in step, RowCache for rows that start and finish independently.

StaticCache is a RowCache for compiled steps, Int8Cache one for the kernels in C.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from nextpixel.config import ImageGPTConfig
from nextpixel.network.attention import Mask, attention
from nextpixel.network.int8 import kernels

BUCKET = 128  # attention reads a multiple of this many slots


class KVCache:
    """Keys and values of every block and row, allocated once at full length; all rows fill the same slots.

    `parts` are keys and values, (L, B, N, slots, E) each; the first `length` slots are filled.
    """

    def __init__(
        self, config: ImageGPTConfig, batch: int, slots: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, batch, config.heads, slots, config.head_width)
        self.parts = [torch.empty(shape, dtype=dtype, device=device) for _ in range(2)]
        self.slots = slots
        self.length = 0
        self.prefix_slots = 1  # F

    @property
    def stored(self) -> int:
        """Number of filled slots of `parts`."""
        return self.length

    def next_slots(self, count: int) -> slice | Tensor:
        """The next slots: a slice if they are the same for every row, else a tensor (B, count)."""
        return slice(self.length, self.length + count)

    def advance(self, count: int) -> None:
        """Add slots that every block has stored to `length`."""
        self.length += count

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, N, count, E) in the next slots; each query sees the slots up to its own."""
        keys, values = (part[layer] for part in self.parts)
        q, k, v = (x.to(keys.dtype) for x in (q, k, v))
        count, end = k.shape[2], self.length + k.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        mask: Mask = "causal" if count > 1 else "all"
        if not self.length:  # rounded alike, however long the cache
            return attention(q, k, v, mask)
        if count > 1:
            mask = torch.ones(count, end, dtype=torch.bool, device=q.device).tril(self.length)
        return attention(q, keys[:, :, :end], values[:, :, :end], mask)

    def fill(self, rows: Tensor, prefilled: KVCache, of: Tensor) -> None:
        """Let `rows` continue rows `of` of a prefill's cache; the prompts of all rows must be of one length."""
        for part, other in zip(self.parts, prefilled.parts, strict=True):
            for ours, theirs in zip(part, other, strict=True):  # a block at a time: indexing copies
                ours[rows, :, : prefilled.stored] = theirs[of, :, : prefilled.stored].to(part.dtype)
        self.length, self.prefix_slots = prefilled.length, prefilled.prefix_slots

    def select(self, rows: Tensor) -> KVCache:
        """A cache of these rows, in this order; rows may repeat."""
        chosen = copy.copy(self)
        chosen.parts = [part[:, rows] for part in self.parts]
        return chosen


class RowCache(KVCache):
    """A cache whose rows have slots of their own, so that pictures can join, leave and move between two tokens.

    `slot` (B,) is the slot that each row fills next; at the end it stays on the last, which makes a finished row
    harmless. `length` is at least the largest of them. A step advances the first `used` rows.
    """

    def __init__(
        self, config: ImageGPTConfig, batch: int, slots: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, batch, slots, dtype=dtype, device=device)
        for part in self.parts:
            part.zero_()  # masked attention multiplies unfilled slots by zero
        self.used = batch
        self.slot = torch.zeros(batch, dtype=torch.int64, device=device)
        self.rows = torch.arange(batch, device=device)
        self.numbers = torch.arange(slots, device=device)

    def next_slots(self, count: int) -> slice | Tensor:
        return self.slot[: self.used, None] if count == 1 else super().next_slots(count)

    def advance(self, count: int) -> None:
        self.slot[: self.used].add_(count).clamp_(max=self.slots - 1)
        self.length = min(self.length + count, self.slots - 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One slot per row, or the prompts of all rows, of one length, while nothing is stored."""
        if k.shape[2] > 1:
            return super().attend(layer, q, k, v)
        keys, values = (part[layer, : self.used] for part in self.parts)
        rows, slot = self.rows[: self.used], self.slot[: self.used]
        keys[rows, :, slot] = k[:, :, 0].to(keys.dtype)
        values[rows, :, slot] = v[:, :, 0].to(keys.dtype)
        end = self.read_slots()
        mask = (self.numbers[:end] <= slot[:, None])[:, None, None]  # (B, 1, 1, end)
        y = F.scaled_dot_product_attention(q.to(keys.dtype), keys[:, :, :end], values[:, :, :end], attn_mask=mask)
        return y.to(q.dtype)

    def read_slots(self) -> int:
        """The number of slots that attention reads, from the first."""
        return min(-(-(self.length + 1) // BUCKET) * BUCKET, self.slots)

    def fill(self, rows: Tensor, prefilled: KVCache, of: Tensor) -> None:
        before = self.length
        super().fill(rows, prefilled, of)
        self.slot[rows] = min(prefilled.length, self.slots - 1)
        self.length = min(max(before, prefilled.length), self.slots - 1)

    def select(self, rows: Tensor) -> RowCache:
        chosen = super().select(rows)
        assert isinstance(chosen, RowCache)
        chosen.slot, chosen.rows, chosen.used = self.slot[rows], self.rows[: len(rows)], len(rows)
        return chosen

    def copy(self, row: int, to: int) -> None:
        """Copy row `row` to row `to`."""
        for part in (*self.parts, self.slot[None]):
            part[:, to] = part[:, row]


class StaticCache(RowCache):
    """A RowCache whose attention always reads every slot, so that every step runs the same kernels."""

    def read_slots(self) -> int:
        return self.slots


class Int8Cache(RowCache):
    """For kernels.py: bytes in the kernels' own layout, and a scale for each slot of a head."""

    def __init__(self, config: ImageGPTConfig, batch: int, slots: int) -> None:
        super().__init__(config, 0, slots, dtype=torch.uint8, device="cpu")
        room, width = kernels.padded(slots), kernels.padded(config.head_width)
        shape = (config.layers, batch, config.heads, room)
        self.parts = [torch.empty(*shape, width, dtype=torch.uint8) for _ in range(2)]
        self.parts += [torch.ones(shape, dtype=torch.float32) for _ in range(2)]
        self.used, self.slot, self.rows = batch, torch.zeros(batch, dtype=torch.int64), torch.arange(batch)

    @property
    def stored(self) -> int:
        return kernels.padded(self.length)

    @property
    def bytes(self) -> kernels.Cache:
        """The tensors that the kernels take."""
        return kernels.Cache(*self.parts)
