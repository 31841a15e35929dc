"""What one request may cost the server; HEAD, paths behind a proxy, and routes that are switched off."""

import asyncio
import base64
import io
import json
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra `server`")

import httpx2 as httpx
import uvicorn
from anyio import move_on_after
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nextpixel import ImageGPT
from nextpixel.config import Levels, ServeConfig
from nextpixel.drawing.holes import Filling
from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage
from nextpixel.server import decoders as decoders_module
from nextpixel.server.app import create_app
from nextpixel.server.decoders import Decoders
from nextpixel.server.schema import form_fields

ADDRESS = "http://127.0.0.1:8000"


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


SMALL = Image.fromarray(np.random.default_rng(2).integers(0, 256, (8, 9, 3), np.uint8))
PNG = encoded(SMALL)
TEXT = base64.b64encode(PNG).decode()


def repeated_scans(times: int, side: int = 4096) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * times + b"\xff\xd9"


@pytest.fixture
def client(model: ImageGPT) -> Iterator[TestClient]:
    with TestClient(create_app({"tiny": model}, ServeConfig(slots=2)), base_url=ADDRESS) as client:
        yield client


def message(answer: httpx.Response) -> str:
    return answer.json()["error"]["message"]


# ---- HEAD, sub-paths, routes that are off


@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/metrics", "/v1/models", "/v1/pictures/cat.jpg"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert client.head("/v1/pictures/none.jpg").status_code == 404
    assert client.head("/v1/sample").status_code == 405


def test_head_over_the_wire_and_with_a_token(model: ImageGPT) -> None:
    app = create_app({"tiny": model}, ServeConfig(slots=1), token="0123456789abcdef")
    with served(app) as address, httpx.Client(base_url=address) as client:
        for _ in range(2):  # one connection: a body would be taken for the next answer
            assert client.head("/").status_code == 200
            assert client.head("/v1/models").status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}


