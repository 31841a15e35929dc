"""Drawing: pictures from nothing, and completions of pictures whose first rows are given.

The noise of a pixel depends on (seed, picture, completion, pixel) only. It is one uniform number in [0, 1), and
the token is where the cumulative distribution passes it: rounding can change a pixel only where that number all
but touches the border between two tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import KeepSide, SamplingConfig, SamplingKeywords, Speed, check_keywords
from nextpixel.decoding import Decoder, Mode, choose_mode, row_bytes
from nextpixel.devices import free_memory_bytes
from nextpixel.errors import InputError
from nextpixel.images import Picture, from_array, orient, upright
from nextpixel.model import ImageGPT, cross_entropy
from nextpixel.progress import progress
from nextpixel.sources import load_images

ROWS_AT_MOST = 256
TURNS: dict[KeepSide, int] = {"top": 0, "right": 1, "bottom": 2, "left": 3}  # orientation that brings it to the top
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Drawing:
    """What was drawn: M pictures, n completions each, flat and picture by picture."""

    images: NDArray[np.uint8]
    """(M * n, H, W, 3), kept pixels in the palette's colours."""
    nats: NDArray[np.float32]
    """(M * n,) mean -ln p of the drawn pixels under the model itself, at temperature 1."""
    kept: NDArray[np.bool_]
    """(H, W) which pixels were given."""
    mode: str
    """How the network was run: what `speed` came to."""


class DrawnRow(NamedTuple):
    """One row of pixels of several candidates, as soon as it is drawn."""

    candidates: range
    """Their places in the flat list, picture by picture."""
    y: int
    pixels: NDArray[np.uint8]
    """(len(candidates), W, 3)"""


@check_keywords(SamplingKeywords)
def sample(model: ImageGPT, n: int = 1, **settings: Unpack[SamplingKeywords]) -> list[Picture]:
    """Draw n pictures from nothing, as PIL images; `settings` are those of SamplingConfig (temperature, seed, ...)."""
    return [from_array(image) for image in draw(model, None, n=n, sampling=SamplingConfig(**settings)).images]


@check_keywords(SamplingKeywords)
def complete(
    model: ImageGPT,
    images: Any,
    keep: float = 0.5,
    n: int = 1,
    *,
    keep_side: KeepSide = "top",
    **settings: Unpack[SamplingKeywords],
) -> list[Picture]:
    """Keep a fraction of the rows from the top of each picture and draw the rest, n times.

    One flat list of PIL images at the model's side, picture by picture. The kept pixels keep their tokens
    exactly. Another `keep_side` takes a model that was trained with augment="orient": it reads the picture turned, and
    knows that it is. Raises InputError for bad images or settings.
    """
    squares = load_images(images, model.config.side, fit=model.fit, levels=model.levels)
    drawing = draw(model, squares, keep=keep, n=n, sampling=SamplingConfig(**settings), keep_side=keep_side)
    return [from_array(image) for image in drawing.images]


@check_keywords(SamplingKeywords)
def stream(
    model: ImageGPT, images: Any, keep: float = 0.5, n: int = 1, **settings: Unpack[SamplingKeywords]
) -> Iterator[DrawnRow]:
    """`complete`, row by row: yields each drawn row of all candidates that are drawn together.

    `images` may be None: then pictures are drawn from nothing.
    """
    squares = None if images is None else load_images(images, model.config.side, fit=model.fit, levels=model.levels)
    sampling = SamplingConfig(**settings)
    plan = _plan(model, squares, keep, n, sampling.speed)
    colours = model.palette.rgb
    for candidates in plan.batches:
        for y, tokens, _ in _draw_rows(model, plan, candidates, sampling):
            yield DrawnRow(candidates, y, colours[tokens.cpu().numpy()])


def draw(
    model: ImageGPT,
    squares: NDArray[np.uint8] | None,
    *,
    keep: float = 0.5,
    n: int = 1,
    sampling: SamplingConfig | None = None,
    keep_side: KeepSide = "top",
) -> Drawing:
    """Complete squares uint8 (M, H, W, 3) at the model's side, or, for None, draw one picture's n candidates."""
    sampling = sampling or SamplingConfig()
    orientation = _orientation(model, keep_side)
    squares = None if squares is None else orient(squares, orientation)
    plan = _plan(model, squares, keep, n, sampling.speed)
    side = model.config.side
    tokens = plan.prompts.repeat_interleave(n, 0)  # (M * n, P)
    images = np.empty((len(tokens), side, side, 3), np.uint8)
    images[:, : plan.kept_rows] = model.palette.rgb[tokens.numpy()].reshape(len(tokens), -1, side, 3)
    nats = np.empty(len(tokens), np.float32)
    drawn_pixels = len(tokens) * (model.config.pixels - tokens.shape[1])
    with progress("drawing", drawn_pixels, "pixels") as advance:
        for candidates in plan.batches:
            rows = []
            for y, drawn, row_nats in _draw_rows(model, plan, candidates, sampling, orientation):
                images[candidates.start : candidates.stop, y] = model.palette.rgb[drawn.cpu().numpy()]
                rows.append(row_nats)
                advance(drawn.numel())
            nats[candidates.start : candidates.stop] = torch.cat(rows, 1).mean(1).cpu().numpy()
    kept = np.zeros((1, side, side), bool)
    kept[:, : plan.kept_rows] = True
    return Drawing(upright(images, orientation), nats, upright(kept, orientation)[0], str(plan.mode))


