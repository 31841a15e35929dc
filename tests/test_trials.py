"""Trials: thousands of hostile files over every reader, and of the worst requests against a live server.

pytest -m trial -s tests/test_trials.py
"""

import base64
import collections
import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.trial, pytest.mark.timeout(3600)]

TESTS = Path(__file__).parent
FILES, REQUESTS = 2_000, 5_000
CPU_SECONDS, WALL_SECONDS = 2.0, 30.0  # of one: others may use the machine as well
GROWTH_MB = 48
WARM = 0.3  # of a trial, after which memory is compared


def lines_of(command: list[str]) -> tuple[subprocess.Popen[str], "queue.Queue[str | None]"]:
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    return process, lines


def test_hostile_files_are_read_or_refused(tmp_path: Path) -> None:
    program = str(TESTS / "helpers" / "hostile_files.py")
    process, lines = lines_of([sys.executable, program, "0", str(FILES), str(tmp_path)])
    with process:
        try:
            begun = json.loads(lines.get(timeout=300) or "null")
            assert begun["kinds"] > 40 and begun["crafted"] > 10
            told: list[dict[str, Any]] = []
            while len(told) < FILES:
                line = lines.get(timeout=WALL_SECONDS)  # queue.Empty: it hangs
                assert line is not None, f"it ended after {told[-1:]}"
                told.append(json.loads(line))
        finally:
            process.kill()
    counts = collections.Counter(one["outcome"] for one in told)
    slow = max(told, key=lambda one: one["cpu"])
    memory = [one["rss_mb"] for one in told]
    print(f"\n{len(told):,} files: {dict(counts)}; the slowest {slow}; memory {memory[int(FILES * WARM)]:.0f} MB after")
    print(f"{WARM:.0%}, {memory[-1]:.0f} MB at the end, {max(memory):.0f} MB at most")
    assert [one for one in told if one["outcome"] not in ("read", "refused")] == []
    assert slow["cpu"] < CPU_SECONDS
    assert memory[-1] < memory[int(FILES * WARM)] + GROWTH_MB


def bodies() -> list[tuple[str, str, bytes]]:
    """(route, content type, body) of the worst that came to mind."""
    from hostile_files import crafted, mutated, pictures
    from test_server_limits import BODIES, FORMS, repeated_scans

    choice, made = random.Random(0), []
    whole = list(pictures().values())
    files = [content for name, content in crafted() if name.endswith(("jpg", "png", "tif"))]
    files += [repeated_scans(60), repeated_scans(3_000)]
    for _ in range(REQUESTS):
        path = choice.choice(["complete", "score", "features", "encode", "sample"])
        match choice.randint(0, 9):
            case 0:
                name, body = choice.choice(list(BODIES.values()))
                made.append((name, "application/json", body))
            case 1:
                form = b"--bound" + choice.choice(list(FORMS.values())) + b"--\r\n"
                made.append((path, "multipart/form-data; boundary=bound", form))
            case 2:
                made.append((choice.choice(["score", "encode", "features"]), *as_form(choice.choice(files))))
            case 3:
                body = json.dumps({"image": base64.b64encode(choice.choice(whole)).decode(), "keep": 0.95}).encode()
                made.append((path, "application/json", mutated(body, choice)))
            case 4:
                kind, body = as_form(choice.choice(whole))
                made.append((path if path != "sample" else "score", kind, mutated(body, choice)))
            case _:
                made.append(
                    (choice.choice(["score", "encode", "features"]), *as_form(mutated(choice.choice(whole), choice)))
                )
    return made


def as_form(image: bytes) -> tuple[str, bytes]:
    head = b'--bound\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return "multipart/form-data; boundary=bound", head + image + b"\r\n--bound--\r\n"


def test_the_worst_requests_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.syspath_prepend(TESTS / "server")  # of whose tests some bodies are
    command = [sys.executable, "-m", "nextpixel", "serve", "--port", "0", "--threads", "1"]
    process, lines = lines_of(command)
    counts: collections.Counter[str] = collections.Counter()
    slow, longest, wrong, memory = (0.0, ""), 0.0, [], []
    with process:
        try:
            port = int((lines.get(timeout=120) or "").rpartition(":")[2])
            for number, (path, kind, body) in enumerate(bodies()):
                start, cpu, leaves = time.monotonic(), cpu_seconds(process.pid), number % 10 == 9
                with socket.create_connection(("127.0.0.1", port), timeout=WALL_SECONDS) as line:
                    head = f"POST /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                    head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                    try:
                        line.sendall(head.encode() + body)
                        if leaves:
                            counts["left"] += 1
                            continue
                        with HTTPResponse(line, method="POST") as answer:
                            answer.begin()
                            status, said = answer.status, answer.read()
                    except (BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
                        counts["closed"] += 1
                        continue
                longest = max(longest, time.monotonic() - start)
                slow = max(slow, (cpu_seconds(process.pid) - cpu, f"{path} {status} {body[:100]!r}"))
                counts[str(status)] += 1
                if status >= 500:
                    wrong.append(f"{path} {status} {said[:200]!r} {body[:100]!r}")
                memory.append(sum(rss_mb(pid) for pid in (process.pid, *children(process.pid))))
        finally:
            process.kill()
    print(f"\n{sum(counts.values()):,} requests: {dict(counts)}; load {os.getloadavg()[2]:.1f}")
    print(f"the longest {longest:.2f} s, the most work {slow[0]:.2f} s of CPU: {slow[1]}")
    early = max(memory[: int(len(memory) * WARM)])
    print(f"memory with decoders: {early:.0f} MB at most before {WARM:.0%}, {memory[-1]:.0f} MB at the end")
    assert wrong == [] and counts["200"] > 100
    assert slow[0] < CPU_SECONDS
    assert longest < 2  # seconds of wall time, on an otherwise idle machine
    assert memory[-1] < early + GROWTH_MB


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Of a process, its living children and those that have ended."""

    def ticks(pid: int, fields: slice) -> int:
        try:
            return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[fields]))
        except (FileNotFoundError, ProcessLookupError):
            return 0

    own = ticks(pid, slice(11, 15)) + sum(ticks(child, slice(11, 13)) for child in children(pid))
    return own / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (FileNotFoundError, ProcessLookupError):  # it has just been replaced
        return 0.0
