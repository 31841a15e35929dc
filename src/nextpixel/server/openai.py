"""Requests and responses as OpenAI's Images API has them, over the same drawing: /v1/images/generations and edits."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anyio import to_thread
from fastapi import Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import Field

from nextpixel.errors import InputError, shortened
from nextpixel.images import from_array, join_pictures, png_bytes, zoom_nearest
from nextpixel.server import schema
from nextpixel.server.calls import Call, base64_text
from nextpixel.server.drawings import Drawn, Stream, finish, sse

LARGEST_SIDE = 2048
HIDDEN = 225  # grey of pixels that are not drawn yet
STARTED = int(time.time())


class Generation(schema.Sample):
    """New pictures, as OpenAI's clients ask for them; `prompt` is the caption."""

    prompt: str | None = Field(
        None, max_length=2000, description="The caption; omit it or leave it empty to draw without one."
    )
    size: str | None = Field(None, max_length=20, description="auto, the model's own, or a whole multiple, as 64x64.")
    response_format: str | None = Field(None, max_length=20, description="b64_json, the only one.")
    output_format: str | None = Field(None, max_length=20, description="png, the only one.")
    partial_images: int | None = Field(None, ge=0, le=3, description="Unfinished versions of each, with `stream`.")
    user: Any = Field(None, description="Ignored, as are the fields below.")
    safety_identifier: Any = None
    quality: Any = None
    style: Any = None
    background: Any = None
    moderation: Any = None
    output_compression: Any = None
    input_fidelity: Any = None


class Edit(Generation):
    """A picture whose transparent part, or that of a mask, is drawn; or with `keep` all but its top rows."""

    image: schema.Image
    mask: schema.Image | None = Field(None, description="Its transparent pixels are drawn, as in OpenAI's API.")
    keep: float | None = Field(None, ge=0, lt=1, description="Instead: the fraction of the rows to keep, from the top.")
    particles: int = Field(8, ge=1, le=64, description="Versions of each picture with a mask; more are better.")


@dataclass(frozen=True)
class Canvas:
    """What is known of a request's pictures, and how they are enlarged."""

    square: NDArray[np.uint8]
    """(H, W, C), at the model's size."""
    missing: NDArray[np.bool_] | None
    """(H, W), what is drawn; None: the rows that are not kept."""
    large: NDArray[np.uint8]
    """(zoom * H, zoom * W, C), the given picture; not of a model that places pictures."""
    zoom: int

    @classmethod
    def blank(cls, call: Call[Generation], zoom: int) -> Canvas:
        height, width, channels = *call.model.size, call.model.tokenizer.channels
        blank = np.zeros((height, width, channels), np.uint8)
        return cls(blank, np.ones((height, width), bool), zoom_nearest(blank, zoom), zoom)

    def drawn_part(self, kept_rows: int) -> NDArray[np.bool_]:
        rows = np.arange(len(self.square)) >= kept_rows
        return np.broadcast_to(rows[:, None], self.square.shape[:2]) if self.missing is None else self.missing

    def enlarged(self, image: NDArray[np.uint8], missing: NDArray[np.bool_]) -> str:
        """A PNG file in base64: pixel art without smoothing, photographs by a filter, joined to the given picture."""
        if self.zoom > 1 and image.shape[2] == 3:
            return base64_text(png_bytes(np.asarray(join_pictures(from_array(self.large), image, ~missing, "squash"))))
        return base64_text(png_bytes(zoom_nearest(image, self.zoom)))


