"""Drawing for many at once: a table of rows, one pixel of each at a time, requests joining and leaving in between.

How long a picture is, is known before it begins, so a fixed table is enough: nothing grows or is moved out of memory,
and the time left follows from counting. A worker's thread draws; others `submit` and `cancel`.

All of a server's networks work in one thread. OpenMP keeps threads for every thread that works with it, and once they
are more than the processors, libgomp lets them sleep between two products instead of spinning: small networks then take
two to three times as long.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import SamplingConfig, ServeConfig
from nextpixel.devices import free_memory_bytes
from nextpixel.drawing import loop as drawing
from nextpixel.drawing.loop import token_noise
from nextpixel.errors import InputError
from nextpixel.network.decoding import Prefill, choose_decoder
from nextpixel.network.model import ImageGPT

MEMORY_SHARE = 0.5
PACE_MEMORY = 0.9  # of the running mean of seconds a pixel
READ_SECONDS = 0.2  # for prompts between two pixels of the others; one is read even if it takes longer
KEPT_READS = 4  # as many prompts stay read as there are slots, divided by this: row_bytes counts one for each slot


@dataclass(frozen=True)
class Waiting:
    """Told when the queue moves."""

    ahead: int
    seconds_left: float


@dataclass(frozen=True)
class Row:
    """One row of one candidate is drawn."""

    candidate: int
    y: int
    pixels: NDArray[np.uint8]
    """(W, 3)"""
    seconds_left: float


@dataclass(frozen=True)
class Done:
    """All is drawn: images uint8 (n, H, W, 3) and their nats per drawn pixel (n,), as sampling.Drawing has them."""

    images: NDArray[np.uint8]
    nats: list[float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """It will not be drawn; status as HTTP counts them."""

    status: int
    message: str


Event = Waiting | Row | Done | Failed


class Busy(Exception):
    """The queue is full for about so many seconds, or the engine is closing."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(eq=False)
class Ticket:
    """A request for n pictures behind one prompt (1, P); `tell` is called in the engine's thread and must not wait."""

    prompt: Tensor
    grid: tuple[int, int]
    n: int
    sampling: SamplingConfig
    seconds: float
    tell: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    placed: int = 0  # candidates that have a row, or had one
    finished: int = 0
    over: bool = False
    read: Prefill | None = None  # the prompt's prefill, while candidates wait for rows
    began: float = 0.0
    first_row: float = 0.0

    def __post_init__(self) -> None:
        length = math.prod(self.grid)
        self.key = self.prompt.numpy().tobytes()
        self.noise = [token_noise(self.sampling.seed, 0, i, length) for i in range(self.n)]
        self.tokens = np.zeros((self.n, length), np.int64)
        self.tokens[:, : self.prompt.shape[1]] = self.prompt.numpy()
        self.drawn = length - self.prompt.shape[1]
        self.nats = np.zeros(self.n)


@dataclass(eq=False, kw_only=True)
class _Candidate(drawing.Row):
    """A row of the table: whose it is."""

    ticket: Ticket
    number: int


