"""Which tokens may be drawn: colours named by the user, as a mask over the vocabulary."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from nextpixel.errors import InputError, shortened
from nextpixel.tokens.tokenizer import Tokenizer

HEX = re.compile(r"#([0-9a-f]{6})([0-9a-f]{2})?")


def clear_tokens(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which tokens are transparent (K,)."""
    known = colors_of(tokenizer)
    return np.zeros(len(tokenizer), bool) if known is None else known[:, 3] == 0


def allowed_tokens(tokenizer: Tokenizer, allow: str | None, forbid: str | None) -> NDArray[np.bool_] | None:
    """Which tokens may be drawn (K,), or None for all: those of `allow` without those of `forbid`.

    Both are comma-separated colours of the tokenizer, "#rrggbb" or "#rrggbbaa", or numbers of tokens. Raises InputError
    for anything else, and where no token is left.
    """
    if allow is None and forbid is None:
        return None
    allowed = np.ones(len(tokenizer), bool)
    if allow is not None:
        allowed = _tokens(tokenizer, allow, "allow_colors")
    if forbid is not None:
        allowed &= ~_tokens(tokenizer, forbid, "forbid_colors")
    if not allowed.any():
        raise InputError(
            f"expected at least one of {len(tokenizer)} colours to be left, got none; allow more, or forbid fewer",
            argument="forbid_colors",
        )
    return allowed


def _tokens(tokenizer: Tokenizer, named: str, argument: str) -> NDArray[np.bool_]:
    chosen = np.zeros(len(tokenizer), bool)
    for text in (part.strip().lower() for part in named.split(",")):
        if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < len(tokenizer):
            chosen[int(text)] = True
        elif match := HEX.fullmatch(text):
            rgba = np.frombuffer(bytes.fromhex(match[1] + (match[2] or "ff")), np.uint8)
            chosen |= _equal(tokenizer, rgba, text, argument)
        else:
            raise InputError(
                f"expected #rrggbb, #rrggbbaa or a number up to {len(tokenizer) - 1}, separated by commas, got "
                f"{shortened(text)}",
                argument=argument,
            )
    return chosen


def _equal(tokenizer: Tokenizer, rgba: NDArray[np.uint8], text: str, argument: str) -> NDArray[np.bool_]:
    colors = colors_of(tokenizer)
    if colors is None:
        raise InputError(
            f"the tokens of this model are not colours; expected their numbers, got {text}", argument=argument
        )
    equal = (colors == rgba).all(1) | ((colors[:, 3] == 0) & (rgba[3] == 0))
    if not equal.any():
        distances = np.square(colors.astype(np.int64) - rgba.astype(np.int64)).sum(1)
        near = dict.fromkeys(hex_color(colors[i]) for i in np.argsort(distances, kind="stable")[:10])
        raise InputError(
            f"expected colours of the model, got {text}, which is none of its {len(colors)}; near: "
            f"{', '.join(list(near)[:3])}",
            argument=argument,
        )
    return np.asarray(equal)


def colors_of(tokenizer: Tokenizer) -> NDArray[np.uint8] | None:
    """Red, green, blue and opacity of every token (K, 4); None where tokens are not colours."""
    if (rgba := getattr(tokenizer, "rgba", None)) is not None:
        return np.asarray(rgba)
    rgb = getattr(tokenizer, "rgb", None)
    return None if rgb is None else np.pad(rgb, ((0, 0), (0, 1)), constant_values=255)


def hex_color(color: NDArray[np.uint8]) -> str:
    """#rrggbb, or #rrggbbaa of a colour that is not opaque."""
    return "#" + bytes(color[: 3 + (color[3] < 255)]).hex()
