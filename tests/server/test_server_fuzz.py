"""The real server with the embedded model under thousands of requests: strange, hostile, cut off.

    pytest -m slow -s tests/test_server_fuzz.py

Requests valid by the server's own OpenAPI and requests that violate it come from schemathesis, the others from
hypothesis. The seeds are fixed.
"""

import base64
import collections
import io
import json
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra `server`")
pytest.importorskip("schemathesis", reason="pip install schemathesis")

import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_server import BROKEN, JSON, bomb, until

import nextpixel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
]

ROUNDS = 5
EACH = {"described": 22, "violated": 22, "bodies": 260, "pictures": 260, "protocol": 200, "leaving": 60}  # a round
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
GROWTH_MB = 24  # of memory, over all rounds but the first: the allocator is never quite still
SAID = ("slots, weights", "In a browser: http://127.0.0.1:", "Invalid HTTP request received.")  # on stderr

# ---- pictures


NOISE = np.random.default_rng(0).integers(0, 256, (1_000, 1_000, 3), np.uint8)


def encoded(kind: str, mode: str, size: tuple[int, int]) -> bytes | None:
    out = io.BytesIO()
    try:
        if max(size) > 1_000 or mode in ("I", "F", "I;16"):
            picture = Image.new(mode, size, 9)
        else:
            picture = Image.fromarray(NOISE[: size[1], : size[0]].copy()).convert(mode)
        picture.save(out, kind)
    except (OSError, ValueError):  # this format has no such mode
        return None
    return out.getvalue()


MODES = "1 L LA P RGB RGBA CMYK YCbCr I;16 I F".split()
KINDS = "PNG JPEG WEBP GIF BMP TIFF ICO PPM TGA".split()
SIZES = [(1, 1), (40, 30), (3, 700), (900, 2)]
WHOLE = [data for kind in KINDS for mode in MODES for size in SIZES if (data := encoded(kind, mode, size))]
LARGE = [data for side in (4_000, 5_000) for kind in KINDS[:4] if (data := encoded(kind, "L", (side, side)))]
SMALL = [data for data in WHOLE if len(data) < 2_000]
PNG = SMALL[0]
CAT = (Path(nextpixel.__file__).parent / "assets" / "pictures" / "cat.jpg").read_bytes()


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed or cut off."""
    data = bytearray(draw(st.sampled_from(SMALL)))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


BOMBS = st.builds(bomb, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
IMAGES = st.one_of(
    st.sampled_from(WHOLE), broken(), broken(), BOMBS, st.sampled_from([*BROKEN.values()]), st.binary(max_size=300)
)

# ---- bodies


def cheap(body: Any, choice: random.Random) -> Any:
    """The same request with few pixels to draw and a deadline that is never exceeded."""
    if not isinstance(body, dict):
        return body
    body = dict(body)

    def number(name: str) -> float:
        try:
            return float(body[name])
        except (KeyError, TypeError, ValueError, OverflowError):
            return -1.0

    as_text = any(isinstance(body.get(name), str) for name in ("n", "keep", "timeout_seconds", "seed"))
    if "keep" not in body or 0 <= number("keep") < 0.9:
        body["keep"] = "0.95" if as_text else 0.95
    if 2 < number("n") <= 32:
        body["n"] = "2" if as_text else choice.choice([1, 2])
    if number("timeout_seconds") > 0:
        body["timeout_seconds"] = "900" if as_text else 900
    return body


FIELDS = "image keep n temperature top_k top_p seed model stream format timeout_seconds layer other".split()
GOOD = {
    "image": base64.b64encode(CAT).decode(), "keep": 0.97, "n": 2, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
    "seed": 3, "model": "embedded", "stream": True, "format": "png", "timeout_seconds": 900, "layer": [0, 3],
}  # fmt: skip
ODD = (
    JSON
    | st.sampled_from([float("nan"), float("inf"), -0.0, 1e308, 2**63, 2**64, -(2**63), 10**400, 0.95, 1, 31, True])
    | st.sampled_from(["", "x" * 100_000, "\0", "\ud800", "\u202e", "NaN", "data:,", "data:image/png;base64,", "../x"])
    | st.text(max_size=30)
)
PATHS = ["complete", "sample", "score", "features", "encode", "classify"]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(route, content type, body): a valid body with fields removed, added or changed."""
    path = draw(st.sampled_from(PATHS))
    some = draw(st.sets(st.sampled_from([*GOOD]), max_size=8))
    body: Any = {name: GOOD[name] for name in some} | {"image": GOOD["image"]}
    if path in ("sample", "complete"):
        body.pop("layer", None)
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        if draw(st.booleans()):
            body[name] = draw(ODD)
        else:
            body.pop(name, None)
    if path == "sample" and draw(st.integers(0, 19)):  # a whole picture is drawn by few
        body.setdefault("wings", 2)
    body = draw(st.sampled_from([body] * 9 + [draw(JSON)]))
    body = cheap(body, random.Random(draw(st.integers(0, 9)))) if path == "complete" else cheap_deadline(body)
    text = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        text = text[: draw(st.integers(0, len(text)))] + draw(st.binary(max_size=20))
    return path, draw(st.sampled_from(["application/json"] * 9 + ["text/json", "multipart/form-data"])), text


