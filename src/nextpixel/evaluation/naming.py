"""Classification by captions: how much likelier a picture is with a caption than without, by Bayes' rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nextpixel.evaluation.likelihood import image_nats, require_autoregressive
from nextpixel.network.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.tokens.words import encode_captions

UNKNOWN_SHARE = 0.5  # prior of a word in tables without shares


def caption_gains(
    model: ImageGPT,
    images: NDArray[np.uint8],
    captions: Sequence[str],
    *,
    dtype: str = "fp32",
    argument: str = "captions",
) -> NDArray[np.float64]:
    """ln p(picture | caption) - ln p(picture), (N, captions), of images uint8 (N, H, W, C) at the model's size.

    One pass over the images for each caption, and one without. Raises InputError, which names `argument`, for captions
    the model cannot take.
    """
    require_autoregressive(model)
    tags = encode_captions(model.words, list(captions), argument)
    pixels = images.shape[1] * images.shape[2]
    plain = image_nats(model, images, dtype=dtype).astype(np.float64)
    gains = np.empty((len(images), len(tags)))
    with progress("naming", len(tags), "captions") as advance:
        for i, tag in enumerate(tags):
            gains[:, i] = pixels * (plain - image_nats(model, images, tags=tag[None], dtype=dtype))
            advance(1)
    return gains


def word_probabilities(model: ImageGPT, images: NDArray[np.uint8], *, dtype: str = "fp32") -> NDArray[np.float64]:
    """p(word | picture) of each word of the model, (N, words), of images uint8 (N, H, W, C) at the model's size.

    By Bayes, word by word: the share of the training captions that have the word times p(picture | the word alone as
    caption) / p(picture), at most 1; in the order of model.words.table. Raises InputError for a model without words.
    """
    table = () if model.words is None else model.words.table
    gains = caption_gains(model, images, table or [""], dtype=dtype)
    assert model.words is not None
    shares = np.array(model.words.shares or [UNKNOWN_SHARE] * len(table))
    return np.exp(np.minimum(gains + np.log(shares), 0))


def tag_probabilities(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(caption | picture) (N, captions) of captions of which exactly one is right, equally likely beforehand."""
    from scipy.special import softmax

    probabilities: NDArray[np.float64] = softmax(gains, axis=1)
    return probabilities
