"""Shapes of networks, named sizes, and the modern preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from nextpixel.config.settings import Settings
from nextpixel.config.terms import HIGHEST_SIDE, Activation, Objective, Pooling, Positions, Size, to_side, to_size
from nextpixel.errors import InputError, shortened

TAGS = 16  # of a caption, at most
POOLED_SIDE = 4  # cells along each side of the "grid" pooling


@dataclass(frozen=True)
class ImageGPTConfig(Settings):
    """The shape of a network. Names as in the legend of model.py."""

    layers: int = 24
    """Transformer blocks (L)."""
    width: int = 512
    """Width of the residual stream (D)."""
    heads: int = 8
    """Attention heads (N), each of width D / N."""
    side: int | Size = 32
    """Tokens along each side of the grid, or (rows, columns) if it is not square."""
    colors: int = 512
    """Vocabulary size (K), such as the colours of a palette."""
    objective: Objective = "autoregressive"
    """Predict each token from those before it, or hidden tokens from the others (BERT)."""
    orientations: int = 1
    """Rows of the start table: 1, or 8, one per rotation and reflection of the square."""
    classes: tuple[str, ...] = ()
    """Class names of the class head; empty without one."""
    class_layer: int | None = None
    """The layer that the class head reads, 1 to L, with a bias; None: the last, without a bias, as in the paper."""
    class_pooling: Pooling = "mean"
    """How the class head makes one vector of that layer's states, see pooling.pool; without `class_layer`, the mean."""
    words: int = 0
    """Number of words that captions may have; 0 without captions."""

    # Options beyond the paper; the defaults are the paper's network.
    positions: Positions = "learned"
    """A learned vector added per position, or queries and keys rotated by row and column."""
    activation: Activation = "quick-gelu"
    """Activation of the MLP."""
    qk_norm: bool = False
    """Normalise queries and keys per head."""
    zero_projections: bool = False
    """Initialise the matrices that write into the residual stream with zeros."""
    mix_input: bool = False
    """Feed each block a learned mix of the residual stream and the network's normalised input."""
    logit_cap: float = 0.0
    """Soft cap of the logits' absolute value; 0: none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # a list if read from JSON
        names = set(self.classes)
        if len(names) != len(self.classes) or len(names) == 1 or not all(isinstance(name, str) for name in names):
            raise InputError(f"classes: expected no names or at least two different ones, got {list(self.classes)!r}")
        terms = {"objective": Objective, "positions": Positions, "activation": Activation, "class_pooling": Pooling}
        for name, kind in terms.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"expected one of {', '.join(get_args(kind))}, got {shortened(getattr(self, name))}", argument=name
                )
        can_orient = self.objective == "autoregressive" and self.rows == self.columns
        if shortened(self.orientations) not in ("1", "8") or (self.orientations == 8 and not can_orient):
            raise InputError(
                "orientations: expected 1, or 8 for an autoregressive model with a square grid, got "
                f"{shortened(self.orientations)} ({self.objective}, side {shortened(self.side)})"
            )
        for name in ("qk_norm", "zero_projections", "mix_input"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"expected true or false, got {shortened(getattr(self, name))}", argument=name)
        if (
            not isinstance(self.logit_cap, int | float)
            or isinstance(self.logit_cap, bool)
            or not 0 <= self.logit_cap <= 1e6
        ):
            raise InputError(
                f"expected a number from 0 to 1,000,000, got {shortened(self.logit_cap)}", argument="logit_cap"
            )
        if self.words != 0:
            _check_whole("words", self.words, 1)
            if self.objective != "autoregressive":
                raise InputError("a masked model has no prefix, so it takes no captions", argument="words")
        grid = tuple(self.side) if isinstance(self.side, list | tuple) and len(self.side) == 2 else (self.side,) * 2
        sizes = {"layers": [self.layers], "width": [self.width], "heads": [self.heads], "side": grid}
        for name, values in (sizes | {"colors": [self.colors]}).items():
            for value in values:
                _check_whole(name, value, 1)
        object.__setattr__(self, "side", grid[0] if grid[0] == grid[1] else grid)
        if self.class_layer is not None:
            _check_whole("class_layer", self.class_layer, 1)
            if self.class_layer > self.layers or not self.classes:
                most = f"at most layers {self.layers}" if self.classes else "None without classes"
                raise InputError(f"class_layer: expected {most}, got {self.class_layer}")
        elif self.class_pooling != "mean":
            raise InputError(f"class_pooling: expected mean without class_layer, got {self.class_pooling}")
        if self.width % self.heads:
            raise InputError(
                f"expected a multiple of heads {self.heads}, got {self.width}; "
                f"try heads {next(h for h in range(min(self.heads, self.width), 0, -1) if self.width % h == 0)}",
                argument="width",
            )
        if self.positions == "rotary" and self.head_width % 4:
            raise InputError(
                f"rotary positions need heads whose width is a multiple of 4, got {self.head_width} "
                f"(width {self.width}, heads {self.heads})"
            )

    def __repr__(self) -> str:
        """The dimensions, and what is not the default."""
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        shown = values[:5] + [entry for entry in values[5:] if entry[1] != entry[2]]
        return f"ImageGPTConfig({', '.join(f'{name}={value!r}' for name, value, _ in shown)})"

    @property
    def rows(self) -> int:
        """Rows of the grid (H)."""
        return self.side[0] if isinstance(self.side, tuple) else self.side

    @property
    def columns(self) -> int:
        """Columns of the grid (W)."""
        return self.side[1] if isinstance(self.side, tuple) else self.side

    @property
    def tokens(self) -> int:
        """Tokens per picture (T)."""
        return self.rows * self.columns

    @property
    def prefix_slots(self) -> int:
        """Vectors before the tokens (F): the tags of the caption, in a model with words, and the start vector."""
        return TAGS + 1 if self.words else 1

    @property
    def slots(self) -> int:
        """The slots of a sequence that draws or scores whole pictures: F - 1 + T."""
        return self.prefix_slots - 1 + self.tokens

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def pooled_width(self, pooling: Pooling) -> int:
        """Numbers that pooling.pool makes of a layer's states."""
        if pooling == "grid":
            return 2 * self.width * min(POOLED_SIDE, self.rows) * min(POOLED_SIDE, self.columns)
        return self.width if pooling == "mean" else 2 * self.width

    @property
    def block_matrix_parameters(self) -> int:
        """Parameters of a block's matrices: QKV and output projections, and an MLP of four times the width."""
        return 12 * self.width**2

    @property
    def parameters(self) -> int:
        """Exact number of parameters, counted as in Chen et al. 2020."""
        width, layers = self.width, self.layers
        start = width * self.orientations if self.objective == "autoregressive" else 0
        positions = self.tokens * width if self.positions == "learned" else 0
        embeddings = positions + 2 * self.colors * width + start + (self.words + 1) * width * bool(self.words)
        block = self.block_matrix_parameters + 2 * width + (2 if self.mix_input else 0)
        class_row = self.pooled_width(self.class_pooling) + (self.class_layer is not None)
        return embeddings + layers * block + width + len(self.classes) * class_row

    @property
    def is_classic(self) -> bool:
        """Whether this is the paper's autoregressive network, with or without a class head of any kind."""
        plain = replace(self, classes=(), class_layer=None, class_pooling="mean")
        return plain == ImageGPTConfig(self.layers, self.width, self.heads, self.side, self.colors)


