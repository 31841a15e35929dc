"""The Tokenizer protocol: all that the network, drawing and scoring know about pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from nextpixel.config import ImageGPTConfig, Size
from nextpixel.errors import InputError
from nextpixel.files import new_file, new_folder, new_output, read_json, write_json
from nextpixel.limits import read_bytes
from nextpixel.progress import progress
from nextpixel.tokens.exact import ExactPalette
from nextpixel.tokens.learned import Learned
from nextpixel.tokens.palette import Palette
from nextpixel.tokens.patches import Patches

FILE = "tokenizer.safetensors"  # the arrays of a tokenizer, beside the JSON file of its other values
FILE_BYTES = 1 << 28
FACTS = "tokenizer.json"  # in the folder of a tokenizer
IMAGES_AT_ONCE = 64
ROUNDING = 1 / 12  # mean squared error


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
        """Images of tokens (B, T), or of any number of whole rows; `columns` of the grid; default: square.

        Where pixels depend on tokens around theirs, the last rows may change with those that follow.
        """

    def values(self) -> dict[str, Any]:
        """The arguments of `from_values`: JSON and numpy arrays, written beside the weights and into a run."""

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> Tokenizer:
        """Raises InputError, KeyError, TypeError or ValueError for values of anything else."""


KINDS: dict[str, type[Tokenizer]] = {one.kind: one for one in (Palette, ExactPalette, Patches, Learned)}


def read_tokenizer(values: dict[str, Any], folder: Path | None = None, cache: str | Path | None = None) -> Tokenizer:
    """The tokenizer of `values`, which include its kind, with its arrays, if any, in that folder.

    Raises as from_values does, and InputError for the arrays of another tokenizer.
    """
    kind = dict(values).get("kind", Palette.kind)
    if kind not in KINDS:
        raise InputError(f"expected a tokenizer of kind {', '.join(KINDS)}, got {kind!r}")
    if "arrays" not in values or folder is None:
        return KINDS[kind].from_values(values, cache)
    path = folder / FILE
    try:
        arrays = load(read_bytes(path, FILE_BYTES))
    except (OSError, ValueError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"something unreadable ({error})"
        raise InputError(f"{path}: expected the arrays of a tokenizer ({kind}), got {reason}") from None
    found = KINDS[kind].from_values(values | arrays, cache)
    if found.hash != values.get("sha256"):
        raise InputError(f"{path}: expected the arrays of the tokenizer {values.get('sha256')}, got those of another")
    return found


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """JSON for `read_tokenizer`; writes the tokenizer's arrays, if any, into the folder. Raises WorkError."""
    values = tokenizer.values()
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    facts: dict[str, Any] = {"kind": tokenizer.kind, "sha256": tokenizer.hash}
    if arrays:
        with new_file(folder / FILE) as file:
            file.write(save(arrays))
        facts |= {"arrays": sorted(arrays)}
    if tokenizer.patch != (1, 1):
        facts |= {"patch": list(tokenizer.patch)}
    return facts | {name: value for name, value in values.items() if name not in arrays}


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, facts: dict[str, Any]) -> None:
    """Write a new folder for `load_tokenizer`, with more `facts` in its JSON file. Raises InputError and WorkError."""
    with new_folder(new_output(folder)) as part:
        write_json(part / FACTS, facts | write_tokenizer(tokenizer, part))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder that `save_tokenizer` wrote. Raises InputError."""
    path = Path(folder) / FACTS
    if not path.is_file() and (path.parent / "run.json").is_file():
        raise InputError(
            f"expected a finished tokenizer, got {str(folder)!r}, whose training has not ended; resume it: nextpixel "
            f"tokenizer `resume={folder}`",
            argument="tokenizer",
        )
    if not path.is_file():
        raise InputError(
            f"expected a folder that nextpixel tokenizer wrote, with {FACTS}, got {str(folder)!r}", argument="tokenizer"
        )
    try:
        return read_tokenizer(read_json(path), path.parent)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a tokenizer, got a problem with {error}") from None


def fitted_side(folder: str | Path) -> Any:
    """The `side` to which the tokenizer of a folder was fitted, if its facts say so. Raises InputError."""
    load_tokenizer(folder)
    return (read_json(Path(folder) / FACTS).get("fitted") or {}).get("side")


def exact_colours(tokenizer: Tokenizer) -> NDArray[np.uint8] | None:
    """The colours (K, 4) of an exact palette; None for other tokenizers."""
    return tokenizer.rgba if isinstance(tokenizer, ExactPalette) else None


def picture_size(patch: Sequence[int], shape: ImageGPTConfig) -> Size:
    """Height and width, in pixels, of a model's pictures."""
    return shape.rows * patch[0], shape.columns * patch[1]


def pixels_of(tokenizer: Tokenizer) -> int:
    """The number of pixels that a token stands for."""
    return math.prod(tokenizer.patch)


def covers_pixels(tokenizer: Tokenizer) -> bool:
    """Whether a token stands for several pixels, whose detail it loses."""
    return pixels_of(tokenizer) > 1


def reconstruct(tokenizer: Tokenizer, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (B, H, W, C), decoded from their tokens."""
    return tokenizer.decode(tokenizer.encode(np.ascontiguousarray(images)), images.shape[2] // tokenizer.patch[1])


@dataclass(frozen=True)
class Reconstruction:
    """How well the tokens of some images reconstruct them."""

    psnr_db: float
    """Mean over images of the peak signal-to-noise ratio, in dB; of an exact one 58.9, that of rounding to 8 bits."""
    psnr_of_mean_error_db: float
    """The ratio for the mean squared error of all images."""
    codes_used: float
    """Share of the vocabulary among the tokens."""

    @classmethod
    def of(cls, errors: NDArray[np.float64], used: NDArray[np.bool_]) -> Reconstruction:
        """That of what reconstruction_errors returns."""
        each, of_mean = (10 * np.log10(255.0**2 / np.maximum(error, ROUNDING)) for error in (errors, errors.mean()))
        return cls(float(each.mean()), float(of_mean), float(used.mean()))


def reconstruction(tokenizer: Tokenizer, images: NDArray[np.uint8]) -> Reconstruction:
    """The quality of images uint8 (N, H, W, C), decoded from their tokens."""
    return Reconstruction.of(*reconstruction_errors(tokenizer, images))


def reconstruction_errors(
    tokenizer: Tokenizer, images: NDArray[np.uint8], device: torch.device | str = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The mean squared error (N,) of each image, decoded from its tokens, and which tokens these are, (K,)."""
    errors, used = [], np.zeros(len(tokenizer), bool)
    with progress("reconstructing", len(images), "images") as advance:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            part = np.ascontiguousarray(images[start : start + IMAGES_AT_ONCE])
            tokens = tokenizer.encode(torch.tensor(part, device=device))
            used[tokens.unique().cpu().numpy()] = True
            again = tokenizer.decode(tokens, part.shape[2] // tokenizer.patch[1])
            errors.append(np.square(again.astype(np.float64) - part).mean((1, 2, 3)))
            advance(len(part))
    return np.concatenate(errors), used
