"""A request from its arrival to its response, with its deadline; errors as responses."""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from anyio import to_thread
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from nextpixel.errors import InputError, shortened
from nextpixel.images import png_bytes
from nextpixel.network.model import ImageGPT
from nextpixel.server import schema

R = TypeVar("R", bound=schema.Request)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Call(Generic[R]):
    """A request that has been read."""

    request: Request
    body: R
    name: str
    model: ImageGPT
    seconds: float
    """Time limit from its arrival."""
    deadline: float
    """On the clock of time.monotonic."""

    def accepts(self, media_type: str) -> bool:
        return media_type in self.request.headers.get("accept", "")

    async def respond(
        self,
        content: Callable[[], dict[str, Any]],
        image: Callable[[], NDArray[np.uint8]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        """JSON, or `image` as a PNG with `headers` if the client asks for one; made in a thread."""
        by_header = "png" if self.accepts("image/png") and not self.accepts("json") else "json"

        def response() -> Response:
            if image is not None and (self.body.format or by_header) == "png":
                return Response(png_bytes(image()), media_type="image/png", headers=headers)
            return JSONResponse(content())

        return await to_thread.run_sync(response)

    async def before_deadline(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancel it at the deadline or when the client disconnects."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await self.unless_disconnected(work)
        except TimeoutError:
            raise HTTPException(504, "the request took longer than its timeout_seconds") from None

    async def unless_disconnected(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancel it and raise ClientDisconnect when the client disconnects."""

        async def watch() -> None:
            while (await self.request.receive())["type"] != "http.disconnect":
                pass

        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(watch())
        working.add_done_callback(lambda task: task.cancelled() or task.exception())  # asyncio logs unread exceptions
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            working.cancel()
            watching.cancel()


async def read_call(request: Request, kind: type[R], models: Mapping[str, ImageGPT], timeout_seconds: float) -> Call[R]:
    """Receive and parse a request. Raises InputError and HTTPException."""
    try:
        async with asyncio.timeout(timeout_seconds):
            content = await request.body()
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {timeout_seconds:g} seconds") from None
    arrived = time.monotonic()
    body = await to_thread.run_sync(schema.parse, request.headers.get("content-type", ""), content, kind)
    name = body.model or next(iter(models))
    if name not in models:
        raise FieldError(404, "model", f"expected one of {', '.join(models)}, got {shortened(name)}")
    seconds = min(body.timeout_seconds or math.inf, timeout_seconds)
    return Call(request, body, name, models[name], seconds, arrived + seconds)


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- errors


class FieldError(HTTPException):
    """A refusal of a field with another status than 400, which is that of InputError."""

    def __init__(self, status: int, param: str, message: str) -> None:
        super().__init__(status, f"{param}: {message}")
        self.param = param


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None, param: str | None = None
) -> Response:
    return JSONResponse(schema.refusal(status, message, param), status, headers)


async def handle_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), error.headers, getattr(error, "param", None))
    if isinstance(error, InputError):
        return error_response(400, str(error), param=error.argument)
    if isinstance(error, ClientDisconnect):
        return error_response(499, "the client disconnected")  # for the metrics; nobody reads it
    return error_response(500, "the request failed; see the server's log")


EXCEPTION_HANDLERS: Any = dict.fromkeys((HTTPException, InputError, ClientDisconnect, Exception), handle_error)