def check(call: Call[Any], max_pixels: int) -> int:
    """The zoom of `size`, of n pictures of max_pixels together. Raises InputError for what the server cannot do."""
    body, (height, width) = call.body, call.model.size
    for name, only in (("format", "json"), ("response_format", "b64_json"), ("output_format", "png")):
        if getattr(body, name) not in (None, only):
            why = "; the server keeps no files to link to" if getattr(body, name) == "url" else ""
            raise InputError(f"expected {only}, got {shortened(getattr(body, name))}{why}", argument=name)
    if body.prompt and body.prompt.strip() and call.model.words is None:
        raise InputError(
            f"expected an empty one, as {call.name} was trained without captions, got {shortened(body.prompt)}",
            argument="prompt",
        )
    if body.size in (None, "auto"):
        return 1
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", body.size)
    zoom = int(found[1]) // width if found else 0
    most = max(1, LARGEST_SIDE // max(height, width))
    if found is None or not 1 <= zoom <= most or (int(found[1]), int(found[2])) != (zoom * width, zoom * height):
        raise InputError(
            f"expected auto, {width}x{height}, or a whole multiple such as {2 * width}x{2 * height}, up to "
            f"{most * width}x{most * height}, got {shortened(body.size)}",
            argument="size",
        )
    if (pixels := body.n * zoom**2 * height * width) > max_pixels:
        raise InputError(
            f"expected at most {max_pixels:,} pixels in all pictures, got {pixels:,} (n is {body.n}); request fewer or "
            "smaller ones",
            argument="size",
        )
    return zoom


def check_transparent(mask: NDArray[np.bool_], field: str) -> None:
    """Raise InputError where nothing or everything (H, W) would be drawn."""
    if not mask.any():
        other = ", a mask or `keep`" if field == "image" else ""
        raise InputError(f"expected transparent pixels, which are drawn{other}, got none", argument=field)
    if mask.all():
        raise InputError("expected opaque pixels, which are kept, got none", argument=field)


def translated(call: Call[Any]) -> Call[Any]:
    """The call with the fields of /v1/sample, or /v1/complete."""
    kind = schema.Complete if isinstance(call.body, Edit) else schema.Sample
    given = call.body.model_dump(include=set(kind.model_fields) - {"image", "mask", "keep"})
    given["caption"] = (call.body.prompt or "").strip() or call.body.caption
    image = {"image": call.body.image} if isinstance(call.body, Edit) else {}
    return replace(call, body=kind.model_validate(given | image))


async def naming_prompt(drawn: Awaitable[Drawn]) -> Drawn:
    """Await; errors about the caption name the prompt."""
    try:
        return await drawn
    except InputError as error:
        if error.argument != "caption":
            raise
        raise InputError(error.message, argument="prompt") from None


async def respond(call: Call[Any], drawn: Drawn, kind: str, canvas: Canvas) -> Response:
    """The pictures, or events whose names begin with `kind`. Raises HTTPException."""
    size = f"{call.model.size[1] * canvas.zoom}x{call.model.size[0] * canvas.zoom}"
    background = "transparent" if canvas.square.shape[2] == 4 else "opaque"
    facts = {"background": background, "output_format": "png", "size": size}

    def event(name: str, picture: str, **more: Any) -> str:
        data = {"type": f"{kind}.{name}", "b64_json": picture, "created_at": int(time.time()), "quality": "auto"}
        return sse(f"{kind}.{name}", data | facts | more)

    async def lines() -> AsyncIterator[str]:
        sketches = _Sketches(canvas, call.body.n, call.body.partial_images or 0)
        async for name, data in drawn.events():
            if name == "start":
                missing = sketches.begin(data.get("kept_rows", 0))
            elif name == "row":
                for index in sketches.add(data):
                    picture = await to_thread.run_sync(canvas.enlarged, sketches.images[data["candidate"]], missing)
                    yield event("partial_image", picture, partial_image_index=index)
            elif name == "error":
                yield sse("error", schema.refusal(**data))
            elif name == "done":
                for image in data["images"]:
                    yield event("completed", await to_thread.run_sync(canvas.enlarged, image, missing))

    if call.body.stream:
        return Stream(lines(), drawn)
    done = await finish(call, drawn)
    missing = canvas.drawn_part(done.get("kept_rows", 0))

    def content() -> list[dict[str, str]]:
        return [{"b64_json": canvas.enlarged(image, missing)} for image in done["images"]]

    return JSONResponse({"created": int(time.time()), "data": await to_thread.run_sync(content)} | facts)


class _Sketches:
    """Unfinished pictures, and which of `count` partial images of each are due."""

    def __init__(self, canvas: Canvas, n: int, count: int) -> None:
        self.images = canvas.square[None].repeat(n, 0)
        self._canvas, self._count, self._rows = canvas, count, [0] * n

    def begin(self, kept_rows: int) -> NDArray[np.bool_]:
        missing = self._canvas.drawn_part(kept_rows)
        self.images[:, missing] = HIDDEN if self.images.shape[3] == 3 else 0
        self._total = int(missing.any(1).sum())
        return missing

    def add(self, row: dict[str, Any]) -> Iterable[int]:
        """Add a row; the numbers of the partial images that show so many rows."""
        i = row["candidate"]
        self.images[i, row["y"]] = row["pixels"]
        before, now = (rows * (self._count + 1) // self._total for rows in (self._rows[i], self._rows[i] + 1))
        self._rows[i] += 1
        return range(before, min(now, self._count))


def list_models(names: Iterable[str]) -> dict[str, Any]:
    """The models as OpenAI's API lists them."""
    data = [{"id": name, "object": "model", "created": STARTED, "owned_by": "nextpixel"} for name in names]
    return {"object": "list", "data": data}
