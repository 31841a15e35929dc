"""The tokenizer of a new run: OpenAI's palette, that of a file or folder, or the exact colours of its images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import EXACT, PretrainConfig
from nextpixel.data.decoded import decode
from nextpixel.errors import InputError
from nextpixel.images import read_palette_file
from nextpixel.images.palette_files import holds_exact_colours
from nextpixel.images.sources.base import READ_TOGETHER
from nextpixel.progress import say
from nextpixel.tokens import Tokenizer, load_tokenizer
from nextpixel.tokens.exact import COLOURS_AT_MOST, ExactPalette
from nextpixel.tokens.palette import Palette


def wanted_colours(config: PretrainConfig) -> str | None:
    """EXACT or the file of an exact palette that `palette` or `fit` ask for; None for other tokens."""
    wanted = EXACT if config.palette is None and config.fit == "place" else config.palette
    if config.tokenizer is not None or wanted is None or not (wanted == EXACT or holds_exact_colours(wanted)):
        return None
    if config.fit not in (None, "place"):
        raise InputError(
            f"expected place for exact colours, which resizing would mix, got {config.fit}", argument="fit"
        )
    return wanted


def choose_tokenizer(images: Any, config: PretrainConfig, split: str | None = None) -> Tokenizer:
    """The tokenizer that `tokenizer` or `palette` names. Raises InputError.

    Exact colours are those of the images, or of a palette file. Where the images have transparent pixels and the file
    has no transparent colour, one is added.
    """
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    wanted = wanted_colours(config)
    if wanted is None:
        return Palette.openai(config.cache) if config.palette is None else Palette.read(config.palette, config.cache)
    of_file = None if wanted == EXACT else read_palette_file(wanted)
    if of_file is not None:
        ExactPalette(of_file)  # raises before any work
    assert config.side is not None  # see start_run
    found = decode(images, config.side, split=split, cache=config.cache, fit="place", levels=config.levels).images
    if of_file is None:
        return ExactPalette.fit(found, seed=config.seed)
    if of_file.any(1).all() and any((part[..., 3] == 0).any() for part in _parts(found)):
        if len(of_file) == COLOURS_AT_MOST:
            raise InputError(
                f"expected at most {COLOURS_AT_MOST - 1:,} colours, as the pictures need a transparent one too, got "
                f"{len(of_file):,}",
                argument="palette",
            )
        of_file = np.concatenate([np.zeros((1, 4), np.uint8), of_file])
    return ExactPalette(of_file)


def say_replaced(palette: ExactPalette, pictures: NDArray[np.uint8], name: str) -> None:
    """Report how many pixels have colours that the palette of that name has not."""
    if changed := sum(palette.changed(part).sum() for part in _parts(pictures)):
        pixels = pictures.size // pictures.shape[-1]
        say(f"{changed / pixels:.1%} of the pixels have colours that {name} has not, and become its nearest")


def _parts(pictures: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (pictures[i : i + READ_TOGETHER] for i in range(0, len(pictures), READ_TOGETHER))
