"""Nats per pixel and per-pixel surprise as in the paper: over all T pixels, the first given the start vector."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import check_keywords
from nextpixel.data.captions import captions_of
from nextpixel.data.decoded import DecodedSet, decode
from nextpixel.data.labels import labels_of_readable, seen_before
from nextpixel.errors import InputError
from nextpixel.images.sources import Source, load_images, open_source, sprites_of
from nextpixel.network.losses import cross_entropy, masked_cross_entropy
from nextpixel.network.model import ImageGPT
from nextpixel.representation.extraction import model_hash
from nextpixel.representation.scoring import BATCH_IMAGES, Arrays, Runner, batches, by_chunks, pixel_maps
from nextpixel.tokens import Reconstruction, covers_pixels, pixels_of, reconstruction_errors

OPENAI_BATCH = 64
Protocol = Literal["all", "openai"]


@check_keywords()
def nll(
    model: ImageGPT, images: Any, *, split: str | None = None, captions: str | Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Nats per pixel of each image, (N,): the mean over its pixels of -ln p(pixel | pixels before it).

    With `captions` given these: one for each image, or where they come from, see image_tags.
    """
    require_autoregressive(model)
    source = sprites_of(open_source(images, split), model.size, model.fit, model.levels)
    tags = None if captions is None else image_tags(model, source, captions)
    return image_nats(model, load_images(source, model.size, fit=model.fit, levels=model.levels), tags=tags)


@check_keywords()
def surprise(model: ImageGPT, images: Any, *, split: str | None = None) -> NDArray[np.float32]:
    """-ln p of every pixel given those before it, (N, H, W) nats."""
    squares = load_images(images, model.size, split=split, fit=model.fit, levels=model.levels)
    return np.concatenate(list(square_nats(model, squares)))


@dataclass(frozen=True)
class Evaluation:
    """The paper's metrics of a model on a set of images."""

    images: int
    nats_per_pixel: float
    """Mean over images and all T pixels; of a masked model, over the hidden pixels of each image."""
    standard_error: float
    """Of the mean over images."""
    bits_per_pixel: float
    """nats_per_pixel / ln 2: bits per pixel of the tokens, not bits per dimension of the original colours."""
    images_per_second: float
    """Of one process."""
    protocol: Protocol
    unreadable: list[str]
    """A line for each file that was skipped because it cannot be read."""
    training_images: int | None = None
    """Number of images that equal a training image in every pixel; None where those are unknown."""
    nats_per_pixel_without_them: float | None = None
    """The mean without them; None where there are none, or no others."""
    nats_per_pixel_without_captions: float | None = None
    """The mean without the captions; None where none were given."""
    nats_per_token: float | None = None
    """The mean where a token covers several pixels; None where it is a pixel."""
    reconstruction: Reconstruction | None = None
    """How well such tokens reconstruct these images: a limit for the model's pictures."""


