"""Encoded sets: the tokens of a decoded set, in a memory map."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nextpixel.data.decoded import DecodedSet
from nextpixel.files import new_file, user_cache
from nextpixel.progress import progress
from nextpixel.tokens import Tokenizer

IMAGES_AT_ONCE = 256


def encode_set(
    decoded: DecodedSet, tokenizer: Tokenizer, *, mirrored: bool, device: str = "cpu", cache: str | Path | None = None
) -> NDArray[np.uint16]:
    """Tokens (N, 1, T) of a set, or (N, 2, T): of each picture and, if `mirrored`, of its mirror image.

    Encoded once on the device, then read from the cache.
    """
    key = hashlib.sha256(f"{decoded.key} {tokenizer.hash} {mirrored}".encode()).hexdigest()[:32]
    path = user_cache("tokens", cache) / f"{key}.npy"
    rows, columns = (pixels // side for pixels, side in zip(decoded.images.shape[1:3], tokenizer.patch))
    shape = len(decoded), 1 + mirrored, rows * columns
    with suppress(OSError, EOFError, ValueError):  # missing or damaged
        if (found := np.load(path, mmap_mode="r")).shape == shape:
            return found
    with new_file(path) as file, progress("encoding", len(decoded), "images") as advance:
        header = {"descr": np.dtype(np.uint16).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(decoded), IMAGES_AT_ONCE):
            images = decoded.images[start : start + IMAGES_AT_ONCE]
            views = [images, images[:, :, ::-1]][: 1 + mirrored]
            tokens = [tokenizer.encode(torch.from_numpy(np.array(view)).to(device)).cpu().numpy() for view in views]
            file.write(np.stack(tokens, 1).astype(np.uint16).tobytes())
            advance(len(images))
    return np.load(path, mmap_mode="r")
