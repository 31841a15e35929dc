"""Draw whole pictures, and complete pictures whose first rows are given."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import (
    KeepSide,
    SamplingConfig,
    SamplingKeywords,
    check_keywords,
    check_no_keep,
    check_picture_count,
)
from nextpixel.devices import free_memory_bytes
from nextpixel.drawing.loop import Row, Table, token_noise
from nextpixel.errors import InputError
from nextpixel.images import PictureList, orient, spread, to_picture, undo_orient
from nextpixel.images.sources import load_images, open_source
from nextpixel.images.sources.masks import load_masks
from nextpixel.network.decoding import Decoder, GuidedDecoder, choose_decoder
from nextpixel.network.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.tokens import Tokenizer, covers_pixels, exact_colours, pixels_of
from nextpixel.tokens.colors import allowed_tokens
from nextpixel.tokens.words import encode_captions

MAX_ROWS = 256
BLENDED = 2  # tokens beside given pixels
ORIENTATIONS: dict[KeepSide, int] = {
    "top": 0,
    "right": 1,
    "bottom": 2,
    "left": 3,
}  # orientation that brings it to the top
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Evidence:
    """How well the known pixels after the beginning of a hole go with what the particles drew, see particles.py.

    The spread over the completions of one picture shows how reliable the estimate is.
    """

    log_evidence: NDArray[np.float64]
    """(M * n,), the estimates of ln p of these pixels given those before, by each completion alone."""
    ancestors: NDArray[np.int64]
    """(M * n,), how many of the first particles have descendants at the end of the hole."""
    particles: int
    blind: NDArray[np.int64]
    """(M * n,), how many pixels were drawn with nothing known above or near below them: among particles, their choice
    is best-of-N."""


@dataclass(frozen=True)
class Drawing:
    """n completions of each of M pictures, flat, picture by picture."""

    images: NDArray[np.uint8]
    """(M * n, H, W, C); kept pixels are decoded from their tokens, or, where a token covers several, the given ones."""
    nats: NDArray[np.float32]
    """(M * n,) mean -ln p of the drawn pixels under the model itself, given the caption, at temperature 1."""
    drawn_at: NDArray[np.int64]
    """(H, W), the step, counted from 1, in which each pixel was drawn, row by row; 0: it was given. (M * n, H, W) where
    the given pixels differ: of variations, and of several masks."""
    mode: str
    """The decoder that `speed` selected."""
    evidence: Evidence | None = None
    """Of holes that were filled with particles."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """The pixels that were given, of the shape of `drawn_at`."""
        return self.drawn_at == 0


class DrawnRow(NamedTuple):
    """One drawn row of pixels of several candidates."""

    candidates: range
    """Their indices in the flat list, picture by picture."""
    y: int
    pixels: NDArray[np.uint8]
    """(len(candidates), W, C)"""

    def __repr__(self) -> str:
        return f"DrawnRow({self.candidates}, y={self.y}, pixels {self.pixels.dtype} {self.pixels.shape})"


@check_keywords(SamplingKeywords)
def sample(
    model: ImageGPT,
    n: int = 1,
    *,
    caption: str | Sequence[str] | None = None,
    tile: bool = False,
    **settings: Unpack[SamplingKeywords],
) -> PictureList:
    """Draw n whole pictures as PIL images, or n of each caption, caption by caption.

    A caption has up to 16 tags of words that the model knows, model.words, as in "long red hair, glasses". With `tile`
    the pictures repeat without a seam, by a model that was trained with augment="wrap". `settings` are those of
    SamplingConfig (temperature, seed, guidance, ...). A model of exact colours gives indexed pictures with its palette,
    or RGBA ones beyond 256 colours.
    """
    sampling = SamplingConfig(**settings)
    if tile:
        from nextpixel.drawing.tiles import draw_tiles

        return pictures(model, draw_tiles(model, n, sampling, caption))
    return pictures(model, draw(model, None, n=n, sampling=sampling, caption=caption))


@check_keywords(SamplingKeywords)
def complete(
    model: ImageGPT,
    images: Any,
    keep: float = 0.5,
    n: int = 1,
    *,
    keep_side: KeepSide = "top",
    mask: Any = None,
    particles: int = 8,
    caption: str | Sequence[str] | None = None,
    **settings: Unpack[SamplingKeywords],
) -> PictureList:
    """Keep a fraction of the rows from the top of each picture, or all but a hole, and draw the rest, n times.

    Returns one flat list of PIL images at the model's side, picture by picture. Kept pixels keep their tokens exactly,
    and themselves where a token covers several.
    Any other `keep_side` needs a model trained with augment="orient", which draws the picture rotated. `caption` is one
    for all pictures, or one for each, see sample. Raises InputError for bad images or settings.

    `mask` is a hole of any shape instead: white is filled, black is kept. It is an array (H, W) or (M, H, W), a PIL
    picture or a path, one for all or one for each, or "alpha" for the transparent pixels of the pictures. Each of the
    n completions is drawn by so many `particles`; more are nearer to the model's own distribution, and slower.
    """
    if mask is not None:
        from nextpixel.drawing.holes import Filling

        squares, masks = load_holes(model, images, mask, keep, keep_side)
        filled = Filling(
            model, squares, masks, n=n, particles=particles, sampling=SamplingConfig(**settings), caption=caption
        ).draw()
        return pictures(model, filled)
    _check_no_particles(particles)
    squares = load_images(images, model.size, fit=model.fit, levels=model.levels)
    drawing = draw(
        model, squares, keep=keep, n=n, sampling=SamplingConfig(**settings), keep_side=keep_side, caption=caption
    )
    return pictures(model, drawing)


def _check_no_particles(particles: int) -> None:
    if particles != 8:
        raise InputError("requires `mask`", argument="particles")


def load_holes(
    model: ImageGPT, images: Any, mask: Any, keep: float = 0.5, keep_side: KeepSide = "top", *, invert: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pictures (M, H, W, C) and what is to be filled of them (1 or M, H, W), see load_masks. Raises InputError."""
    check_no_keep("mask", keep, keep_side)
    source = open_source(images)
    squares = load_images(source, model.size, fit=model.fit, levels=model.levels)
    return squares, load_masks(mask, source, squares, model.fit, invert=invert, levels=model.levels)