def _orientation(model: ImageGPT, keep_side: KeepSide) -> int:
    if keep_side not in TURNS:
        raise InputError(f"expected one of {', '.join(TURNS)}, got {keep_side!r}", argument="keep_side")
    if keep_side != "top" and model.config.orientations == 1:
        raise InputError(
            f"{keep_side} needs a model that was trained with `augment=orient`, got one that knows pictures from the "
            "top alone",
            argument="keep_side",
        )
    return TURNS[keep_side]


@dataclass(frozen=True)
class _Plan:
    prompts: Tensor  # (M, P) on the CPU
    completions: int
    kept_rows: int
    batches: list[range]  # places in the flat list that are drawn together
    mode: Mode


def _plan(model: ImageGPT, squares: NDArray[np.uint8] | None, keep: float, n: int, speed: Speed) -> _Plan:
    side = model.config.side
    if n < 1:
        raise InputError(f"expected at least 1, got {n}", argument="n")
    prompts = prompt_tokens(model, squares, keep)
    kept_rows = prompts.shape[1] // side
    count = len(prompts) * n
    mode = choose_mode(model, count, model.config.pixels - prompts.shape[1], speed)
    memory = MEMORY_SHARE * free_memory_bytes(str(model.device))
    size = min(ROWS_AT_MOST, max(1, int(memory / row_bytes(model, mode))))
    batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
    return _Plan(prompts, n, kept_rows, batches, mode)


def prompt_tokens(model: ImageGPT, squares: NDArray[np.uint8] | None, keep: float) -> Tensor:
    """Tokens (M, P) of the rows of squares (M, H, W, 3) that are kept; (1, 0) for None, a picture from nothing.

    Raises InputError for a masked model, or a fraction that leaves nothing to draw.
    """
    if model.config.objective == "masked":
        raise InputError(
            "a masked model has no order in which to draw pixels; draw with an autoregressive model, or use this one "
            "for features"
        )
    if squares is None:
        return torch.empty((1, 0), dtype=torch.int64)
    side = model.config.side
    if not 0 <= keep < 1 or round(keep * side) == side:
        raise InputError(
            f"expected a fraction of the rows from 0 up to less than 1 that leaves at least one of "
            f"{side} rows to draw, got {keep}",
            argument="keep",
        )
    return model.palette.encode(squares)[:, : round(keep * side) * side]


@torch.inference_mode()
def _draw_rows(
    model: ImageGPT, plan: _Plan, candidates: range, sampling: SamplingConfig, orientation: int = 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (y, tokens (B, W), nats (B, W)) for each drawn row of these candidates."""
    side = model.config.side
    n = plan.completions
    first, last = candidates.start // n, (candidates.stop - 1) // n
    prompts = plan.prompts[first : last + 1].to(model.device)
    decoder = Decoder(model, len(candidates), plan.mode)
    of = torch.tensor([c // n - first for c in candidates], device=model.device)
    logits = decoder.start(prompts, of, orientation=orientation)  # one prefill for all completions of a picture
    noise = torch.from_numpy(
        np.stack([pixel_noise(sampling.seed, *divmod(c, n), model.config.pixels) for c in candidates])
    )
    noise = noise.to(model.device, wide_type(logits))
    for y in range(plan.kept_rows, side):
        tokens, nats = [], []
        for t in range(y * side, (y + 1) * side):
            chosen = choose(logits, noise[:, t], sampling)
            tokens.append(chosen)
            nats.append(cross_entropy(logits[:, None], chosen[:, None], reduction="none")[:, 0])
            if t + 1 < model.config.pixels:
                logits = decoder.step(chosen)
        yield y, torch.stack(tokens, 1), torch.stack(nats, 1)


def choose(logits: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
    """Tokens (B,) drawn from logits (B, K) by inversion of noise (B,) in [0, 1).

    top_k and then top_p narrow the distribution; top_p as in Holtzman et al. 2020. Of equally likely tokens the
    lower numbers stay.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(wide_type(logits))
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # the largest may not become infinite
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        places = logits.sort(dim=-1, descending=True, stable=True).indices
        logits = logits.scatter(-1, places[:, sampling.top_k :], float("-inf"))
    chances = logits.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, places = chances.sort(dim=-1, descending=True, stable=True)
        spare = ordered.cumsum(-1) - ordered >= sampling.top_p  # the likeliest colour always stays
        chances = chances.masked_fill(torch.zeros_like(spare).scatter(-1, places, spare), 0.0)
    below = chances.cumsum(-1)
    below_one = 1 - torch.finfo(below.dtype).eps / 2  # the number before 1, to which fp32 rounds some of the noise
    target = noise[:, None].to(below.dtype).clamp_max(below_one) * below[:, -1:]
    return torch.searchsorted(below, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def wide_type(logits: Tensor) -> torch.dtype:
    return torch.float32 if logits.device.type == "mps" else torch.float64


def pixel_noise(seed: int, picture: int, completion: int, pixels: int) -> NDArray[np.float64]:
    """The noise (T,) in [0, 1) of one completion."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, picture, completion]))).random(pixels)
