"""The application: its routes, from parsing a request to building the response."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nextpixel import __version__
from nextpixel.checkpoints.card import public
from nextpixel.config import ServeConfig, Size
from nextpixel.drawing.sampling import prompt_tokens
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.images import UnreadableImage, grid, heatmap, png_bytes
from nextpixel.network.model import ImageGPT
from nextpixel.progress import silent
from nextpixel.representation.extraction import Backbone, check_layers, pooled
from nextpixel.representation.probing import LinearProbe
from nextpixel.server import schema
from nextpixel.server.decoders import Decoders
from nextpixel.server.engine import Busy, Done, Engine, Event, Failed, Row, Ticket, Waiting
from nextpixel.server.guard import guard
from nextpixel.server.meters import Meters

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # few and widely reviewed decoders
PICTURE_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
PAGE_KINDS = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
GRID_PIXELS = 160  # side of a picture in the grid of a PNG response
R = TypeVar("R", bound=schema.Request)
T = TypeVar("T")


def create_app(
    models: Mapping[str, ImageGPT],
    config: ServeConfig | None = None,
    *,
    classifier: LinearProbe | None = None,
    token: str | None = None,
    hosts: Collection[str] = (),
    worker: ThreadPoolExecutor | None = None,
) -> FastAPI:
    """Create the application. The first of `models` (by id) is the default; `hosts` are allowed host names.

    All networks run in the single thread of `worker`, see engine.py; models loaded in that thread are the fastest. The
    worker and `app.state.engines` are closed with the application. Raises InputError if the slots do not fit into
    memory.
    """
    config = config or ServeConfig()
    meters = Meters()
    worker = worker or ThreadPoolExecutor(1, "nextpixel")
    engines = {
        name: Engine(model, config, functools.partial(meters.drawing, name), worker)
        for name, model in models.items()
        if model.config.objective == "autoregressive"
    }
    calls = _Calls(config, worker)
    decoders = Decoders(config.max_pixels, FORMATS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for engine in engines.values():
            await to_thread.run_sync(engine.close)
        worker.shutdown(wait=False, cancel_futures=True)
        decoders.close()

    app = FastAPI(
        title="nextpixel",
        version=__version__,
        description="Image GPT: complete, draw and score pictures, and extract features.",
        docs_url=None,  # it would load code from another site
        redoc_url=None,
        redirect_slashes=False,  # it would drop the prefix of a proxy
        lifespan=lifespan,
        responses={"4XX": schema.REFUSED, "5XX": schema.REFUSED},
        exception_handlers={
            HTTPException: _http_error,
            InputError: _input_error,
            ClientDisconnect: _client_disconnected,
            Exception: _unexpected,
        },
    )
    app.state.engines, app.state.decoders = engines, decoders
    app.add_middleware(
        guard,
        token=token,
        hosts=hosts,
        upload_bytes=int(config.max_upload_mb * 1e6),
        root_path=config.root_path,
        observe=meters.request,
    )

    def chosen(body: schema.Request) -> tuple[str, ImageGPT]:
        name = body.model or next(iter(models))
        if name not in models:
            raise HTTPException(404, f"model: expected one of {', '.join(models)}")
        return name, models[name]

    async def read(request: Request, kind: type[R]) -> tuple[R, float]:
        """The parsed body, and the deadline of the response (time.monotonic)."""
        try:
            async with asyncio.timeout(config.timeout_seconds):
                content = await request.body()
        except TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {config.timeout_seconds:g} seconds") from None
        arrived = time.monotonic()
        body = await to_thread.run_sync(_parse, request.headers.get("content-type", ""), content, kind)
        return body, arrived + seconds(body)

    def seconds(body: schema.Request) -> float:
        return min(body.timeout_seconds or math.inf, config.timeout_seconds)

    async def before_deadline(request: Request, deadline: float, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancel it at the deadline or when the client disconnects."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await _unless_disconnected(request, work)
        except TimeoutError:
            raise HTTPException(504, "the request took longer than its timeout_seconds") from None

    async def read_square(request: Request, image: bytes, model: Backbone, deadline: float) -> NDArray[np.uint8]:
        """The picture as the model's input (1, H, W, 3)."""
        try:
            square = decoders.square(image, model.size, model.fit, model.levels)
            return (await before_deadline(request, deadline, square))[None]
        except UnreadableImage as error:
            raise HTTPException(
                422, f"image: {error.reason}; expected a complete PNG, JPEG, WebP, GIF or BMP file"
            ) from None

    async def draw_pictures(
        request: Request, body: schema.Sample, deadline: float, squares: NDArray[np.uint8] | None, keep: float
    ) -> Response:
        name, model = chosen(body)
        if body.n > config.max_completions:
            raise InputError(f"expected at most {config.max_completions}, got {body.n}", argument="n")
        sampling = body.sampling()
        events: asyncio.Queue[Event] = asyncio.Queue()
        notify, columns = _notifier(events), model.config.columns

        def prepare() -> Ticket:
            limit, prompt = seconds(body), prompt_tokens(model, squares, keep)
            return Ticket(prompt, (model.config.rows, columns), body.n, sampling, limit, notify, deadline - limit)

        ticket = await asyncio.get_running_loop().run_in_executor(worker, prepare)
        engine = engines[name]
        try:
            ahead = engine.submit(ticket)
        except Busy as busy:
            if engine.closing:
                raise HTTPException(503, "the server is shutting down; try again later") from None
            wait = math.ceil(max(busy.seconds, 1))
            message = f"all slots are taken and {config.queue} requests wait; try again in {wait} s"
            raise HTTPException(429, message, {"Retry-After": str(wait)}) from None
        facts = {
            "model": name,
            "mode": engine.mode,
            "seed": body.seed,
            "kept_rows": ticket.prompt.shape[1] // columns * model.tokenizer.patch[0],
        }
        accept = request.headers.get("accept", "")
        if body.stream or "text/event-stream" in accept:
            left = engine.seconds_left(ticket)
            begin = facts | {"n": body.n, "side": _side(model), "seconds_left": left}
            stream = _event_stream(events, begin, Waiting(ahead, left) if ahead else None, facts)
            return _Stream(stream, engine, ticket, {"X-Seconds-Left": f"{left:.3f}"})
        try:
            event = await _unless_disconnected(request, _last(events))
        finally:
            engine.cancel(ticket)
        if isinstance(event, Failed):
            raise HTTPException(event.status, event.message)
        if _wants_png(body, accept):
            across = math.ceil(math.sqrt(body.n))
            cells = [list(event.images[i : i + across]) for i in range(0, body.n, across)]
            headers = {"X-Seed": str(body.seed), "X-Nats": ",".join(f"{value:.6f}" for value in event.nats)}
            return await _png(lambda: np.asarray(grid(cells, zoom=max(1, GRID_PIXELS // model.size[0]))), headers)
        return await _json(lambda: _done(event) | facts | {"seconds": event.seconds})

    # ---- page and information

    def serve_page(path: str, name: str) -> None:
        content = (resources.files("nextpixel") / "server" / name).read_bytes()

        async def page() -> Response:
            return Response(content, media_type=PAGE_KINDS[name], headers={"Cache-Control": "no-cache"})

        app.add_api_route(path, page, include_in_schema=False)

    serve_page("/", "page.html")
    serve_page("/page.js", "page.js")
    serve_page("/page.css", "page.css")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(meters.text(engines), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        limits = {"n": config.max_completions, "upload_mb": config.max_upload_mb, "pixels": config.max_pixels}
        listed = [_facts(name, model, engines.get(name)) for name, model in models.items()]
        classes = None if classifier is None else [str(name) for name in classifier.classes_]
        return {"models": listed, "limits": limits, "classes": classes}

    pictures = {
        path.name: path.read_bytes()
        for path in sorted((resources.files("nextpixel") / "assets" / "pictures").iterdir(), key=lambda path: path.name)
        if path.name[-4:] in PICTURE_KINDS
    }

    @app.get("/v1/pictures")
    async def list_pictures() -> dict[str, list[str]]:
        return {"pictures": list(pictures)}

    @app.get("/v1/pictures/{name}", response_class=Response, responses=schema.responses(*PICTURE_KINDS.values()))
    async def one_picture(name: str) -> Response:
        if name not in pictures:
            raise HTTPException(404, f"expected one of {', '.join(pictures)}")
        return Response(pictures[name], media_type=PICTURE_KINDS[name[-4:]])

    # ---- work

    @app.post("/v1/complete", openapi_extra=schema.request_body(schema.Complete, "image/png", "text/event-stream"))
    async def complete(request: Request) -> Response:
        body, deadline = await read(request, schema.Complete)
        squares = await read_square(request, body.image, chosen(body)[1], deadline)
        return await draw_pictures(request, body, deadline, squares, body.keep)

    @app.post("/v1/sample", openapi_extra=schema.request_body(schema.Sample, "image/png", "text/event-stream"))
    async def sample(request: Request) -> Response:
        return await draw_pictures(request, *await read(request, schema.Sample), None, 0.0)

    @app.post("/v1/encode", openapi_extra=schema.request_body(schema.Picture, "image/png"))
    async def encode(request: Request) -> Response:
        body, deadline = await read(request, schema.Picture)
        name, model = chosen(body)
        squares = await read_square(request, body.image, model, deadline)
        encoded = calls.run(lambda: model.tokenizer.decode(model.tokenizer.encode(squares), model.config.columns))
        [image] = await before_deadline(request, deadline, encoded)
        if _wants_png(body, request.headers.get("accept", "")):
            return await _png(lambda: image)
        return await _json(lambda: {"model": name, "side": _side(model), "image": _text(png_bytes(image))})

    @app.post("/v1/score", openapi_extra=schema.request_body(schema.Picture, "image/png"))
    async def score(request: Request) -> Response:
        body, deadline = await read(request, schema.Picture)
        name, model = chosen(body)
        squares = await read_square(request, body.image, model, deadline)
        heat = (await before_deadline(request, deadline, calls.run(lambda: next(square_nats(model, squares)))))[0]
        if _wants_png(body, request.headers.get("accept", "")):
            return await _png(lambda: heatmap(heat))
        return await _json(lambda: {"model": name, "nats_per_pixel": float(heat.mean()), "heat": heat.tolist()})

    @app.post("/v1/features", openapi_extra=schema.request_body(schema.Features))
    async def features(request: Request) -> Response:
        body, deadline = await read(request, schema.Features)
        name, model = chosen(body)
        layers = check_layers(model, model.config.layers // 2 if body.layer is None else body.layer)
        if len(set(layers)) < len(layers):
            raise InputError(f"expected each number once, got {schema.shortened(layers)}", argument="layer")
        squares = await read_square(request, body.image, model, deadline)
        pooled_layers = calls.run(lambda: pooled(model, squares, layers, compiled=False))
        found = await before_deadline(request, deadline, pooled_layers)
        return await _json(lambda: {"model": name, "layers": layers, "features": found.reshape(-1).tolist()})

    @app.post(
        "/v1/classify", openapi_extra=schema.request_body(schema.Picture), include_in_schema=classifier is not None
    )
    async def classify(request: Request) -> Response:
        if classifier is None or classifier.model is None:
            raise HTTPException(404, "this server has no classifier; its option classifier names a probe")
        body, deadline = await read(request, schema.Picture)
        squares = await read_square(request, body.image, classifier.model, deadline)
        probabilities, chosen_classes = await before_deadline(
            request, deadline, calls.run(lambda: classifier.predictions(squares))
        )
        names = [str(name) for name in classifier.classes_]
        by_class = dict(zip(names, probabilities[0].tolist(), strict=True))
        return await _json(lambda: {"class": names[int(chosen_classes[0])], "probabilities": by_class})

    app.openapi()  # cached before the first request
    return app


class _Calls:
    """Runs short calls in the worker, one at a time between drawing steps. The queue is as long as a model's."""

    def __init__(self, config: ServeConfig, worker: ThreadPoolExecutor) -> None:
        self._queue, self._pending, self._worker = config.queue, 0, worker
        self._one = asyncio.Semaphore(1)

    async def run(self, work: Callable[[], T]) -> T:
        if self._pending > self._queue:
            raise HTTPException(429, f"{self._queue} requests wait; try again in 1 s", {"Retry-After": "1"})
        self._pending += 1

        def quietly() -> T:
            with silent():
                return work()

        try:
            async with self._one:
                return await asyncio.get_running_loop().run_in_executor(self._worker, quietly)
        finally:
            self._pending -= 1


class _Stream(StreamingResponse):
    """Server-sent events; cancels the ticket when the response ends."""

    def __init__(self, events: AsyncIterator[str], engine: Engine, ticket: Ticket, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers | {"X-Accel-Buffering": "no"})
        self._engine, self._ticket = engine, ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._engine.cancel(self._ticket)


def _notifier(events: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """A function that puts events into the queue from another thread."""
    loop = asyncio.get_running_loop()

    def notify(event: Event) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(events.put_nowait, event)

    return notify


async def _event_stream(
    events: asyncio.Queue[Event], begin: dict[str, Any], waiting: Waiting | None, facts: dict[str, Any]
) -> AsyncIterator[str]:
    yield _sse("start", begin)
    if waiting is not None:
        yield _sse("waiting", vars(waiting))
    while True:
        event = await events.get()
        if isinstance(event, Row):
            yield _sse("row", vars(event) | {"pixels": _text(event.pixels.tobytes())})
        elif isinstance(event, Waiting):
            yield _sse("waiting", vars(event))
        elif isinstance(event, Done):
            yield _sse("done", await to_thread.run_sync(_done, event) | facts | {"seconds": event.seconds})
            return
        else:
            yield _sse("error", vars(event))
            return


def _sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _last(events: asyncio.Queue[Event]) -> Done | Failed:
    """Wait for the final event of a drawing."""
    while True:
        event = await events.get()
        if isinstance(event, Done | Failed):
            return event


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; cancel it and raise ClientDisconnect when the client disconnects."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
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


def _parse(kind: str, content: bytes, wanted: type[R]) -> R:
    """Parse a JSON or form body. Raises InputError or HTTPException."""
    sort = kind.partition(";")[0].strip().lower()
    if sort == "application/json":
        return schema.from_json(wanted, content)
    if sort == "multipart/form-data":
        return schema.from_form(wanted, kind, content)
    raise HTTPException(415, "expected a body of application/json or multipart/form-data")


def _facts(name: str, model: ImageGPT, engine: Engine | None) -> dict[str, Any]:
    shape = model.config
    facts = public(model.facts)
    return {
        "id": name,
        "side": _side(model),
        **{key: getattr(shape, key) for key in "colors parameters layers width heads objective".split()},
        **{key: facts.get(key) for key in ("trained_on", "steps")},
        "mode": None if engine is None else engine.mode,
        "facts": facts,
    }


def _side(model: ImageGPT) -> int | Size:
    """The side of the model's pictures, or height and width if they are not square."""
    return model.side if model.size[0] == model.size[1] else model.size


def _done(event: Done) -> dict[str, Any]:
    return {"images": [_text(png_bytes(image)) for image in event.images], "nats": event.nats}


def _wants_png(body: schema.Request, accept: str) -> bool:
    return body.format == "png" or (body.format is None and "image/png" in accept and "json" not in accept)


async def _png(image: Callable[[], NDArray[np.uint8]], headers: dict[str, str] | None = None) -> Response:
    content = await to_thread.run_sync(lambda: png_bytes(image()))
    return Response(content, media_type="image/png", headers=headers)


async def _json(content: Callable[[], Any]) -> Response:
    return await to_thread.run_sync(lambda: JSONResponse(content()))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)


async def _http_error(request: Request, error: Any) -> Response:
    return _error(error.status_code, str(error.detail), error.headers)


async def _input_error(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _client_disconnected(request: Request, error: Exception) -> Response:
    return _error(499, "the client disconnected")  # for the metrics; nobody reads it


async def _unexpected(request: Request, error: Exception) -> Response:
    return _error(500, "the request failed; see the server's log")