def cheap_deadline(body: Any) -> Any:
    if isinstance(body, dict) and "timeout_seconds" in body and isinstance(body["timeout_seconds"], int | float):
        return body | {"timeout_seconds": 900 if body["timeout_seconds"] > 0 else body["timeout_seconds"]}
    return body


def form(fields: dict[str, str], image: bytes, name: str = "x.png") -> tuple[str, bytes]:
    start = "--bound\r\nContent-Disposition: form-data; name="
    head = "".join(f'{start}"{key}"\r\n\r\n{value}\r\n' for key, value in fields.items())
    head += f'{start}"image"; filename="{name}"\r\n\r\n'
    return "multipart/form-data; boundary=bound", head.encode() + image + b"\r\n--bound--\r\n"


@st.composite
def uploads(draw: st.DrawFn) -> tuple[str, str, bytes]:
    path = draw(st.sampled_from([path for path in PATHS if path != "sample"]))
    image = draw(st.sampled_from(LARGE)) if draw(st.integers(0, 99)) == 0 else draw(IMAGES)
    if draw(st.booleans()):
        body: dict[str, Any] = {"image": base64.b64encode(image).decode()}
        return path, "application/json", json.dumps(body | ({"keep": 0.97} if path == "complete" else {})).encode()
    return path, *form({"keep": "0.97"} if path == "complete" else {}, image, draw(st.sampled_from(["../x", "", "é"])))


# ---- protocol

WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from("Host Origin Accept Content-Type Content-Length Transfer-Encoding Authorization Cookie Range "
                    "Expect Sec-Fetch-Site Sec-Fetch-Mode Connection Upgrade X-Forwarded-For".split()),
    st.sampled_from(["", "chunked", "0", "-1", "1e3", "99999999999999999999", "evil.example", "null", "a@b",
                     "http://evil.example", "close", "websocket", "100-continue", "cross-site", "navigate", "[::1",
                     "text/event-stream", "image/png", "application/json", "multipart/form-data; boundary=", "*/*",
                     "127.0.0.1"]) | WORDS,
    max_size=4,
)  # fmt: skip
TARGETS = st.sampled_from(
    "/ /page.js /page.css /healthz /metrics /openapi.json /docs /v1/models /v1/pictures /v1/pictures/cat.jpg "
    "/v1/sample /v1/complete /v1/score /v1/pictures/..%2f..%2fetc%2fpasswd /../../etc/passwd //etc/passwd "
    "/v1/pictures/%00 /v1/ * http://evil.example/ /%ff /v1/models?x=1 /v1/sample/ /favicon.ico".split()
) | WORDS.map(lambda word: "/" + word)
METHODS = st.sampled_from("GET POST PUT DELETE PATCH HEAD OPTIONS TRACE CONNECT BREW get".split())


