"""Image GPT: a GPT over pixels in raster order (Chen et al. 2020; code of openai/image-gpt).

Legend, here and everywhere:
    B  images in a batch                K  size of the vocabulary: colours of a palette
    H  W  rows, columns of the grid     D  width of the residual stream
    T  = H * W tokens                   L  transformer blocks
    P  tokens given as prompt           N  attention heads, E = D / N wide each
    F  vectors of the prefix            S  rows of the start table (one in a classic model)
    C  classes, where it has a class head

The network knows tokens, not what they stand for; with a palette a token is a pixel's colour. A sequence is a prefix
(the start vector) and the tokens in some order (by default row by row). The model adds the prefix and shifts by one
token itself: input slot t carries token t - 1 (slot 0 the start vector), and its output scores token t. So
`logits[:, t]` scores `tokens[:, t]`, and callers never shift.

The options of ImageGPTConfig beyond the paper are implemented where they apply; without them this is the paper's
network.

A model with words also takes a caption. Its tags stand before the start vector, each the sum of its words' vectors;
an absent tag is row 0 of the word table. (Zeros would do, but the gradient of a norm at zero is so large that it
overflows in deep networks.) Of the prefix only the start vector has a position.

A masked model (the paper's BERT objective) has no start vector, no shift and no causal mask: slot t carries pixel t, or
zeros where it is masked, and its output scores pixel t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nextpixel.config import TAGS, Fit, ImageGPTConfig, Levels, Pooling, Size, check_fit, to_side
from nextpixel.network.attention import Mask, attention
from nextpixel.network.caches import KVCache
from nextpixel.network.initialisation import initialise, initialise_words
from nextpixel.network.pooling import pool
from nextpixel.network.positions import Positions, raster, rotate
from nextpixel.tokens.tokenizer import picture_size

if TYPE_CHECKING:
    from nextpixel.tokens import Tokenizer
    from nextpixel.tokens.palette import Palette
    from nextpixel.tokens.training_pictures import TrainingPictures
    from nextpixel.tokens.words import Words


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
    q, k, v = (y.unflatten(-1, (config.heads, -1)).transpose(1, 2) for y in qkv.chunk(3, dim=-1))
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


def class_head(config: ImageGPTConfig) -> Linear | None:
    """The class head of a network with classes."""
    if not config.classes:
        return None
    return Linear(config.pooled_width(config.class_pooling), len(config.classes), config.class_layer is not None)


class ImageGPT(nn.Module):
    """Image GPT: tokens (B, T) in, logits (B, T, K) out; with a class head, class logits (B, C) as well.

    `seed` sets the random weights, except on the meta device.
    """

    checkpoint_activations = False
    levels = Levels()  # how values beyond 8 bits become colours
    _tokenizer: Tokenizer | None = None
    _fit: Fit = "crop"
    _words: Words | None = None
    training_pictures: TrainingPictures | None = None  # to find copies among drawn ones; they travel with the weights

    def __init__(self, config: ImageGPTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}  # its provenance, saved with the weights
        if config.objective == "autoregressive":
            self.start = nn.Parameter(torch.empty(config.orientations, config.width))  # (S, D)
        self.token_embedding = nn.Parameter(torch.empty(config.colors, config.width))  # (K, D)
        if config.positions == "learned":
            self.position_embedding = nn.Parameter(torch.empty(config.tokens, config.width))  # (T, D)
        if config.words:
            self.word_embedding = nn.Parameter(torch.empty(config.words + 1, config.width))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config.width)
        self.head = Linear(config.width, config.colors)
        self.soft_cap = SoftCap(config.logit_cap)
        self.class_head = class_head(config)
        if not self.head.weight.is_meta:
            initialise(self, seed)

    def set_classes(self, classes: Sequence[str], layer: int | None = None, pooling: Pooling = "mean") -> None:
        """Replace the class head by a new one for these names, all zero; without names, remove it.

        `layer` and `pooling` are `class_layer` and `class_pooling` of ImageGPTConfig.
        """
        names = tuple(classes)
        self.config = dataclasses.replace(self.config, classes=names, class_layer=layer, class_pooling=pooling)
        self.class_head = class_head(self.config)
        if self.class_head is not None:
            self.class_head.to(self.head.weight)
            for parameter in self.class_head.parameters():
                nn.init.zeros_(parameter)

    def set_words(self, words: Words, seed: int = 0) -> None:
        """Take captions of these words, whose vectors are random; see `words`. Raises InputError for a masked model."""
        self.config = dataclasses.replace(self.config, words=len(words))
        self.word_embedding = nn.Parameter(self.head.weight.new_empty(len(words) + 1, self.config.width))
        if self.device.type != "meta":
            initialise_words(self, torch.Generator(self.device).manual_seed(seed))
        self._words = words

    def set_tokenizer(self, tokenizer: Tokenizer, shares: Tensor) -> None:
        """Take the tokens of another tokenizer: each is the mean of old ones, by its shares (K new, K old) of them."""
        self.config = dataclasses.replace(self.config, colors=len(tokenizer))
        self.token_embedding = nn.Parameter(shares @ self.token_embedding.detach())
        self.head.weight = nn.Parameter(shares @ self.head.weight.detach())
        self._tokenizer = None
        self.tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its pictures, saved with the weights."""
        if self._tokenizer is None:
            raise ValueError("the model has no tokenizer; set model.tokenizer, for instance to a nextpixel.Palette")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        if len(tokenizer) != self.config.colors:
            raise ValueError(f"tokenizer: expected a vocabulary of {self.config.colors}, got {len(tokenizer)}")
        self._tokenizer = tokenizer
        if (tokenizer.channels == 4) != (self._fit == "place"):
            self._fit = "place" if tokenizer.channels == 4 else "crop"

    @property
    def fit(self) -> Fit:
        """How pictures become its own, see images.fit_image; a tokenizer of four channels takes place alone."""
        return self._fit

    @fit.setter
    def fit(self, fit: Fit) -> None:
        if self._tokenizer is not None:
            check_fit(fit, self._tokenizer.channels)
        self._fit = fit

    def __repr__(self) -> str:
        config, patch = self.config, (1, 1) if self._tokenizer is None else self._tokenizer.patch
        (height, width), what = picture_size(patch, config), "colours" if patch == (1, 1) else "codes"
        return (
            f"ImageGPT({config.layers} layers x {config.width}, {config.heads} heads, {width} x {height} pixels, "
            f"{config.colors} {what}, {config.parameters:,} parameters)"
        )

    @property
    def palette(self) -> Palette:
        """The tokenizer of a model whose tokens are colours."""
        return cast("Palette", self.tokenizer)

    @palette.setter
    def palette(self, palette: Palette) -> None:
        self.tokenizer = palette

    @property
    def words(self) -> Words | None:
        """The words of its captions, saved with the weights; None without captions."""
        return self._words

    @words.setter
    def words(self, words: Words | None) -> None:
        if len(words or ()) != self.config.words:
            raise ValueError(f"words: expected {self.config.words}, got {len(words or ())}")
        self._words = words

    @property
    def size(self) -> Size:
        """Height and width of its pictures in pixels."""
        return picture_size(self.tokenizer.patch, self.config)

    @property
    def side(self) -> int | Size:
        """Pixels along each side of its pictures, or height and width where they are not square."""
        return to_side(self.size)

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    def prefix(self, orientation: Tensor | int = 0, tags: Tensor | None = None) -> Tensor:
        """The vectors before the tokens (1 or B, F, D): the caption's, in a model with words, and the start vector.

        `orientation` is one number or (B,), see images.orient; `tags` (1 or B, TAGS, w) are the words of captions, see
        Words.encode, by default none.
        """
        if self.config.objective != "autoregressive":
            raise ValueError("a masked model has no order of tokens: it cannot draw them one by one")
        start = self.start[orientation].view(-1, 1, self.config.width)
        if not self.config.words:
            if tags is not None:
                raise ValueError("tags: expected none for a model without words")
            return start
        if tags is None:
            tags = torch.zeros(1, TAGS, 1, dtype=torch.int64, device=start.device)
        counts = tags > 0  # (B, TAGS, w)
        counts[..., 0] |= ~counts.any(-1)
        caption = (F.embedding(tags, self.word_embedding) * counts[..., None]).sum(2)  # (B, TAGS, D)
        rows = max(len(start), len(caption))
        return torch.cat([caption.expand(rows, -1, -1), start.expand(rows, -1, -1)], dim=1)

    def forward(
        self, tokens: Tensor, masked: Tensor | None = None, orientation: Tensor | int = 0, **sequence: Any
    ) -> Tensor:
        """Logits (B, t, K) for tokens (B, t), t <= T: `logits[:, i]` scores `tokens[:, i]` given those before.

        A masked model takes all t = T tokens, sees those where `masked` (B, T) is False, and scores every one.
        For `orientation` see `prefix`; for captions and other sequences see `inputs`.
        """
        [(_, last)] = self.hidden(tokens, [len(self.blocks)], masked, orientation, **sequence)
        return self.logits(last)

    def forward_both(self, tokens: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, T, K) as forward gives them, and class logits (B, C), in one pass."""
        layers = {self._class_layer(), len(self.blocks)}
        states = dict(self.hidden(tokens, layers, masked))
        return self.logits(states[len(self.blocks)]), self._classify(states[self._class_layer()])

    def classify(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """Class logits (B, C): the class head on its layer's states, pooled over all slots; blocks above do not run."""
        [(_, states)] = self.hidden(tokens, [self._class_layer()], masked)
        return self._classify(states)

    def _class_layer(self) -> int:
        if self.class_head is None:
            raise ValueError("this model has no class head; give it one with set_classes, and train it")
        return self.config.class_layer or len(self.blocks)

    def _classify(self, states: Tensor) -> Tensor:
        assert self.class_head is not None
        with torch.autocast(states.device.type, enabled=False):  # classes differ by little next to a feature's size
            found = pool(states.float(), self.config.rows, self.config.columns, self.config.class_pooling)
            return self.class_head(found.to(self.class_head.weight.dtype))

    def hidden(
        self,
        tokens: Tensor,
        layers: Collection[int],
        masked: Tensor | None = None,
        orientation: Tensor | int = 0,
        **sequence: Any,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (l, n^l) with n^l (B, t, D) for each of `layers`, 0 <= l <= L, in order; stops at the deepest.

        n^l is the output of block l's first norm, n^L that of the final norm (Chen et al. 2020, section 2.3), in the
        slots that predict the tokens. For `sequence` see `inputs`.
        """
        h, rotations, mask = self.inputs(tokens, masked, orientation, **sequence)
        x0, slots = h, slice(h.shape[1] - tokens.shape[1], None)
        for layer, block in enumerate(self.blocks):
            if layer in layers:
                yield layer, self.hidden_state(layer, h, x0)[:, slots]
            if layer >= max(layers):
                return
            if self.checkpoint_activations and torch.is_grad_enabled():
                h = checkpoint(block, h, x0, rotations, mask, use_reentrant=False)
            else:
                h = block(h, x0, rotations, mask)
        yield len(self.blocks), self.norm(h[:, slots])

    def inputs(
        self,
        tokens: Tensor,
        masked: Tensor | None = None,
        orientation: Tensor | int = 0,
        *,
        tags: Tensor | None = None,
        prefix: Tensor | None = None,
        positions: Positions | None = None,
        attention_mask: Mask | None = None,
        shifted: bool = True,
    ) -> tuple[Tensor, Tensor | None, Mask]:
        """The blocks' inputs to score tokens (B, t): vectors (B, slots, D), their rotations, and the attention mask.

        tags            of the caption, see `prefix`
        prefix          (1 or B, F, D); by default that of `orientation` and `tags`
        positions       of prefix and tokens; by default raster order
        attention_mask  by default causal, or none for a masked model
        shifted         False puts token t in slot t without a start vector, as other programs feed these weights; the
                        network was not trained that way
        """
        causal, count = self.config.objective == "autoregressive", tokens.shape[1]
        if causal and masked is not None:
            raise ValueError("masked: expected none for an autoregressive model, got a mask")
        if not causal and count != self.config.tokens:
            raise ValueError(f"tokens: a masked model needs all {self.config.tokens} tokens, got {count}")
        if causal and shifted:
            prefix, tokens = self.prefix(orientation, tags) if prefix is None else prefix, tokens[:, :-1]
        prefix_slots = 1 if prefix is None else prefix.shape[1]
        self._check_length(count)
        positions = positions or raster(self.config, self.device, prefix_slots)
        slots = slice(0, prefix_slots - 1 + count)
        h = F.embedding(tokens, self.token_embedding)
        if masked is not None:
            h = h * ~masked[:, :, None]
        mask = attention_mask if attention_mask is not None else "causal" if causal else "all"
        return self._embed(prefix, h, positions, slots), positions.rotations_of(slots), mask

    def hidden_state(self, layer: int, h: Tensor, x0: Tensor) -> Tensor:
        """n^l from the residual stream h before block l and the network's input x0, all (B, slots, D)."""
        if layer == len(self.blocks):
            return self.norm(h)
        return cast(Block, self.blocks[layer]).state(h, x0)

    def new_cache(self, batch: int, slots: int | None = None) -> KVCache:
        """An empty cache in the dtype of the weights, by default of the F - 1 + T slots that a picture needs."""
        slots = slots or self.config.slots
        return KVCache(self.config, batch, slots, dtype=self.token_embedding.dtype, device=self.device)

    def extend(
        self,
        tokens: Tensor,
        cache: KVCache,
        prefix: Tensor | None = None,
        positions: Positions | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Logits (B, t, K) of the tokens that the newly filled slots predict; the last row scores the next token.

        With `last` only that one, (B, 1, K).

        Serves both prefill and step. With an empty cache, `prefix` (1 or B, F, D), by default that of an upright
        picture without a caption, comes before the prompt (B, P), P >= 0; later calls take the tokens drawn since, most
        often one. A picture fills F - 1 + T slots. `positions` are as in `inputs`.
        """
        prefix_slots = 0
        if cache.length:
            prefix = None
        else:
            prefix = self.prefix() if prefix is None else prefix.to(self.start.dtype)
            prefix_slots = cache.prefix_slots = prefix.shape[1]
        count = prefix_slots + tokens.shape[1]
        self._check_length(cache.length + count - cache.prefix_slots + 1)
        positions = positions or raster(self.config, self.device, cache.prefix_slots)
        logits = self.score_next(tokens, cache, cache.next_slots(count), positions, prefix, last=last)
        cache.advance(count)
        return logits

    def score_next(
        self,
        tokens: Tensor,
        cache: KVCache,
        slots: slice | Tensor,
        positions: Positions,
        prefix: Tensor | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """The network's part of `extend`: keys and values go into these slots, and the cache's length stays."""
        h = x0 = self._embed(prefix, F.embedding(tokens, self.token_embedding), positions, slots)
        rotations = positions.rotations_of(slots)
        for block in self.blocks:
            h = block(h, x0, rotations, cache)
        first = -1 if last else 0 if prefix is None else prefix.shape[1] - 1
        return self.logits(self.norm(h[:, first:]))

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.tokens:
            raise ValueError(
                f"tokens: expected at most {self.config.tokens} ({self.config.rows} x {self.config.columns}), "
                f"got {tokens}; encode pictures at the model's side"
            )

    def _embed(self, prefix: Tensor | None, h: Tensor, positions: Positions, slots: slice | Tensor) -> Tensor:
        """The network's input: prefix and embedded tokens h (B, t, D), with their position embeddings."""
        if prefix is not None:
            h = torch.cat([prefix.expand(len(h), -1, -1), h], dim=1)
        if self.config.positions == "learned":
            table: Tensor = self.position_embedding
            if prefix is not None and prefix.shape[1] > 1:
                table = F.pad(table, (0, 0, 0, 1))  # slots that predict nothing have no position
            h = h + table[positions.predicted[slots]]
        return F.rms_norm(h, h.shape[-1:]) if self.config.mix_input else h

    def logits(self, last: Tensor) -> Tensor:
        """Logits (B, t, K) of n^L (B, t, D), the output of the final norm."""
        return self.soft_cap(self.head(last))
