"""Features: hidden states of any layers, averaged over pixels, as the paper's linear probes take them."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.data import masks
from nextpixel.devices import autocast
from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage, fit_square
from nextpixel.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.sources import Source, load_images, open_source

BATCH_IMAGES = 16
CHUNK_IMAGES = 512


def features(
    model: ImageGPT,
    images: Any,
    layer: int | Sequence[int] | None = None,
    *,
    split: str | None = None,
    dtype: str = "fp32",
    start_token: bool = True,
    mask_seed: int | None = None,
) -> NDArray[np.float32]:
    """Features (N, D) of each image: the mean over its pixels of n^l, the paper's hidden state.

    n^l is the stream before block l after that block's first norm, 0 <= l < L, and n^L what the final norm gives
    (Chen et al. 2020, section 2.3). Several layers are concatenated, (N, len(layer) * D), in the order given. Nothing
    behind the deepest of them is computed. Without `layer` the middle one is taken: the best tend to lie there.
    `start_token=False` gives the features of programs that feed pixels alone (transformers' image processor does): for
    comparison only, since the network was trained with the start token and every pixel one place further on.
    A masked model is shown every pixel unless `mask_seed` is given: then 15 % of them are hidden, as in training and in
    the paper's evaluation, chosen by (mask_seed, place of the image among these).
    Raises InputError for bad images, a layer the model does not have, or a mask for a model that was trained without.
    """
    layers = check_layers(model, model.config.layers // 2 if layer is None else layer)
    squares = load_images(images, model.config.side, split=split, fit=model.fit)
    tokens = model.palette.encode(squares)
    found = pooled(model, tokens, layers, dtype=dtype, shifted=start_token, mask_seed=mask_seed)
    return found.reshape(len(squares), -1)


def check_layers(model: ImageGPT, layer: int | Sequence[int]) -> list[int]:
    """The layers as a list, each of them one the model has."""
    try:
        given = list(layer) if isinstance(layer, Iterable) else [layer]
        layers = [operator.index(number) for number in given if not isinstance(number, bool)]
    except TypeError:
        given = layers = []
    if not layers or len(layers) < len(given) or not all(0 <= number <= model.config.layers for number in layers):
        raise InputError(f"--layer: expected whole numbers from 0 to {model.config.layers}, got {layer!r}")
    return layers


@torch.inference_mode()
def pixel_features(model: ImageGPT, images: Any, layer: int, *, split: str | None = None) -> NDArray[np.float32]:
    """n^l at every pixel, float32 (N, H, W, D): what the model knew of the pixels before it when scoring that one."""
    [layer] = check_layers(model, layer)
    side = model.config.side
    tokens = model.palette.encode(load_images(images, side, split=split, fit=model.fit))
    parts = []
    for batch in tokens.split(BATCH_IMAGES):
        for _, hidden in model.hidden(batch.to(model.device), [layer]):
            parts.append(hidden.float().cpu().numpy().reshape(len(batch), side, side, -1))
    return np.concatenate(parts)


def model_hash(model: ImageGPT) -> str:
    """Hex SHA-256 of what its features depend on: shape, objective, colours and weights."""
    found = hashlib.sha256(f"{model.config} {model.palette.hash}".encode())
    for parameter in model.parameters():
        found.update(parameter.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def features_name(model: ImageGPT, layers: Sequence[int], kind: str = "igpt") -> str:
    """What these features are called beside numbers made of them, as in "igpt-3f2a9c layer 3"."""
    numbers = ",".join(map(str, layers))
    return f"{kind}-{model_hash(model)[:6]} layer{'s' if len(layers) > 1 else ''} {numbers}"


def extract_chunks(
    model: ImageGPT,
    source: Source,
    layers: Sequence[int],
    parts: Path,
    *,
    dtype: str = "fp32",
    part: tuple[int, int] = (0, 1),
) -> list[Path]:
    """Write the chunks that `parts` does not hold yet, or of those the i-th of every n, `part` (i, n); see extract."""
    facts = f"{source.fingerprint()} {list(layers)} {dtype} {model.fit} {CHUNK_IMAGES} {model_hash(model)}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    parts.mkdir(exist_ok=True)
    starts = range(0, len(source), CHUNK_IMAGES)
    paths = [parts / f"{key}-{start:09d}.npz" for start in starts]
    for start, path in list(zip(starts, paths, strict=True))[part[0] :: part[1]]:
        if not path.is_file():
            squares, kept, lost = _readable(source, range(start, min(start + CHUNK_IMAGES, len(source))), model)
            values = pooled(model, model.palette.encode(squares), layers, dtype=dtype) if kept else np.empty((0, 0, 0))
            with path.with_suffix(".tmp").open("wb") as file:
                np.savez(file, values=values.reshape(len(kept), -1), kept=np.array(kept, np.int64), lost=np.array(lost))
            path.with_suffix(".tmp").replace(path)
    return paths


def extract(
    model: ImageGPT,
    images: Any,
    layers: Sequence[int],
    parts: Path,
    *,
    split: str | None = None,
    dtype: str = "fp32",
) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Features (N, len(layers) * D) of any number of images, their names, and a line for each unreadable one.

    Finished chunks are kept in the folder `parts`, so that a stopped extraction goes on where it was; the caller
    removes it once the result is safe. Chunks of other images, layers or weights are not taken for these.
    """
    source = open_source(images, split)
    found, names, unreadable = [], [], []
    for path in extract_chunks(model, source, layers, parts, dtype=dtype):
        with np.load(path, allow_pickle=False) as chunk:
            found.append(chunk["values"].astype(np.float32))
            names += [source.names[i] for i in chunk["kept"].tolist()]
            unreadable += chunk["lost"].tolist()
    if not names:
        raise InputError(f"{source.source_name}: no picture can be read: {unreadable[0]}")
    return np.concatenate([part for part in found if len(part)]), names, unreadable


def _readable(source: Source, numbers: range, model: ImageGPT) -> tuple[NDArray[np.uint8], list[int], list[str]]:
    """The squares of those that can be read, their numbers, and what is wrong with the others."""
    squares, kept, lost = [], [], []
    for number in numbers:
        try:
            squares.append(fit_square(source.read(number), model.config.side, fit=model.fit))
            kept.append(number)
        except UnreadableImage as error:
            lost.append(str(error))
    return np.stack(squares) if squares else np.empty((0, 0, 0, 3), np.uint8), kept, lost


@torch.inference_mode()
def pooled(
    model: ImageGPT,
    tokens: Tensor,
    layers: Sequence[int],
    *,
    dtype: str = "fp32",
    shifted: bool = True,
    mask_seed: int | None = None,
) -> NDArray[np.float32]:
    """Means over pixels (N, len(layers), D) of tokens (N, T).

    `shifted=False` feeds pixel t into slot t, without the start token. `mask_seed` hides pixels from a masked model,
    by (mask_seed, row of `tokens`), see data.masks; without it every pixel is shown. The mean is over all of them.
    Raises InputError for the mask of a model that is not masked.
    """
    if mask_seed is not None and model.config.objective != "masked":
        raise InputError(
            f"mask_seed: expected None for a model of the {model.config.objective} objective, got {mask_seed}; only "
            "masked models were trained with hidden pixels"
        )
    shifted = shifted or model.config.objective == "masked"  # which has no start token to leave out
    device = str(model.device)
    parts = np.empty((len(tokens), len(layers), model.config.width), np.float32)
    with progress("features", len(tokens), "images") as advance:
        for start in range(0, len(tokens), BATCH_IMAGES):
            batch = tokens[start : start + BATCH_IMAGES].to(device)
            masked = None
            if mask_seed is not None:
                numbers = np.arange(start, start + len(batch))
                masked = torch.from_numpy(masks(numbers, tokens.shape[1], seed=mask_seed)).to(device)
            with autocast(device, dtype):
                for layer, hidden in model.hidden(batch, set(layers), masked, shifted=shifted):
                    mean = hidden.float().mean(1).cpu().numpy()
                    for place in (i for i, wanted in enumerate(layers) if wanted == layer):
                        parts[start : start + len(batch), place] = mean
            advance(len(batch))
    return parts
