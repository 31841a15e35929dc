"""Decoders: the ways to run the network token by token, a class each, with `prefill`, `fill`, `step` and `copy`.

`prefill` runs the network over prompts, `fill` puts the result into rows, and `step` takes a token for each row and
scores the next. The class is chosen once for each call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from nextpixel.config import ImageGPTConfig, Speed
from nextpixel.devices import can_compile
from nextpixel.network.caches import Int8Cache, KVCache, RowCache, StaticCache
from nextpixel.network.int8 import kernels
from nextpixel.network.int8.packing import packed_network, pictures_per_pass, supports_int8
from nextpixel.network.model import ImageGPT
from nextpixel.network.positions import Positions, raster

FAST_FROM = 3e8  # parameters times drawn tokens: a third of a second of plain drawing, from which set-up pays off
ROW_COUNTS = 256  # for which a step is compiled in one process; torch's default, 8, would end in an error
COMPILED_FROM = 2e12  # the same on a GPU, where compiling takes half a minute (an estimate)
Prefill = tuple[Tensor, KVCache]  # logits (M, K) of the token after each of M prompts, and their keys and values


class Decoder:
    """The unmodified network, with every row at the same slot."""

    name = "plain"
    kind: type[KVCache] = KVCache

    def __init__(
        self, model: ImageGPT, rows: int, prefix_slots: int | None = None, order: Tensor | None = None
    ) -> None:
        """For `rows` rows, prefixes of so many vectors (default: the model's), and an order (T,) of the grid."""
        prefix_slots = prefix_slots or model.config.prefix_slots
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
        model = self.network
        return self.kind(model.config, rows, slots, dtype=model.token_embedding.dtype, device=model.device)

    def prompt_cache(self, prompts: int, slots: int) -> KVCache:
        """The cache of a prefill."""
        return self.network.new_cache(prompts, slots)

    @torch.inference_mode()
    def prefill(self, prompts: Tensor, prefix: Tensor | None = None, *, in_place: bool = False) -> Prefill:
        """Logits (M, K) of the token after each prompt (M, P), and the filled cache; see ImageGPT.extend.

        `in_place`: prompt i goes straight into row i of a decoder that has not been used, so that there is one cache.
        """
        cache = self.cache if in_place else self.prompt_cache(len(prompts), self.prefix_slots + prompts.shape[1])
        return self.network.extend(prompts, cache, prefix, self.positions, last=True)[:, -1], cache

    def fill(self, rows: Tensor, cache: KVCache, of: Tensor) -> None:
        """Let these rows continue prompts `of` of a prefill's cache; those of a prefill in place do so already."""
        if cache is not self.cache:
            self.cache.fill(rows, cache, of)

    def select(self, prefill: Prefill, prompt: int) -> Prefill:
        """A copy of one prompt's part of a prefill."""
        logits, cache = prefill
        return logits[prompt : prompt + 1], cache.select(torch.tensor([prompt], device=logits.device))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits (n, K) of the token after these tokens (n,) of the first n rows."""
        return self.network.extend(tokens[:, None], self.cache, None, self.positions)[:, -1]

    def shorten(self, tokens: int) -> None:
        """Limit attention to that many tokens, the most of any row."""

    def copy(self, row: int, to: int) -> None:
        """Copy row `row` to row `to`."""
        raise NotImplementedError("rows of this decoder stay where they are")

    def prompts_per_prefill(self, tokens: int) -> int:
        """Number of prompts of that many tokens in one prefill; on a CPU, as many as its cache holds."""
        if self.network.device.type != "cpu":
            return self.rows
        return pictures_per_pass(self.network.config.width, self.prefix_slots + tokens)

    @classmethod
    def row_bytes(cls, model: ImageGPT) -> int:
        """Memory of one row: its cache, its copy in the prefill, the prefill's widest activations, and its logits."""
        c = model.config
        return 2 * cls.cache_bytes(c, model.head.weight.itemsize) + 12 * (c.tokens * c.width + c.colors) * 4

    @staticmethod
    def cache_bytes(config: ImageGPTConfig, itemsize: int) -> int:
        return 2 * config.layers * config.slots * config.width * itemsize


class RowDecoder(Decoder):
    """The unmodified network; rows start, finish and move between two tokens."""

    kind = RowCache
    cache: RowCache

    def step(self, tokens: Tensor) -> Tensor:
        self.cache.used = len(tokens)
        return super().step(tokens)

    def shorten(self, tokens: int) -> None:
        self.cache.length = self.prefix_slots - 1 + tokens

    def copy(self, row: int, to: int) -> None:
        self.cache.copy(row, to)


class CompiledDecoder(RowDecoder):
    """The unmodified network, whose step is compiled, on CUDA into one graph of kernels.

    That takes shapes and addresses that stay the same (as in gpt-fast), so each step runs all rows over all slots.
    """

    name = "compiled"
    kind = StaticCache

    def __init__(
        self, model: ImageGPT, rows: int, prefix_slots: int | None = None, order: Tensor | None = None
    ) -> None:
        super().__init__(model, rows, prefix_slots, order)
        self._tokens = torch.zeros(rows, 1, dtype=torch.int64, device=model.device)
        for tensor in (*self.cache.parts, self.cache.slot):
            torch._dynamo.mark_static_address(tensor, guard=False)  # else graphs are refused: a step writes there

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        count, cache = len(tokens), self.cache
        self._tokens[:count, 0] = tokens
        cache.used = self.rows
        torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=ROW_COUNTS):
            logits = compiled_step()(self.network, self._tokens, cache, cache.slot[:, None], self.positions)
        cache.used = count
        cache.advance(1)
        return logits[:count, -1].clone()  # the next step writes to the same address