def pictures(model: ImageGPT, drawing: Drawing) -> PictureList:
    """A drawing of the model as PIL images, see images.to_picture."""
    palette = exact_colours(model.tokenizer)
    return PictureList(to_picture(image, palette) for image in drawing.images)


@check_keywords(SamplingKeywords)
def stream(
    model: ImageGPT,
    images: Any,
    keep: float = 0.5,
    n: int = 1,
    *,
    mask: Any = None,
    particles: int = 8,
    caption: str | Sequence[str] | None = None,
    **settings: Unpack[SamplingKeywords],
) -> Iterator[DrawnRow]:
    """`complete` row by row: yields each drawn row of the candidates of a batch.

    With `images` None, draws whole pictures, as sample does. With a `mask`, yields a row of a completion as soon as its
    particles agree on it, in the order of drawing, which may be from the bottom.
    """
    if mask is not None:
        from nextpixel.drawing.holes import Filling

        given, masks = load_holes(model, images, mask, keep)
        chosen = SamplingConfig(**settings)
        filling = Filling(model, given, masks, n=n, particles=particles, sampling=chosen, caption=caption)
        yield from filling.stream()
        return
    _check_no_particles(particles)
    squares = None if images is None else load_images(images, model.size, fit=model.fit, levels=model.levels)
    sampling = SamplingConfig(**settings)
    plan = _plan(model, squares, keep, n, sampling, caption)
    for candidates in plan.batches:
        known = plan.prompts[[candidate // n for candidate in candidates]].to(model.device)
        for row, tokens, _ in _draw_rows(model, plan, candidates, sampling):
            known = torch.cat([known, tokens], 1)
            pixels = model.tokenizer.decode(known, model.config.columns)
            own = None if squares is None else squares[[candidate // n for candidate in candidates]]
            pixels = join(model.tokenizer, pixels, own, plan.given(model))
            for y in range(row * model.tokenizer.patch[0], pixels.shape[1]):
                yield DrawnRow(candidates, y, pixels[:, y])


def draw(
    model: ImageGPT,
    squares: NDArray[np.uint8] | None,
    *,
    keep: float = 0.5,
    n: int = 1,
    sampling: SamplingConfig | None = None,
    keep_side: KeepSide = "top",
    caption: str | Sequence[str] | Tensor | None = None,
    first: int = 0,
    first_picture: int = 0,
    of: int | None = None,
) -> Drawing:
    """Complete squares uint8 (M, H, W, C) at the model's side, or, for None, draw n whole pictures of each caption.

    `first` is the number of the first completion: further ones of the same seed, without those before it. If this
    draws a part of a call, `first_picture` is the number of the first of squares in the whole, and `of` the number of
    pictures that it draws, by which `speed` is decided.
    """
    sampling = sampling or SamplingConfig()
    orientation = _orientation(model, keep_side)
    squares = None if squares is None else orient(squares, orientation)
    plan = _plan(model, squares, keep, n, sampling, caption, of)
    plan = replace(plan, first=first, first_picture=first_picture)
    config, tokenizer = model.config, model.tokenizer
    tokens = torch.empty(len(plan.prompts) * n, config.tokens, dtype=torch.int64)
    tokens[:, : plan.prompts.shape[1]] = plan.prompts.repeat_interleave(n, 0)
    nats = np.empty(len(tokens), np.float32)
    with progress("drawing", tokens[:, plan.prompts.shape[1] :].numel() * pixels_of(tokenizer), "pixels") as advance:
        for candidates in plan.batches:
            rows = []
            for row, drawn, row_nats in _draw_rows(model, plan, candidates, sampling, orientation):
                tokens[candidates.start : candidates.stop, row * config.columns : (row + 1) * config.columns] = drawn
                rows.append(row_nats)
                advance(drawn.numel() * pixels_of(tokenizer))
            nats[candidates.start : candidates.stop] = torch.cat(rows, 1).mean(1).cpu().numpy()
    images = tokenizer.decode(tokens, config.columns)
    images = join(tokenizer, images, squares, plan.given(model))
    steps = np.maximum(np.arange(images.shape[1]) // tokenizer.patch[0] - plan.kept_rows + 1, 0)
    drawn_at = undo_orient(np.broadcast_to(steps[:, None], images.shape[1:3])[None], orientation)[0]
    nats /= pixels_of(tokenizer)
    return Drawing(undo_orient(images, orientation), nats, drawn_at, plan.decoder.name)


def join(
    tokenizer: Tokenizer, images: NDArray[np.uint8], squares: NDArray[np.uint8] | None, given: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Completions (M * n, h, W, C), at first rows, of squares (M, H, W, C), of which these pixels (H, W or 1) were
    given.

    Where a token covers several pixels and loses their detail, the given pixels replace those of the tokens. What the
    decoded tokens are wrong by there, whether encoded or drawn, is added to the pixels beside, where it fades: so that
    no edge shows (after Perez et al. 2003, Poisson image editing).
    """
    if squares is None or not covers_pixels(tokenizer):
        return images
    given = np.broadcast_to(given[: images.shape[1]], images.shape[1:3])
    joined = np.empty_like(images)
    for i, image in enumerate(images):
        original = squares[i * len(squares) // len(images), : len(image)]
        wrong = spread(original.astype(np.float32) - image, given, BLENDED * max(tokenizer.patch))
        joined[i] = np.where(given[..., None], original, (image + wrong).round().clip(0, 255).astype(np.uint8))
    return joined


def _orientation(model: ImageGPT, keep_side: KeepSide) -> int:
    if keep_side not in ORIENTATIONS:
        raise InputError(f"expected one of {', '.join(ORIENTATIONS)}, got {keep_side!r}", argument="keep_side")
    if keep_side != "top" and model.config.orientations == 1:
        raise InputError(
            f"{keep_side} needs a model that was trained with `augment=orient`, got one that was trained on upright "
            "pictures only",
            argument="keep_side",
        )
    return ORIENTATIONS[keep_side]


@dataclass(frozen=True)
class _Plan:
    prompts: Tensor  # (M, P) on the CPU
    tags: Tensor | None  # (1 or M, TAGS, w)
    allowed: Tensor | None  # (K,)
    completions: int
    kept_rows: int
    batches: list[range]  # indices in the flat list
    decoder: type[Decoder]
    guided: bool
    first: int = 0  # number of the first completion
    first_picture: int = 0

    def given(self, model: ImageGPT) -> NDArray[np.bool_]:
        """Which rows of pixels are given, (H, 1)."""
        return np.arange(model.size[0])[:, None] < self.kept_rows * model.tokenizer.patch[0]

    def new_decoder(self, model: ImageGPT, rows: int) -> Decoder:
        return GuidedDecoder(self.decoder, model, rows) if self.guided else self.decoder(model, rows)


def _plan(
    model: ImageGPT,
    squares: NDArray[np.uint8] | None,
    keep: float,
    n: int,
    sampling: SamplingConfig,
    caption: str | Sequence[str] | Tensor | None,
    of: int | None = None,
) -> _Plan:
    check_picture_count(n)
    prompts = prompt_tokens(model, squares, keep)
    tags = caption_tags(model, caption, sampling)
    if tags is not None and squares is None:
        prompts = prompts.expand(len(tags), -1)
    check_captions(tags, len(prompts))
    count, guided = len(prompts) * n, sampling.guidance != 1
    decoder = choose_decoder(model, of or count, model.config.tokens - prompts.shape[1], sampling.speed)
    memory = MEMORY_SHARE * free_memory_bytes(str(model.device))
    size = min(MAX_ROWS, max(1, int(memory / decoder.row_bytes(model) / (1 + guided))))
    batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
    allowed = allowed_mask(model, sampling)
    return _Plan(prompts, tags, allowed, n, prompts.shape[1] // model.config.columns, batches, decoder, guided)


def check_captions(tags: Tensor | None, count: int) -> None:
    """Raise InputError unless there is one caption, or one for each picture."""
    if tags is not None and len(tags) not in (1, count):
        raise InputError(f"expected one, or one for each of {count} pictures, got {len(tags)}", argument="caption")


def caption_tags(
    model: ImageGPT, caption: str | Sequence[str] | Tensor | None, sampling: SamplingConfig
) -> Tensor | None:
    """The words (captions, TAGS, w) of one caption or several, or those given, on the model's device, see Words.encode.

    Raises InputError for a caption that the model cannot take, and for guidance without one.
    """
    if not isinstance(caption, Tensor | None):
        caption = encode_captions(model.words, caption)
    tags = None if caption is None else caption.to(model.device)
    if tags is not None and not len(tags):
        raise InputError("expected at least one, got none", argument="caption")
    if sampling.guidance != 1 and (tags is None or not tags.any(-1).any(-1).all()):  # an empty caption is none
        why = "as the model was trained without captions" if model.words is None else "without `caption`"
        raise InputError(f"expected 1, {why}, got {sampling.guidance:g}", argument="guidance")
    return tags


def allowed_mask(model: ImageGPT, sampling: SamplingConfig) -> Tensor | None:
    """Which tokens may be drawn (K,), on the model's device; None for all. Raises as allowed_tokens does."""
    allowed = allowed_tokens(model.tokenizer, sampling.allow_colors, sampling.forbid_colors)
    return None if allowed is None else torch.from_numpy(allowed).to(model.device)


def check_draws(model: ImageGPT) -> None:
    """Raise InputError for a masked model."""
    if model.config.objective == "masked":
        raise InputError(
            "a masked model has no order in which to draw pixels; draw with an autoregressive model, or use this one "
            "for features"
        )


def prompt_tokens(model: ImageGPT, squares: NDArray[np.uint8] | None, keep: float) -> Tensor:
    """Tokens (M, P) of the kept rows of squares (M, H, W, 3); (1, 0) for None, a whole picture.

    Raises InputError for a masked model, or a fraction that leaves nothing to draw.
    """
    check_draws(model)
    if squares is None:
        return torch.empty((1, 0), dtype=torch.int64)
    rows, high = model.config.rows, model.tokenizer.patch[0]
    if not isinstance(keep, numbers.Real) or not 0 <= keep < 1 or round(keep * rows) == rows:
        raise InputError(
            f"expected a fraction of the rows from 0 up to less than 1 that leaves at least {high} of {high * rows} "
            f"rows to draw{f', as a token covers {high}' * (high > 1)}, got {keep!r}",
            argument="keep",
        )
    return model.tokenizer.encode(squares)[:, : round(keep * rows) * model.config.columns]


@torch.inference_mode()
def _draw_rows(
    model: ImageGPT, plan: _Plan, candidates: range, sampling: SamplingConfig, orientation: int = 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (row of the grid, tokens (B, W), nats (B, W)) for each drawn row of these candidates."""
    n, config = plan.completions, model.config
    first, last = candidates.start // n, (candidates.stop - 1) // n
    prompts = plan.prompts[first : last + 1].to(model.device)
    table: Table[Row] = Table(plan.new_decoder(model, len(candidates)))
    rows = [
        Row(
            token_noise(sampling.seed, plan.first_picture + c // n, plan.first + c % n, config.tokens),
            sampling,
            prompts.shape[1],
            plan.allowed,
        )
        for c in candidates
    ]
    tags = plan.tags if plan.tags is None or len(plan.tags) == 1 else plan.tags[first : last + 1]
    table.begin(rows, prompts, [c // n - first for c in candidates], model.prefix(orientation, tags))
    drawn = iter(table)
    for row in range(plan.kept_rows, config.rows):
        _, tokens, nats = zip(*itertools.islice(drawn, config.columns), strict=True)
        yield row, torch.stack(tokens, 1), torch.stack(nats, 1)
