"""The learned tokenizer: a small convolutional codec around finite scalar quantisation (Mentzer et al. 2023)."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.tokens.codec import PICTURES_AT_ONCE, Codec, Frozen, centred, painted, read_network
from nextpixel.tokens.palette import grid_of
from nextpixel.tokens.patches import cut


class Learned:
    """A tokenizer of patches of p x p pixels by a codec.

    What a token says depends on its own patch alone; how it looks also depends on the tokens around it.
    """

    kind: ClassVar[str] = "learned"
    channels = 3

    def __init__(self, codec: Codec) -> None:
        self._frozen = Frozen(codec)
        self.patch = codec.shape.patch, codec.shape.patch

    @property
    def codec(self) -> Codec:
        return self._frozen.network

    def __len__(self) -> int:
        assert self.codec.shape.codes is not None
        return self.codec.shape.codes

    def __repr__(self) -> str:
        return f"Learned({len(self)} of {self.patch[0]} x {self.patch[1]} pixels, {self.hash[:12]})"

    @property
    def hash(self) -> str:
        """sha256 of the codec's shape and weights."""
        return hashlib.sha256(b"".join(self._frozen.digest())).hexdigest()

    def values(self) -> dict[str, Any]:
        return {"codec": asdict(self.codec.shape), **self._frozen.weights()}

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> Learned:
        return cls(read_network(Codec, values["codec"], values))

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Tokens int64 (B, T) in raster order, of uint8 images (B, H, W, 3), on the device of the images.

        Raises ValueError where H or W is not a multiple of p.
        """
        pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, requirements=("C", "W")))
        cut(pixels, self.patch[0])  # raises
        codec = self._frozen.on(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            found = [codec.quantise(centred(part)).round().long() for part in pixels.split(PICTURES_AT_ONCE)]
        return (torch.cat(found) * codec.get_buffer("strides")[:, None, None]).sum(1).flatten(1)

    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        """uint8 images (B, H, W, 3) of tokens (B, T), with W / p = `columns`; by default T is a square number."""
        array = torch.atleast_2d(
            tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.asarray(tokens, np.int64))
        )
        rows, columns = grid_of(array.shape[1], columns)
        side = self.patch[0]
        if not array.numel():
            return np.empty((len(array), rows * side, columns * side, 3), np.uint8)
        codec = self._frozen.on(array.device)
        strides, levels = (codec.get_buffer(name)[:, None, None] for name in ("strides", "levels"))
        return painted(
            lambda part: codec.paint_levels((part[:, None] // strides % levels.long()).float()),
            array.unflatten(1, (rows, columns)),
        )
