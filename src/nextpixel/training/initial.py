"""The network, the tokenizer and the words that a pretraining run starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.checkpoints import load
from nextpixel.checkpoints.models import load_outline
from nextpixel.config import (
    EXACT,
    MODERN,
    WORDS,
    Fit,
    ImageGPTConfig,
    Levels,
    PretrainConfig,
    Size,
    augmentations,
    side_text,
    to_side,
    to_size,
)
from nextpixel.data.captions import captions_of
from nextpixel.data.decoded import DecodedSet, split_indices
from nextpixel.data.labels import labels_of_readable
from nextpixel.errors import InputError, model_argument
from nextpixel.images import read_palette_file
from nextpixel.images.sources import open_source, sprites_of, with_canvas
from nextpixel.network.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.tokens import Tokenizer, fitted_side, load_tokenizer
from nextpixel.tokens.exact import COLOURS_AT_MOST
from nextpixel.tokens.words import Words, tags_of
from nextpixel.training.run_images import decode_training_set
from nextpixel.training.tokenizers import choose_tokenizer, wanted_colours

COMPARED_AT_MOST = 20_000  # images, where the tokens of a model become others
IMAGES_AT_ONCE = 512
FACTS_OF_CLASSES = ("finetuned_from", "finetuned_on", "labels_per_class", "finetuning_seed")


def with_side(config: PretrainConfig) -> PretrainConfig:
    """With `tokenizer` and no `init`, the default side is that to which it was fitted."""
    if config.tokenizer is None or config.side is not None or config.init is not None:
        return config
    return replace(config, side=fitted_side(config.tokenizer))


def continued(config: PretrainConfig, shape: ImageGPTConfig) -> PretrainConfig:
    """With `init`, the default preset is that of its network."""
    if config.preset is not None or config.init is None:
        return config
    modern = any(getattr(shape, name) != getattr(ImageGPTConfig, name) for name in MODERN)
    return replace(config, preset="modern" if modern else "classic")


def load_init(
    config: PretrainConfig,
    words: Words | None,
    tokenizer: Tokenizer,
    images: NDArray[np.uint8],
    numbers: NDArray[np.int64],
) -> ImageGPT:
    """The model of `init` without its class head, with these words where it has none.

    With a `tokenizer` in the settings, over its tokens: those begin as the means of the model's own for the same
    patches of some of the images (N, H, W, C) with these numbers.
    """
    assert config.init is not None
    with model_argument("init"):
        model = load(config.init)
    model.set_classes(())
    if config.tokenizer is not None:
        some = np.sort(np.random.default_rng(config.seed).permutation(numbers)[:COMPARED_AT_MOST])
        model.set_tokenizer(tokenizer, token_shares(tokenizer, model, images, some))
    if words is not None and model.words is None:
        model.set_words(words, config.seed)
    model.facts = {name: value for name, value in model.facts.items() if name not in FACTS_OF_CLASSES}
    model.facts |= {"continued_from": Path(config.init).name}
    return model


def token_shares(
    tokenizer: Tokenizer, model: ImageGPT, images: NDArray[np.uint8], numbers: NDArray[np.int64]
) -> Tensor:
    """For each new token the shares of the model's among its patches of these images, float32 (K new, K old).

    Those of a token that the images lack are the shares among all patches.
    """
    (rows, columns), old = model.size, model.tokenizer
    counts = torch.zeros(len(tokenizer) * len(old), dtype=torch.int32)
    with progress("comparing tokens", len(numbers), "images") as advance:
        for start in range(0, len(numbers), IMAGES_AT_ONCE):
            part = np.ascontiguousarray(images[numbers[start : start + IMAGES_AT_ONCE], :rows, :columns])
            pairs = (tokenizer.encode(part) * len(old) + old.encode(part)).flatten()
            counts.index_add_(0, pairs, torch.ones_like(pairs, dtype=torch.int32))
            advance(len(part))
    table = counts.view(len(tokenizer), len(old)).float()
    table[table.sum(1) == 0] = table.sum(0)
    return table.div_(table.sum(1, keepdim=True))


def outline_init(config: PretrainConfig) -> ImageGPT:
    """The model of `init` without weights and class head, on the device meta.

    Raises InputError for settings that do not suit it.
    """
    assert config.init is not None
    with model_argument("init"):
        found = load_outline(config.init)
    if config.words is not None and found.words is not None:
        raise InputError("cannot be combined with `init`: the model has its own words", argument="words")
    if config.side and to_size(config.side) != found.size:
        expected, got = side_text(found.size), side_text(to_size(config.side))
        raise InputError(f"the model of `init` works at side {expected}, got {got}", argument="side")
    if "orient" in augmentations(config.augment) and found.config.orientations == 1:
        raise InputError(
            "orient needs a start vector for each orientation, got one in the model of `init`", argument="augment"
        )
    if config.captions is not None and found.config.objective == "masked":
        raise InputError("expected none, as the model of `init` is masked, without prefix", argument="captions")
    found.set_classes(())
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
        if tokenizer.patch != found.tokenizer.patch:
            expected, got = (" x ".join(map(str, one.patch)) for one in (found.tokenizer, tokenizer))
            raise InputError(
                f"expected tokens of {expected} pixels, as those of the model of `init`, got {got}",
                argument="tokenizer",
            )
        found.set_tokenizer(tokenizer, torch.empty(len(tokenizer), len(found.tokenizer), device="meta"))
    found.fit, found.levels = config.fit or found.fit, config.levels.over(found.levels)
    return found


def shape_at_most(config: PretrainConfig, images: int | None = None) -> ImageGPTConfig:
    """The network of a run on so many images, with the most words and exact colours that it can have."""
    words = 0 if config.captions is None else config.words or WORDS
    if config.init is not None:
        shape = outline_init(config).config
        return replace(shape, words=shape.words or words)
    colors, patch = _tokens(config)
    return replace(config.model(colors, images, patch), words=words)


def _tokens(config: PretrainConfig) -> tuple[int, Size]:
    """How many tokens there are, of exact colours at most, and the pixels of one."""
    wanted = wanted_colours(config)
    if wanted is None:
        tokenizer = choose_tokenizer(None, config)
        return len(tokenizer), tokenizer.patch
    return COLOURS_AT_MOST if wanted == EXACT else len(read_palette_file(wanted)), (1, 1)


def initial_model(
    config: PretrainConfig, images: Any, split: str | None, init: ImageGPT | None
) -> tuple[ImageGPT, Any, NDArray[Any] | None]:
    """A model without weights, with words for the captions; the images and their captions (N,).

    `init` is that of `outline_init`. Raises InputError where it has words, but none of the captions.
    """
    if init is not None:
        images, captions = _captioned(config, images, split, init.size, init.fit, init.levels)
        if captions is not None and init.words is None:
            decoded = decode_training_set(images, config, init.size, init.fit, init.levels)
            init.set_words(_fit_words(config, images, captions, decoded))
        elif captions is not None and init.words is not None:
            _check_known(init.words, captions)
        return init, images, captions
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
        decoded = decode_training_set(open_source(images, split), config, size, fit, config.levels)
        count = len(decoded) if config.size == "auto" else None
    if captions is not None:
        words = _fit_words(config, images, captions, decoded)
    with torch.device("meta"):
        model = ImageGPT(replace(config.model(len(tokenizer), count, tokenizer.patch), words=len(words or ())))
    model.words = words
    model.tokenizer, model.levels = tokenizer, config.levels
    model.fit = config.fit or model.fit
    return model, images, captions


def _check_known(words: Words, captions: NDArray[Any]) -> None:
    known = words.numbers
    if not any(word in known for caption in captions for tag in tags_of(caption) for word in tag):
        some = ", ".join(words.table[:5]) + ", ..." * (len(words) > 5)
        raise InputError(
            f"expected words that the model of `init` knows ({some}), got none in {len(captions):,} captions; train "
            "without them, or start from a model without words",
            argument="captions",
        )


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
