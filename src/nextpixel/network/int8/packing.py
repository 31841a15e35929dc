"""Copies of a network for a CPU, with int8 blocks that run in kernels.c, or with fp32 matrices packed for oneDNN.

The rest of the network is model.py's. `decoding` draws with them; `extraction` computes features with int8 blocks.
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

from nextpixel import heap
from nextpixel.network.attention import Mask
from nextpixel.network.caches import Int8Cache
from nextpixel.network.int8 import kernels
from nextpixel.network.model import Block, ImageGPT, Linear, Norm

PACKED_FOR = 4  # input rows for which oneDNN chooses the layout
PASS_BYTES = 1 << 23  # in the widest layer: larger batches overflow the CPU cache and take twice as long

Weights = Literal["fp32", "int8"]


def pictures_per_pass(width: int, slots: int) -> int:
    """Number of pictures of that many slots to run at once: as many as fit into a CPU's cache."""
    return max(1, PASS_BYTES // (slots * 4 * width * 4))  # fp32, in the MLP


class PackedLinear(nn.Module):
    """A matrix in oneDNN's own layout, so that it is not reordered for each product: fp32, CPU only."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().float(), PACKED_FOR)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, None, "none", [], "")


class Int8Linear(nn.Module):
    """norm(x) W^T with 8-bit weights and a scale per row."""

    def __init__(self, linear: Linear, norm: Norm) -> None:
        super().__init__()
        self.gain = norm.gain.detach().float().clone()
        weight, self.scale = kernels.quantise(linear.weight.detach())
        self.rows = len(weight)
        room = kernels.padded(self.rows) - self.rows
        self.weight, self.scale = kernels.pack(F.pad(weight, (0, 0, 0, room))), F.pad(self.scale, (0, room))

    def forward(self, x: Tensor) -> Tensor:
        y = kernels.multiply(x.flatten(0, -2), self.weight, self.scale, gain=self.gain)
        return y.view(*x.shape[:-1], -1)[..., : self.rows]


class Int8Blocks(nn.Module):
    """All blocks of a network with int8 matrices, in one call of C; torch needs some forty operations per block."""

    def __init__(self, model: ImageGPT) -> None:
        super().__init__()
        self.config = model.config
        self.parts = [_int8_parts(block) for block in cast("Iterator[Block]", model.blocks)]
        self.table = kernels.pointers(self.parts)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.table = kernels.pointers(self.parts)  # a copy has its own parts

    def forward(self, h: Tensor, x0: Tensor, rotations: Tensor | None, cache: Int8Cache) -> Tensor:
        return self._run(slice(None), h, x0, rotations, cache)

    def hidden(
        self, x0: Tensor, layers: Collection[int], rotations: Tensor | None, mask: Mask
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (l, h) with the stream h (B, T, D) before block l, or after all for l = L, for each of `layers`."""
        assert not isinstance(mask, Tensor)
        (rows, slots, _), c = x0.shape, self.config
        one = dataclasses.replace(c, layers=1, classes=(), class_layer=None, class_pooling="mean")
        cache = Int8Cache(one, rows, slots)  # for all blocks
        h, done = x0, 0
        for layer in sorted(layers):
            if layer > done:
                h, done = self._run(slice(done, layer), h, x0, rotations, cache, mask == "causal"), layer
            yield layer, h

    def _run(
        self, which: slice, h: Tensor, x0: Tensor, rotations: Tensor | None, cache: Int8Cache, causal: bool = True
    ) -> Tensor:
        c = self.config
        settings = (c.heads, c.qk_norm, c.activation, causal)
        return kernels.blocks(self.table[which], h, x0, rotations, cache.bytes, cache.slot, *settings)


def _int8_parts(block: Block) -> list[Tensor | None]:
    """See kernels.pointers."""
    gains = [block.norm_1.gain, block.norm_2.gain]
    parts = [None if x is None else x.detach().float().clone() for x in (block.mix, *gains)]
    for linear in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down):
        weight, scale = kernels.quantise(linear.weight.detach())
        parts += [kernels.pack(weight), scale]
    heap.trim()  # else the buffers above stay between the parts: 2 to 3 GB of iGPT-L
    return parts


def supports_int8(model: ImageGPT) -> bool:
    """Whether this model can use int8 blocks on this machine: 16 divides its width, on a CPU with a C compiler."""
    return model.device.type == "cpu" and model.config.width % 16 == 0 and kernels.load() is not None


_NETWORKS: weakref.WeakKeyDictionary[ImageGPT, tuple[object, ImageGPT]] = weakref.WeakKeyDictionary()


def packed_network(model: ImageGPT, weights: Weights) -> ImageGPT:
    """The network with such matrices; cached as long as the model exists, rebuilt when its weights change."""
    state = weights, [_fingerprint(p.detach()) for p in model.parameters()]
    kept = _NETWORKS.get(model)
    if kept is None or kept[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            kept = _NETWORKS[model] = state, _convert(model, weights)
    return kept[1]


def _fingerprint(weight: Tensor) -> tuple[int, int, float]:
    """torch's version counter misses in-place changes by the fused Adam on a CPU, and any through `.data`."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.sum(dtype=torch.float64).item()


def _convert(model: ImageGPT, weights: Weights) -> ImageGPT:
    # what deepcopy finds in the memo is used instead of a copy
    memo: dict[int, object] = {id(x): x for x in (model._tokenizer, model._words, model.training_pictures)}
    if weights == "int8":
        memo[id(model.blocks)] = nn.ModuleList([Int8Blocks(model)])
        memo[id(model.norm)], memo[id(model.head)] = nn.Identity(), Int8Linear(model.head, model.norm)
    else:
        memo |= {id(module): PackedLinear(module) for module in model.modules() if isinstance(module, Linear)}
    return copy.deepcopy(model, memo).float()


class Int8Hidden:
    """model.hidden in fp32 with int8 weights and an int8 cache, for a model that `supports_int8`."""

    def __init__(self, model: ImageGPT) -> None:
        self.model = model
        self.blocks = cast(Int8Blocks, packed_network(model, "int8").blocks[0])
        self.images = pictures_per_pass(model.config.width, model.config.slots)
        """Number of images whose activations fit into the CPU cache."""

    def __call__(
        self, tokens: Tensor, layers: Collection[int], masked: Tensor | None = None, *, shifted: bool = True
    ) -> Iterator[tuple[int, Tensor]]:
        x0, rotations, mask = self.model.inputs(tokens, masked, shifted=shifted)
        x0 = x0.float()
        for layer, h in self.blocks.hidden(x0, layers, rotations, mask):
            yield layer, self.model.hidden_state(layer, h, x0)[:, -tokens.shape[1] :]
