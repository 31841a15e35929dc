"""The ways to run the network token by token, a class each: what drawing asks of one is `read`, `fill`, `step`, `copy`.

`read` is the network over prompts, `fill` puts what was read into rows, and `step` takes a token a row and scores the
next. Which class a call takes is chosen once for all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextpixel.config import ImageGPTConfig, Speed
from nextpixel.network.caches import Int8Cache, RowCache
from nextpixel.network.int8 import kernels
from nextpixel.network.int8.packing import can_round, packed_network, read_together
from nextpixel.network.model import ImageGPT, KVCache, Positions, raster

FAST_FROM = 3e8  # parameters times drawn tokens: a third of a second of plain drawing, where setting up begins to pay
Read = tuple[Tensor, KVCache]  # logits (M, K) of the token behind each of M prompts, and their keys and values


class Decoder:
    """The network as it is, every row at the same slot."""

    name = "plain"

    def __init__(self, model: ImageGPT, rows: int, prefix_slots: int = 1, order: Tensor | None = None) -> None:
        """For so many rows, prefixes of so many vectors, and an order (T,) of the grid's places, see Positions."""
        self.network, self.rows, self.prefix_slots = self.network_of(model), rows, prefix_slots
        self.cache = self.new_cache(rows, prefix_slots - 1 + model.config.tokens)
        if order is None:
            self.positions = raster(model.config, model.device, prefix_slots)
        else:
            self.positions = Positions.of(model.config, model.device, order, prefix_slots)

    @staticmethod
    def network_of(model: ImageGPT) -> ImageGPT:
        return model

    def new_cache(self, rows: int, slots: int) -> KVCache:
        return self.network.new_cache(rows, slots)

    def prompt_cache(self, prompts: int, slots: int) -> KVCache:
        """What prompts are read into."""
        return self.network.new_cache(prompts, slots)

    @torch.inference_mode()
    def read(self, prompts: Tensor, prefix: Tensor | None = None) -> Read:
        """Logits (M, K) of the token behind each prompt (M, P), and the filled cache; see ImageGPT.extend."""
        cache = self.prompt_cache(len(prompts), self.prefix_slots + prompts.shape[1])
        return self.network.extend(prompts, cache, prefix, self.positions)[:, -1], cache

    def fill(self, rows: Tensor, read: KVCache, of: Tensor) -> None:
        """Let these rows go on as prompts `of` of those read."""
        self.cache.fill(rows, read, of)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits (n, K) of the token behind these tokens (n,) of the first n rows; others stand still, if they can."""
        return self.network.extend(tokens[:, None], self.cache, None, self.positions)[:, -1]

    def together(self, tokens: int) -> int:
        """How many prompts of so many tokens are read at once: on a CPU, as many as its cache can work on."""
        if self.network.device.type != "cpu":
            return self.rows
        return read_together(self.network.config.width, self.prefix_slots + tokens)

    @classmethod
    def row_bytes(cls, model: ImageGPT) -> int:
        """Memory of one row: its cache, the one it is read or selected from, and the prefill's widest activations."""
        c = model.config
        return 2 * cls.cache_bytes(c, model.head.weight.itemsize) + c.tokens * (12 * c.width + 3 * c.colors) * 4

    @staticmethod
    def cache_bytes(config: ImageGPTConfig, itemsize: int) -> int:
        return 2 * config.layers * config.tokens * config.width * itemsize


class RowDecoder(Decoder):
    """The network as it is; rows join, leave and change places between two tokens."""

    cache: RowCache

    def new_cache(self, rows: int, slots: int) -> KVCache:
        model = self.network
        return RowCache(model.config, rows, slots, dtype=model.token_embedding.dtype, device=model.device)

    def step(self, tokens: Tensor) -> Tensor:
        self.cache.used = len(tokens)
        return super().step(tokens)

    def shorten(self, tokens: int) -> None:
        """No row knows more tokens than that: what lies behind is not looked at."""
        self.cache.length = self.prefix_slots - 1 + tokens

    def copy(self, row: int, to: int) -> None:
        """Row `to` goes on as row `row` was."""
        self.cache.copy(row, to)


class PackedDecoder(RowDecoder):
    """With fp32 matrices in the order in which oneDNN reads them, on a CPU."""

    name = "packed fp32"

    @staticmethod
    def network_of(model: ImageGPT) -> ImageGPT:
        return packed_network(model, "fp32")

    @staticmethod
    def cache_bytes(config: ImageGPTConfig, itemsize: int) -> int:
        return Decoder.cache_bytes(config, 4)


class Int8Decoder(RowDecoder):
    """With the loops of kernels.py: int8 weights over an int8 cache, on a CPU."""

    name = "int8"

    @staticmethod
    def network_of(model: ImageGPT) -> ImageGPT:
        return packed_network(model, "int8")

    def new_cache(self, rows: int, slots: int) -> KVCache:
        return Int8Cache(self.network.config, rows, slots)

    def prompt_cache(self, prompts: int, slots: int) -> KVCache:
        return self.new_cache(prompts, slots + 1)  # a row never leaves its last slot

    @staticmethod
    def cache_bytes(config: ImageGPTConfig, itemsize: int) -> int:
        slot = config.heads * (kernels.rounded(config.head_width) + 4)  # a scale for each head
        return 2 * config.layers * kernels.rounded(config.tokens) * slot


def choose_decoder(
    model: ImageGPT, rows: int, tokens: int, speed: Speed = "auto", *, apart: bool = False
) -> type[Decoder]:
    """The class for a call that draws `tokens` tokens of each of `rows` pictures in all, however it is cut.

    "exact" is always the network as it is; "auto" leaves it where packing and rounding repay themselves: on a CPU,
    from a third of a second of plain drawing on. With `apart`, rows may join and leave at any time.
    """
    known = model.head.weight.dtype in (torch.float32, torch.bfloat16)
    large = rows * tokens * model.config.parameters >= FAST_FROM
    packs = model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if speed == "exact" or not (known and large and packs):
        return RowDecoder if apart else Decoder
    return Int8Decoder if can_round(model) else PackedDecoder
