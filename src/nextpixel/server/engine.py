"""Continuous batching: a table of rows draws one token of each per step; requests join and leave between steps.

The length of a picture is known in advance, so the table and its cache have a fixed size, and the time left can be
computed. The worker's thread draws; other threads call `submit` and `cancel`.

All networks of a server run in one thread. OpenMP keeps a pool per calling thread, and with more threads than cores
libgomp sleeps between products instead of spinning, which makes small networks two to three times slower.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import SamplingConfig, ServeConfig
from nextpixel.devices import free_memory_bytes
from nextpixel.drawing import loop
from nextpixel.drawing.sampling import MEMORY_SHARE, join
from nextpixel.errors import InputError
from nextpixel.network.decoding import GuidedDecoder, Prefill, choose_decoder
from nextpixel.network.model import ImageGPT
from nextpixel.tokens import pixels_of

DECAY = 0.9  # of the running means of seconds
PREFILL_SECONDS = 0.2  # for prefills between two steps; at least one is done
SLOTS_PER_PREFILL = 4  # slots per cached prefill: row_bytes counts one for each slot


@dataclass(frozen=True)
class Waiting:
    """The queue has moved."""

    ahead: int
    seconds_left: float | None


@dataclass(frozen=True)
class Row:
    """A row of a candidate is drawn."""

    candidate: int
    y: int
    pixels: NDArray[np.uint8]
    """(W, C)"""
    seconds_left: float | None


@dataclass(frozen=True)
class Done:
    """All pictures are drawn: images uint8 (n, H, W, 3) and nats per drawn pixel (n,), as in sampling.Drawing."""

    images: NDArray[np.uint8]
    nats: list[float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """The request failed, with an HTTP status."""

    status: int
    message: str


Event = Waiting | Row | Done | Failed
Key = tuple[bool, bytes, bytes]  # whether guided, tokens of a prompt, tags of its caption
SHUTTING_DOWN = Failed(503, "the server is shutting down; try again later")


class Busy(Exception):
    """The queue is full, for about `seconds`, or the engine is closing."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(eq=False)
class Ticket:
    """A request for n pictures of `length` tokens with one prompt (1, P).

    `tags` (1, TAGS, w) are those of the caption, `allowed` (K,) the tokens that may be drawn, and `square`
    (1, H, W, C) the picture to complete. `notify` is called in the worker's thread and must not block; it gets a Row
    only if the request is `streamed`, as each decodes tokens.
    """

    prompt: Tensor
    length: int
    n: int
    sampling: SamplingConfig
    seconds: float
    notify: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    tags: Tensor | None = None
    allowed: Tensor | None = None
    square: NDArray[np.uint8] | None = None
    streamed: bool = True
    placed: int = 0  # candidates that have or had a row
    finished: int = 0
    ended: bool = False
    prefill: Prefill | None = None  # the prompt's prefill, while candidates wait for rows
    started: float = 0.0
    first_row: float = 0.0

    def __post_init__(self) -> None:
        self.guided = self.sampling.guidance != 1
        tags = b"" if self.tags is None else self.tags.cpu().numpy().tobytes()
        self.key = self.guided, self.prompt.numpy().tobytes(), tags
        self.noise = [loop.token_noise(self.sampling.seed, 0, i, self.length) for i in range(self.n)]
        self.tokens = np.zeros((self.n, self.length), np.int64)
        self.tokens[:, : self.prompt.shape[1]] = self.prompt.numpy()
        self.drawn = self.length - self.prompt.shape[1]
        self.nats = np.zeros(self.n)


@dataclass(eq=False, kw_only=True)
class _Candidate(loop.Row):
    """A row of the table, with its request."""

    ticket: Ticket
    number: int


