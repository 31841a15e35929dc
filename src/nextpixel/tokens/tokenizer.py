"""The Tokenizer protocol: all that the network, drawing and scoring know about pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import ImageGPTConfig, Size
from nextpixel.errors import InputError
from nextpixel.tokens.exact import ExactPalette
from nextpixel.tokens.palette import Palette


class Tokenizer(Protocol):
    """Pictures uint8 (B, H, W, channels) <-> tokens int64 (B, T) in raster order, numbers from 0 to its length K - 1.

    A token stands for a patch of pixels, so a picture is a grid of H / patch height rows and W / patch width columns,
    and T = rows * columns. `len` is the size of the vocabulary.
    """

    kind: ClassVar[str]
    """Its name in files."""

    @property
    def channels(self) -> int:
        """3: red, green, blue; 4: with alpha."""

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width, in pixels, of a token."""

    @property
    def hash(self) -> str:
        """sha256 of everything that affects tokens: losses are comparable only where it is equal."""

    def __len__(self) -> int: ...

    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Tokens (B, T) of images (B, H, W, channels), on the device of the images."""

    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        """Images of tokens (B, T), or of any number of whole rows; `columns` of the grid; default: square."""

    def values(self) -> dict[str, Any]:
        """The arguments of `from_values` as JSON, written beside the weights and into run.json."""

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> Tokenizer:
        """Raises InputError, KeyError, TypeError or ValueError for values of anything else."""


KINDS: dict[str, type[Tokenizer]] = {Palette.kind: Palette, ExactPalette.kind: ExactPalette}


def read_tokenizer(values: dict[str, Any], cache: str | Path | None = None) -> Tokenizer:
    """The tokenizer of `values`, which include its kind. Raises as from_values does."""
    kind = dict(values).get("kind", Palette.kind)
    if kind not in KINDS:
        raise InputError(f"tokenizer: expected one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind].from_values(values, cache)


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """JSON for `read_tokenizer`."""
    return {"kind": tokenizer.kind, "sha256": tokenizer.hash, **tokenizer.values()}


def exact_colours(tokenizer: Tokenizer) -> NDArray[np.uint8] | None:
    """The colours (K, 4) of an exact palette; None for other tokenizers."""
    return tokenizer.rgba if isinstance(tokenizer, ExactPalette) else None


def picture_size(tokenizer: Tokenizer, shape: ImageGPTConfig) -> Size:
    """Height and width, in pixels, of a model's pictures."""
    return shape.rows * tokenizer.patch[0], shape.columns * tokenizer.patch[1]
