"""The network, the tokenizer and the words that a pretraining run starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray

from nextpixel.checkpoints import load
from nextpixel.config import MODERN, WORDS, Fit, ImageGPTConfig, Levels, PretrainConfig, Size, to_side, to_size
from nextpixel.data.captions import captions_of
from nextpixel.data.decoded import DecodedSet, decode, split_indices
from nextpixel.data.labels import labels_of_readable
from nextpixel.errors import InputError
from nextpixel.images.sources import open_source, sprites_of, with_canvas
from nextpixel.network.model import ImageGPT
from nextpixel.tokens import fitted_side
from nextpixel.tokens.words import Words
from nextpixel.training.tokenizers import choose_tokenizer, wanted_colours


def with_side(config: PretrainConfig) -> PretrainConfig:
    """With `tokenizer`, the default side is that to which it was fitted."""
    if config.tokenizer is None or config.side is not None:
        return config
    return replace(config, side=fitted_side(config.tokenizer))


def continued(config: PretrainConfig, shape: ImageGPTConfig) -> PretrainConfig:
    """With `init`, the default preset is that of its network."""
    if config.preset is not None or config.init is None:
        return config
    modern = any(getattr(shape, name) != getattr(ImageGPTConfig, name) for name in MODERN)
    return replace(config, preset="modern" if modern else "classic")


def load_init(init: str, config: PretrainConfig, words: Words | None = None) -> ImageGPT:
    """The model of `init`, with these words where it has none."""
    model = load(init)
    model.set_classes(())
    if words is not None and model.words is None:
        model.set_words(words, config.seed)
    model.fit, model.levels = config.fit or model.fit, config.levels.over(model.levels)
    return model


def initial_model(config: PretrainConfig, images: Any, split: str | None) -> tuple[ImageGPT, Any, NDArray[Any] | None]:
    """The model of `init`, or one without weights, with words for the captions; the images and their captions (N,)."""
    if config.init:
        model = load_init(config.init, config)
        if config.words is not None and model.words is not None:
            raise InputError("cannot be combined with `init`: the model has its own words", argument="words")
        images, captions = _captioned(config, images, split, model.size, model.fit, model.levels)
        if captions is not None and model.words is None:
            decoded = decode(images, model.size, split=split, cache=config.cache, fit=model.fit, levels=model.levels)
            model.set_words(_fit_words(config, images, captions, decoded))
        return model, images, captions
    exact = wanted_colours(config) is not None
    if exact or config.captions is not None:
        images = open_source(images, split)
    if exact:
        images, size = with_canvas(images, config.side, config.levels)
        config = replace(config, side=to_side(size))
    tokenizer = choose_tokenizer(images, config, split)
    size, fit = to_size(config.side or ImageGPTConfig.side), "place" if exact else config.fit or "crop"
    images, captions = _captioned(config, images, split, size, fit, config.levels)
    words, count = None, None
    if captions is not None or config.size == "auto":
        decoded = decode(images, size, split=split, cache=config.cache, fit=fit, levels=config.levels)
        count = len(decoded) if config.size == "auto" else None
    if captions is not None:
        words = _fit_words(config, images, captions, decoded)
    with torch.device("meta"):
        model = ImageGPT(replace(config.model(len(tokenizer), count, tokenizer.patch), words=len(words or ())))
    model.words = words
    model.tokenizer, model.levels = tokenizer, config.levels
    model.fit = config.fit or model.fit
    return model, images, captions


def _fit_words(config: PretrainConfig, source: Any, captions: NDArray[Any], decoded: DecodedSet) -> Words:
    """The words of the captions of training pictures."""
    readable = labels_of_readable(captions, source, decoded)
    if config.validation is None:
        readable = readable[split_indices(len(decoded), config.validation_fraction, config.seed)[0]]
    return Words.fit(readable, config.words or WORDS)


def _captioned(
    config: PretrainConfig, images: Any, split: str | None, size: Size, fit: Fit, levels: Levels
) -> tuple[Any, NDArray[Any] | None]:
    """The images as a source of pictures with a caption each, and these captions; unchanged without captions."""
    if config.captions is None:
        return images, None
    source = sprites_of(open_source(images, split), size, fit, levels)
    return source, captions_of(source, config.captions)
