"""The palette tokenizer: every pixel's token is its nearest colour, found exactly."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import threading
from importlib import resources
from pathlib import Path
from tokenize import TokenError
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nextpixel.errors import InputError, WorkError
from nextpixel.files import is_sealed, new_file, user_cache, write_sealed
from nextpixel.limits import array_fault, read_bytes

COLOURS_OF_24_BITS = 1 << 24
TABLE_FROM = 4_096  # pixels, over all calls, from which the table is worth its 33 MB of memory
TREE_FROM = 8_000  # new colours from which loading scipy and building a tree is faster
SAVE_TABLE_FROM = 100_000  # new colours from which the table is worth a write of 33 MB
DISTANCES_ON_CPU, DISTANCES_ON_DEVICE = 1 << 17, 1 << 22  # computed at once; on a device they take 200 MB
_TABLE_LOCK = threading.Lock()  # shared: a palette with a lock of its own could not be copied


class Palette:
    """A tokenizer of K colours (K, 3) float32 in [-1, 1]; a pixel's token is the number of the nearest one.

    Nearest means the smallest squared Euclidean distance in float64, the first on ties. Results are kept in a table of
    all 2^24 colours, which is saved in `cache` for later processes.
    """

    kind: ClassVar[str] = "palette"
    channels = 3
    patch = (1, 1)

    def __init__(self, colors: ArrayLike, cache: str | Path | None = None) -> None:
        array = np.asarray(colors)
        if array.ndim != 2 or array.shape[1] != 3 or not 1 <= len(array) < 65_535:
            raise InputError(f"expected an array of shape (colours, 3), got {array.shape}", argument="palette")
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all() or np.abs(array).max() > 1.0001:
            raise InputError(
                "expected red, green and blue between -1 and 1, got values outside; "
                "divide 0-255 colours by 127.5 and subtract 1",
                argument="palette",
            )
        self.colors: NDArray[np.float32] = array.astype(np.float32)
        self.cache = cache
        self._table: NDArray[np.uint16] | None = None  # token + 1; 0: unknown
        self._searched = 0  # pixels
        self._device_table: Tensor | None = None

    def __len__(self) -> int:
        return len(self.colors)

    def __repr__(self) -> str:
        return f"Palette({len(self)} colours, {self.hash[:12]})"

    @classmethod
    def openai(cls, cache: str | Path | None = None) -> Palette:
        """The 512 colours of openai/image-gpt."""
        with (resources.files("nextpixel") / "assets" / "openai_palette.npy").open("rb") as file:
            return cls(np.load(file), cache)

    @classmethod
    def read(cls, path: str | Path, cache: str | Path | None = None) -> Palette:
        """A palette from a .npy file; OpenAI's kmeans_centers.npy is one."""
        try:
            return cls(np.load(io.BytesIO(read_bytes(path)), allow_pickle=False), cache)
        except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TokenError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from None
            found = (
                "no such file"
                if isinstance(error, FileNotFoundError)
                else f"something unreadable ({array_fault(error)})"
            )
            raise InputError(f"{path}: expected a palette as .npy of shape (colours, 3), got {found}") from None

    def values(self) -> dict[str, Any]:
        return {"colors": self.colors.tolist()}

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> Palette:
        return cls(np.array(values["colors"], np.float64), cache)

    @property
    def hash(self) -> str:
        """sha256 of the colours: models and losses are comparable only where it is equal."""
        return hashlib.sha256(self.colors.tobytes()).hexdigest()

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """The colours as uint8 (K, 3): rounded half to even, clipped."""
        return np.rint(127.5 * (self.colors + np.float32(1.0))).clip(0, 255).astype(np.uint8)

    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Tokens int64 (B, H * W) in raster order, of uint8 images (B, H, W, 3), on the device of the images."""
        if isinstance(images, Tensor) and images.device.type != "cpu":
            return self._encode_on_device(images)
        array = images.numpy() if isinstance(images, Tensor) else np.asarray(images)
        _check(array.shape, str(array.dtype))
        codes = _codes(array.reshape(len(array), -1, 3))  # (B, T)
        return torch.from_numpy(self._look_up(codes).astype(np.int64))

    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        """uint8 images (B, H, W, 3) of tokens (B, T), with W = `columns`; by default T is a square number."""
        array = np.atleast_2d(tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens)
        return self.rgb[array].reshape(len(array), *grid_of(array.shape[1], columns), 3)

    def _encode_on_device(self, images: Tensor) -> Tensor:
        _check(tuple(images.shape), str(images.dtype).removeprefix("torch."))
        if self._device_table is None or self._device_table.device != images.device:
            self._device_table = self._build_table(images.device)
        red, green, blue = images.flatten(1, 2).to(torch.int64).unbind(-1)
        return self._device_table[(red << 16) | (green << 8) | blue].to(torch.int64)

    def _build_table(self, device: torch.device) -> Tensor:
        """The token of every colour, int32 (2^24,); computed in float64, so on the CPU for devices without it."""
        every = torch.arange(COLOURS_OF_24_BITS, device="cpu" if device.type == "mps" else device)
        colors = torch.from_numpy(self.colors).to(every.device, torch.float64)
        return _brute_force(every, colors).to(device, torch.int32)

    def _look_up(self, codes: NDArray[np.int32]) -> NDArray[np.uint16]:
        """Tokens of 24-bit colours; searches for the unknown ones first."""
        self._searched += codes.size
        if self._table is None and self._searched <= TABLE_FROM:
            colours, inverse = np.unique(codes, return_inverse=True)
            return self._nearest(colours)[inverse].reshape(codes.shape)
        found = self._shared_table(writable=False)[codes]
        if found.all():
            return found - np.uint16(1)
        new = _distinct(codes[found == 0])
        table = self._shared_table(writable=True)
        for start in range(0, len(new), 1 << 20):
            part = new[start : start + (1 << 20)]
            table[part] = self._nearest(part) + np.uint16(1)
        if len(new) >= SAVE_TABLE_FROM:
            self._write_table(table)
        return table[codes] - np.uint16(1)

    def _shared_table(self, *, writable: bool) -> NDArray[np.uint16]:
        """The table of all threads; a writable one is never replaced, so no write is lost."""
        with _TABLE_LOCK:
            if self._table is None:
                self._table = self._read_table()
            if writable and not self._table.flags.writeable:
                self._table = self._table.copy()
            return self._table

    def _nearest(self, codes: NDArray[np.integer]) -> NDArray[np.uint16]:
        if len(codes) >= TREE_FROM and len(self) > 1:
            with contextlib.suppress(ImportError):
                return self._search_tree(codes)
        return self._search(codes)

    def _search_tree(self, codes: NDArray[np.integer]) -> NDArray[np.uint16]:
        from scipy.spatial import KDTree

        pixels = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], -1) / 127.5 - 1.0
        distances, tokens = KDTree(self.colors.astype(np.float64)).query(pixels, k=2, workers=-1)
        tied = distances[:, 1] - distances[:, 0] < 1e-9  # the tree does not order ties
        tokens = tokens[:, 0].astype(np.uint16)
        tokens[tied] = self._search(codes[tied])
        return tokens

    def _search(self, codes: NDArray[np.integer]) -> NDArray[np.uint16]:
        colors = torch.from_numpy(self.colors.astype(np.float64))
        return _brute_force(torch.from_numpy(codes.astype(np.int64)), colors).numpy().astype(np.uint16)

    def _table_path(self) -> Path:
        return user_cache("colour-tables", self.cache) / f"{self.hash[:32]}.u16"

    def _read_table(self) -> NDArray[np.uint16]:
        with contextlib.suppress(WorkError, ValueError):  # no cache, or a table of another length
            if is_sealed(path := self._table_path()):
                table = np.memmap(path, np.uint16, "r", shape=(COLOURS_OF_24_BITS,))
                if table.max() <= len(self):
                    return table
        return np.zeros(COLOURS_OF_24_BITS, np.uint16)

    def _write_table(self, table: NDArray[np.uint16]) -> None:
        with contextlib.suppress(WorkError):  # a full disk only costs time
            write_sealed(self._table_path(), table.tobytes())

    @classmethod
    def fit(cls, images: NDArray[np.uint8], colors: int = 512, seed: int = 0) -> Palette:
        """k-means on the pixels of uint8 images (B, H, W, 3), weighted by how often each colour occurs.

        The means are rounded to distinct 8-bit colours, so that decoding a token and encoding it again gives the same
        token.
        """
        from sklearn.cluster import KMeans

        codes, occurrences = np.unique(_codes(images.reshape(-1, 3)), return_counts=True)
        counts = occurrences.astype(np.float64)
        if len(codes) < colors:
            raise InputError(
                f"expected at most {len(codes)}, the number of different colours in these images, got {colors}",
                argument="colors",
            )
        rng = np.random.default_rng(seed)
        if len(codes) > 200_000:
            drawn = rng.choice(len(codes), 200_000, replace=False, p=counts / counts.sum(), shuffle=False)
            codes, counts = codes[drawn], np.ones(len(drawn))
        points = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], -1).astype(np.float64)
        means = KMeans(colors, n_init=1, max_iter=60, random_state=seed)
        means.fit(points, sample_weight=counts)
        rgb = _dedupe(np.rint(means.cluster_centers_), points, counts)
        return cls(rgb / 127.5 - 1.0)


def grid_of(tokens: int, columns: int | None) -> tuple[int, int]:
    """Rows and columns of so many tokens; without `columns`, a square. Raises ValueError where they do not fill it."""
    rows = tokens // columns if columns else math.isqrt(tokens)
    if rows * (columns or rows) != tokens:
        expected = f"whole rows of {columns}" if columns else "a square number of"
        raise ValueError(f"tokens: expected {expected} pixels, got {tokens}")
    return rows, columns or rows


def _dedupe(centers: NDArray[np.float64], points: NDArray[np.float64], counts: NDArray) -> NDArray[np.float64]:
    """Replace duplicate centres by the colours with the largest error."""
    kept = np.unique(centers, axis=0)
    missing = len(centers) - len(kept)
    if missing:
        from scipy.spatial import KDTree

        error = counts * KDTree(kept).query(points)[0] ** 2
        kept = np.concatenate([kept, points[np.argsort(-error, kind="stable")[:missing]]])
    return kept


def _brute_force(codes: Tensor, colors: Tensor) -> Tensor:
    """Tokens of 24-bit colours (M,): the nearest of float64 colours (K, 3), the first on ties."""
    at_once = DISTANCES_ON_CPU if codes.device.type == "cpu" else DISTANCES_ON_DEVICE
    return torch.cat([_nearest(part, colors) for part in codes.split(max(1, at_once // len(colors)))])


def _nearest(codes: Tensor, colors: Tensor) -> Tensor:
    pixels = torch.stack([codes >> 16, (codes >> 8) & 255, codes & 255], -1).to(torch.float64) / 127.5 - 1.0
    distances = (pixels[:, None] - colors).square().sum(-1)  # (M, K)
    return distances.argmin(-1)  # documented to be the first of equals


def _distinct(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Distinct 24-bit colours, sorted."""
    if len(codes) < 1 << 16:
        return np.unique(codes).astype(np.int64)
    found = np.zeros(COLOURS_OF_24_BITS, bool)
    found[codes] = True
    return np.flatnonzero(found)


def _codes(pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    wide = pixels.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _check(shape: tuple[int, ...], dtype: str) -> None:
    if len(shape) != 4 or shape[-1] != 3 or dtype != "uint8":
        raise ValueError(f"images: expected uint8 of shape (B, H, W, 3), got {dtype} {shape}")


def save_palette(palette: Palette, path: Path) -> None:
    """Write a .npy file for Palette.read, atomically."""
    with new_file(path) as file:
        np.save(file, palette.colors)
