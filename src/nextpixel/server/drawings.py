"""Responses of drawings: pictures when all are drawn, or each row as it is drawn."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from anyio import to_thread
from fastapi import Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from nextpixel.drawing.sampling import allowed_mask, caption_tags, prompt_tokens
from nextpixel.images import grid, png_bytes
from nextpixel.server import schema
from nextpixel.server.calls import Call, base64_text
from nextpixel.server.engine import SHUTTING_DOWN, Busy, Done, Engine, Event, Failed, Row, Ticket, Waiting

GRID_PIXELS = 160  # side of a picture in the grid of a PNG response


async def draw(
    call: Call[schema.Sample],
    engines: Mapping[str, Engine],
    thread: ThreadPoolExecutor,
    squares: NDArray[np.uint8] | None = None,
    keep: float = 0.0,
) -> Response:
    """Draw whole pictures, or complete squares (1, H, W, 3), as `call` asks. Raises InputError and HTTPException."""
    body, model = call.body, call.model
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def notify(event: Event) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(events.put_nowait, event)

    def prepare() -> Ticket:
        prompt, arrived, sampling = prompt_tokens(model, squares, keep), call.deadline - call.seconds, body.sampling()
        tags, allowed = caption_tags(model, body.caption, sampling), allowed_mask(model, sampling)
        return Ticket(
            prompt,
            model.config.tokens,
            body.n,
            sampling,
            call.seconds,
            notify,
            arrived,
            tags=tags,
            allowed=allowed,
            square=squares,
        )

    ticket = await loop.run_in_executor(thread, prepare)  # refuses a masked model, which has no engine
    engine = engines[call.name]
    ahead = _submit(engine, ticket)
    facts = {
        "model": call.name,
        "mode": engine.mode,
        "seed": body.seed,
        "kept_rows": ticket.prompt.shape[1] // model.config.columns * model.tokenizer.patch[0],
    }
    if body.stream or call.accepts("text/event-stream"):
        left = engine.seconds_left(ticket)
        begin = facts | {"n": body.n, "side": schema.side(model.size), "seconds_left": left}
        stream = _event_stream(events, begin, Waiting(ahead, left) if ahead else None, facts)
        return Stream(stream, lambda: engine.cancel(ticket), {"X-Seconds-Left": f"{left:.3f}"})
    try:
        event = await call.unless_disconnected(_last_event(events))
    finally:
        engine.cancel(ticket)
    if isinstance(event, Failed):
        raise HTTPException(event.status, event.message)
    across = math.ceil(math.sqrt(body.n))
    cells = [list(event.images[i : i + across]) for i in range(0, body.n, across)]
    zoom = max(1, GRID_PIXELS // max(model.size))
    headers = {"X-Seed": str(body.seed), "X-Nats": ",".join(f"{value:.6f}" for value in event.nats)}
    return await call.respond(lambda: _pictures(event) | facts, lambda: np.asarray(grid(cells, zoom=zoom)), headers)


def _submit(engine: Engine, ticket: Ticket) -> int:
    """Engine.submit; raises HTTPException."""
    try:
        return engine.submit(ticket)
    except Busy as busy:
        if engine.closing:
            raise HTTPException(SHUTTING_DOWN.status, SHUTTING_DOWN.message) from None
        wait = math.ceil(max(busy.seconds, 1))
        message = f"all slots are taken and {engine.limit} requests wait; try again in {wait} s"
        raise HTTPException(429, message, {"Retry-After": str(wait)}) from None


class Stream(StreamingResponse):
    """Server-sent events; calls `ended` when the response ends."""

    def __init__(
        self, events: AsyncIterator[str], ended: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no", **(headers or {})})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _event_stream(
    events: asyncio.Queue[Event], begin: dict[str, Any], waiting: Waiting | None, facts: dict[str, Any]
) -> AsyncIterator[str]:
    yield sse("start", begin)
    if waiting is not None:
        yield sse("waiting", vars(waiting))
    while True:
        match await events.get():
            case Row() as row:
                yield sse("row", vars(row) | {"pixels": base64_text(row.pixels.tobytes())})
            case Waiting() as moved:
                yield sse("waiting", vars(moved))
            case Done() as done:
                yield sse("done", await to_thread.run_sync(_pictures, done) | facts)
                return
            case Failed() as failed:
                yield sse("error", vars(failed))
                return


def sse(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _last_event(events: asyncio.Queue[Event]) -> Done | Failed:
    while True:
        event = await events.get()
        if isinstance(event, Done | Failed):
            return event


def _pictures(event: Done) -> dict[str, Any]:
    images = [base64_text(png_bytes(image)) for image in event.images]
    return {"images": images, "nats": event.nats, "seconds": event.seconds}
