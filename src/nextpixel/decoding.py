"""Drawing pixel by pixel, fast: the same network with packed weights, over a cache whose rows stand where they like.

`Decoder` serves sample, complete and stream: `start` reads prompts, `step` takes a token a row and scores the next. How
it works is a `Mode`, chosen once for a whole call; "plain" is the network as it is. The arithmetic of the network stays
in model.py: here its matrices are exchanged for packed ones and its cache for one with attention of its own.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel import kernels
from nextpixel.config import Speed
from nextpixel.devices import choose_dtype
from nextpixel.model import ImageGPT, KVCache, Linear

PACKED_FOR = 4  # rows of input that oneDNN is told to expect
FAST_FROM = 1e10  # parameters times drawn pixels: about a second of plain drawing, where setting up begins to pay
READ_BYTES = 1 << 23  # of the widest layer's numbers: more miss the processor's cache and take twice as long
BUCKET = 128  # a CUDA graph is recorded for each length of the cache, rounded up to this


@dataclass(frozen=True)
class Mode:
    """How a call draws."""

    weights: Literal["as they are", "fp32", "bf16", "int8"]
    """Of the matrices; "as they are" is the plain network in its own dtype."""
    attention: Literal["plain", "kernel", "graph"]
    """torch's; the C loop of kernels.py, over an int8 cache unless the weights are fp32; or torch's within a CUDA graph
    of the whole step."""

    def __str__(self) -> str:
        return f"weights {self.weights}, attention {self.attention}"


PLAIN = Mode("as they are", "plain")


def choose_mode(model: ImageGPT, rows: int, pixels: int, speed: Speed = "auto") -> Mode:
    """The mode of a call that draws `pixels` pixels of each of `rows` pictures in all, however it is cut.

    "exact" is always the plain network. "auto" leaves it where packing and rounding repay themselves: on a CPU, from
    about a second of plain drawing on. CUDA graphs wait for a first run on a GPU before they are chosen here.
    """
    known = model.head.weight.dtype in (torch.float32, torch.bfloat16)
    if speed == "exact" or not known or rows * pixels * model.config.parameters < FAST_FROM:
        return PLAIN
    bf16 = choose_dtype("auto", str(model.device)) == "bf16"
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return PLAIN
    if kernels.load() is None:
        return Mode("fp32", "plain")  # torch attends over a bf16 cache more slowly than over an fp32 one
    return Mode("int8" if rows <= kernels.int8_rows() else "bf16" if bf16 else "fp32", "kernel")


def cache_dtype(model: ImageGPT, mode: Mode) -> torch.dtype:
    rounded = torch.int8 if mode.attention == "kernel" else torch.bfloat16
    return {"as they are": model.head.weight.dtype, "fp32": torch.float32}.get(mode.weights, rounded)


def row_bytes(model: ImageGPT, mode: Mode) -> int:
    """Memory of one row: its cache, the one it is read or selected from, and the prefill's widest activations."""
    c = model.config
    numbers = c.pixels * 2 * c.layers * c.width
    read = max(2, cache_dtype(model, mode).itemsize)  # a prompt's cache is never int8
    return numbers * (cache_dtype(model, mode).itemsize + read) + c.pixels * (12 * c.width + 3 * c.colors) * 4


class PackedLinear(nn.Module):
    """A matrix in oneDNN's own order, so that it is not reordered at each product: fp32 or bf16, CPU only."""

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), PACKED_FOR)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise.default(x.to(self.dtype), self.packed, None, "none", [], "")
        return y.to(x.dtype)


class Int8Linear(PackedLinear):
    """Eight bits a weight and a scale a row for few rows of input; for many, as in a prompt, packed bf16."""

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        self.weight, self.scale = kernels.quantise(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-1].numel() > kernels.int8_rows():
            return super().forward(x)
        return kernels.multiply_int8(x.flatten(0, -2), self.weight, self.scale).view(*x.shape[:-1], -1).to(x.dtype)


_NETWORKS: weakref.WeakKeyDictionary[ImageGPT, tuple[object, ImageGPT]] = weakref.WeakKeyDictionary()