@contextmanager
def served(app: FastAPI, **options: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", http="h11", ws="none", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def proxied(upstream: str, prefix: str, *, strip: bool) -> Iterator[str]:
    """A proxy that serves `upstream` under a prefix, which it strips or not, and nothing else."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(prefix + "/"):
                self.send_error(404, "not proxied")
                return
            size = int(self.headers.get("content-length", 0))
            path = self.path.removeprefix(prefix) if strip else self.path
            told = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            answer = httpx.request(self.command, upstream + path, headers=told, content=self.rfile.read(size))
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("prefix", ["/nextpixel", "/a/b-c"])
def test_everything_works_under_a_path_prefix(model: ImageGPT, prefix: str, strip: bool) -> None:
    app = create_app({"tiny": model}, ServeConfig(slots=1, root_path=prefix), token="0123456789abcdef")
    headers = {"Authorization": "Bearer 0123456789abcdef"}
    with served(app) as upstream, proxied(upstream, prefix, strip=strip) as outside:
        page = httpx.get(f"{outside}/")
        assert page.status_code == 200
        links = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page.text)
        assert len(links) == 2
        assert all(httpx.get(urljoin(f"{outside}/", link)).status_code == 200 for link in links)
        asked = re.findall(r'(?<!\[)["`](/?v1/[a-z]+)', httpx.get(f"{outside}/page.js").text)
        assert set(asked) == {f"v1/{name}" for name in "models encode pictures score complete sample".split()}
        assert "/v1/complete" in httpx.get(f"{outside}/openapi.json", headers=headers).json()["paths"]
        assert httpx.get(f"{outside}/v1/models").status_code == 401
        assert httpx.get(urljoin(f"{outside}/", "v1/models"), headers=headers).status_code == 200
        drawn = httpx.post(f"{outside}/v1/complete", json={"image": TEXT}, headers=headers, timeout=30)
        assert drawn.status_code == 200 and len(drawn.json()["images"]) == 1
        assert httpx.get(f"{outside}/v1/models/", headers=headers).status_code == 404  # and leads nowhere else


@pytest.mark.parametrize("path", ["nextpixel", "/nextpixel/", "/", "/a//b", "/a b", "http://x/"])
def test_a_root_path_is_a_path(path: str) -> None:
    with pytest.raises(InputError, match="root_path: expected a path such as /nextpixel"):
        ServeConfig(root_path=path)


def test_the_description_has_examples_that_work_and_every_kind_of_response(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for kind, media in methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {}).items():
            assert media["schema"] or kind == "application/json"
        if "post" not in methods:
            continue
        body = methods["post"]["requestBody"]["content"]
        assert client.post(path, json=body["application/json"]["example"]).status_code == 200
        form = body["multipart/form-data"]["schema"]["properties"]
        assert all(form[name]["format"] == "binary" for name in ("image", "mask") if name in form)
        kinds = methods["post"]["responses"]["200"]["content"]
        assert ("text/event-stream" in kinds) == ("stream" in form)
        assert all(media["schema"]["type"] == "string" for kind, media in kinds.items() if kind != "application/json")


def test_a_route_that_is_off_says_what_is_missing(client: TestClient) -> None:
    answer = client.post("/v1/classify", json={"image": TEXT})
    assert answer.status_code == 404 and "without a classifier" in message(answer)
    assert "/v1/classify" not in client.get("/openapi.json").json()["paths"]


# ---- clients that stop reading


class Stalled:
    """A streamed request to an application, whose client reads one event and then nothing until it resumes."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self.app, self.content = app, json.dumps(body | {"stream": True}).encode()
        headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(self.content))}
        self.scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1"}
        self.scope |= {"root_path": "", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
        self.began, self.resumed, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.received = b""

    async def receive(self) -> dict[str, Any]:
        if self.content is not None:
            body, self.content = self.content, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.received += message.get("body", b"")
        if self.received:
            self.began.set()
            await self.resumed.wait()

    async def run(self) -> None:
        await self.app(self.scope, self.receive, self.send)


def mask_png(size: int) -> str:
    hole = np.zeros((size, size), np.uint8)
    hole[1, 1:3] = 255
    return base64.b64encode(encoded(Image.fromarray(hole))).decode()


ALPHA_MASK = np.full((4, 4, 4), 255, np.uint8)
ALPHA_MASK[1, 1:3] = 0
STREAMED = {
    "filling": ("/v1/complete", {"image": TEXT, "mask": mask_png(4)}, b"event: row"),
    "completion": ("/v1/complete", {"image": TEXT, "keep": 0.25}, b"event: row"),
    "edit": (
        "/v1/images/edits",
        {"image": TEXT, "mask": base64.b64encode(encoded(Image.fromarray(ALPHA_MASK))).decode(), "partial_images": 1},
        b"event: image_edit.partial_image",
    ),
}


@pytest.mark.parametrize(
    ("kind", "next_kind"),
    [("filling", "filling"), ("filling", "completion"), ("completion", "filling"), ("edit", "filling")],
)
def test_a_client_that_stops_reading_holds_nobody_up(model: ImageGPT, kind: str, next_kind: str) -> None:
    async def scene() -> bytes:
        with ThreadPoolExecutor(1) as worker:
            app = create_app({"tiny": model}, ServeConfig(slots=1, queue=1), worker=worker)
            path, body, _ = STREAMED[kind]
            stalled = Stalled(app, path, body)
            running = asyncio.create_task(stalled.run())
            await stalled.began.wait()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
                path, body, _ = STREAMED[next_kind]
                answer = await client.post(path, json=body | {"timeout_seconds": 20})
                assert answer.status_code == 200 and len(answer.json()["images"]) == 1
            while app.state.engines["tiny"].used:
                await asyncio.sleep(0.001)
            stalled.resumed.set()
            await running
            return stalled.received

    received = asyncio.run(asyncio.wait_for(scene(), 60))
    last = b"event: image_edit.completed" if kind == "edit" else b"event: done"
    assert STREAMED[kind][2] in received and last in received


def test_a_filling_ends_when_a_client_that_does_not_read_leaves(
    model: ImageGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, steps, rounds = threading.Event(), [], Filling.rounds

    def held(self: Filling) -> Iterator[int]:
        for drawn in rounds(self):
            steps.append(drawn)
            yield drawn
            go.wait(60)

    async def scene() -> None:
        with ThreadPoolExecutor(1) as worker:
            app = create_app({"tiny": model}, ServeConfig(slots=1), worker=worker)
            path, body, _ = STREAMED["filling"]
            stalled = Stalled(app, path, body)
            running = asyncio.create_task(stalled.run())
            await stalled.began.wait()
            while not steps:
                await asyncio.sleep(0.001)
            stalled.gone.set()
            await running
            go.set()
            await asyncio.get_running_loop().run_in_executor(worker, len, "after the current step")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
                assert 'nextpixel_queue_length{model="tiny"} 0.0' in (await client.get("/metrics")).text
            assert 1 <= len(steps) <= 2

    monkeypatch.setattr(Filling, "rounds", held)
    monkeypatch.setattr("nextpixel.server.holes.SLICE_SECONDS", 0)
    asyncio.run(asyncio.wait_for(scene(), 60))


# ---- what a request may cost

MANY = 100_000
BODIES: dict[str, tuple[str, bytes]] = {
    "layers again and again": ("features", json.dumps({"image": TEXT, "layer": [1, 2] * 400}).encode()),
    "a layer twice": ("features", json.dumps({"image": TEXT, "layer": [1, 1]}).encode()),
    "a hundred thousand faults": ("sample", json.dumps({f"x{i}": i for i in range(MANY)}).encode()),
    "letters": ("features", json.dumps({"image": TEXT, "layer": ["a"] * MANY}).encode()),
    "deep": ("features", b'{"layer": ' + b"[" * MANY + b"]" * MANY + b"}"),
    "five megabytes of numbers": ("features", b'{"layer": [' + b"1," * 2_500_000 + b"1]}"),
    "a long name": ("sample", json.dumps({"model": "x" * 5_000_000}).encode()),
    "a long text in a field": ("sample", json.dumps({"format": "x" * 60_000, "model": "y" * 60_000}).encode()),
    "quotes": ("sample", b'"' * 5_000_000),
    "a number of a megabyte": ("sample", b'{"seed": ' + b"9" * 1_000_000 + b"}"),
    "bad base64": ("encode", json.dumps({"image": "A" * 5_000_000 + "!"}).encode()),
    "white space": ("sample", b" " * 5_000_000 + b"{}"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_is_refused_at_once_in_one_sentence(client: TestClient, name: str) -> None:
    path, body = BODIES[name]
    start = time.process_time()
    answer = client.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert time.process_time() - start < 1
    assert answer.status_code in (400, 404) and len(answer.content) < 400
    if "layer" in name:
        assert message(answer).startswith("layer: ")


FORMS = {
    "line ends": b"\r\n" * 2_000_000,
    "nearly boundaries": b"\r\n--boun" * 500_000,
    "boundaries": b"\r\n--bound" * 500_000,
    "fields": b'\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--bound' * 50_000,
    "headers": b"\r\n" + b"X-Y: z\r\n" * 500_000 + b"\r\n1\r\n--bound",
    "a long name": b'\r\nContent-Disposition: form-data; name="' + b"x" * 4_000_000 + b'"\r\n\r\n1\r\n--bound',
    "a long field": b'\r\nContent-Disposition: form-data; name="n"\r\n\r\n' + b"1" * 4_000_000 + b"\r\n--bound",
}


@pytest.mark.parametrize("name", FORMS)
def test_a_hostile_form_is_refused_at_once(client: TestClient, name: str) -> None:
    kind = {"content-type": "multipart/form-data; boundary=bound"}
    start = time.process_time()
    answer = client.post("/v1/complete", content=b"--bound" + FORMS[name] + b"--\r\n", headers=kind)
    assert time.process_time() - start < 1
    assert answer.status_code in (400, 422) and len(answer.content) < 400


def test_fields_of_a_form() -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    image = b"\r\n\r\n--\0--b"
    body = head % (b"n", b"", b"2") + head % (b"image", b'; filename="../x"', image) + b"--b--\r\n"
    assert form_fields("multipart/form-data; boundary=b", body) == {"n": "2", "image": image}
    quoted = body.replace(b"--b", b"--b:c").replace(b"\0--b:c", b"\0--b")
    assert form_fields('Multipart/Form-Data; charset=utf-8; boundary="b:c"', quoted) == {"n": "2", "image": image}
    for broken in (body[:-5], b"", b"x" + body, body.replace(b"name=", b"mane="), b"--b--"):
        with pytest.raises(ValueError, match=r"truncated|no name"):
            raise ValueError(f"no name: {form_fields('multipart/form-data; boundary=b', broken)}")


@pytest.mark.parametrize("times", [60, 5_000])
def test_a_jpeg_of_many_scans_is_refused(client: TestClient, times: int) -> None:
    start = time.monotonic()
    answer = client.post("/v1/encode", files={"image": repeated_scans(times)})
    assert answer.status_code == 422 and "over 64 scans" in message(answer)
    assert time.monotonic() - start < 10


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started from here on."""
    processes = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return processes


def test_a_request_s_time_counts_its_decoding(started: list[subprocess.Popen[bytes]], client: TestClient) -> None:
    assert client.post("/v1/encode", json={"image": TEXT}).status_code == 200
    (process,) = started
    os.kill(process.pid, signal.SIGSTOP)
    start = time.monotonic()
    answer = client.post("/v1/encode", json={"image": TEXT, "timeout_seconds": 0.5})
    assert answer.status_code == 504 and "timeout_seconds" in message(answer)
    assert time.monotonic() - start < 10
    assert process.wait(10) == -signal.SIGKILL
    assert client.post("/v1/encode", json={"image": TEXT}).status_code == 200


# ---- the processes


def squares(decoders: Decoders, *pictures: bytes) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(decoders.decode(p, (4, 4), "crop", Levels()) for p in pictures), return_exceptions=True
        )

    return asyncio.run(all_of_them())


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    found = Decoders(1 << 24)
    yield found
    found.close()


def test_decoding_processes_give_the_same_pixels_as_this_one(
    started: list[subprocess.Popen[bytes]], decoders: Decoders
) -> None:
    from nextpixel.images import fit_image

    found = squares(decoders, *[PNG, encoded(SMALL, "JPEG"), b"nothing", encoded(SMALL, "TIFF")] * 3)
    assert all(np.array_equal(square, fit_image(SMALL, (4, 4))) for square in found[::4])
    assert found[1].shape == (4, 4, 3)
    assert all(isinstance(error, UnreadableImage) for error in found[2::4] + found[3::4])
    assert 0 < len(started) <= decoders_module.PROCESSES


def test_a_picture_that_takes_too_long_is_abandoned(
    started: list[subprocess.Popen[bytes]], decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders_module, "CPU_SECONDS", 0.05)
    slow = encoded(Image.effect_noise((4000, 4000), 60), "PNG", compress_level=1)
    (error,) = squares(decoders, slow)
    assert isinstance(error, UnreadableImage) and "takes over 0.05 s" in error.reason
    assert [process.returncode for process in started] == [-signal.SIGPROF]
    assert squares(decoders, PNG)[0].shape == (4, 4, 3)


def test_a_decoder_that_crashes_is_replaced(started: list[subprocess.Popen[bytes]], decoders: Decoders) -> None:
    squares(decoders, PNG)
    started[0].send_signal(signal.SIGSTOP)  # it crashes with the picture in hand
    threading.Timer(0.2, started[0].kill).start()
    (error,) = squares(decoders, PNG)
    assert isinstance(error, UnreadableImage) and "crashed" in error.reason
    assert squares(decoders, PNG)[0].shape == (4, 4, 3)


def test_a_decoder_that_was_killed_while_idle_costs_no_request(
    started: list[subprocess.Popen[bytes]], decoders: Decoders
) -> None:
    squares(decoders, PNG)
    started[0].kill()
    started[0].wait()
    assert squares(decoders, PNG)[0].shape == (4, 4, 3)
    assert len(started) == 2 and started[0].stdin is not None and started[0].stdin.closed


def test_a_decoder_whose_request_is_cancelled_leaves_no_zombie(
    started: list[subprocess.Popen[bytes]], decoders: Decoders
) -> None:
    squares(decoders, PNG)
    started[0].send_signal(signal.SIGSTOP)

    async def cancelled() -> None:
        with move_on_after(0.1):
            await decoders.decode(PNG, (4, 4), "crop", Levels())

    asyncio.run(cancelled())
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert started[0].stdin is not None and started[0].stdin.closed


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_a_decoder_has_a_limit_of_memory_and_loads_little(
    started: list[subprocess.Popen[bytes]], decoders: Decoders
) -> None:
    squares(decoders, PNG)
    here = Path(f"/proc/{started[0].pid}")
    (limit,) = re.findall(r"Max address space +(\d+)", (here / "limits").read_text())
    assert int(limit) == (1 << 30) + 64 * (1 << 24)
    assert "torch" not in (here / "maps").read_text()


def test_a_client_that_disconnects_stops_the_decoding(started: list[subprocess.Popen[bytes]], model: ImageGPT) -> None:
    app = create_app({"tiny": model}, ServeConfig(slots=1))
    with served(app) as address:
        assert httpx.post(f"{address}/v1/encode", json={"image": TEXT}, timeout=30).status_code == 200
        (process,) = started
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{address}/v1/encode", json={"image": TEXT}, timeout=0.5)
        assert process.wait(10) == -signal.SIGKILL
        assert httpx.post(f"{address}/v1/encode", json={"image": TEXT}, timeout=30).status_code == 200


# ---- the event loop


def test_nothing_blocks_the_event_loop(model: ImageGPT, caplog: pytest.LogCaptureFixture) -> None:
    """By asyncio's debug mode: the best of three tries, as the machine may be busy."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    large = encoded(Image.fromarray(noise), "PNG", compress_level=0)
    js, form = "application/json", "multipart/form-data; boundary=bound"
    asked = [(path, js, body) for path, body in BODIES.values()]
    asked += [("complete", form, b"--bound" + body + b"--\r\n") for body in FORMS.values()]
    asked.append(("encode", js, json.dumps({"image": base64.b64encode(large).decode()}).encode()))
    asked.append(("sample", js, json.dumps({"n": 32, "format": "png"}).encode()))
    asked.append(("sample", js, json.dumps({"n": 32}).encode()))
    app, caught = create_app({"tiny": model}, ServeConfig(slots=32)), {}

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.05
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS, timeout=60) as client:
            for number, (path, kind, body) in enumerate(asked):
                for _ in range(3):
                    caplog.clear()
                    await client.post(f"/v1/{path}", content=body, headers={"content-type": kind})
                    caught[number] = [r.getMessage() for r in caplog.records if "took" in r.getMessage()]
                    if not caught[number]:
                        break

    with caplog.at_level(logging.WARNING, logger="asyncio"), ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, watched()).result()
    assert {number: said for number, said in caught.items() if said} == {}