class Engine:
    """The tables of rows of one model. Rows in use come first, so that a step costs only what they cost. A model with
    words has a second table for guided requests, with half of the slots, as each of its rows costs two.

    `observe` is called with (name, value): "queue_seconds", "first_row_seconds", "pixels", "pixels_per_second".
    `worker` has a single thread; its other work runs between steps. Raises InputError if the slots do not fit into
    memory.
    """

    def __init__(
        self, model: ImageGPT, config: ServeConfig, observe: Callable[[str, float], None], worker: ThreadPoolExecutor
    ) -> None:
        shape, slots = model.config, config.slots
        self._with_words = model.words is not None
        self._kind = choose_decoder(model, slots, shape.tokens, config.speed, independent_rows=True, in_thread=True)
        self.mode = self._kind.name
        needed = slots * self._kind.row_bytes(model) * (1 + self._with_words)
        if needed > MEMORY_SHARE * free_memory_bytes(str(model.device)):
            raise InputError(f"{slots} slots need {needed / 1e9:.1f} GB of memory; take fewer", argument="slots")
        self.model, self.slots, self.limit, self.observe = model, slots, config.queue, observe
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._prefills: dict[Key, Prefill] = {}  # of recent prompts, by their tokens and tags
        self._kept = max(1, slots // SLOTS_PER_PREFILL)
        self.closing = self._drawing = False
        self._step_ended: float | None = None  # when the last step ended, while drawing
        self._worker = worker
        worker.submit(self._warm_up).result()

    def _warm_up(self) -> None:
        """Run the first, slow products, and measure the seconds of a prefill and a step."""
        model, half = self.model, self.model.config.tokens // 2
        decoder = self._kind(model, self.slots)
        self._tables = {False: loop.Table[_Candidate](decoder)}
        if self._with_words:
            guided = GuidedDecoder(self._kind, model, max(1, self.slots // 2))
            self._tables[True] = loop.Table[_Candidate](guided)
        every = torch.zeros(self.slots, dtype=torch.int64, device=self.model.device)
        for _ in range(2):
            start = time.monotonic()
            _, cache = decoder.prefill(every.new_zeros(1, half))
            self.prefill_seconds = (time.monotonic() - start) / (half + 1)  # per token
            decoder.fill(torch.arange(self.slots, device=every.device), cache, every)
            start = time.monotonic()
            if half:
                decoder.step(every)
            self.step_seconds = time.monotonic() - start

    # ---- for other threads

    def submit(self, ticket: Ticket) -> int:
        """Queue a request; return the number of requests ahead of it, 0 if it starts at once. Raises Busy."""
        with self._changed:
            if self.closing or len(self._waiting) >= self.limit:
                raise Busy(self._forecast()[1])
            self._waiting.append(ticket)
            if not self._drawing:
                self._worker.submit(self._run)
                self._drawing, self._step_ended = True, None
            return self._ahead(len(self._waiting) - 1)

    def cancel(self, ticket: Ticket) -> None:
        """Remove a request from the queue at once, and from the table at the next step."""
        with self._changed:
            self._end(ticket)

    def seconds_left(self, ticket: Ticket) -> float:
        """Seconds until the request is done, assuming that no request is cancelled."""
        with self._changed:
            return self._forecast()[0].get(ticket, 0.0)

    @property
    def used(self) -> int:
        return len(self._rows())

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def drain(self, seconds: float) -> None:
        """Refuse waiting and new requests; give current drawings `seconds` to finish."""
        with self._changed:
            self.closing = True
            self._fail([ticket for ticket in self._waiting if not ticket.placed], SHUTTING_DOWN)
            for ticket in self._tickets():
                ticket.seconds = min(ticket.seconds, time.monotonic() - ticket.arrived + seconds)

    def close(self) -> None:
        """Fail all requests, and wait until the worker is idle."""
        with self._changed:
            self.closing = True
            self._fail(self._tickets(), SHUTTING_DOWN)
            self._changed.wait_for(lambda: not self._drawing)

    # ---- with the lock held

    def _tickets(self) -> set[Ticket]:
        return {*self._waiting, *(place.ticket for place in self._rows())}

    def _rows(self) -> list[_Candidate]:
        return [row for table in self._tables.values() for row in table.rows]

    def _free(self, ticket: Ticket) -> int:
        return min(self._tables[ticket.guided].free, self.slots - len(self._rows()))

    def _end(self, ticket: Ticket) -> None:
        ticket.ended, ticket.prefill = True, None
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def _fail(self, tickets: Iterable[Ticket], reason: Failed) -> None:
        for ticket in tickets:
            if not ticket.ended:
                self._end(ticket)
                ticket.notify(reason)

    def _ahead(self, number: int) -> int:
        """Requests ahead of that queue position; those being drawn count as one if they take all of its slots."""
        return number + (not self._free(self._waiting[number]))

    def _forecast(self) -> tuple[dict[Ticket, float], float]:
        """Seconds until each request is done, and until the first waiting one has all its rows."""
        length = self.model.config.tokens
        left: dict[Ticket, float] = {}
        for row in self._rows():
            left[row.ticket] = max(left.get(row.ticket, 0.0), (length - row.position) * self.step_seconds)
        free: dict[bool, list[int]] = {}  # the steps after which each row of a table is free
        for guided, table in self._tables.items():
            free[guided] = [0] * table.free + [length - row.position for row in table.rows]
            heapq.heapify(free[guided])
        room, seconds, done = 0.0, 0.0, set(self._prefills)
        for number, ticket in enumerate(self._waiting):
            if ticket.prefill is None and ticket.key not in done:
                seconds += ticket.prompt.shape[1] * self.prefill_seconds
                done.add(ticket.key)
            ends = free[ticket.guided]
            for _ in range(ticket.n - ticket.placed):
                start = ends[0]
                left[ticket] = max(left.get(ticket, 0.0), (start + ticket.drawn) * self.step_seconds + seconds)
                heapq.heapreplace(ends, start + ticket.drawn)
                room = max(room, start * self.step_seconds) if number == 0 else room
        return left, room

    # ---- in the worker's thread

    @torch.inference_mode()
    def _run(self) -> None:
        """Draw one token per row, then requeue behind the worker's other work."""
        try:
            self._step()
        except Exception:
            logging.getLogger(__name__).exception("drawing failed")
            with self._changed:
                self._fail(self._tickets(), Failed(500, "the drawing failed; see the server's log"))
                for table in self._tables.values():
                    table.rows.clear()
        with self._changed:
            self._drawing, self._step_ended = False, time.monotonic()
            self._changed.notify_all()
            if self._waiting or self._rows():
                try:
                    self._worker.submit(self._run)
                    self._drawing = True
                except RuntimeError:  # the worker has been shut down
                    self._fail(self._tickets(), SHUTTING_DOWN)

    def _step(self) -> None:
        """Draw one token of every row in use."""
        start = time.monotonic()
        ended = start if self._step_ended is None else self._step_ended
        others = min(start - ended, PREFILL_SECONDS)  # the worker's other work
        with self._changed:
            for ticket in self._tickets():
                if start - ticket.arrived > ticket.seconds:
                    late = Failed(504, f"not done within {ticket.seconds:g} seconds; request fewer")
                    self._fail([ticket], SHUTTING_DOWN if self.closing else late)
            self._free_rows()
        self._admit()
        tables = [table for table in self._tables.values() if table.rows]
        if not tables:
            return
        start, count = time.monotonic(), len(self._rows()) * pixels_of(self.model.tokenizer)
        self.observe("pixels", count)  # before anyone is notified
        ended_rows: dict[tuple[Ticket, int], list[int]] = {}
        for table in tables:
            rows, tokens, nats = next(iter(table))
            for row, token, cost in zip(rows, tokens.tolist(), nats.tolist(), strict=True):
                row.ticket.tokens[row.number, row.position - 1] = token
                row.ticket.nats[row.number] += cost
                if row.position % self.model.config.columns == 0 and not row.ticket.ended:
                    ended_rows.setdefault((row.ticket, row.position), []).append(row.number)
        for (ticket, position), candidates in ended_rows.items():
            self._report_row(ticket, position, candidates)
        with self._changed:
            self._free_rows()
        for table in tables:
            table.step()
        seconds = time.monotonic() - start + others
        self.step_seconds = DECAY * self.step_seconds + (1 - DECAY) * seconds
        self.observe("pixels_per_second", count / self.step_seconds)

    def _free_rows(self) -> None:
        """Free the rows of finished candidates and ended requests."""
        for row in self._rows():
            row.cancelled = row.ticket.ended
        for table in self._tables.values():
            table.drop_finished()

    def _admit(self) -> None:
        """Give free rows to waiting requests, in order, with prefills for PREFILL_SECONDS or of one batch."""
        end = time.monotonic() + PREFILL_SECONDS
        while time.monotonic() < end:
            with self._changed:
                if not self._waiting or not self._free(self._waiting[0]):
                    return
                ticket = self._waiting[0]
            prefill = ticket.prefill or self._prefill(ticket)
            with self._changed:
                if not ticket.ended:
                    self._place(ticket, prefill)

    def _prefill(self, ticket: Ticket) -> Prefill:
        """Prefill the ticket's prompt and others with it, or take a recent prefill of the same prompt."""
        ticket.started = time.monotonic()
        self.observe("queue_seconds", ticket.started - ticket.arrived)
        with self._changed:
            if ticket.key in self._prefills:
                self._prefills[ticket.key] = self._prefills.pop(ticket.key)  # moves it to the end
                return self._prefills[ticket.key]
            prompts = self._prompts_like(ticket)
        decoder = self._tables[ticket.guided].decoder
        tokens = torch.cat([one.prompt for one in prompts.values()]).to(self.model.device)
        prefix = torch.cat([self.model.prefix(0, one.tags) for one in prompts.values()]) if self._with_words else None
        prefill = decoder.prefill(tokens, prefix)
        seconds = (time.monotonic() - ticket.started) / (len(prompts) * (ticket.prompt.shape[1] + 1))
        self.prefill_seconds = DECAY * self.prefill_seconds + (1 - DECAY) * seconds
        prefills = [prefill]
        if len(prompts) > 1:  # copies, so that one does not keep the memory of all
            prefills = [decoder.select(prefill, i) for i in range(len(prompts))]
        with self._changed:
            self._prefills.update(zip(prompts, prefills, strict=True))
            awaited = {other.key for other in self._waiting}
            while len(self._prefills) > self._kept:
                self._prefills.pop(
                    next((key for key in self._prefills if key not in awaited), next(iter(self._prefills)))
                )
        return prefills[0]

    def _prompts_like(self, ticket: Ticket) -> dict[Key, Ticket]:
        """Tickets whose prompts to prefill together, by key: this one and others with prompts of the same length."""
        found = {ticket.key: ticket}
        decoder = self._tables[ticket.guided].decoder
        most = min(decoder.prompts_per_prefill(ticket.prompt.shape[1]), self._kept)
        for other in self._waiting:
            alike = other.guided == ticket.guided and other.prompt.shape == ticket.prompt.shape
            alike = alike and other.key not in self._prefills
            if len(found) < most and alike and other.prefill is None:
                found.setdefault(other.key, other)
        return found

    def _place(self, ticket: Ticket, prefill: Prefill) -> None:
        """Add as many candidates to the table as there are free rows."""
        table, count = self._tables[ticket.guided], min(self._free(ticket), ticket.n - ticket.placed)
        numbers, known = range(ticket.placed, ticket.placed + count), ticket.prompt.shape[1]
        rows = [
            _Candidate(ticket.noise[i], ticket.sampling, known, ticket.allowed, ticket=ticket, number=i)
            for i in numbers
        ]
        table.add(rows, prefill, [0] * count)
        ticket.placed += count
        ticket.prefill = prefill if ticket.placed < ticket.n else None
        if ticket.prefill is None:
            self._waiting.popleft()
            left = self._forecast()[0]
            for number, other in enumerate(self._waiting):
                other.notify(Waiting(self._ahead(number), left[other]))

    def _report_row(self, ticket: Ticket, position: int, candidates: list[int]) -> None:
        """Notify of the rows of pixels of a finished row of tokens of candidates, and of the end."""
        config, tokenizer, now = self.model.config, self.model.tokenizer, time.monotonic()
        if not ticket.first_row:
            ticket.first_row = now
            self.observe("first_row_seconds", now - ticket.arrived)
        given = np.arange(self.model.size[0])[:, None] < ticket.prompt.shape[1] // config.columns * tokenizer.patch[0]
        if ticket.streamed:
            rest = min(other.position for other in self._rows() if other.ticket is ticket)
            left = (config.tokens - rest) * self.step_seconds if ticket.prefill is None else self.seconds_left(ticket)
            images = tokenizer.decode(ticket.tokens[candidates, :position], config.columns)
            for i, pixels in zip(candidates, join(tokenizer, images, ticket.square, given), strict=True):
                for y in range(len(pixels) - tokenizer.patch[0], len(pixels)):
                    ticket.notify(Row(i, y, pixels[y].copy(), left))  # not a view of all rows
        ticket.finished += len(candidates) * (position == config.tokens)
        if ticket.finished == ticket.n:
            ticket.ended = True
            seconds = {
                "queue": ticket.started - ticket.arrived,
                "first_row": ticket.first_row - ticket.arrived,
                "total": now - ticket.arrived,
            }
            nats = ticket.nats / (ticket.drawn * pixels_of(tokenizer))
            images = join(tokenizer, tokenizer.decode(ticket.tokens, config.columns), ticket.square, given)
            ticket.notify(Done(images, nats.tolist(), seconds))
