"""The patch tokenizer: a token is one of K patches of p x p pixels, the nearest, found exactly."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nextpixel.errors import InputError
from nextpixel.tokens.codec import SIDES, Frozen, PatchDecoder, centred, painted, read_network
from nextpixel.tokens.palette import grid_of

CODES_AT_MOST = 16_384
PATCHES_PER_CODE = 48  # that k-means takes
DISTANCES_AT_ONCE = 1 << 19  # 2 MiB, which a CPU's cache holds


class Patches:
    """A tokenizer of K different patches `codes`, uint8 (K, p, p, 3), with p 2 or 4.

    A patch of a picture becomes the code with the smallest squared Euclidean distance of 8-bit colours, the first on
    ties. What a token says depends on its own patch alone; with a decoder, how it looks depends on those around it too.
    """

    kind: ClassVar[str] = "patches"
    channels = 3

    def __init__(self, codes: ArrayLike, decoder: PatchDecoder | None = None) -> None:
        array = np.asarray(codes)
        side = array.shape[1] if array.ndim == 4 else 0
        if array.shape[1:] != (side, side, 3) or side not in SIDES or not 1 <= len(array) <= CODES_AT_MOST:
            raise InputError(
                f"expected 1 to {CODES_AT_MOST:,} patches as an array of shape (codes, p, p, 3) with p 2 or 4, got "
                f"{array.shape}",
                argument="codes",
            )
        if array.dtype != np.uint8:
            raise InputError(f"expected patches of uint8, got {array.dtype}", argument="codes")
        if len(np.unique(array.reshape(len(array), -1), axis=0)) < len(array):
            raise InputError("expected different patches, got some repeated", argument="codes")
        if decoder is not None and decoder.shape.patch != side:
            raise InputError(f"expected a decoder of patches of {side}, got one of {decoder.shape.patch}")
        self.codes: NDArray[np.uint8] = array
        self.patch = side, side
        self._decoder = None if decoder is None else Frozen(decoder)

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        kind = "" if self._decoder is None else ", repainted"
        return f"Patches({len(self)} of {self.patch[0]} x {self.patch[1]} pixels{kind}, {self.hash[:12]})"

    @property
    def decoder(self) -> PatchDecoder | None:
        return None if self._decoder is None else self._decoder.network

    @property
    def hash(self) -> str:
        """sha256 of the patches and their shape, and of the decoder."""
        found = hashlib.sha256(repr(self.codes.shape).encode() + self.codes.tobytes())
        for part in () if self._decoder is None else self._decoder.digest():
            found.update(part)
        return found.hexdigest()

    def values(self) -> dict[str, Any]:
        if self._decoder is None:
            return {"codes": self.codes}
        return {"codes": self.codes, "decoder": asdict(self._decoder.network.shape), **self._decoder.weights()}

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> Patches:
        decoder = read_network(PatchDecoder, values["decoder"], values) if "decoder" in values else None
        return cls(values["codes"], decoder)

    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Tokens int64 (B, T) in raster order, of uint8 images (B, H, W, 3), on the device of the images.

        Raises ValueError where H or W is not a multiple of p.
        """
        pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, requirements=("C", "W")))
        patches = cut(pixels, self.patch[0])  # (B, T, p * p * 3)
        codes = torch.from_numpy(self.codes).flatten(1).to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            return _nearest(patches.flatten(0, 1), codes)[0].view(patches.shape[:2])

    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        """uint8 images (B, H, W, 3) of tokens (B, T), with W / p = `columns`; by default T is a square number."""
        array = np.atleast_2d(tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens)
        rows, columns = grid_of(array.shape[1], columns)
        side = self.patch[0]
        grid = self.codes[array].reshape(len(array), rows, columns, side, side, 3)
        pixels = grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(array), rows * side, columns * side, 3)
        if self._decoder is None or not array.size:
            return pixels
        decoder = self._decoder.on(tokens.device if isinstance(tokens, Tensor) else torch.device("cpu"))
        return painted(lambda part: decoder(centred(part)), torch.from_numpy(pixels).to(decoder.paint.bias.device))

    @classmethod
    def fit(cls, images: NDArray[np.uint8], codes: int = 4_096, side: int = 4, seed: int = 0) -> Patches:
        """k-means on patches drawn from uint8 images (B, H, W, 3), PATCHES_PER_CODE for each code.

        The means are rounded to distinct patches of 8-bit colours, so that decoding a token and encoding it again gives
        the same token. Raises InputError where the images have fewer different patches.
        """
        from sklearn.cluster import KMeans

        rows, columns = images.shape[1] // side, images.shape[2] // side
        total, count = len(images) * rows * columns, codes * PATCHES_PER_CODE
        drawn = np.random.default_rng(seed).choice(total, min(total, count), replace=False, shuffle=False)
        number, row, column = np.unravel_index(np.sort(drawn), (len(images), rows, columns))
        grids = np.stack(
            [images[n, r * side : (r + 1) * side, c * side : (c + 1) * side] for n, r, c in zip(number, row, column)]
        )
        points = grids.reshape(len(grids), -1)
        distinct = np.unique(points, axis=0)
        if len(distinct) < codes:
            raise InputError(
                f"expected at most {len(distinct):,}, the number of different patches among {len(points):,} of these "
                f"images, got {codes:,}",
                argument="codes",
            )
        means = KMeans(codes, init="random", n_init=1, max_iter=20, random_state=seed).fit(points.astype(np.float32))
        found = np.unique(np.rint(means.cluster_centers_).astype(np.uint8), axis=0)
        if missing := codes - len(found):  # the patches that are farthest from the others replace repeated ones
            errors = _nearest(torch.from_numpy(distinct), torch.from_numpy(found))[1].numpy()
            found = np.concatenate([found, distinct[np.argsort(-errors, kind="stable")[:missing]]])
        return cls(found.reshape(codes, side, side, 3))


def cut(pixels: Tensor, side: int) -> Tensor:
    """Patches (B, T, p * p * 3) in raster order, of uint8 images (B, H, W, 3). Raises ValueError for other images."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 of shape (B, H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}")
    if pixels.shape[1] % side or pixels.shape[2] % side:
        raise ValueError(f"images: expected sides that are multiples of {side}, got {tuple(pixels.shape)}")
    grid = pixels.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, H / p, p, W / p, p, 3)
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


def _nearest(points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The code of each point uint8 (M, D), int64 (M,), the first on ties, and its squared distance, int64 (M,).

    All sums are whole numbers below 2^24, so float32 is exact.
    """
    wide = codes.float()
    sizes, tokens, distances = wide.square().sum(1), [], []
    for part in points.split(max(1, DISTANCES_AT_ONCE // len(codes))):
        own = part.float()
        least = torch.addmm(sizes, own, wide.T, alpha=-2)  # |c|^2 - 2 x c, (m, K)
        found = least.argmin(1)  # documented to be the first of equals
        tokens.append(found)
        distances.append((own.square().sum(1) + least.gather(1, found[:, None])[:, 0]).long())
    return torch.cat(tokens), torch.cat(distances)
