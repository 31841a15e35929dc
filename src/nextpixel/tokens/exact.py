"""The tokenizer of pixel art: at most 1,024 exact colours with transparency."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nextpixel.errors import InputError
from nextpixel.progress import say
from nextpixel.tokens.palette import grid_of

COLOURS_AT_MOST = 1_024
FIT_AT_MOST = 50_000  # colours that k-means takes
KNOWN_AT_MOST = 1 << 20  # colours whose tokens are kept
PICTURES_AT_ONCE = 1_024


class ExactPalette:
    """A tokenizer of K colours `rgba`, uint8 (K, 4): a pixel of one of them is exactly that token.

    Any other pixel is the nearest colour by squared distance of the premultiplied components, the first on ties. All
    fully transparent pixels are the colour (0, 0, 0, 0).
    """

    kind: ClassVar[str] = "exact"
    channels = 4
    patch = (1, 1)

    def __init__(self, rgba: ArrayLike) -> None:
        array = np.asarray(rgba)
        if array.ndim != 2 or array.shape[1] != 4 or not 1 <= len(array) <= COLOURS_AT_MOST:
            raise InputError(
                f"expected 1 to {COLOURS_AT_MOST:,} colours as an array of shape (colours, 4), got {array.shape}",
                argument="palette",
            )
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise InputError("expected whole numbers from 0 to 255, got others", argument="palette")
        self.rgba: NDArray[np.uint8] = array.astype(np.uint8)
        self.rgba[self.rgba[:, 3] == 0] = 0
        codes = _codes(torch.from_numpy(self.rgba))
        if len(found := codes.unique()) < len(codes):
            raise InputError(
                f"expected different colours, got {len(codes) - len(found)} repeated; all that are fully transparent "
                "are one",
                argument="palette",
            )
        self._known = {"cpu": _sorted(codes, torch.arange(len(codes)))}  # by device: sorted colours, their tokens

    def __len__(self) -> int:
        return len(self.rgba)

    def __repr__(self) -> str:
        return f"ExactPalette({len(self)} colours, {self.hash[:12]})"

    @property
    def hash(self) -> str:
        """sha256 of the colours."""
        return hashlib.sha256(self.rgba.tobytes()).hexdigest()

    def values(self) -> dict[str, Any]:
        return {"rgba": [bytes(colour).hex() for colour in self.rgba]}

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> ExactPalette:
        return cls(np.array([list(bytes.fromhex(colour)) for colour in values["rgba"]]))

    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Tokens int64 (B, H * W) in raster order, of uint8 images (B, H, W, 4), on the device of the images."""
        pixels = images if isinstance(images, Tensor) else _tensor(images)
        if pixels.ndim != 4 or pixels.shape[-1] != 4 or pixels.dtype != torch.uint8:
            raise ValueError(f"images: expected uint8 of shape (B, H, W, 4), got {images.dtype} {tuple(images.shape)}")
        codes = _codes(pixels).flatten(1)  # (B, T)
        known, tokens = self._tokens_of(codes)
        return tokens[torch.searchsorted(known, codes)]

    def changed(self, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which pixels of uint8 images (B, H, W, 4) have a colour that is not one of these, (B, H, W)."""
        codes = _codes(_tensor(images))
        own = _codes(torch.from_numpy(self.rgba))
        return ~torch.isin(codes, own).numpy()

    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        """uint8 images (B, H, W, 4) of tokens (B, T), with W = `columns`; by default T is a square number."""
        array = np.atleast_2d(tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens)
        return self.rgba[array].reshape(len(array), *grid_of(array.shape[1], columns), 4)

    def _tokens_of(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Sorted colours with at least those of `codes` among them, and their tokens; new ones are searched for."""
        device = str(codes.device)
        known, tokens = self._known.get(device) or (one.to(device) for one in self._known["cpu"])
        places = torch.searchsorted(known, codes).clamp_max(len(known) - 1)
        new = codes[known[places] != codes].unique()
        if len(new):
            rgba = torch.from_numpy(self.rgba).to(codes.device)
            found = torch.cat([_nearest(part, rgba) for part in new.split(1 << 10)])
            known, tokens = _sorted(torch.cat([known, new]), torch.cat([tokens, found]))
            if len(known) <= KNOWN_AT_MOST:
                self._known[device] = known, tokens
        return known, tokens

    @classmethod
    def fit(cls, pictures: NDArray[np.uint8], colors: int = COLOURS_AT_MOST, seed: int = 0) -> ExactPalette:
        """The colours of uint8 pictures (B, H, W, 4): those with transparency first, then by how often they occur.

        Of pictures with more than `colors`, k-means selects as many of their colours, and this is said; the fully
        transparent one is always kept.
        """
        codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            part = _codes(_tensor(pictures[start : start + PICTURES_AT_ONCE]))
            found, occurrences = part.unique(return_counts=True)
            codes, places = np.unique(np.concatenate([codes, found.numpy()]), return_inverse=True)
            counts = np.bincount(places, np.concatenate([counts, occurrences.numpy()])).astype(np.int64)
        if len(codes) > colors:
            total, keep = len(codes), _select(codes, counts, colors, seed)
            codes, counts = codes[keep], counts[keep]
            say(f"the pictures have {total:,} colours; expected at most {colors:,}, so k-means selected {len(codes):,}")
        order = np.lexsort((codes, -counts, codes & 255 == 255))
        return cls(_rgba(torch.from_numpy(codes[order])).numpy())


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.require(images, requirements=("C", "W")))  # torch warns of read-only memory maps


