"""Variations of pictures: a part of each is redrawn, the rest kept."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Part, SamplingConfig, SamplingKeywords, Size, check_keywords, check_picture_count
from nextpixel.drawing.holes import Filling
from nextpixel.drawing.sampling import Drawing, pictures
from nextpixel.errors import InputError, shortened
from nextpixel.images import PictureList
from nextpixel.images.sources import load_images
from nextpixel.network.model import ImageGPT
from nextpixel.tokens.colors import allowed_tokens, clear_tokens


@check_keywords(SamplingKeywords)
def vary(
    model: ImageGPT,
    images: Any,
    strength: float = 0.3,
    n: int = 8,
    *,
    part: Part = "random",
    colors: str | None = None,
    caption: str | None = None,
    **settings: Unpack[SamplingKeywords],
) -> PictureList:
    """n variations of each picture: a part of it is redrawn, the rest kept.

    strength  fraction of the pixels to redraw, from 0 to 1
    part      where: random, another rectangle in each variation; top, bottom, left, right or center
    colors    draw only with these colours, as in "#ff0000,#aa0000", and transparency; pixels of other colours are
              redrawn too, so that strength=0 recolours

    Returns one flat list of PIL images at the model's side, picture by picture. Other settings are those of sample.
    Raises InputError for bad images or settings.
    """
    squares = load_images(images, model.size, fit=model.fit, levels=model.levels)
    sampling = SamplingConfig(**settings)
    return pictures(model, draw_variations(model, squares, strength, n, part, colors, sampling, caption))


def draw_variations(
    model: ImageGPT,
    squares: NDArray[np.uint8],
    strength: float,
    n: int,
    part: Part,
    colors: str | None,
    sampling: SamplingConfig,
    caption: str | None = None,
) -> Drawing:
    """n variations of each of the squares (M, H, W, C), see vary; `drawn_at` is (M * n, H, W)."""
    check_picture_count(n)
    if not isinstance(strength, numbers.Real) or not 0 <= strength <= 1:
        raise InputError(f"expected a fraction of the pixels from 0 to 1, got {strength!r}", argument="strength")
    if strength == 0 and colors is None:
        raise InputError("expected more than 0, or `colors` to draw with, got 0", argument="strength")
    if part not in get_args(Part):
        raise InputError(f"expected one of {', '.join(get_args(Part))}, got {part!r}", argument="part")
    squares = squares.repeat(n, 0)
    places = [divmod(i, n) for i in range(len(squares))]
    if strength == 0 and part != "random":
        raise InputError("has no effect with `strength=0`", argument="part")
    masks = np.stack([part_mask(model.size, strength, part, (sampling.seed, *place)) for place in places])
    solid = None
    if colors is not None:
        sampling, others, stay = _only_colors(model, squares, colors, sampling)
        solid = others & ~masks if stay else None
        masks |= others
        if not masks.any():
            raise InputError(
                "expected `strength` above 0, as the pictures have no other colours, got 0", argument="colors"
            )
    drawing = Filling(model, squares, masks, sampling=sampling, caption=caption, numbers=places, solid=solid).draw()
    return replace(drawing, drawn_at=np.broadcast_to(drawing.drawn_at, masks.shape))


def part_mask(size: Size, strength: float, part: Part, place: Sequence[int] = (0,)) -> NDArray[np.bool_]:
    """The pixels (H, W) of a part of about that fraction of a picture, at least one where it is above 0.

    A random part is placed by the numbers `place`.
    """
    along_rows, along_columns = part in ("top", "bottom"), part in ("left", "right")
    share = strength if along_rows or along_columns else math.sqrt(strength)
    height, width = (
        length if whole else max(1, round(length * share))
        for length, whole in zip(size, (along_columns, along_rows), strict=True)
    )
    spaces = size[0] - height, size[1] - width
    if part == "random":
        top, left = np.random.default_rng([*place, 0x9A27]).integers(0, spaces, endpoint=True)
    else:
        top, left = (
            space if end == part else space // 2 if part == "center" else 0
            for space, end in zip(spaces, ("bottom", "right"), strict=True)
        )
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = strength > 0
    return mask


def _only_colors(
    model: ImageGPT, squares: NDArray[np.uint8], colors: str, sampling: SamplingConfig
) -> tuple[SamplingConfig, NDArray[np.bool_], bool]:
    """Sampling with these colours and transparency alone, the pixels (M, H, W) that have others, and whether any of
    the colours is opaque, which these can then have.
    """
    if not isinstance(colors, str):
        raise InputError(f'expected text as in "#ff0000,7", got {shortened(colors)}', argument="colors")
    if sampling.allow_colors is not None:
        raise InputError(
            "cannot be combined with `allow_colors`, which leaves pixels of other colours", argument="colors"
        )
    clear = clear_tokens(model.tokenizer)
    text = ",".join([colors, *map(str, np.flatnonzero(clear).tolist())])
    try:
        allowed = allowed_tokens(model.tokenizer, text, sampling.forbid_colors)
    except InputError as error:
        raise InputError(error.message, argument="colors") from None
    assert allowed is not None
    tokens = model.tokenizer.encode(squares).numpy().reshape(-1, model.config.rows, model.config.columns)
    others = ~(allowed | clear)[tokens]  # transparency stays
    for axis, length in zip((1, 2), model.tokenizer.patch, strict=True):
        others = others.repeat(length, axis)
    return replace(sampling, allow_colors=text), others, bool((allowed & ~clear).any() and clear.any())
