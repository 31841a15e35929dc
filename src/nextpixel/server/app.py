"""The application: its routes and what each of them answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from nextpixel import __version__
from nextpixel.checkpoints.card import public
from nextpixel.config import Fit, ServeConfig, check_origin, to_side
from nextpixel.errors import InputError, shortened
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.images import UnreadableImage, heatmap, png_bytes
from nextpixel.images.sources.masks import FILLED_FROM, check_filled
from nextpixel.network.model import ImageGPT
from nextpixel.progress import silent
from nextpixel.representation.extraction import Backbone, check_layers, pooled
from nextpixel.representation.probing import LinearProbe
from nextpixel.server import answers, openai, schema
from nextpixel.server.calls import EXCEPTION_HANDLERS, Call, FieldError, base64_text, read_call
from nextpixel.server.decoders import Decoders
from nextpixel.server.drawings import Drawn, draw, respond
from nextpixel.server.engine import Engine
from nextpixel.server.guard import guard
from nextpixel.server.holes import Fills, fill
from nextpixel.server.meters import Meters
from nextpixel.tokens import reconstruct

PICTURE_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
EVENTS = "text/event-stream"
R = TypeVar("R", bound=schema.Request)
T = TypeVar("T")


def create_app(
    models: Mapping[str, ImageGPT],
    config: ServeConfig | None = None,
    *,
    classifier: LinearProbe | None = None,
    token: str | None = None,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    worker: ThreadPoolExecutor | None = None,
) -> FastAPI:
    """Create the application. The first of `models` (by id) is the default.

    `hosts` are allowed host names, and pages of `origins`, such as https://pixels.example, may send requests.
    All networks run in the single thread of `worker`, see engine.py; models loaded in that thread are the fastest. The
    worker and `app.state.engines` are closed with the application. Raises InputError if the slots do not fit into
    memory.
    """
    config = config or ServeConfig()
    for origin in origins:
        check_origin(origin)
    meters = Meters()
    thread = worker or ThreadPoolExecutor(1, "nextpixel")
    engines = {
        name: Engine(model, config, functools.partial(meters.drawing, name), thread)
        for name, model in models.items()
        if model.config.objective == "autoregressive"
    }
    one_call, decoders = CapacityLimiter(1), Decoders(config.max_pixels)
    fills = Fills(
        thread, config.queue, config.speed, meters.drawing, lambda: any(engine.used for engine in engines.values())
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for engine in engines.values():
            await to_thread.run_sync(engine.close)
        thread.shutdown(wait=False, cancel_futures=True)
        decoders.close()

    app = FastAPI(
        title="nextpixel",
        version=__version__,
        description="Image GPT: complete, draw and score pictures, and extract features.",
        docs_url=None,  # it would load code from another site
        redoc_url=None,
        redirect_slashes=False,  # it would drop the prefix of a proxy
        lifespan=lifespan,
        responses={"4XX": {"model": schema.Refusal}, "5XX": {"model": schema.Refusal}},
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.engines, app.state.fills = engines, fills
    app.add_middleware(
        guard,
        token=token,
        hosts=hosts,
        origins=origins,
        upload_bytes=int(config.max_upload_mb * 1e6),
        root_path=config.root_path,
        observe=meters.request,
    )
    if origins:  # outermost, so that pages of these sites can read refusals, too
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["Retry-After", "X-Nats", "X-Seconds-Left", "X-Seed"],
            allow_private_network=True,  # a page of a public site asks a server at a private address
        )  # fmt: skip

    # ---- page and information

    def serve_file(path: str, name: str, media_type: str) -> None:
        content = (resources.files("nextpixel") / "server" / name).read_bytes()

        @app.get(path, include_in_schema=False)
        async def file() -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for path, (name, media_type) in PAGE.items():
        serve_file(path, name, media_type)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(meters.text(engines, fills.waiting), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=None, responses=schema.responses(json=answers.Models))
    async def list_models() -> dict[str, Any]:
        limits = {"n": config.max_completions, "upload_mb": config.max_upload_mb, "pixels": config.max_pixels}
        listed = [_facts(name, model, engines.get(name)) for name, model in models.items()]
        classes = None if classifier is None else [str(name) for name in classifier.classes_]
        return {"models": listed, "limits": limits, "classes": classes, **openai.list_models(models)}

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

    def add(
        kind: type[R],
        answer: Callable[[Call[R]], Awaitable[Response]],
        json: type[BaseModel],
        *types: str,
        listed: bool = True,
    ) -> None:
        """A route named after `answer`, which answers with JSON of that model, or other media types."""

        async def route(request: Request) -> Response:
            return await answer(await read_call(request, kind, models, config.timeout_seconds))

        app.add_api_route(
            f"/v1/{answer.__name__.replace('_', '/')}",
            route,
            name=answer.__name__,
            methods=["POST"],
            openapi_extra=schema.request_body(kind),
            responses=schema.responses(*types, json=json),
            include_in_schema=listed,
        )

    async def read(
        call: Call[Any], field: str, model: Backbone, fit: Fit, zoom: int = 1, *, transparent: bool = False
    ) -> NDArray[np.uint8]:
        """A picture of a request at `zoom` times the model's size, its transparency, or its mask, (H, W, C)."""
        size = zoom * model.size[0], zoom * model.size[1]
        levels = replace(model.levels, slice=None)  # a request has one picture
        try:
            picture, of = getattr(call.body, field), call.body.image if field == "mask" else None
            found = decoders.decode(picture, size, fit, levels, of=of, transparent=transparent)
            return await call.before_deadline(found)
        except UnreadableImage as error:
            expected = "expected a complete PNG, JPEG, WebP, GIF or BMP file"
            expected += f" of at most {size[0]} x {size[1]} pixels" * (fit == "place")
            raise FieldError(422, field, f"{error.reason}; {expected}") from None

    async def read_square(call: Call[Any], model: Backbone) -> NDArray[np.uint8]:
        """The picture of a request as the model's input (1, H, W, C)."""
        return (await read(call, "image", model, model.fit))[None]

    async def run(call: Call[Any], work: Callable[[], T]) -> T:
        """The result of `work` in the networks' thread, where one call at a time runs between drawing steps."""
        if one_call.statistics().tasks_waiting >= config.queue:
            raise HTTPException(429, f"{config.queue} requests wait; try again in 1 s", {"Retry-After": "1"})

        def quietly() -> T:
            with silent():
                return work()

        async def when_free() -> T:
            async with one_call:
                return await asyncio.get_running_loop().run_in_executor(thread, quietly)

        return await call.before_deadline(when_free())

    def check_keep(call: Call[Any]) -> None:
        body = call.body
        if body.mask is not None and body.keep is not None and "keep" in body.model_fields_set:
            raise InputError(
                "cannot be combined with `mask`, which says what to draw; send one of them", argument="keep"
            )

    async def begin(
        call: Call[Any],
        squares: NDArray[np.uint8] | None = None,
        keep: float = 0.0,
        mask: NDArray[np.bool_] | None = None,
    ) -> Drawn:
        if call.body.n > config.max_completions:
            raise InputError(f"expected at most {config.max_completions}, got {call.body.n}", argument="n")
        if squares is None or mask is None:
            return await draw(call, engines, thread, squares, keep)
        return await fill(call, fills, squares[0], mask)

    async def sample(call: Call[schema.Sample]) -> Response:
        return await respond(call, await begin(call))

    async def complete(call: Call[schema.Complete]) -> Response:
        check_keep(call)
        model, squares, mask = call.model, await read_square(call, call.model), None
        if call.body.mask is not None:
            mask = (await read(call, "mask", model, model.fit))[..., 0] >= FILLED_FROM
            check_filled(mask[None])
        return await respond(call, await begin(call, squares, call.body.keep, mask))

    async def images_generations(call: Call[openai.Generation]) -> Response:
        zoom, own = openai.check(call, config.max_pixels), openai.translated(call)
        drawn = await openai.naming_prompt(begin(own))
        return await openai.respond(call, drawn, "image_generation", openai.Canvas.blank(call, zoom))

    async def images_edits(call: Call[openai.Edit]) -> Response:
        check_keep(call)
        model, zoom, own = call.model, openai.check(call, config.max_pixels), openai.translated(call)
        squares, mask, keep = await read_square(call, model), None, call.body.keep
        if call.body.mask is not None or keep is None:
            field = "image" if call.body.mask is None else "mask"
            if field == "image" and model.fit == "place":
                mask = squares[0, ..., 3] == 0
            else:
                mask = (await read(call, field, model, model.fit, transparent=True))[..., 0] >= FILLED_FROM
            openai.check_transparent(mask, field)
        large = squares[0]
        if model.fit != "place" and zoom > 1:
            large = await read(call, "image", model, "squash" if model.fit == "squash" else "crop", zoom)
        drawn = await openai.naming_prompt(begin(own, squares, keep or 0.0, mask))
        return await openai.respond(call, drawn, "image_edit", openai.Canvas(squares[0], mask, large, zoom))

    async def encode(call: Call[schema.Picture]) -> Response:
        model, squares = call.model, await read_square(call, call.model)
        [image] = await run(call, lambda: reconstruct(model.tokenizer, squares))
        facts = {"model": call.name, "side": to_side(model.size)}
        return await call.respond(lambda: facts | {"image": base64_text(png_bytes(image))}, lambda: image)

    async def score(call: Call[schema.Picture]) -> Response:
        squares = await read_square(call, call.model)
        [heat] = await run(call, lambda: next(square_nats(call.model, squares)))
        facts = {"model": call.name, "nats_per_pixel": float(heat.mean())}
        return await call.respond(lambda: facts | {"heat": heat.tolist()}, lambda: heatmap(heat))

    async def features(call: Call[schema.Features]) -> Response:
        model, layer = call.model, call.body.layer
        layers = check_layers(model, layer)
        if len(set(layers)) < len(layers):
            raise InputError(f"expected each number once, got {shortened(layers)}", argument="layer")
        squares = await read_square(call, model)
        [found] = await run(call, lambda: pooled(model, squares, layers, compiled=False))
        return await call.respond(lambda: {"model": call.name, "layers": layers, "features": found.ravel().tolist()})

    async def classify(call: Call[schema.Picture]) -> Response:
        if classifier is None or classifier.model is None:
            raise HTTPException(404, "this server was started without a classifier, such as a saved probe")
        squares = await read_square(call, classifier.model)
        [probabilities], [number] = await run(call, lambda: classifier.predictions(squares))
        names = [str(name) for name in classifier.classes_]
        by_class = dict(zip(names, probabilities.tolist(), strict=True))
        return await call.respond(lambda: {"class": names[number], "probabilities": by_class})

    add(schema.Sample, sample, answers.Drawing, "image/png", EVENTS)
    add(schema.Complete, complete, answers.Drawing, "image/png", EVENTS)
    add(openai.Generation, images_generations, answers.Images, EVENTS)
    add(openai.Edit, images_edits, answers.Images, EVENTS)
    add(schema.Picture, encode, answers.Reconstruction, "image/png")
    add(schema.Picture, score, answers.Score, "image/png")
    add(schema.Features, features, answers.FeatureVector)
    add(schema.Picture, classify, answers.Classification, listed=classifier is not None)
    app.openapi()  # cached before the first request
    return app


def _facts(name: str, model: ImageGPT, engine: Engine | None) -> dict[str, Any]:
    shape, facts = model.config, public(model.facts)
    return {
        "id": name,
        "side": to_side(model.size),
        "fit": model.fit,
        "patch": list(model.tokenizer.patch),
        **{key: getattr(shape, key) for key in "colors parameters layers width heads objective".split()},
        **{key: facts.get(key) for key in ("trained_on", "steps")},
        "words": None if model.words is None else list(model.words.table),
        "mode": None if engine is None else engine.mode,
        "facts": facts,
    }
