"""Fill holes of pictures with particles: from pixels to the order in which the model draws, and back."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import SamplingConfig, check_number, check_picture_count
from nextpixel.devices import free_memory_bytes
from nextpixel.drawing.guide import FREE, REACH, guide_of
from nextpixel.drawing.loop import Row, Table
from nextpixel.drawing.particles import Particles
from nextpixel.drawing.sampling import (
    MAX_ROWS,
    MEMORY_SHARE,
    Drawing,
    DrawnRow,
    Evidence,
    allowed_mask,
    caption_tags,
    check_captions,
    check_draws,
    join,
)
from nextpixel.images import orient, undo_orient
from nextpixel.network.decoding import Decoder, GuidedDecoder, choose_decoder
from nextpixel.network.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.tokens import pixels_of
from nextpixel.tokens.colors import clear_tokens

PARTICLES = 8
PARTICLES_AT_MOST = MAX_ROWS
# Rows by which known tokens come sooner on average, for a mirror image over those of the hole if they are fewer: models
# that were not trained with orientations predict turned pictures a little worse, mirrored ones hardly
WORTH_A_TURN = 1.0
WORTH_A_MIRROR = 0.25
ALONE = 3  # rows of a full table that cost as much as one alone, about


@dataclass(frozen=True)
class Hole:
    """A picture with a hole, turned so that what is known comes as soon as possible."""

    known: NDArray[np.int64]
    """(T,), the tokens, FREE in the hole."""
    orientation: int
    """See images.orient."""
    drawn_at: NDArray[np.int64]
    """(H, W), upright, the step in which each pixel of the mask is drawn; 0: it is known."""
    blind: int
    """Number of pixels of free tokens that the guide does not reach, although something known comes after them: among
    particles, their choice is best-of-N."""


def make_hole(model: ImageGPT, square: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Hole:
    """Turn a picture (H, W, C) and the mask (H, W) of what is to be filled; a token with any masked pixel is free."""
    high, wide = model.tokenizer.patch
    [free] = free_tokens(model, mask[None])
    orientation = best_turn(free, turns(model))
    turned = orient(free[None, ..., None], orientation)[0, ..., 0]
    [tokens] = model.tokenizer.encode(orient(square[None], orientation)).numpy()
    known = np.where(turned.reshape(-1), FREE, tokens)
    rows = np.flatnonzero(turned.any(1))
    steps = np.where(turned, np.searchsorted(rows, np.arange(len(turned)))[:, None] + 1, 0)
    drawn_at = undo_orient(steps[None, ..., None], orientation)[0, ..., 0].repeat(high, 0).repeat(wide, 1)
    return Hole(known, orientation, np.where(mask, drawn_at, 0), count_blind(turned) * pixels_of(model.tokenizer))


def free_tokens(model: ImageGPT, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens (M, rows, columns) have a pixel of the masks (M, H, W)."""
    high, wide = model.tokenizer.patch
    return np.asarray(masks.reshape(len(masks), model.config.rows, high, -1, wide).any((2, 4)))


def turns(model: ImageGPT) -> Sequence[int]:
    """The orientations in which the model can draw: a grid that is not square has no quarter turns.

    Pixel art is drawn upright or mirrored by a model that was not trained with orientations.
    """
    trained = model.config.orientations > 1
    if not trained and model.tokenizer.channels == 4:
        return (0, 4)
    square = model.config.rows == model.config.columns and len(set(model.tokenizer.patch)) == 1
    return range(8) if square else (0, 4, 2, 6)


def best_turn(free: NDArray[np.bool_], turns: Sequence[int]) -> int:
    """The orientation in which the known tokens come soonest, of those that gain enough, or upright.

    `free` is (rows, columns); the first of `turns` is upright.
    """
    places = [np.flatnonzero(~orient(free[None, ..., None], turn).reshape(-1)).sum() for turn in turns]
    gains = {turn: (places[0] - place) / free.shape[1] for turn, place in zip(turns, places, strict=True)}
    known = free.size - free.sum()
    least = {turn: WORTH_A_MIRROR * min(known, free.sum()) if turn == 4 else WORTH_A_TURN * known for turn in turns}
    return max([turns[0], *(turn for turn in turns if gains[turn] >= least[turn])], key=gains.__getitem__)


def count_blind(free: NDArray[np.bool_]) -> int:
    """Free tokens of a grid (rows, columns) with nothing known before them or up to REACH rows below, but later."""
    known_rows = np.flatnonzero(~free.all(1))
    if len(known_rows) == 0:
        return 0
    first = int(known_rows[0])
    return max(0, first - REACH) * free.shape[1]