def fast_network(model: ImageGPT, mode: Mode) -> ImageGPT:
    """The network with its matrices in that mode; kept as long as the model, made again when its weights change."""
    state = mode.weights, [_fingerprint(p.detach()) for p in model.parameters()]
    kept = _NETWORKS.get(model)
    if kept is None or kept[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            kept = _NETWORKS[model] = state, _convert(model, mode)
    return kept[1]


def _fingerprint(weight: Tensor) -> tuple[int, int, float]:
    """torch counts most changes in place, but not those of the fused Adam on a CPU, nor any through `.data`."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.sum(dtype=torch.float64).item()


def _convert(model: ImageGPT, mode: Mode) -> ImageGPT:
    memo: dict[int, object] = {id(model._palette): model._palette}  # deepcopy takes what it finds here, and copies not
    if model.device.type == "cuda":
        return copy.deepcopy(model, memo).to(torch.bfloat16 if mode.weights == "bf16" else torch.float32)
    wide = torch.bfloat16 if choose_dtype("auto", "cpu") == "bf16" and mode.weights != "fp32" else torch.float32
    for module in model.modules():
        if isinstance(module, Linear):
            rows, columns = module.weight.shape
            small = mode.weights == "int8" and rows % 4 == 0 and columns % 64 == 0
            memo[id(module)] = Int8Linear(module, wide) if small else PackedLinear(module, wide)
    return copy.deepcopy(model, memo).float()


class RowCache(KVCache):
    """A cache whose rows stand at slots of their own, so that pictures may join, leave and change places.

    `positions` (B,) is the slot each row fills next; at the end it stays on the last one, which makes a finished row
    harmless. `length` is at least the largest of them. A step moves the first `used` rows.
    """

    def __init__(self, model: ImageGPT, rows: int, mode: Mode) -> None:
        super().__init__(model.config, rows, dtype=cache_dtype(model, mode), device=model.device)
        self.kernel = mode.attention == "kernel"
        self.used = rows
        self.scales = torch.ones(2, *self.keys.shape[:-1]) if self.kernel else torch.empty(2, 0)  # of keys and values
        self.keys.zero_()  # attention with a mask multiplies what was never filled by zero
        self.values.zero_()
        self.positions = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.rows = torch.arange(rows, device=model.device)
        self.slots = torch.arange(model.config.pixels, device=model.device)

    def fill(self, rows: Tensor, other: KVCache, of: Tensor) -> None:
        """Put rows `of` of a freshly read cache into these rows."""
        end = other.length
        for part, read, scales in zip((self.keys, self.values), (other.keys, other.values), self.scales, strict=True):
            if part.dtype == torch.int8:
                for layer in range(len(part)):  # what a block has is still in the processor's cache
                    small, scale = kernels.quantise(read[layer, :, :, :end])
                    part[layer, rows, :, :end], scales[layer, rows, :, :end] = small[of], scale[of]
            else:
                part[:, rows, :, :end] = read[:, of, :, :end].to(part.dtype)
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

    def places(self, slots: int) -> Tensor:
        return self.positions[: self.used, None]

    def advance(self, slots: int) -> None:
        self.positions[: self.used].add_(1).clamp_(max=len(self.slots) - 1)
        self.length = min(self.length + 1, len(self.slots) - 1)

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
        if self.kernel:
            key_scales, value_scales = self.scales[:, layer, : self.used]
            return kernels.attend(q, k, v, keys, values, (key_scales, value_scales), positions)
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
        self.plain = mode.weights == "as they are"
        self.network = model if self.plain else fast_network(model, mode)
        self.cache = model.new_cache(0) if self.plain and not apart else RowCache(model, rows, mode)
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
        return max(1, READ_BYTES // ((pixels + 1) * 4 * self.network.config.width * 4))  # fp32, in the MLP

    @torch.inference_mode()
    def read(self, prompts: Tensor, orientation: int = 0) -> tuple[Tensor, KVCache]:
        """The prefill of prompts (M, P) alone: logits (M, K) of the next pixel, and what RowCache.fill takes."""
        read = self._new_cache(len(prompts))
        return self.network.extend(prompts, read, orientation)[:, -1], read

    def _new_cache(self, rows: int) -> KVCache:
        dtype = self.cache.keys.dtype
        return self.network.new_cache(rows, torch.bfloat16 if dtype == torch.int8 else dtype)

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
