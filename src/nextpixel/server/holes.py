"""Responses with filled holes: one filling at a time, in slices between the engine's steps."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from nextpixel.config import Speed
from nextpixel.drawing.holes import Filling
from nextpixel.server import schema
from nextpixel.server.calls import Call
from nextpixel.server.drawings import Drawn, Events
from nextpixel.server.engine import DECAY, SHUTTING_DOWN, Failed, Waiting

LATE = Failed(504, "the request took longer than its timeout_seconds")
BROKEN = Failed(500, "the filling failed; see the server's log")


@dataclass(eq=False)
class Fills:
    """The queue of a server's fillings: at most `limit` wait. `observe` (model, name, value) is as an engine's."""

    thread: ThreadPoolExecutor
    limit: int
    speed: Speed
    observe: Callable[[str, str, float], None]

    def __post_init__(self) -> None:
        self._queue: dict[Call[Any], int] = {}  # pixels left to draw; the first one is being drawn
        self._moved = asyncio.Event()
        self._seconds_per_pixel = 0.0
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

    def seconds_left(self, call: Call[Any]) -> float:
        """Seconds until the filling is done, assuming that no request is cancelled."""
        until = list(self._queue).index(call) + 1
        return sum(list(self._queue.values())[:until]) * self._seconds_per_pixel

    def join(self, call: Call[Any]) -> None:
        """Queue a filling, before it is prepared. Raises HTTPException."""
        if self.closing:
            raise HTTPException(SHUTTING_DOWN.status, SHUTTING_DOWN.message)
        if len(self._queue) > self.limit:
            wait = math.ceil(max(1, next(iter(self._queue.values())) * self._seconds_per_pixel))
            message = f"{self.limit} requests wait; try again in {wait} s"
            raise HTTPException(429, message, {"Retry-After": str(wait)})
        self._queue[call] = 0

    def prepared(self, call: Call[Any], pixels: int) -> None:
        self._queue[call] = pixels

    def leave(self, call: Call[Any]) -> None:
        self._queue.pop(call, None)
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def draw(self, call: Call[Any], filling: Filling) -> AsyncIterator[Waiting | list[tuple[int, int]]]:
        """Yield the place in the queue when it has changed, then the new rows, see Filling.new_rows, of each slice.

        A slice is about as many steps as a row has tokens. Raises TimeoutError at the call's deadline or when draining
        ends it.
        """
        loop, observe = asyncio.get_running_loop(), self.observe
        while True:
            moved = self._moved  # before the queue is read: what leaves it from here on is noticed
            if self.closing:
                raise TimeoutError
            if not (ahead := list(self._queue).index(call)):
                break
            yield Waiting(ahead, self.seconds_left(call))
            await asyncio.wait_for(moved.wait(), call.deadline - time.monotonic())
        arrived, began, first = call.deadline - call.seconds, time.monotonic(), True
        observe(call.name, "queue_seconds", began - arrived)
        rounds = filling.rounds(every=call.model.config.columns)
        while (drawn := await loop.run_in_executor(self.thread, next, rounds, None)) is not None:
            if time.monotonic() > min(call.deadline, self._end):
                raise TimeoutError
            now = time.monotonic()
            if drawn:
                seconds, began, known = (now - began) / drawn, now, self._seconds_per_pixel
                self._seconds_per_pixel = DECAY * known + (1 - DECAY) * seconds if known else seconds
                self._queue[call] -= drawn
                observe(call.name, "pixels", drawn)
                observe(call.name, "pixels_per_second", 1 / self._seconds_per_pixel)
            rows = filling.new_rows()
            if rows and first:
                observe(call.name, "first_row_seconds", now - arrived)
                first = False
            yield rows


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
    fills.prepared(call, filling.tokens)
    facts = {"model": call.name, "mode": filling.decoder.name, "seed": body.seed, "filled_pixels": int(mask.sum())}

    async def news() -> Events:
        yield "start", facts | {"n": body.n, "side": schema.side(call.model.size)} | left()
        try:
            async for moved in fills.draw(call, filling):
                if isinstance(moved, Waiting):
                    yield "waiting", vars(moved)
                    continue
                for i, y in moved:
                    yield "row", {"candidate": i, "y": y, "pixels": filling.image(i)[0, y]} | left()
        except TimeoutError:
            yield "error", vars(SHUTTING_DOWN if fills.closing else LATE)
            return
        except Exception:
            logging.getLogger(__name__).exception("filling failed")
            yield "error", vars(BROKEN)
            return
        drawing = filling.drawing()
        assert drawing.evidence is not None
        result = {
            "images": drawing.images,
            "nats": drawing.nats.tolist(),
            "log_evidence": drawing.evidence.log_evidence.tolist(),
            "ancestors": drawing.evidence.ancestors.tolist(),
            "seconds": {"total": time.monotonic() - (call.deadline - call.seconds)},
        }
        yield "done", result | facts

    def left() -> dict[str, float]:
        return {"seconds_left": fills.seconds_left(call)}

    return Drawn(news(), lambda: fills.leave(call), fills.seconds_left(call))