class Engine:
    """One model's table of rows. Those in use are the first ones, so that a step costs what they cost.

    `observe` is called with (what, value): "queue_seconds", "first_row_seconds", "pixels", "pixels_per_second".
    `worker` has one thread, and whatever else works in it comes between two pixels; best it loaded the model, too.
    Raises InputError where the slots do not fit into memory.
    """

    def __init__(
        self, model: ImageGPT, config: ServeConfig, observe: Callable[[str, float], None], worker: ThreadPoolExecutor
    ) -> None:
        shape, slots = model.config, config.slots
        self._kind = choose_decoder(model, slots, shape.tokens, config.speed, independent_rows=True)
        self.mode = self._kind.name
        needed = slots * self._kind.row_bytes(model)
        if needed > MEMORY_SHARE * free_memory_bytes(str(model.device)):
            raise InputError(f"{slots} slots need {needed / 1e9:.1f} GB of memory; take fewer", argument="slots")
        self.model, self.slots, self.limit, self.observe = model, slots, config.queue, observe
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._reads: dict[bytes, Prefill] = {}  # of the prompts used last, by their tokens
        self._kept = max(1, slots // KEPT_READS)
        self.closing = self._drawing = False
        self._left_at: float | None = None  # when the last turn ended, while drawing
        self._worker = worker
        worker.submit(self._warm_up).result()

    def _warm_up(self) -> None:
        """The first products are slow, and the first request shall be told its time."""
        decoder, half = self._kind(self.model, self.slots), self.model.config.tokens // 2
        self._decoder, self._table = decoder, drawing.Table[_Candidate](decoder)
        every = torch.zeros(self.slots, dtype=torch.int64, device=self.model.device)
        for _ in range(2):
            start = time.monotonic()
            _, read = decoder.prefill(every.new_zeros(1, half))
            self.reading = (time.monotonic() - start) / (half + 1)  # seconds for each token of a prompt
            decoder.fill(torch.arange(self.slots, device=every.device), read, every)
            start = time.monotonic()
            if half:
                decoder.step(every)
            self.pace = time.monotonic() - start

    # ---- for other threads

    def submit(self, ticket: Ticket) -> int:
        """Queue a request; returns how many are before it, 0 where it begins at once. Raises Busy."""
        with self._changed:
            if self.closing or len(self._waiting) >= self.limit:
                raise Busy(self._forecast()[1])
            self._waiting.append(ticket)
            if not self._drawing:
                self._worker.submit(self._go)
                self._drawing, self._left_at = True, None
            return self._ahead(len(self._waiting) - 1)

    def cancel(self, ticket: Ticket) -> None:
        """Its rows are free at the next pixel, its place in the queue at once."""
        with self._changed:
            self._end(ticket)

    def seconds_left(self, ticket: Ticket) -> float:
        """Until that request is done: pixels are counted exactly, as long as nobody leaves before his time."""
        with self._changed:
            return self._forecast()[0].get(ticket, 0.0)

    @property
    def used(self) -> int:
        return len(self._table.rows)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def drain(self, seconds: float) -> None:
        """Refuse what waits and what comes; what is being drawn has that long to end."""
        with self._changed:
            self.closing = True
            for ticket in [ticket for ticket in self._waiting if not ticket.placed]:
                self._fail(ticket, Failed(503, "the server is shutting down; try again later"))
            for ticket in self._tickets():
                ticket.seconds = min(ticket.seconds, time.monotonic() - ticket.arrived + seconds)

    def close(self) -> None:
        """End everything now; the worker is free when this returns."""
        with self._changed:
            self.closing = True
            for ticket in self._tickets():
                self._fail(ticket, Failed(503, "the server is shutting down; try again later"))
            self._changed.wait_for(lambda: not self._drawing)

    # ---- with the lock held

    def _tickets(self) -> set[Ticket]:
        return {*self._waiting, *(place.ticket for place in self._table.rows)}

    def _end(self, ticket: Ticket) -> None:
        ticket.over, ticket.read = True, None
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def _fail(self, ticket: Ticket, reason: Failed) -> None:
        if not ticket.over:
            self._end(ticket)
            ticket.tell(reason)

    def _ahead(self, number: int) -> int:
        """Requests before that number of the queue; those being drawn are one where they take all slots."""
        return number + (len(self._table.rows) == self.slots)

    def _forecast(self) -> tuple[dict[Ticket, float], float]:
        """Seconds until each request is done, and until the first that waits has all its rows."""
        length = self.model.config.tokens
        ends = [0] * self._table.free + [length - row.known for row in self._table.rows]
        left: dict[Ticket, float] = {}
        for row in self._table.rows:
            left[row.ticket] = max(left.get(row.ticket, 0.0), (length - row.known) * self.pace)
        heapq.heapify(ends)
        room, reading, read = 0.0, 0.0, set(self._reads)
        for number, ticket in enumerate(self._waiting):
            if ticket.read is None and ticket.key not in read:
                reading += ticket.prompt.shape[1] * self.reading
                read.add(ticket.key)
            for _ in range(ticket.n - ticket.placed):
                start = ends[0]
                left[ticket] = max(left.get(ticket, 0.0), (start + ticket.drawn) * self.pace + reading)
                heapq.heapreplace(ends, start + ticket.drawn)
                room = max(room, start * self.pace) if number == 0 else room
        return left, room

    # ---- in the worker's thread

    @torch.inference_mode()
    def _go(self) -> None:
        """A turn, and another one behind whatever else waits for the worker."""
        try:
            self._turn()
        except Exception:
            logging.getLogger(__name__).exception("drawing failed")
            with self._changed:
                for ticket in self._tickets():
                    self._fail(ticket, Failed(500, "the drawing failed; the server's log says why"))
                self._table.rows.clear()
        with self._changed:
            self._drawing, self._left_at = False, time.monotonic()
            self._changed.notify_all()
            if self._waiting or self._table.rows:
                try:
                    self._worker.submit(self._go)
                    self._drawing = True
                except RuntimeError:  # the worker is shut down
                    for ticket in self._tickets():
                        self._fail(ticket, Failed(503, "the server is shutting down; try again later"))

    def _turn(self) -> None:
        """One pixel of every row in use."""
        start = time.monotonic()
        others = 0.0 if self._left_at is None else min(start - self._left_at, READ_SECONDS)  # what else the worker did
        with self._changed:
            for ticket in self._tickets():
                if start - ticket.arrived > ticket.seconds:
                    self._fail(ticket, Failed(504, f"not done within {ticket.seconds:g} seconds; ask for fewer"))
            self._leave()
        self._admit()
        if not self._table.rows:
            return
        start, count = time.monotonic(), len(self._table.rows)
        self.observe("pixels", count)  # before anybody is told that they are drawn
        rows, tokens, nats = next(iter(self._table))
        for row, token, cost in zip(rows, tokens.tolist(), nats.tolist(), strict=True):
            row.ticket.tokens[row.number, row.known - 1] = token
            row.ticket.nats[row.number] += cost
            if row.known % self.model.config.columns == 0 and not row.ticket.over:
                self._tell_row(row.ticket, row)
        with self._changed:
            self._leave()
        self._table.step()
        seconds = time.monotonic() - start + others
        self.pace = PACE_MEMORY * self.pace + (1 - PACE_MEMORY) * seconds
        self.observe("pixels_per_second", count / self.pace)

    def _leave(self) -> None:
        """Rows of finished candidates and ended requests are free."""
        for row in self._table.rows:
            row.cancelled = row.ticket.over
        self._table.drop_finished()

    def _admit(self) -> None:
        """Free rows go to those that wait, in order; others wait for their pixel READ_SECONDS, or for one prompt."""
        end = time.monotonic() + READ_SECONDS
        while self._table.free and time.monotonic() < end:
            with self._changed:
                if not self._waiting:
                    return
                ticket = self._waiting[0]
            read = ticket.read or self._read(ticket)
            with self._changed:
                if not ticket.over:
                    self._place(ticket, read)

    def _read(self, ticket: Ticket) -> Prefill:
        """A prefill; requests for the same picture share it, those that come a little later as well."""
        ticket.began = time.monotonic()
        self.observe("queue_seconds", ticket.began - ticket.arrived)
        with self._changed:
            if ticket.key in self._reads:
                self._reads[ticket.key] = self._reads.pop(ticket.key)  # the newest is the last
                return self._reads[ticket.key]
            together = self._unread(ticket)
        logits, cache = self._decoder.prefill(torch.cat(list(together.values())).to(self.model.device))
        seconds = (time.monotonic() - ticket.began) / (len(together) * (ticket.prompt.shape[1] + 1))
        self.reading = PACE_MEMORY * self.reading + (1 - PACE_MEMORY) * seconds
        caches = [cache]
        if len(together) > 1:  # copies: one that stays longest must not keep the others' memory
            caches = [cache.select(torch.tensor([i], device=logits.device)) for i in range(len(together))]
        reads = [(logits[i : i + 1], alone) for i, alone in enumerate(caches)]
        with self._changed:
            self._reads.update(zip(together, reads, strict=True))
            awaited = {other.key for other in self._waiting}
            while len(self._reads) > self._kept:
                self._reads.pop(next((key for key in self._reads if key not in awaited), next(iter(self._reads))))
        return reads[0]

    def _unread(self, ticket: Ticket) -> dict[bytes, Tensor]:
        """Prompts to be read with that of the first who waits: others as long, as many as are kept."""
        found = {ticket.key: ticket.prompt}
        most = min(self._decoder.prompts_per_prefill(ticket.prompt.shape[1]), self._kept)
        for other in self._waiting:
            alike = other.prompt.shape == ticket.prompt.shape and other.key not in self._reads
            if len(found) < most and alike and other.read is None:
                found.setdefault(other.key, other.prompt)
        return found

    def _place(self, ticket: Ticket, read: Prefill) -> None:
        """Put as many of its candidates as there is room for into the table."""
        count = min(self._table.free, ticket.n - ticket.placed)
        numbers, known = range(ticket.placed, ticket.placed + count), ticket.prompt.shape[1]
        rows = [_Candidate(ticket.noise[i], ticket.sampling, known, ticket=ticket, number=i) for i in numbers]
        self._table.add(rows, read, [0] * count)
        ticket.placed += count
        ticket.read = read if ticket.placed < ticket.n else None
        if ticket.read is None:
            self._waiting.popleft()
            left = self._forecast()[0]
            for number, other in enumerate(self._waiting):
                other.tell(Waiting(self._ahead(number), left[other]))

    def _tell_row(self, ticket: Ticket, row: _Candidate) -> None:
        """Tell a row of the grid as the rows of pixels that it is, and with the last one all."""
        config, tokenizer, now = self.model.config, self.model.tokenizer, time.monotonic()
        if not ticket.first_row:
            ticket.first_row = now
            self.observe("first_row_seconds", now - ticket.arrived)
        rest = min(other.known for other in self._table.rows if other.ticket is ticket)
        left = (config.tokens - rest) * self.pace if ticket.read is None else self.seconds_left(ticket)
        drawn = ticket.tokens[row.number, None, row.known - config.columns : row.known]
        [pixels] = tokenizer.decode(drawn, config.columns)
        first = (row.known // config.columns - 1) * len(pixels)
        for y, line in enumerate(pixels, first):
            ticket.tell(Row(row.number, y, line, left))
        ticket.finished += row.known == config.tokens
        if ticket.finished == ticket.n:
            ticket.over = True
            seconds = {
                "queue": ticket.began - ticket.arrived,
                "first_row": ticket.first_row - ticket.arrived,
                "total": now - ticket.arrived,
            }
            nats = ticket.nats / (ticket.drawn * math.prod(tokenizer.patch))
            ticket.tell(Done(tokenizer.decode(ticket.tokens, config.columns), nats.tolist(), seconds))