@dataclass(frozen=True)
class ResNetConfig(Settings):
    """The shape of a small residual network (He et al. 2016, section 4.2); default: ResNet-20."""

    blocks: int = 3
    """Blocks in each of the three stages (n); 6 n + 2 layers."""
    factor: int = 1
    """Width multiplier; 1 means 16, 32 and 64 channels."""
    side: int | Size = 32
    """Pixels along each side of the picture, or (rows, columns) if it is not square."""
    classes: int = 0
    """Outputs of the class head (C); 0 without one."""
    targets: int = 0
    """Outputs of the head that predicts a teacher's features; 0 without one."""

    def __post_init__(self) -> None:
        for name, least in {"blocks": 1, "factor": 1, "classes": 0, "targets": 0}.items():
            _check_whole(name, getattr(self, name), least)
        object.__setattr__(self, "side", to_side(to_size(self.side)))  # a list if read from JSON

    @property
    def width(self) -> int:
        """Number of pooled features (D)."""
        return 64 * self.factor

    @property
    def layers(self) -> int:
        """Index of the last layer that can be probed; the only one, 0, is the pooled features."""
        return 0

    @property
    def parameters(self) -> int:
        """Exact number of parameters; 269,722 for ResNet-20 with ten classes."""
        total, before = 27 * 16 * self.factor + 2 * 16 * self.factor, 16 * self.factor
        for channels in (16 * self.factor, 32 * self.factor, 64 * self.factor):
            total += 9 * channels * (before + (2 * self.blocks - 1) * channels) + 4 * self.blocks * channels
            before = channels
        heads = sum((self.width + 1) * outputs for outputs in (self.classes, self.targets))
        return total + heads