@st.composite
def spoken(draw: st.DrawFn) -> bytes:
    """The bytes of a request, valid or not."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(min_size=1, max_size=200)) + b"\r\n\r\n"
    headers = {"Host": "127.0.0.1", "Connection": "close"} | draw(HEADERS)
    body = draw(st.sampled_from([b"", b"{}", b'{"n": 0}', b"2\r\n{}\r\n0\r\n\r\n", b"zz\r\n", b"x" * 70_000]))
    if draw(st.booleans()):
        headers.setdefault("Content-Length", str(len(body)))
        headers.setdefault("Content-Type", "application/json")
    lines = [f"{draw(METHODS)} {draw(TARGETS)} HTTP/{draw(st.sampled_from(['1.1'] * 9 + ['1.0', '0.9', '3']))}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["X-Long: " + "a" * 40_000] if draw(st.integers(0, 29)) == 0 else []
    assume(not (b'"n"' not in body and lines[0].startswith("POST /v1/sample HTTP") and len(body) < 20))  # draws long
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def asking(method: str, path: str, kind: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: {kind}\r\n\r\n".encode() + body


# ---- the server


class Real:
    """The server in a process, with its requests and responses."""

    def __init__(self, folder: Path) -> None:
        squares = np.random.default_rng(4).integers(0, 256, (12, 32, 32, 3), np.uint8)
        probe = nextpixel.LinearProbe(nextpixel.load(), layer=2).fit(squares, ["a", "b", "c"] * 4)
        probe.save(folder / "probe", model_name="embedded")
        self.log = folder / "log"
        command = [sys.executable, "-m", "nextpixel", "serve", "--port", "0", "--threads", "1"]
        command += ["--timeout-seconds", "900", "--classifier", str(folder / "probe")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.rpartition(":")[2])
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=600)

    def ask(self, path: str, kind: str = "", body: bytes | None = None) -> tuple[int, bytes]:
        method = "GET" if body is None else "POST"
        with self.connect() as line:
            line.sendall(asking(method, path, kind, body or b""))
            return self.heard(line, method)

    def heard(self, line: socket.socket, method: str = "GET") -> tuple[int, bytes]:
        with HTTPResponse(line, method=method) as answer:
            answer.begin()
            return answer.status, answer.read()

    def judge(self, part: str, status: int, body: bytes, *, silent: bool = False) -> None:
        self.counts[f"{part} {status}"] += 1
        if status >= 500 or b"event: error" in body:
            self.wrong.append(f"{part} {status} {body[-300:]!r}")
        elif status >= 400 and not silent and body != b"Invalid HTTP request received.":
            try:
                said = json.loads(body)["error"]["message"]
                good = 3 < len(said) < 400 and "Traceback" not in said
            except (ValueError, KeyError, TypeError):
                good = False
            if not good:
                self.wrong.append(f"{part} {status} {body[:300]!r}")

    @property
    def memory_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    @property
    def complaints(self) -> list[str]:
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip() and not any(said in line for said in SAID)]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    real = Real(tmp_path)
    yield real
    with real.process:
        real.process.kill()


def many(number: int, count: int, what: st.SearchStrategy[Any], do: Callable[[Any], None]) -> None:
    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(what)
    def each(one: Any) -> None:
        do(one)

    each()


def test_thousands_of_strange_requests_leave_the_server_as_it_was(real: Real) -> None:
    start = time.monotonic()
    known = form({"keep": "0.9", "seed": "11", "n": "2"}, CAT)
    before = json.loads(real.ask("/v1/complete", *known)[1])
    paths = schemathesis.openapi.from_url(f"{real.address}/openapi.json")
    operations = [found.ok() for found in paths.get_all_operations()]
    assert {operation.path for operation in operations} >= {f"/v1/{path}" for path in PATHS}
    choice = random.Random(0)

    def described(case: Any) -> None:
        """A request as schemathesis wants it; most pictures are pictures."""
        if isinstance(case.body, dict):
            body = cheap(case.body, choice) if case.path != "/v1/sample" else cheap_deadline(case.body)
            if "keep" in body and case.path != "/v1/complete" and "keep" not in case.body:
                del body["keep"]
            if "image" in body and choice.random() < 0.7:
                body["image"] = PNG if "multipart" in (case.media_type or "") else base64.b64encode(PNG).decode()
            if case.path == "/v1/sample" and choice.random() < 0.9:
                body["n"] = 0  # what is left draws whole pictures
            case.body = body
        answer = case.call(timeout=600)
        real.judge("schemathesis", answer.status_code, answer.content)
        try:
            case.validate_response(answer, checks=CHECKS)
        except BaseExceptionGroup as failures:
            real.wrong += [f"{case.method} {case.path}: {failure}" for failure in failures.exceptions]

    def posted(part: str) -> Callable[[tuple[str, str, bytes]], None]:
        return lambda asked: real.judge(part, *real.ask(f"/v1/{asked[0]}", *asked[1:]))

    def speak(request: bytes) -> None:
        with real.connect() as line:
            line.settimeout(0.5)  # what promises more than it sends is waited for
            try:
                line.sendall(request)
                head = request.startswith(b"HEAD")
                status, body = real.heard(line, "HEAD" if head else "GET")
            except (TimeoutError, ConnectionError, HTTPException) as error:
                real.counts[f"protocol {'no answer' if isinstance(error, TimeoutError) else 'closed'}"] += 1
                return
            real.judge("protocol", status, body, silent=head)

    def leave(asked: tuple[str, float, int, bool]) -> None:
        """Ask for a stream, read some of it or none, and be gone, politely or not."""
        path, sent, read, reset = asked
        kind, body = "application/json", b'{"stream": true, "n": 3}'
        if path != "sample":
            kind, body = form({"stream": "true", "n": "3", "keep": "0.5"} if path == "complete" else {}, CAT)
        content = asking("POST", f"/v1/{path}", kind, body)
        with real.connect() as line:
            line.sendall(content[: int(sent * len(content))])
            if sent == 1.0 and path != "score":
                while read > 0 and (got := line.recv(read)):
                    read -= len(got)
            if reset:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        real.counts["leaving"] += 1

    leaving = st.tuples(
        st.sampled_from(["complete", "sample", "score"]),
        st.sampled_from([1.0, 1.0, 1.0, 0.99, 0.5, 0.1]),
        st.integers(0, 3_000),
        st.booleans(),
    )
    memory = []
    for number in range(ROUNDS):
        for operation in operations:
            many(number, EACH["described"], operation.as_strategy(generation_mode=GenerationMode.POSITIVE), described)
            if operation.body:
                violated = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
                many(number, EACH["violated"], violated, described)
        many(number, EACH["bodies"], mutated(), posted("bodies"))
        many(number, EACH["pictures"], uploads(), posted("pictures"))
        many(number, EACH["protocol"], spoken(), speak)
        many(number, EACH["leaving"], leaving, leave)
        memory.append(real.memory_mb)
        print(f"{time.monotonic() - start:.0f} s, {sum(real.counts.values()):,} requests, {memory[-1]:.0f} MB")
        assert real.ask("/healthz") == (200, b'{"status":"ok"}')

    print(json.dumps(dict(sorted(real.counts.items())), indent=1), real.complaints[:5], real.wrong[:20], sep="\n")
    assert real.wrong == []
    assert sum(real.counts.values()) >= 5_000
    quiet = [f'nextpixel_{what}{{model="embedded"}} 0.0' for what in ("slots_used", "queue_length")]
    until(lambda: all(line in real.ask("/metrics")[1].decode() for line in quiet))
    after = json.loads(real.ask("/v1/complete", *known)[1])
    assert (after["images"], after["nats"]) == (before["images"], before["nats"])
    assert real.complaints == []
    assert memory[-1] < memory[0] + GROWTH_MB, memory
