"""Scores: nats per pixel and per-pixel surprise, as the paper defines them (all T pixels, start vector included)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nextpixel.devices import autocast
from nextpixel.model import ImageGPT, cross_entropy
from nextpixel.progress import progress
from nextpixel.sources import load_images

BATCH_IMAGES = 16


def nll(model: ImageGPT, images: Any, *, split: str | None = None) -> NDArray[np.float32]:
    """Nats per pixel of each image, (N,): the mean over its pixels of -ln p(pixel | pixels before it)."""
    squares = load_images(images, model.config.side, split=split)
    return np.concatenate([part.mean((1, 2)) for part in square_nats(model, squares)])


def surprise(model: ImageGPT, images: Any, *, split: str | None = None) -> NDArray[np.float32]:
    """-ln p of every pixel given those before it, (N, H, W) nats."""
    squares = load_images(images, model.config.side, split=split)
    return np.concatenate(list(square_nats(model, squares)))


@torch.inference_mode()
def square_nats(model: ImageGPT, squares: NDArray[np.uint8], *, dtype: str = "fp32") -> Iterator[NDArray[np.float32]]:
    """-ln p of every pixel of squares uint8 (N, H, W, 3) at the model's side, in parts (b, H, W)."""
    palette, device, side = model.palette, str(model.device), model.config.side
    with progress("scoring", len(squares), "images") as advance:
        for start in range(0, len(squares), BATCH_IMAGES):
            tokens = palette.encode(np.ascontiguousarray(squares[start : start + BATCH_IMAGES])).to(device)
            with autocast(device, dtype):
                logits = model(tokens)
            nats = cross_entropy(logits, tokens, reduction="none")
            yield nats.float().cpu().numpy().reshape(-1, side, side)
            advance(len(tokens))
