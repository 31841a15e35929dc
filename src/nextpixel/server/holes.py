"""Responses with filled holes: one filling at a time, in slices between the engine's steps."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from nextpixel.config import Speed, to_side
from nextpixel.drawing.holes import Filling
from nextpixel.drawing.sampling import Drawing
from nextpixel.server import schema
from nextpixel.server.calls import Call
from nextpixel.server.drawings import NAMES, Drawn, News
from nextpixel.server.engine import SHUTTING_DOWN, Event, Failed, Row, Waiting

LATE = Failed(504, "the request took longer than its timeout_seconds")
SLICE_SECONDS = 0.02
BROKEN = Failed(500, "the filling failed; see the server's log")
Kind = tuple[str, bool]  # a model, and whether its captions steer by guidance, which costs two rows


@dataclass(eq=False)
class Fills:
    """The queue of a server's fillings: at most `limit` wait. `observe` (model, name, value) is as an engine's.

    While `engines_draw`, a filling leaves them as much time of the thread as it takes.
    """

    thread: ThreadPoolExecutor
    limit: int
    speed: Speed
    observe: Callable[[str, str, float], None]
    engines_draw: Callable[[], bool]

    def __post_init__(self) -> None:
        self._queue: dict[Call[Any], int | None] = {}  # steps left, None until prepared; the first is being drawn
        self._seconds_per_step: dict[Kind, float] = {}
        self._moved = asyncio.Event()
        self._end = math.inf  # of a server that is stopping

    @property
    def closing(self) -> bool:
        return self._end < math.inf

    def drain(self, seconds: float) -> None:
        """Refuse waiting and new fillings; give the current one `seconds` to finish."""
        self._end = time.monotonic() + seconds
        self._wake()

    def waiting(self, model: str) -> int:
        return sum(call.name == model for call in list(self._queue)[1:])

    def seconds_left(self, call: Call[Any]) -> float | None:
        """Seconds until the filling is done, assuming that no request is cancelled; None: not known yet."""
        total = 0.0
        for other, steps in self._queue.items():
            pace = self._seconds_per_step.get(_kind(other))
            if steps is None or pace is None:
                return None
            total += steps * pace
            if other is call:
                return total
        return None

    def join(self, call: Call[Any]) -> None:
        """Queue a filling, before it is prepared. Raises HTTPException."""
        if self.closing:
            raise HTTPException(SHUTTING_DOWN.status, SHUTTING_DOWN.message)
        if len(self._queue) > self.limit:
            wait = math.ceil(max(1, self.seconds_left(next(iter(self._queue))) or 0))
            message = f"{self.limit} requests wait; try again in {wait} s"
            raise HTTPException(429, message, {"Retry-After": str(wait)})
        self._queue[call] = None

    def prepared(self, call: Call[Any], filling: Filling) -> None:
        self._queue[call] = filling.steps_left

    def leave(self, call: Call[Any]) -> None:
        self._queue.pop(call, None)
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def draw(self, call: Call[Any], filling: Filling, notify: Callable[[Waiting | Row], None]) -> Drawing:
        """Fill when it is the call's turn, in slices of SLICE_SECONDS or of one step.

        Notifies of the place in the queue when it changes, and of new rows, see Filling.new_rows. Raises TimeoutError
        at the call's deadline or when draining ends it.
        """
        loop, observe = asyncio.get_running_loop(), self.observe
        while True:
            moved = self._moved  # before the queue is read: what leaves it from here on is noticed
            if self.closing:
                raise TimeoutError
            if not (ahead := list(self._queue).index(call)):
                break
            notify(Waiting(ahead, self.seconds_left(call)))
            await asyncio.wait_for(moved.wait(), call.deadline - time.monotonic())
        arrived, began, first = call.deadline - call.seconds, time.monotonic(), True
        observe(call.name, "queue_seconds", began - arrived)
        rounds, steps, pixels = filling.rounds(), filling.steps_left, 0

        def advance() -> tuple[float, int, int, list[tuple[int, int, NDArray[np.uint8]]]]:
            """A slice: its seconds, the pixels drawn, the steps left, and the new rows."""
            start, drawn = time.monotonic(), next(rounds)
            while filling.steps_left and time.monotonic() - start < SLICE_SECONDS:
                drawn += next(rounds)
            rows = filling.new_rows()
            return time.monotonic() - start, drawn, filling.steps_left, rows

        while filling.steps_left:
            seconds, drawn, left, rows = await loop.run_in_executor(self.thread, advance)
            if (now := time.monotonic()) > min(call.deadline, self._end):
                raise TimeoutError
            self._queue[call] = left
            if left < steps:
                self._seconds_per_step[_kind(call)] = (now - began) / (steps - left)
            if drawn:
                pixels += drawn
                observe(call.name, "pixels", drawn)
                observe(call.name, "pixels_per_second", pixels / (now - began))
            if rows and first:
                observe(call.name, "first_row_seconds", now - arrived)
                first = False
            for row in rows:
                notify(Row(*row, self.seconds_left(call)))
            if self.engines_draw():
                await asyncio.sleep(seconds)
        return await loop.run_in_executor(self.thread, filling.drawing)


def _kind(call: Call[Any]) -> Kind:
    return call.name, call.body.guidance != 1


async def fill(call: Call[schema.Complete], fills: Fills, square: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Drawn:
    """Fill the mask (H, W) of a picture (H, W, C). Raises InputError and HTTPException."""
    body = call.body

    def prepare() -> Filling:
        return Filling(
            call.model,
            square[None],
            mask[None],
            n=body.n,
            particles=body.particles,
            sampling=replace(body.sampling(), speed=fills.speed),
            caption=body.caption,
        )

    fills.join(call)
    try:
        filling = await asyncio.get_running_loop().run_in_executor(fills.thread, prepare)
    except BaseException:
        fills.leave(call)
        raise
    fills.prepared(call, filling)
    news: News = asyncio.Queue()
    facts = {"model": call.name, "mode": filling.decoder.name, "seed": body.seed, "filled_pixels": int(mask.sum())}
    left = fills.seconds_left(call)
    news.put_nowait(("start", facts | {"n": body.n, "side": to_side(call.model.size), "seconds_left": left}))

    def notify(event: Event) -> None:
        news.put_nowait((NAMES[type(event)], vars(event)))

    async def drawing() -> None:
        try:
            drawn = await fills.draw(call, filling, notify)
        except TimeoutError:
            return notify(SHUTTING_DOWN if fills.closing else LATE)
        except Exception:
            logging.getLogger(__name__).exception("filling failed")
            return notify(BROKEN)
        assert drawn.evidence is not None
        result = {
            "images": drawn.images,
            "nats": drawn.nats.tolist(),
            "log_evidence": drawn.evidence.log_evidence.tolist(),
            "ancestors": drawn.evidence.ancestors.tolist(),
            "seconds": {"total": time.monotonic() - (call.deadline - call.seconds)},
        }
        news.put_nowait(("done", result | facts))

    task = asyncio.create_task(drawing())  # not by the response, which waits for its reader
    task.add_done_callback(lambda _: fills.leave(call))
    return Drawn(news, task.cancel, left)
