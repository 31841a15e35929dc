"""nextpixel serve"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import load_classifier, load_model
from nextpixel.config import OutputOptions, PictureOptions, ServeConfig, check_origin
from nextpixel.errors import InputError
from nextpixel.files import BUNDLED, EMBEDDED, check_model_name
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.network.model import ImageGPT
    from nextpixel.representation.probing import LinearProbe

TOKEN_AT_LEAST, TOKEN_AT_MOST = 16, 1000  # characters


@dataclass(frozen=True)
class ServedModels(PictureOptions):
    """The models, and how they run."""

    model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # type: ignore[assignment]
    """A checkpoint folder, a run folder, a hub name or a bundled model (embedded, faces, photos); repeat to offer
    several. Default: embedded."""


@dataclass(frozen=True)
class Serve:
    """Serve models over HTTP: complete, draw and score pictures, and extract features, with a web page.

    Needs: pip install 'nextpixel[server]'. The API is described at /openapi.json and in docs/serving.md.
    """

    classifier: str | None = None
    """A probe saved by `nextpixel probe --out`, or a fine-tuned model or run; adds /v1/classify."""
    token_file: Path | None = None
    """A file with a token in one line; requests must send it (Authorization: Bearer TOKEN)."""
    allow_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A host name of this server, as behind a proxy; IP addresses and localhost are always allowed."""
    allow_origin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Another site whose pages may send requests, as in https://pixels.example; all others are refused."""
    server: ServeConfig = field(default_factory=ServeConfig)
    models: ServedModels = field(default_factory=ServedModels)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Serve, "serve", argv)
    for origin in args.allow_origin:
        check_origin(origin)
    token = None if args.token_file is None else read_token(args.token_file)
    names = args.models.model or (None,)
    ids = []
    for name in names:
        check_model_name(name)
        if model_id(name) in ids:
            raise InputError(f"--model: two models are named {model_id(name)!r}; rename a folder")
        ids.append(model_id(name))
    options = PictureOptions(**{f.name: getattr(args.models, f.name) for f in fields(PictureOptions)} | {"model": None})
    try:
        from nextpixel.server.app import create_app
        from nextpixel.server.listen import listen, serve
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'nextpixel[server]'") from None

    def load() -> tuple[dict[str, ImageGPT], LinearProbe | None]:
        models = [load_model(replace(options, model=name)) for name in names]
        return dict(zip(ids, models, strict=True)), None if args.classifier is None else load_classifier(
            args.classifier, options, "classifier"
        )

    worker = ThreadPoolExecutor(1, "nextpixel")
    try:
        models, classifier = worker.submit(load).result()
    except KeyboardInterrupt:
        say("interrupted")
        os._exit(130)  # does not wait for the loading thread, which writes nothing
    with listen(args.server) as opened:
        app = create_app(
            models, args.server, classifier=classifier, token=token, hosts=args.allow_host, origins=args.allow_origin,
            worker=worker,
        )  # fmt: skip
        address, port = opened.getsockname()[:2]
        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        if args.output.json:
            print_json({"url": url, "models": list(models)})
        else:
            show(url)
        sys.stdout.flush()  # a parent process may wait for this line
        for name, engine in app.state.engines.items():
            say(f"{name}: {engine.slots} slots, {engine.mode}")
        if token is None and not address.startswith("127.") and address != "::1":
            say("Anyone who can reach this machine can use the server; --token-file FILE requires a token")
        say(first_requests(url, args.token_file))
        serve(app, args.server, opened)


def model_id(name: str | None) -> str:
    """What requests call a model, and the page's command: its name as given, without the folders of an absolute path.

    Raises InputError where a bundled model has that name.
    """
    path = Path(name or EMBEDDED)
    if not path.is_absolute():
        return str(path)
    if path.name in ("", *BUNDLED):
        raise InputError(f"--model: {name} cannot be served as {path.name!r}; give a relative path, or rename it")
    return path.name


def first_requests(url: str, token_file: Path | None) -> str:
    """How to ask the server at `url` from its own machine."""
    near = url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # which listen at the loopback, too
    token = "" if token_file is None else f' -H "Authorization: Bearer $(cat {quote(str(token_file))})"'
    curl = f"curl{token} -F image=@photo.jpg -F format=png -o out.png {near}/v1/complete"
    return f"In a browser: {near}. In a terminal: {curl}"


def read_token(path: Path) -> str:
    """The token in a file. Raises InputError."""
    try:
        with path.open("rb") as file:  # may be a pipe
            text = file.read(TOKEN_AT_MOST).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"--token-file: cannot read {path} as text ({error})") from None
    if len(text) < TOKEN_AT_LEAST or not text.isprintable() or " " in text:
        raise InputError(
            f"--token-file: expected one line of at least {TOKEN_AT_LEAST} characters without spaces in {path}; create "
            f"one with: openssl rand -hex 16 > {path}"
        )
    return text
