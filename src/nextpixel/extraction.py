"""Features: hidden states of any layers, averaged over pixels, as the paper's linear probes take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.devices import autocast
from nextpixel.errors import InputError
from nextpixel.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.sources import load_images

BATCH_IMAGES = 16


def features(
    model: ImageGPT,
    images: Any,
    layer: int | Sequence[int] | None = None,
    *,
    split: str | None = None,
    dtype: str = "fp32",
    start_token: bool = True,
) -> NDArray[np.float32]:
    """Features (N, D) of each image: the mean over its pixels of n^l, the paper's hidden state.

    n^l is the stream before block l after that block's first norm, 0 <= l < L, and n^L what the final norm gives
    (Chen et al. 2020, section 2.3). Several layers are concatenated, (N, len(layer) * D), in the order given. Nothing
    behind the deepest of them is computed. Without `layer` the middle one is taken: the best tend to lie there.
    `start_token=False` gives the features of programs that feed pixels alone (transformers' image processor does): for
    comparison only, since the network was trained with the start token and every pixel one place further on.
    Raises InputError for bad images or a layer the model does not have.
    """
    layers = check_layers(model, model.config.layers // 2 if layer is None else layer)
    squares = load_images(images, model.config.side, split=split, fit=model.fit)
    return pooled(model, model.palette.encode(squares), layers, dtype=dtype, shifted=start_token).reshape(
        len(squares), -1
    )


def check_layers(model: ImageGPT, layer: int | Sequence[int]) -> list[int]:
    """The layers as a list, each of them one the model has."""
    layers = [layer] if isinstance(layer, int) else list(layer)
    if not layers or not all(isinstance(number, int) and 0 <= number <= model.config.layers for number in layers):
        raise InputError(f"--layer: expected whole numbers from 0 to {model.config.layers}, got {layer!r}")
    return layers


@torch.inference_mode()
def pooled(
    model: ImageGPT, tokens: Tensor, layers: Sequence[int], *, dtype: str = "fp32", shifted: bool = True
) -> NDArray[np.float32]:
    """Means over pixels (N, len(layers), D) of tokens (N, T); a masked model is shown every pixel.

    `shifted=False` feeds pixel t into slot t, without the start token.
    """
    device = str(model.device)
    parts = np.empty((len(tokens), len(layers), model.config.width), np.float32)
    with progress("features", len(tokens), "images") as advance:
        for start in range(0, len(tokens), BATCH_IMAGES):
            batch = tokens[start : start + BATCH_IMAGES].to(device)
            with autocast(device, dtype):
                for layer, hidden in model.hidden(batch, set(layers), shifted=shifted):
                    mean = hidden.float().mean(1).cpu().numpy()
                    for place in (i for i, wanted in enumerate(layers) if wanted == layer):
                        parts[start : start + len(batch), place] = mean
            advance(len(batch))
    return parts
