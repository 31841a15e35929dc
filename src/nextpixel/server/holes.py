"""Responses with filled holes: slices of a drawing run between the engine's steps."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from fastapi import Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from nextpixel.config import Speed
from nextpixel.drawing.holes import Filling
from nextpixel.images import grid, png_bytes
from nextpixel.server import schema
from nextpixel.server.calls import Call, base64_text
from nextpixel.server.drawings import GRID_PIXELS, sse

WAITING_AT_MOST = 64
LATE = "the request took longer than its timeout_seconds"


async def fill(
    call: Call[schema.Complete],
    thread: ThreadPoolExecutor,
    one_call: CapacityLimiter,
    square: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    speed: Speed,
) -> Response:
    """Fill the mask (H, W) of a picture (H, W, C), one request at a time. Raises InputError and HTTPException."""
    body, loop = call.body, asyncio.get_running_loop()

    def prepare() -> Filling:
        sampling = replace(body.sampling(), speed=speed)
        return Filling(call.model, square[None], mask[None], body.n, body.particles, sampling, body.caption)

    filling = await loop.run_in_executor(thread, prepare)
    facts = {"model": call.name, "mode": filling.decoder.name, "seed": body.seed, "filled_pixels": int(mask.sum())}

    async def slices() -> AsyncIterator[None]:
        """Draw; each slice takes about as many steps as a row has tokens."""
        rounds = filling.rounds(every=call.model.config.columns)
        async with one_call:
            while await loop.run_in_executor(thread, next, rounds, None) is not None:
                yield

    def result() -> dict[str, Any]:
        drawing = filling.drawing()
        assert drawing.evidence is not None
        return {
            "images": [base64_text(png_bytes(image)) for image in drawing.images],
            "nats": drawing.nats.tolist(),
            "log_evidence": drawing.evidence.log_evidence.tolist(),
            "ancestors": drawing.evidence.ancestors.tolist(),
            "seconds": {"total": time.monotonic() - (call.deadline - call.seconds)},
        } | facts

    async def events() -> AsyncIterator[str]:
        yield sse("start", facts | {"n": body.n, "side": schema.side(call.model.size)})
        told: set[tuple[int, int]] = {(i, int(y)) for i in range(body.n) for y in np.flatnonzero(~mask.any(1))}
        async for _ in slices():
            if time.monotonic() > call.deadline:
                yield sse("error", {"status": 504, "message": LATE})
                return
            for i in range(body.n):
                for y in np.flatnonzero(filling.agreed(i).all(1)).tolist():
                    if (i, y) not in told:
                        told.add((i, y))
                        pixels = base64_text(filling.image(i)[0, y].tobytes())
                        yield sse("row", {"candidate": i, "y": y, "pixels": pixels})
        yield sse("done", result())

    if one_call.statistics().tasks_waiting >= WAITING_AT_MOST:
        raise HTTPException(429, f"{WAITING_AT_MOST} requests wait; try again in 1 s", {"Retry-After": "1"})
    if body.stream or call.accepts("text/event-stream"):
        return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def all_slices() -> None:
        async for _ in slices():
            pass

    await call.before_deadline(all_slices())
    drawing = filling.drawing()
    across = math.ceil(math.sqrt(body.n))
    cells = [list(drawing.images[i : i + across]) for i in range(0, body.n, across)]
    zoom = max(1, GRID_PIXELS // max(call.model.size))
    headers = {"X-Seed": str(body.seed), "X-Nats": ",".join(f"{value:.6f}" for value in drawing.nats)}
    return await call.respond(result, lambda: np.asarray(grid(cells, zoom=zoom)), headers)
