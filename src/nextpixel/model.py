"""Image GPT: a GPT over pixels in raster order (Chen et al. 2020; code of openai/image-gpt).

Legend, here and everywhere:
    B  images in a batch          K  colours in the palette
    H  W  height, width           D  width of the residual stream
    T  = H * W pixels             L  transformer blocks
    P  pixels given as prompt     N  attention heads, E = D / N wide each
    S  rows of the start table (one in a classic model)    C  classes, where it has a class head

The network knows tokens (colour numbers), not colours. The start vector and the shift by one pixel live in
here: input slot t carries pixel t - 1 (slot 0 the start vector), and its output scores pixel t. So
`logits[:, t]` scores `tokens[:, t]`, and nobody outside ever shifts.

The options of ImageGPTConfig beyond the paper are written out where they act; without them this is the paper's network.

A masked model (the paper's BERT objective) has no start vector, no shift and no causal mask: slot t carries pixel t, or
nothing where it is masked, and its output scores pixel t.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nextpixel.attention import attention
from nextpixel.config import Fit, ImageGPTConfig, Levels

if TYPE_CHECKING:
    from nextpixel.palette import Palette


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
    """A matrix without bias, left empty: ImageGPT.initialise fills it from a seed, or a checkpoint does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        pass


class KVCache:
    """Keys and values of the input slots seen so far, for every block; allocated once, at full length."""

    def __init__(self, config: ImageGPTConfig, batch: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (config.layers, batch, config.heads, config.pixels, config.head_width)  # (L, B, N, T, E)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def places(self, slots: int) -> slice | Tensor:
        """The numbers of the next slots: a slice, the same for every row; a tensor (B, slots) where rows differ."""
        return slice(self.length, self.length + slots)

    def advance(self, slots: int) -> None:
        """Count slots that every block has stored."""
        self.length += slots

    def rewind(self, length: int) -> None:
        """Forget the slots from `length` on."""
        self.length = length

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, N, slots, E) behind the slots seen so far; each query sees those up to its own."""
        slots, end = k.shape[2], self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        k, v = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]  # (B, N, end, E)
        mask = None
        if self.length and slots > 1:
            mask = torch.ones(slots, end, dtype=torch.bool, device=q.device).tril(self.length)
        if mask is None:
            return attention(q.to(k.dtype), k, v, causal=slots > 1)
        return F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)

    def part(self, first: int, end: int) -> KVCache:
        """These rows of the batch as a cache of their own, in the same memory."""
        part = object.__new__(KVCache)
        part.keys, part.values, part.length = self.keys[:, first:end], self.values[:, first:end], self.length
        return part

    def select(self, rows: Tensor) -> KVCache:
        """A cache of these rows of the batch, in this order; a row may be taken often."""
        chosen = object.__new__(KVCache)
        chosen.length = self.length
        shape = (self.keys.shape[0], len(rows), *self.keys.shape[2:])
        for name in ("keys", "values"):
            old, new = getattr(self, name), getattr(self, name).new_empty(shape)
            new[..., : self.length, :] = old[..., : self.length, :].index_select(1, rows)
            setattr(chosen, name, new)
        return chosen


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # made while drawing, they may serve training later
def rotations(config: ImageGPTConfig, device: torch.device) -> Tensor:
    """cos and sin for the queries, cos and sin for the keys, of every slot: (4, T, E / 2).

    Rotary positions (Su et al. 2021) on two axes: half of the angles turn with the row, half with the column. A query
    stands at the pixel its slot predicts, a key at the pixel its slot carries; the start vector is not turned.
    """
    # Made on the CPU: mps knows no float64.
    frequencies = 100.0 ** -torch.linspace(0, 1, config.head_width // 4 + 1, dtype=torch.float64, device="cpu")[:-1]
    slots = torch.arange(config.pixels, device="cpu")
    places = torch.stack([slots // config.side, slots % config.side], dim=1).to(torch.float64)  # (T, 2): row, column
    angles = (places[:, :, None] * frequencies).flatten(1)  # (T, E / 2)
    carried = angles
    if config.objective == "autoregressive":
        carried = torch.cat([torch.zeros_like(angles[:1]), angles[:-1]])
    return torch.stack([angles.cos(), angles.sin(), carried.cos(), carried.sin()]).float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x (B, N, slots, E) by angles of (1 or B, 1, slots, E / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def split_heads(qkv: Tensor, config: ImageGPTConfig, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, N, slots, E) each, of what a block's first matrix gives, (B, slots, 3 D)."""
    batch, slots, width = qkv.shape
    q, k, v = qkv.view(batch, slots, 3, config.heads, width // 3 // config.heads).permute(2, 0, 3, 1, 4)
    if config.qk_norm:  # 1.2 on either side lets attention become sharper, as in nanochat
        q, k = (1.2 * F.rms_norm(y, y.shape[-1:]) for y in (q, k))
    if turns is not None:
        q, k = rotate(q, turns[0], turns[1]), rotate(k, turns[2], turns[3])
    return q, k, v


class Attention(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        self.causal = config.objective == "autoregressive"
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor, turns: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.config, turns)
        if cache is None:
            y = attention(q, k, v, causal=self.causal)
        else:
            y = cache.attend(self.layer, q, k, v)
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


class Block(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = Norm(config.width)
        self.attention = Attention(config, layer)
        self.norm_2 = Norm(config.width)
        self.mlp = MLP(config)
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0])) if config.mix_input else None

    def mixed(self, h: Tensor, first: Tensor) -> Tensor:
        """What the block reads: the residual stream h, or a mix of it and the network's input, both (B, slots, D)."""
        return h if self.mix is None else self.mix[0] * h + self.mix[1] * first

    def forward(self, h: Tensor, first: Tensor, turns: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        h = self.mixed(h, first)
        h = h + self.attention(self.norm_1(h), turns, cache)
        return h + self.mlp(self.norm_2(h))


class ImageGPT(nn.Module):
    """Image GPT: tokens (B, T) in, logits (B, T, K) out; with a class head, class logits (B, C) as well.

    `seed` fixes the random weights; on the meta device there are none to fix.
    """

    checkpoint_activations = False
    fit: Fit = "crop"  # how pictures become its squares, see images.fit_square
    levels = Levels()  # and numbers colours
    _palette: Palette | None = None

    def __init__(self, config: ImageGPTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}  # of its making; they travel with the weights
        if config.objective == "autoregressive":
            self.start = nn.Parameter(torch.empty(config.orientations, config.width))  # (S, D)
        self.token_embedding = nn.Parameter(torch.empty(config.colors, config.width))  # (K, D)
        if config.positions == "learned":
            self.position_embedding = nn.Parameter(torch.empty(config.pixels, config.width))  # (T, D)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config.width)
        self.head = Linear(config.width, config.colors)
        self.class_head = Linear(config.width, len(config.classes)) if config.classes else None
        if not self.head.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Random weights as in openai/image-gpt; the head is zero, so the first loss is exactly ln K.

        Only attention's output is scaled by depth: the paper says more, the released code does this.
        """
        generator = torch.Generator(self.head.weight.device).manual_seed(seed)
        width, layers = self.config.width, self.config.layers

        def normal(weight: Tensor, std: float) -> None:
            weight.normal_(0.0, std, generator=generator)

        if self.config.positions == "learned":
            normal(self.position_embedding, 0.01)
        normal(self.token_embedding, 0.02)
        if self.config.objective == "autoregressive":
            normal(self.start, 0.02)
        for block in self.blocks:
            normal(block.get_parameter("attention.qkv.weight"), width**-0.5)
            normal(block.get_parameter("attention.out.weight"), (width * layers) ** -0.5)
            normal(block.get_parameter("mlp.up.weight"), 0.02)
            normal(block.get_parameter("mlp.down.weight"), 0.02)
            if self.config.zero_projections:
                block.get_parameter("attention.out.weight").zero_()
                block.get_parameter("mlp.down.weight").zero_()
        self.head.weight.zero_()
        if self.class_head is not None:
            self.class_head.weight.zero_()

    def set_classes(self, classes: Sequence[str]) -> None:
        """A new class head for these names, all zero, in place of any; without names, none."""
        self.config = dataclasses.replace(self.config, classes=tuple(classes))
        self.class_head = None
        if classes:
            self.class_head = Linear(self.config.width, len(classes)).to(self.head.weight)
            nn.init.zeros_(self.class_head.weight)

    @property
    def palette(self) -> Palette:
        """The colours its tokens stand for; they travel with the weights."""
        if self._palette is None:
            raise ValueError("the model has no palette; set model.palette to a nextpixel.Palette")
        return self._palette

    @palette.setter
    def palette(self, palette: Palette) -> None:
        self._palette = palette

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    def forward(self, tokens: Tensor, masked: Tensor | None = None, orientation: Tensor | int = 0) -> Tensor:
        """Logits (B, t, K) for tokens (B, t), t <= T: `logits[:, i]` scores `tokens[:, i]` given those before.

        A masked model sees all t = T pixels but those where `masked` (B, T) is True, and scores every pixel.
        `orientation`, one number or (B,), is the row of the start table: how the picture lies, see images.orient.
        """
        return self._logits(self._last(tokens, masked, orientation))

    def forward_both(self, tokens: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, T, K) as forward gives them, and class logits (B, C), in one pass."""
        last = self._last(tokens, masked)
        return self._logits(last), self._classify(last)

    def classify(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """Class logits (B, C): the class head on the final norm's output, averaged over all slots."""
        return self._classify(self._last(tokens, masked))

    def _classify(self, last: Tensor) -> Tensor:
        if self.class_head is None:
            raise ValueError("this model has no class head; give it one with set_classes, and train it")
        return self.class_head(last.mean(1))

    def _last(self, tokens: Tensor, masked: Tensor | None, orientation: Tensor | int = 0) -> Tensor:
        """What the final norm gives (B, t, D)."""
        h = first = self._inputs(tokens, masked, orientation)
        turns = self._turns(slice(0, h.shape[1]))
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                h = checkpoint(block, h, first, turns, use_reentrant=False)
            else:
                h = block(h, first, turns)
        return self.norm(h)

    def hidden(
        self, tokens: Tensor, layers: Collection[int], masked: Tensor | None = None, *, shifted: bool = True
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (l, n^l) with n^l (B, T, D) for each of `layers`, 0 <= l <= L, in order; stops at the deepest.

        n^l is the residual stream before block l after that block's first norm; n^L comes after the final norm (Chen
        et al. 2020, section 2.3). `shifted=False` puts pixel t in slot t without a start vector, as other programs feed
        these weights; the network was not trained so.
        """
        h = first = self.placed_inputs(tokens, masked, shifted=shifted)
        turns = self._turns(slice(0, h.shape[1]))
        for layer, block in enumerate(self.blocks):
            if layer in layers:
                yield layer, self.entering(layer, h, first)
            if layer >= max(layers):
                return
            h = block(h, first, turns)
        yield len(self.blocks), self.norm(h)

    def placed_inputs(self, tokens: Tensor, masked: Tensor | None = None, *, shifted: bool = True) -> Tensor:
        """The network's input (B, T, D), see hidden."""
        if shifted:
            return self._inputs(tokens, masked)
        return self._placed(F.embedding(tokens, self.token_embedding), slice(0, tokens.shape[1]))

    def entering(self, layer: int, h: Tensor, first: Tensor) -> Tensor:
        """n^l (B, T, D) of the stream h before block l, `first` being the network's input; of that behind all, n^L."""
        if layer == len(self.blocks):
            return self.norm(h)
        block = cast(Block, self.blocks[layer])
        return block.norm_1(block.mixed(h, first))

    def new_cache(self, batch: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for that many pictures, in the dtype of the weights unless told."""
        return KVCache(self.config, batch, dtype=dtype or self.head.weight.dtype, device=self.device)

    def extend(self, tokens: Tensor, cache: KVCache, orientation: Tensor | int = 0) -> Tensor:
        """Logits (B, t, K) of the pixels that follow each newly filled slot; the last row scores the next pixel.

        With an empty cache the start vector of that orientation is put before tokens (B, P), P >= 0, which fills P + 1
        slots; later calls take the pixels drawn since, most often one. The same method serves prefill and decode.
        """
        start = not cache.length
        slots = tokens.shape[1] + start
        self._check_room(cache.length + slots)
        places = cache.places(slots)
        h = first = self._embed(tokens, places, orientation if start else None)
        turns = self._turns(places)
        for block in self.blocks:
            h = block(h, first, turns, cache)
        cache.advance(slots)
        return self._logits(self.norm(h))

    def _inputs(self, tokens: Tensor, masked: Tensor | None, orientation: Tensor | int = 0) -> Tensor:
        """Vectors (B, t, D) of the slots that score tokens (B, t)."""
        if self.config.objective == "autoregressive":
            if masked is not None:
                raise ValueError("masked: expected none for an autoregressive model, got a mask")
            self._check_room(tokens.shape[1])
            return self._embed(tokens[:, :-1], slice(0, tokens.shape[1]), orientation)
        if tokens.shape[1] != self.config.pixels:
            raise ValueError(f"tokens: a masked model needs all {self.config.pixels} pixels, got {tokens.shape[1]}")
        h = F.embedding(tokens, self.token_embedding)
        if masked is not None:
            h = h * ~masked[:, :, None]
        return self._placed(h, slice(0, h.shape[1]))

    def _embed(self, tokens: Tensor, places: slice | Tensor, orientation: Tensor | int | None) -> Tensor:
        """Vectors (B, slots, D) of the slots numbered `places`, see KVCache.

        Slot 0, which is among them unless `orientation` is None, holds the start vector of that orientation.
        """
        if self.config.objective != "autoregressive":
            raise ValueError("a masked model has no order of pixels: it cannot draw them one by one")
        h = F.embedding(tokens, self.token_embedding)
        if orientation is not None:
            start = self.start[orientation].view(-1, 1, h.shape[-1]).expand(len(tokens), 1, -1)
            h = torch.cat([start, h], dim=1)
        return self._placed(h, places)

    def _check_room(self, slots: int) -> None:
        if slots > self.config.pixels:
            raise ValueError(
                f"tokens: expected at most {self.config.pixels} pixels ({self.config.side} x {self.config.side}), "
                f"got {slots}; encode pictures at the model's side"
            )

    def _placed(self, h: Tensor, places: slice | Tensor) -> Tensor:
        """The network's input: vectors h (B, slots, D) told where they are."""
        if self.config.positions == "learned":
            h = h + self.position_embedding[places]
        return F.rms_norm(h, h.shape[-1:]) if self.config.mix_input else h

    def _turns(self, places: slice | Tensor) -> Tensor | None:
        """The rotations of these slots, (4, 1, slots, E / 2), or (4, B, 1, slots, E / 2) where rows differ."""
        if self.config.positions == "learned":
            return None
        return rotations(self.config, self.device)[:, places].unsqueeze(-3)

    def _logits(self, last: Tensor) -> Tensor:
        logits = self.head(last)
        cap = self.config.logit_cap
        return cap * torch.tanh(logits / cap) if cap else logits


def cross_entropy(logits: Tensor, tokens: Tensor, reduction: str = "mean") -> Tensor:
    """-ln softmax(logits)[tokens] in fp32 or better: logits (B, T, K), tokens (B, T); (B, T) or its mean."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction=reduction)
    return loss.view(tokens.shape) if reduction == "none" else loss


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
    """The loss of each image (B,): -ln p averaged over its pixels where `masked` (B, T) is True; 0 where none is."""
    losses = cross_entropy(logits, tokens, reduction="none") * masked
    return losses.sum(1) / masked.sum(1).clamp_min(1)
