"""The parts of a transformer block: norm, matrices, attention, MLP. Names as in the legend of model.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel.config import ImageGPTConfig
from nextpixel.network.attention import Mask, attention
from nextpixel.network.caches import KVCache
from nextpixel.network.positions import rotate


class Norm(nn.Module):
    """x / rms(x) * gain: no mean is subtracted and there is no bias, as in the released code of 2020.

    Computed in fp32 or better: the square of a half-precision activation overflows.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
        return (y * self.gain).to(x.dtype)


class Linear(nn.Linear):
    """A matrix, left empty: `initialise` fills it from a seed, or a checkpoint does. Only class heads have a bias."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        pass


def split_heads(qkv: Tensor, config: ImageGPTConfig, rotations: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (B, N, slots, E) each, from the output of a block's first matrix (B, slots, 3 D)."""
    batch, slots, width = qkv.shape
    q, k, v = qkv.view(batch, slots, 3, config.heads, width // 3 // config.heads).permute(2, 0, 3, 1, 4)
    if config.qk_norm:  # the factor 1.2 on both sides allows sharper attention, as in nanochat
        q, k = (1.2 * F.rms_norm(y, y.shape[-1:]) for y in (q, k))
    if rotations is not None:
        q, k = rotate(q, rotations[0], rotations[1]), rotate(k, rotations[2], rotations[3])
    return q, k, v


class Attention(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor, rotations: Tensor | None, mask: Mask | KVCache) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.config, rotations)
        if isinstance(mask, KVCache):
            y = mask.attend(self.layer, q, k, v)
        else:
            y = attention(q, k, v, mask)
        y = y.transpose(1, 2).reshape(x.shape).to(x.dtype)
        return self.out(y)


class MLP(nn.Module):
    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.width, 4 * config.width)
        self.down = Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.activation == "squared-relu":
            return self.down(y.relu().square())
        return self.down(y * torch.sigmoid(1.702 * y))  # "quick GELU", Hendrycks & Gimpel 2016


class SoftCap(nn.Module):
    """Logits, softly capped at `cap`; unchanged where it is 0."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


class Block(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = Norm(config.width)
        self.attention = Attention(config, layer)
        self.norm_2 = Norm(config.width)
        self.mlp = MLP(config)
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0])) if config.mix_input else None

    def mixed(self, h: Tensor, x0: Tensor) -> Tensor:
        """The block's input: the residual stream h, or a mix of it and the network's input x0, both (B, slots, D)."""
        return h if self.mix is None else self.mix[0] * h + self.mix[1] * x0

    def state(self, h: Tensor, x0: Tensor) -> Tensor:
        """n^l, the output of the first norm."""
        return self.norm_1(self.mixed(h, x0))

    def forward(self, h: Tensor, x0: Tensor, rotations: Tensor | None, mask: Mask | KVCache) -> Tensor:
        """`rotations` (4, 1 or B, 1, slots, E / 2): see Positions; a cache instead of a mask also stores the keys."""
        h = self.mixed(h, x0)
        h = h + self.attention(self.norm_1(h), rotations, mask)
        return h + self.mlp(self.norm_2(h))
