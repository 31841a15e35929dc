"""Parts of responses: errors, server-sent events, pictures as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from nextpixel.errors import InputError
from nextpixel.images import png_bytes


def base64_png(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(png_bytes(image)).decode()


def server_event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)


async def handle_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), error.headers)
    if isinstance(error, InputError):
        return error_response(400, str(error))
    if isinstance(error, ClientDisconnect):
        return error_response(499, "the client disconnected")  # for the metrics; nobody reads it
    return error_response(500, "the request failed; see the server's log")


EXCEPTION_HANDLERS: Any = dict.fromkeys((HTTPException, InputError, ClientDisconnect, Exception), handle_error)
