"""Classification by captions: how much likelier a picture is with a caption than without, by Bayes' rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import check_keywords
from nextpixel.data.labels import labels_of
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import image_nats, require_autoregressive
from nextpixel.images.sources import load_images, open_source
from nextpixel.network.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.representation.probing import LinearProbe
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


@check_keywords()
def word_probabilities(
    model: ImageGPT, images: Any, *, split: str | None = None, dtype: str = "fp32"
) -> NDArray[np.float64]:
    """p(word | picture) of each word of the model, (N, words), in the order of model.words.table.

    By Bayes, word by word: the share of the training captions that have the word times p(picture | the word alone as
    caption) / p(picture), at most 1. Raises InputError for a model without words.
    """
    table = () if model.words is None else model.words.table
    pictures = load_images(images, model.size, split=split, fit=model.fit, levels=model.levels)
    gains = caption_gains(model, pictures, table or [""], dtype=dtype)
    assert model.words is not None
    shares = np.array(model.words.shares or [UNKNOWN_SHARE] * len(table))
    return np.exp(np.minimum(gains + np.log(shares), 0))


def tag_probabilities(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(caption | picture) (N, captions) of captions of which exactly one is right, equally likely beforehand."""
    powers = np.exp(gains - gains.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@dataclass(frozen=True)
class NamingScore:
    """Accuracies on the same test images."""

    images: int
    by_captions: float
    """Of the class under whose caption a picture is most likely."""
    by_probe: float
    """Of a linear probe of the same model's best layer."""

    @property
    def worse(self) -> str:
        """The less accurate of both, or "neither"."""
        if self.by_captions == self.by_probe:
            return "neither"
        return "captions" if self.by_captions < self.by_probe else "probe"


def compare_with_probe(
    model: ImageGPT, train: Any, test: Any, captions: Mapping[str, str] | None = None, *, dtype: str = "fp32"
) -> NamingScore:
    """Classify labelled test images by captions, and by a probe fitted on labelled training images.

    `captions` gives the caption of each class; by default its name. Raises InputError for images without labels and
    captions the model cannot take.
    """
    source = open_source(test)
    labels = [str(label) for label in labels_of(source)]
    classes = sorted(set(labels))
    caption_of = {name: name for name in classes} if captions is None else captions
    if missing := [name for name in classes if name not in caption_of]:
        raise InputError(f"expected a caption for each class, got none for {missing[0]!r}", argument="captions")
    pictures = load_images(source, model.size, fit=model.fit, levels=model.levels)
    gains = caption_gains(model, pictures, [caption_of[name] for name in classes], dtype=dtype)
    named = np.array(classes)[gains.argmax(1)]
    probe = LinearProbe(model, pooling="mean").fit(train)
    return NamingScore(len(labels), float((named == np.array(labels)).mean()), probe.score(source))