def _codes(pixels: Tensor) -> Tensor:
    """Colours uint8 (..., 4) as 32-bit numbers, int64; 0 for all that are fully transparent."""
    red, green, blue, alpha = pixels.to(torch.int64).unbind(-1)
    return torch.where(alpha == 0, 0, (red << 24) | (green << 16) | (blue << 8) | alpha)


def _rgba(codes: Tensor) -> Tensor:
    return torch.stack([codes >> 24, (codes >> 16) & 255, (codes >> 8) & 255, codes & 255], -1)


def _sorted(codes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    codes, order = codes.sort()
    return codes, tokens[order]


def _premultiplied(rgba: Tensor) -> Tensor:
    """Exact integers: red, green and blue times alpha, and alpha times 255."""
    wide = rgba.to(torch.int64)
    return torch.cat([wide[..., :3], torch.full_like(wide[..., :1], 255)], -1) * wide[..., 3:]


def _nearest(codes: Tensor, rgba: Tensor) -> Tensor:
    """Tokens of colours (M,): the nearest of (K, 4), the first on ties."""
    distances = (_premultiplied(_rgba(codes))[:, None] - _premultiplied(rgba)).square().sum(-1)  # (M, K)
    return distances.argmin(-1)  # documented to be the first of equals


def _select(codes: NDArray[np.int64], counts: NDArray[np.int64], colors: int, seed: int) -> NDArray[np.int64]:
    """Places of at most `colors` colours: of each cluster of k-means, the one nearest to its centre."""
    from sklearn.cluster import KMeans

    opaque = np.flatnonzero(codes)
    if len(opaque) > FIT_AT_MOST:
        weights = counts[opaque] / counts[opaque].sum()
        drawn = np.random.default_rng(seed).choice(opaque, FIT_AT_MOST, replace=False, p=weights, shuffle=False)
        opaque = np.sort(drawn)
    points = _premultiplied(_rgba(torch.from_numpy(codes[opaque]))).numpy() / 255.0
    clear = np.flatnonzero(codes == 0)
    means = KMeans(colors - len(clear), n_init=1, max_iter=30, random_state=seed).fit(
        points, sample_weight=counts[opaque]
    )
    errors = np.square(points - means.cluster_centers_[means.labels_]).sum(1)
    order = np.lexsort((errors, means.labels_))
    _, firsts = np.unique(means.labels_[order], return_index=True)
    return np.concatenate([clear, opaque[order[firsts]]])