def stated(shape: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a shape, without those of parts that the network does not have."""
    without = {"class_pooling"} if shape.get("class_layer") is None else set()
    return {name: value for name, value in shape.items() if value not in ((), [], None) and name not in without}


# Upper bounds, far beyond real networks: larger values come from damaged files.
AT_MOST = {"layers": 10_000, "width": 1 << 18, "heads": 1 << 18, "side": HIGHEST_SIDE, "colors": 1 << 24}
AT_MOST |= {"words": 1 << 20, "class_layer": 10_000}
AT_MOST |= {"blocks": 1000, "factor": 1000, "classes": 1 << 24, "targets": 1 << 24}


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= AT_MOST[name]:
        expected = f"expected a whole number from {least} to {AT_MOST[name]:,}"
        raise InputError(f"{expected}, got {shortened(value)}", argument=name)


# Chen et al. 2020, section 3.3; heads from the commands of openai/image-gpt. The heads of XL are unpublished;
# 24 of width 128 are our choice. xs and xxs are ours, for laptops.
SIZES: dict[str, ImageGPTConfig] = {
    "xxs": ImageGPTConfig(layers=6, width=192, heads=6),
    "xs": ImageGPTConfig(layers=8, width=256, heads=8),
    "s": ImageGPTConfig(layers=24, width=512, heads=8),
    "m": ImageGPTConfig(layers=36, width=1024, heads=8),
    "l": ImageGPTConfig(layers=48, width=1536, heads=16),
    "xl": ImageGPTConfig(layers=60, width=3072, heads=24),
}
# For sets of few small pictures, ours: up to so many images, this network; beyond, xxs.
SMALL_SETS = (
    (1_000, ImageGPTConfig(layers=4, width=96, heads=3)),
    (3_000, ImageGPTConfig(layers=4, width=128, heads=4)),
    (10_000, ImageGPTConfig(layers=4, width=160, heads=5)),
)
if TYPE_CHECKING:
    SizeName = str
    PretrainSize = str
else:
    SizeName = Literal[tuple(SIZES)]
    PretrainSize = Literal[(*SIZES, "auto")]


def shape_of(size: str, images: int | None = None) -> ImageGPTConfig:
    """The network of a named size; of auto, by the number of images."""
    if size != "auto":
        return SIZES[size]
    return next((shape for most, shape in SMALL_SETS if images is not None and images <= most), SIZES["xxs"])


# The modern preset; docs/results.md has an ablation.
MODERN: dict[str, Any] = {
    "positions": "rotary",  # Su et al. 2021, on two axes as in vision transformers
    "activation": "squared-relu",  # So et al. 2021
    "qk_norm": True,  # Henry et al. 2020
    "zero_projections": True,  # Zhang et al. 2019
    "mix_input": True,  # from the modded-nanogpt speedruns
    "logit_cap": 15.0,  # Gemma 2, 2024
}