class Filling:
    """Completions of pictures with holes: `runs`, n of each of `holes`, drawn by `draw`, `stream` or `rounds`.

    Fills masks (1 or M, H, W) of squares uint8 (M, H, W, C) at the model's size, n times each; `guide=False` leaves the
    particles to the model alone. `numbers` are the (picture, completion) of each run, which choose its noise;
    default: counted. Pixels of exact colours that are `solid` (M, H, W) do not become transparent. Raises InputError.
    """

    def __init__(
        self,
        model: ImageGPT,
        squares: NDArray[np.uint8],
        masks: NDArray[np.bool_],
        *,
        n: int = 1,
        particles: int = PARTICLES,
        sampling: SamplingConfig | None = None,
        caption: str | Sequence[str] | None = None,
        guide: bool = True,
        numbers: Sequence[tuple[int, int]] | None = None,
        solid: NDArray[np.bool_] | None = None,
    ) -> None:
        sampling = sampling or SamplingConfig()
        check_picture_count(n)
        check_particles(particles)
        check_draws(model)
        self.model, self.n, self.particles = model, n, particles
        self.squares, self.masks = squares, np.broadcast_to(masks, squares.shape[:3])
        self.holes = [make_hole(model, *pair) for pair in zip(squares, self.masks, strict=True)]
        self.tags = caption_tags(model, caption, sampling)
        check_captions(self.tags, len(squares))
        steering = guide_of(model.tokenizer) if guide else None
        allowed, opaque = allowed_mask(model, sampling), None
        if solid is not None:
            opaque = torch.from_numpy(~clear_tokens(model.tokenizer)).to(model.device)
            opaque = opaque if allowed is None else opaque & allowed
        self.runs = [
            Particles(
                self.holes[i // n].known,
                model.config.columns,
                sampling,
                picture=picture,
                completion=completion,
                particles=particles,
                allowed=allowed,
                guide=steering,
                solid=None if solid is None else self._turned(solid[i // n], i // n),
                allowed_there=opaque,
            )
            for i, (picture, completion) in enumerate(numbers or itertools.product(range(len(squares)), range(n)))
        ]
        self._waiting = [(hole.drawn_at > 0).any(1) for hole in self.holes for _ in range(n)]
        rows = sum(one.count for one in self.runs)
        self.tokens = sum(int((one.known == FREE).sum()) for one in self.runs)
        steps = max((len(one.known) - one.position for one in self.runs), default=0)
        self.decoder = choose_decoder(model, rows, steps, sampling.speed, independent_rows=True)
        self.guided = sampling.guidance != 1
        memory = MEMORY_SHARE * free_memory_bytes(str(model.device)) / self.decoder.row_bytes(model)
        self.room = min(rows, max(particles, min(MAX_ROWS, int(memory / (1 + self.guided)))))

    def _turned(self, pixels: NDArray[np.bool_], number: int) -> NDArray[np.bool_]:
        """Tokens (T,) of a picture whose pixels (H, W) are tokens, in the order of drawing."""
        return orient(pixels[None, ..., None], self.holes[number].orientation).reshape(-1)

    @property
    def steps_left(self) -> int:
        """The work left: steps of single rows, about equally long."""
        total = 0
        for one in self.runs:
            several = max(one.position, min(one.last + 1, len(one.known)))  # up to here with all particles
            total += one.count * (several - one.position)
            total += min(one.count, ALONE) * (len(one.known) - several)
        return total

    def draw(self) -> Drawing:
        with progress("drawing", self.tokens * pixels_of(self.model.tokenizer), "pixels") as advance:
            for drawn in self.rounds():
                advance(drawn)
        return self.drawing()

    def stream(self) -> Iterator[DrawnRow]:
        """Yield a row with a hole as soon as all particles of a completion agree on it.

        Where pixels depend on tokens around theirs, a row still changes a little with those that follow.
        """
        rounds = self.rounds()
        while self.steps_left:
            for _ in itertools.islice(rounds, self.model.config.columns):
                pass
            for i, y, pixels in self.new_rows():
                yield DrawnRow(range(i, i + 1), y, pixels[None])

    def new_rows(self) -> list[tuple[int, int, NDArray[np.uint8]]]:
        """(completion, y, pixels (W, C)) of each row with a hole that has become final since the last call."""
        found = []
        for i, waiting in enumerate(self._waiting):
            ready = waiting & self.agreed(i).all(1) if waiting.any() else waiting
            waiting &= ~ready
            if ready.any():
                image = self.image(i)[0]
                found += [(i, int(y), image[y].copy()) for y in np.flatnonzero(ready)]
        return found

    @torch.inference_mode()
    def rounds(self) -> Iterator[int]:
        """Draw; yields after every step how many pixels of the holes it has drawn."""
        kind, model = self.decoder, self.model
        decoder: Decoder = GuidedDecoder(kind, model, self.room) if self.guided else kind(model, self.room)
        table: Table[Row] = Table(decoder)
        waiting = deque(i for i, one in enumerate(self.runs) if one.position < len(one.known))
        while True:
            table.drop_finished()
            self._begin(table, waiting)
            if not table.rows:
                return
            active = {id(row.group): row.group for row in table.rows if isinstance(row.group, Particles)}
            free = sum(one.known[one.position] == FREE for one in active.values())
            next(iter(table))
            yield free * pixels_of(model.tokenizer)

    def _begin(self, table: Table[Row], waiting: deque[int]) -> None:
        """Begin as many completions as the table has room for, those of prompts of one length together."""
        taken: dict[int, list[int]] = {}
        room = table.free
        while waiting and self.runs[waiting[0]].count <= room:
            i = waiting.popleft()
            room -= self.runs[i].count
            taken.setdefault(self.runs[i].first, []).append(i)
        for own in taken.values():
            pictures = sorted({i // self.n for i in own})
            rows = [row for i in own for row in self.runs[i].rows]
            of = [pictures.index(i // self.n) for i in own for _ in self.runs[i].rows]
            prompts = torch.cat([self.runs[i * self.n].prompt for i in pictures]).to(self.model.device)
            table.begin(list(rows), prompts, of, self._prefix(pictures))

    def _prefix(self, pictures: list[int]) -> Tensor:
        """(len(pictures), F, D)"""
        trained = self.model.config.orientations > 1
        turn = torch.tensor([self.holes[i].orientation if trained else 0 for i in pictures], device=self.model.device)
        tags = self.tags if self.tags is None or len(self.tags) == 1 else self.tags[pictures]
        return self.model.prefix(turn, tags)

    def drawing(self) -> Drawing:
        """What has been drawn, after all rounds."""
        drawn = self.runs
        images = np.concatenate([self.image(i) for i in range(len(drawn))])
        counts = np.array([max(1, (one.known == FREE).sum()) for one in drawn]) * pixels_of(self.model.tokenizer)
        nats = np.array([one.nats[one.chosen or 0] for one in drawn]) / counts
        evidence = Evidence(
            np.array([one.log_evidence for one in drawn]),
            np.array([one.ancestors_left for one in drawn]),
            self.particles,
            np.repeat([hole.blind for hole in self.holes], self.n),
        )
        steps = np.stack([hole.drawn_at for hole in self.holes])
        drawn_at = steps[0] if (steps == steps[0]).all() else steps.repeat(self.n, 0)
        return Drawing(images, nats.astype(np.float32), drawn_at, self.decoder.name, evidence)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Completion i as an upright picture, (1, H, W, C).

        A token that is not drawn yet is the last one before it in its column, in the order of drawing, or token 0.
        Where a token covers several pixels, those outside the mask are the given ones.
        """
        tokens = self.runs[i].final.reshape(self.model.config.rows, -1)
        last = np.maximum.accumulate(np.where(tokens < 0, 0, np.arange(len(tokens))[:, None]))
        tokens = np.take_along_axis(tokens, last, 0).clip(min=0)
        turned = self.model.tokenizer.decode(tokens.reshape(1, -1), self.model.config.columns)
        number = i // self.n
        image = undo_orient(turned, self.holes[number].orientation)
        return join(self.model.tokenizer, image, self.squares[number : number + 1], ~self.masks[number])

    def agreed(self, i: int) -> NDArray[np.bool_]:
        """Which pixels of completion i, (H, W), are known or final."""
        grid = self.runs[i].agreed.reshape(1, self.model.config.rows, -1, 1)
        high, wide = self.model.tokenizer.patch
        upright = undo_orient(grid, self.holes[i // self.n].orientation)[0, ..., 0]
        return upright.repeat(high, 0).repeat(wide, 1)


def check_particles(particles: int) -> None:
    """Raise InputError unless a completion can have so many particles."""
    check_number("particles", particles, f"1 to {PARTICLES_AT_MOST}", lambda n: 1 <= n <= PARTICLES_AT_MOST, whole=True)