@functools.cache
def compiled_step() -> Callable[..., Tensor]:
    """ImageGPT.score_next, compiled for each shape when it is first called."""
    return torch.compile(ImageGPT.score_next, mode="reduce-overhead", fullgraph=True, dynamic=False)


class PackedDecoder(RowDecoder):
    """With fp32 matrices packed for oneDNN, on a CPU."""

    name = "packed fp32"

    @staticmethod
    def network_of(model: ImageGPT) -> ImageGPT:
        return packed_network(model, "fp32")

    @staticmethod
    def cache_bytes(config: ImageGPTConfig, itemsize: int) -> int:
        return Decoder.cache_bytes(config, 4)


class Int8Decoder(RowDecoder):
    """With the kernels of kernels.py: int8 weights and an int8 cache, on a CPU."""

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
        slot = config.heads * (kernels.padded(config.head_width) + 4)  # a scale for each head
        return 2 * config.layers * kernels.padded(config.slots) * slot


class GuidedDecoder(Decoder):
    """Draws with and without the caption: another decoder with two rows, 2 i and 2 i + 1, for each row i.

    Its logits are (n, 2, K): with the caption, and without. Its prefills have as many, (M, 2, K).
    """

    def __init__(self, kind: type[Decoder], model: ImageGPT, rows: int) -> None:
        self.inner, self.rows = kind(model, 2 * rows), rows
        self.network, self.prefix_slots, self.name = self.inner.network, self.inner.prefix_slots, self.inner.name
        self.cache = self.inner.cache

    @torch.inference_mode()
    def prefill(self, prompts: Tensor, prefix: Tensor | None = None, *, in_place: bool = False) -> Prefill:
        prefix = self.network.prefix() if prefix is None else prefix
        plain = self.network.prefix()[:, :-1].to(prefix).expand(len(prefix), -1, -1)
        plain = torch.cat([plain, prefix[:, -1:]], dim=1)
        both = torch.stack([prefix, plain], dim=1).expand(len(prompts), -1, -1, -1)  # (M, 2, F, D)
        logits, cache = self.inner.prefill(prompts.repeat_interleave(2, 0), both.flatten(0, 1), in_place=in_place)
        return logits.unflatten(0, (-1, 2)), cache

    def fill(self, rows: Tensor, cache: KVCache, of: Tensor) -> None:
        self.inner.fill(_pairs(rows), cache, _pairs(of))

    def select(self, prefill: Prefill, prompt: int) -> Prefill:
        logits, cache = prefill
        both = _pairs(torch.tensor([prompt], device=logits.device))
        return logits[prompt : prompt + 1], cache.select(both)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        return self.inner.step(tokens.repeat_interleave(2)).unflatten(0, (-1, 2))

    def shorten(self, tokens: int) -> None:
        self.inner.shorten(tokens)

    def copy(self, row: int, to: int) -> None:
        for i in range(2):
            self.inner.copy(2 * row + i, 2 * to + i)

    def prompts_per_prefill(self, tokens: int) -> int:
        return max(1, self.inner.prompts_per_prefill(tokens) // 2)


def _pairs(numbers: Tensor) -> Tensor:
    """The numbers of both rows of each, (2 n,)."""
    return torch.stack([2 * numbers, 2 * numbers + 1], dim=1).flatten()


def choose_decoder(
    model: ImageGPT,
    rows: int,
    tokens: int,
    speed: Speed = "auto",
    *,
    independent_rows: bool = False,
    in_thread: bool = False,
) -> type[Decoder]:
    """The class for a call that draws `tokens` tokens of each of `rows` pictures in total.

    "exact" is always the unmodified network; "auto" packs and rounds on a CPU, from a third of a second of plain
    drawing on, and compiles on CUDA where much is drawn. With `independent_rows`, rows may start and finish at any
    time; `in_thread` says that it will draw in another thread than the main one.
    """
    known, work = model.head.weight.dtype in (torch.float32, torch.bfloat16), rows * tokens * model.config.parameters
    # torch before 2.13 records graphs in the main thread alone (pytorch issue 123177)
    in_thread = in_thread or threading.current_thread() is not threading.main_thread()
    records = torch.__version__ >= "2.13" or not in_thread
    if speed == "auto" and model.device.type == "cuda" and work >= COMPILED_FROM and records and can_compile("cuda"):
        return CompiledDecoder
    large = work >= FAST_FROM
    packs = model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if speed == "exact" or not (known and large and packs):
        return RowDecoder if independent_rows else Decoder
    return Int8Decoder if supports_int8(model) else PackedDecoder
