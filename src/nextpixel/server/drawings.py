"""Responses of drawings: pictures when all are drawn, or each row as it is drawn."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from anyio import to_thread
from fastapi import Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from nextpixel.config import to_side
from nextpixel.drawing.sampling import allowed_mask, caption_tags, prompt_tokens
from nextpixel.images import png_bytes
from nextpixel.images.lists import grid
from nextpixel.server import schema
from nextpixel.server.calls import Call, base64_text
from nextpixel.server.engine import SHUTTING_DOWN, Busy, Done, Engine, Event, Failed, Row, Ticket, Waiting

GRID_PIXELS = 160  # side of a picture in the grid of a PNG response
NAMES = {Waiting: "waiting", Row: "row", Done: "done", Failed: "error"}


News = asyncio.Queue[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Drawn:
    """A request that is being drawn: its events, pixels as arrays, and what to call when the client stops reading.

    Drawing does not wait for the reader of the events; all rows together have the size of the pictures.
    """

    news: News
    end: Callable[[], object]
    seconds_left: float | None

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        name = ""
        while name not in ("done", "error"):
            name, data = await self.news.get()
            yield name, data


async def draw(
    call: Call[schema.Sample],
    engines: Mapping[str, Engine],
    thread: ThreadPoolExecutor,
    squares: NDArray[np.uint8] | None = None,
    keep: float = 0.0,
) -> Drawn:
    """Draw whole pictures, or complete squares (1, H, W, 3), as `call` asks. Raises InputError and HTTPException."""
    body, model = call.body, call.model
    news: News = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def notify(event: Event) -> None:
        data = vars(event) | (facts if isinstance(event, Done) else {})
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(news.put_nowait, (NAMES[type(event)], data))

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
            streamed=_streams(call),
        )

    ticket = await loop.run_in_executor(thread, prepare)  # refuses a masked model, which has no engine
    engine = engines[call.name]
    facts = {
        "model": call.name,
        "mode": engine.mode,
        "seed": body.seed,
        "kept_rows": ticket.prompt.shape[1] // model.config.columns * model.tokenizer.patch[0],
    }
    ahead = _submit(engine, ticket)
    left = engine.seconds_left(ticket)
    start = facts | {"n": body.n, "side": to_side(model.size), "seconds_left": left}
    news.put_nowait(("start", start))  # before any event of the engine, which arrives through the loop
    if ahead:
        news.put_nowait(("waiting", vars(Waiting(ahead, left))))
    return Drawn(news, lambda: engine.cancel(ticket), left)


async def respond(call: Call[Any], drawn: Drawn) -> Response:
    """The response that `call` asks for: events, JSON, or a grid as a PNG. Raises HTTPException."""
    if _streams(call):

        async def lines() -> AsyncIterator[str]:
            async for name, data in drawn.events():
                yield sse(name, await to_thread.run_sync(encoded, data))

        return Stream(lines(), drawn)
    done = await finish(call, drawn)
    zoom = max(1, GRID_PIXELS // max(call.model.size))
    headers = {"X-Seed": str(done["seed"]), "X-Nats": ",".join(f"{value:.6f}" for value in done["nats"])}
    return await call.respond(lambda: encoded(done), lambda: np.asarray(grid(list(done["images"]), zoom=zoom)), headers)


async def finish(call: Call[Any], drawn: Drawn) -> dict[str, Any]:
    """What the event `done` says. Raises HTTPException."""

    async def last() -> dict[str, Any]:
        async for name, data in drawn.events():
            if name == "error":
                raise HTTPException(data["status"], data["message"])
            if name == "done":
                return data
        raise AssertionError

    try:
        return await call.unless_disconnected(last())
    finally:
        drawn.end()


def encoded(data: dict[str, Any]) -> dict[str, Any]:
    """The data of an event for JSON: pixels in base64, pictures as PNG files in base64."""
    found = dict(data)
    if "pixels" in data:
        found["pixels"] = base64_text(data["pixels"].tobytes())
    if "images" in data:
        found["images"] = [base64_text(png_bytes(image)) for image in data["images"]]
    return found


def _streams(call: Call[Any]) -> bool:
    return call.body.stream or call.accepts("text/event-stream")


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
    """Server-sent events; ends what is drawn when the response ends."""

    def __init__(self, lines: AsyncIterator[str], drawn: Drawn) -> None:
        headers = {"X-Accel-Buffering": "no"}
        if drawn.seconds_left is not None:
            headers["X-Seconds-Left"] = f"{drawn.seconds_left:.3f}"
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._end = drawn.end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def sse(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
