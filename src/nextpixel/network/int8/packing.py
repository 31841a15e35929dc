"""The network with its blocks exchanged for those of kernels.c, or its matrices for packed ones, on a CPU.

Everything else stays in model.py. `decoding` draws with it, `extraction` takes features from it.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Collection, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel.network.attention import Seen
from nextpixel.network.caches import Int8Cache
from nextpixel.network.int8 import kernels
from nextpixel.network.model import Block, ImageGPT, Linear, Norm

PACKED_FOR = 4  # rows of input that oneDNN is told to expect
PASS_BYTES = 1 << 23  # of the widest layer: larger batches overflow the CPU cache and take twice as long

Weights = Literal["fp32", "int8"]


def pictures_per_pass(width: int, slots: int) -> int:
    """Number of pictures of that many slots to run at once: as many as fit into a CPU's cache."""
    return max(1, PASS_BYTES // (slots * 4 * width * 4))  # fp32, in the MLP


class PackedLinear(nn.Module):
    """A matrix in oneDNN's own order, so that it is not reordered at each product: fp32, CPU only."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().float(), PACKED_FOR)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, None, "none", [], "")


class Int8Linear(nn.Module):
    """norm(x) W^T with eight bits a weight and a scale a row."""

    def __init__(self, linear: Linear, norm: Norm) -> None:
        super().__init__()
        self.gain = norm.gain.detach().float().clone()
        weight, self.scale = kernels.quantise(linear.weight.detach())
        self.rows = len(weight)
        room = kernels.rounded(self.rows) - self.rows
        self.weight, self.scale = kernels.order(F.pad(weight, (0, 0, 0, room))), F.pad(self.scale, (0, room))

    def forward(self, x: Tensor) -> Tensor:
        y = kernels.multiply(x.flatten(0, -2), self.weight, self.scale, gain=self.gain)
        return y.view(*x.shape[:-1], -1)[..., : self.rows]


class Int8Blocks(nn.Module):
    """All of a network's blocks, of int8 matrices: one call of C, where torch needs some forty operations a block."""

    def __init__(self, model: ImageGPT) -> None:
        super().__init__()
        self.config = model.config
        self.parts = [_int8_parts(block) for block in cast("Iterator[Block]", model.blocks)]
        self.table = kernels.pointers(self.parts)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.table = kernels.pointers(self.parts)  # a copy has parts of its own

    def forward(self, h: Tensor, first: Tensor, turns: Tensor | None, cache: Int8Cache) -> Tensor:
        return self._run(slice(None), h, first, turns, cache)

    def hidden(
        self, first: Tensor, layers: Collection[int], turns: Tensor | None, seen: Seen
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (l, h) with the stream h (B, T, D) before block l, or behind all, for each of `layers`, in order."""
        assert not isinstance(seen, Tensor)
        (rows, slots, _), c = first.shape, self.config
        cache = Int8Cache(dataclasses.replace(c, layers=1), rows, slots)  # one for all blocks
        h, done = first, 0
        for layer in sorted(layers):
            if layer > done:
                h, done = self._run(slice(done, layer), h, first, turns, cache, seen == "causal"), layer
            yield layer, h

    def _run(
        self, which: slice, h: Tensor, first: Tensor, turns: Tensor | None, cache: Int8Cache, causal: bool = True
    ) -> Tensor:
        c = self.config
        settings = (c.heads, c.qk_norm, c.activation, causal)
        return kernels.blocks(self.table[which], h, first, turns, cache.bytes, cache.slot, *settings)


def _int8_parts(block: Block) -> list[Tensor | None]:
    """See kernels.pointers."""
    gains = [block.norm_1.gain, block.norm_2.gain]
    parts = [None if x is None else x.detach().float().clone() for x in (block.mix, *gains)]
    for linear in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down):
        weight, scale = kernels.quantise(linear.weight.detach())
        parts += [kernels.order(weight), scale]
    return parts


def can_round(model: ImageGPT) -> bool:
    """Whether there are int8 blocks for this model on this machine: on a CPU with a C compiler, pixels in order."""
    return (
        model.device.type == "cpu"
        and model.config.objective == "autoregressive"
        and model.config.width % 16 == 0
        and kernels.load() is not None
    )


_NETWORKS: weakref.WeakKeyDictionary[ImageGPT, tuple[object, ImageGPT]] = weakref.WeakKeyDictionary()


def packed_network(model: ImageGPT, weights: Weights) -> ImageGPT:
    """The network with its matrices in that type; kept as long as the model, made again when its weights change."""
    state = weights, [_fingerprint(p.detach()) for p in model.parameters()]
    kept = _NETWORKS.get(model)
    if kept is None or kept[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            kept = _NETWORKS[model] = state, _convert(model, weights)
    return kept[1]


def _fingerprint(weight: Tensor) -> tuple[int, int, float]:
    """torch counts most changes in place, but not those of the fused Adam on a CPU, nor any through `.data`."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.sum(dtype=torch.float64).item()


def _convert(model: ImageGPT, weights: Weights) -> ImageGPT:
    memo: dict[int, object] = {
        id(x): x for x in (model._tokenizer, model._words)
    }  # deepcopy takes what it finds, and copies not
    if weights == "int8":
        memo[id(model.blocks)] = nn.ModuleList([Int8Blocks(model)])
        memo[id(model.norm)], memo[id(model.head)] = nn.Identity(), Int8Linear(model.head, model.norm)
    else:
        memo |= {id(module): PackedLinear(module) for module in model.modules() if isinstance(module, Linear)}
    return copy.deepcopy(model, memo).float()


class RoundedHidden:
    """model.hidden in fp32 with blocks of int8 weights over an int8 cache, for a model that `can_round`."""

    def __init__(self, model: ImageGPT) -> None:
        self.model = model
        self.blocks = cast(Int8Blocks, packed_network(model, "int8").blocks[0])
        self.images = pictures_per_pass(model.config.width, model.config.prefix_slots - 1 + model.config.tokens)
        """So many at once the processor's cache can work on."""

    def __call__(
        self, tokens: Tensor, layers: Collection[int], masked: Tensor | None = None, *, shifted: bool = True
    ) -> Iterator[tuple[int, Tensor]]:
        first, turns, seen = self.model.inputs(tokens, masked, shifted=shifted)
        first = first.float()
        for layer, h in self.blocks.hidden(first, layers, turns, seen):
            yield layer, self.model.entering(layer, h, first)[:, -tokens.shape[1] :]