def evaluate(
    model: ImageGPT,
    images: Any,
    *,
    split: str | None = None,
    captions: str | Sequence[str] | None = None,
    protocol: Protocol = "all",
    dtype: str = "fp32",
    seed: int = 0,
    seen: NDArray[np.bool_] | None = None,
    run: Runner | None = None,
) -> Evaluation:
    """Nats per pixel of a set of images.

    captions  score the images given these, see image_tags
    protocol  "openai" drops the last partial batch of 64, as openai/image-gpt does
    seed      chooses, with the image's number, the pixels that are hidden from a masked model (probability 0.15)
    seen      (N,) the readable images that are training images, see find_training_images
    run       computes nats, a list of tasks, see by_chunks

    Raises InputError for bad images, or for fewer than 64 of them under "openai".
    """
    tags = None
    if captions is None:
        squares, unreadable = read_squares(model, images, split)
    else:
        source = open_source(images, split)
        decoded = decode(source, model.size, fit=model.fit, levels=model.levels)
        squares, unreadable, tags = decoded.images, decoded.unreadable, image_tags(model, source, captions, decoded)
    if protocol == "openai":
        squares = squares[: len(squares) // OPENAI_BATCH * OPENAI_BATCH]
        if not len(squares):
            raise InputError(
                f"openai needs at least {OPENAI_BATCH} images, got fewer; expected all", argument="protocol"
            )

    tokenizer, patches = model.tokenizer, covers_pixels(model.tokenizer)

    def measure(rows: slice) -> Arrays:
        start, own = time.perf_counter(), None if tags is None else tags[rows]
        nats = image_nats(model, squares[rows], dtype=dtype, seed=seed, tags=own, first=rows.start)
        found: dict[str, NDArray[Any]] = {"nats": nats, "seconds": np.array([time.perf_counter() - start])}
        if tags is not None:
            found["bare"] = image_nats(model, squares[rows], dtype=dtype)
        if patches:
            errors, used = reconstruction_errors(tokenizer, squares[rows], model.device)
            found |= {"errors": errors, "used": used[None]}
        return found

    given = None if tags is None else tags.numpy()
    facts = [] if run is None else [model_hash(model), dtype, seed, squares, given]
    found = by_chunks(measure, len(squares), run, facts)
    nats, bare = found["nats"], mean_and_error(found["bare"])[0] if "bare" in found else None
    mean, error = mean_and_error(nats)
    known, without = None, None
    if seen is not None:
        seen = seen[: len(nats)]
        known, without = int(seen.sum()), float(nats[~seen].mean()) if 0 < seen.sum() < len(seen) else None
    return Evaluation(
        len(nats),
        mean,
        error,
        mean / math.log(2),
        len(nats) / float(found["seconds"].sum()),
        protocol,
        unreadable,
        known,
        without,
        bare,
        nats_per_token=mean * pixels_of(tokenizer) if patches else None,
        reconstruction=Reconstruction.of(found["errors"], np.logical_or.reduce(found["used"])) if patches else None,
    )


def image_tags(
    model: ImageGPT, source: Source, captions: str | Sequence[str], decoded: DecodedSet | None = None
) -> Tensor:
    """The tags (N, TAGS, w) of the images of a source, or of those that could be decoded, see Words.encode.

    `captions` are one for each image, whose words the model must know, or where they come from, see captions_of; words
    of these that it does not know are left out. Raises InputError, also for a model without words.
    """
    if model.words is None:
        raise InputError("expected none, as the model was trained without captions", argument="captions")
    source = sprites_of(source, model.size, model.fit, model.levels)
    texts = captions_of(source, captions)
    texts = texts if decoded is None else labels_of_readable(texts, source, decoded)
    return model.words.encode(texts.tolist(), strict=not isinstance(captions, str), argument="captions")


def find_training_images(
    train: DecodedSet, model: ImageGPT, images: Any, split: str | None = None
) -> NDArray[np.bool_]:
    """Which images of a source equal a training image in every pixel, (N,); reports how many."""
    source = open_source(images, split)
    found = decode(source, train.images.shape[1:3], fit=model.fit, levels=model.levels)
    return seen_before(train.images, found.images, source.source_name)


def read_squares(model: ImageGPT, images: Any, split: str | None = None) -> tuple[NDArray[np.uint8], list[str]]:
    """Squares at the model's side, and a line for each unreadable file.

    Files are decoded once and cached, unreadable ones skipped; images in memory are used directly.
    """
    given = images if isinstance(images, list | tuple) else [images]
    if all(isinstance(one, str | os.PathLike) for one in given):
        found = decode(images, model.size, split=split, fit=model.fit, levels=model.levels)
        return found.images, found.unreadable
    return load_images(images, model.size, split=split, fit=model.fit, levels=model.levels), []


def image_nats(
    model: ImageGPT,
    squares: NDArray[np.uint8],
    *,
    dtype: str = "fp32",
    seed: int = 0,
    tags: NDArray[np.int64] | Tensor | None = None,
    first: int = 0,
    batch_images: int = BATCH_IMAGES,
) -> NDArray[np.float32]:
    """Nats per pixel (N,) of squares at the model's side; of a masked model, per hidden pixel (see hidden_nats).

    `tags` (1 or N, TAGS, w) are those of their captions, see Words.encode.
    """
    if model.config.objective == "masked":
        hidden = hidden_nats(model, squares, dtype=dtype, seed=seed, first=first, batch_images=batch_images)
        return np.concatenate(list(hidden))
    parts = square_nats(model, squares, dtype=dtype, tags=tags, batch_images=batch_images)
    return np.concatenate([part.mean((1, 2)) for part in parts])


def require_autoregressive(model: ImageGPT) -> None:
    """Raises InputError for a masked model."""
    if model.config.objective == "masked":
        raise InputError(
            "a masked model gives no likelihood of a picture; nextpixel evaluate scores its hidden pixels, and an "
            "autoregressive model scores pictures"
        )


def mean_and_error(values: NDArray[np.floating]) -> tuple[float, float]:
    """The mean and its standard error, in float64; 0 for a single value."""
    values = values.astype(np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def square_nats(
    model: ImageGPT,
    squares: NDArray[np.uint8],
    *,
    dtype: str = "fp32",
    tags: NDArray[np.int64] | Tensor | None = None,
    batch_images: int = BATCH_IMAGES,
) -> Iterator[NDArray[np.float32]]:
    """-ln p of every pixel of squares uint8 (N, H, W, 3) at the model's side, in batches (b, H, W).

    The nats of a token are spread evenly over its pixels. `tags` are as for image_nats.
    """
    require_autoregressive(model)
    own = None if tags is None else torch.as_tensor(tags).expand(len(squares), -1, -1).split(batch_images)
    captions = iter(own or ())  # `batches` cuts alike

    def nats(tokens: Tensor, _: Tensor | None) -> NDArray[np.float32]:
        extra = {} if own is None else {"tags": next(captions).to(tokens.device)}
        return pixel_maps(model, cross_entropy(model(tokens, **extra), tokens, reduction="none"))

    return batches(model, squares, nats, dtype=dtype, batch_images=batch_images)


def hidden_nats(
    model: ImageGPT,
    squares: NDArray[np.uint8],
    *,
    dtype: str = "fp32",
    seed: int = 0,
    first: int = 0,
    batch_images: int = BATCH_IMAGES,
) -> Iterator[NDArray[np.float32]]:
    """Mean -ln p of each image's hidden pixels given the others, in batches (b,), by a masked model.

    Pixels are hidden by `seed` and the image's number, from `first`.
    """
    pixels = pixels_of(model.tokenizer)  # of a token

    def nats(tokens: Tensor, masked: Tensor | None) -> NDArray[np.float32]:
        assert masked is not None
        losses = masked_cross_entropy(model(tokens, masked), tokens, masked)
        return (losses.float().cpu().numpy() / pixels).astype(np.float32)

    return batches(model, squares, nats, dtype=dtype, mask_seed=seed, first=first, batch_images=batch_images)
