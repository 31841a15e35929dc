"""How much a server bears: arrivals at random times (an open loop), many at once, one by one, and a batch offline.

    python benchmarks/serve_load.py --rates 0.5,1 --seconds 30 --out docs/serving_load.md

Starts `nextpixel serve` on a free port of the loopback interface and asks it there, nowhere else. Clients of an open
loop do not wait for one another, so a server that is too slow shows it: latencies grow, and requests are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import httpx2 as httpx
import numpy as np
from PIL import Image

import nextpixel
from nextpixel.config import SamplingConfig
from nextpixel.drawing.sampling import draw
from nextpixel.images import png_bytes
from nextpixel.images.sources import load_images

REQUESTS_AT_MOST = 2_000
PICTURE = resources.files("nextpixel") / "assets" / "pictures" / "cat.jpg"


@dataclass
class Answer:
    """One request as its client saw it."""

    status: int
    latency: float
    first_row: float | None = None


def pictures(count: int, side: int) -> list[bytes]:
    """PNG files that differ: one picture, its columns shifted, then its rows."""
    square = load_images(str(PICTURE), side)[0]
    return [png_bytes(np.roll(square, (i // side, i % side), axis=(0, 1))) for i in range(count)]


async def ask(client: httpx.AsyncClient, images: list[bytes], keep: float, seed: int) -> Answer:
    start, first = time.perf_counter(), None
    form = {"keep": str(keep), "seed": str(seed)}
    image = images[seed % len(images)]
    async with client.stream("POST", "/v1/complete", files={"image": image}, data=form) as answer:
        rows = answer.headers["content-type"].startswith("text/event-stream")
        status, last = answer.status_code, "" if rows else "done"
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                last = line.removeprefix("event: ")
                if last == "row" and first is None:
                    first = time.perf_counter() - start
        if status == 200 and last != "done":
            status = 504
    return Answer(status, time.perf_counter() - start, first)


async def open_loop(
    client: httpx.AsyncClient, images: list[bytes], keep: float, rate: float, seconds: float, seed: int
) -> list[Answer]:
    """Poisson arrivals at `rate` a second for that long."""
    rng = np.random.default_rng(seed)
    asked: list[asyncio.Task[Answer]] = []
    start, at = time.perf_counter(), 0.0
    while len(asked) < REQUESTS_AT_MOST:
        at += rng.exponential(1 / rate)
        if at > seconds:
            break
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        asked.append(asyncio.ensure_future(ask(client, images, keep, len(asked))))
    return list(await asyncio.gather(*asked))


async def together(client: httpx.AsyncClient, images: list[bytes], keep: float, count: int) -> list[Answer]:
    return list(await asyncio.gather(*(ask(client, images, keep, seed) for seed in range(count))))


async def one_by_one(client: httpx.AsyncClient, images: list[bytes], keep: float, count: int) -> list[Answer]:
    return [await ask(client, images, keep, seed) for seed in range(count)]


def cpu_seconds(pid: int) -> float:
    """What a process has had of the processors, on Linux; on a busy machine the only clock that tells."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def row(name: str, answers: list[Answer], seconds: float, cpu: float, pixels: int) -> str:
    """A line of the table: only what was answered counts for throughput and latency."""
    good = [answer for answer in answers if answer.status == 200]
    cells = [name, str(len(answers)), str(len(answers) - len(good))]
    if not good:
        return "| " + " | ".join([*cells, *["-"] * 5]) + " |"
    latency = np.percentile([answer.latency for answer in good], [50, 95, 99])
    firsts = [answer.first_row for answer in good if answer.first_row is not None]
    first = np.percentile(firsts, [50, 100]) if firsts else [float("nan")] * 2
    cells += [f"{len(good) / seconds:.2f}", f"{len(good) * pixels / seconds:,.0f}"]
    cells += [f"{len(good) * pixels / cpu:,.0f}" if cpu > 0 else "-", f"{first[0]:.2f} / {first[1]:.2f}"]
    return "| " + " | ".join([*cells, f"{latency[0]:.2f} / {latency[1]:.2f} / {latency[2]:.2f}"]) + " |"


HEAD = (
    "| clients | requests | refused | pictures/s | pixels/s | pixels per CPU second | first row, p50 / last s | "
    "latency, p50 / p95 / p99 s |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|"
)


async def measure(address: str, pid: int, args: argparse.Namespace, images: list[bytes], pixels: int) -> list[str]:
    lines = []
    # A connection of its own for each: one kept alive may be closed by the server just as it is used again.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {} if args.whole else {"Accept": "text/event-stream"}
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits, headers=headers) as client:
        await one_by_one(client, images[-1:], args.keep, 1)
        for rate in args.rates:
            start, used = time.perf_counter(), cpu_seconds(pid)
            answers = await open_loop(client, images, args.keep, rate, args.seconds, args.seed)
            spent = time.perf_counter() - start
            lines.append(
                row(
                    f"open loop, {rate:g} a second for {args.seconds:g} s",
                    answers,
                    spent,
                    cpu_seconds(pid) - used,
                    pixels,
                )
            )
        few = images[: args.clients]
        for name, way, given in (
            ("at once", together, few),
            ("at once, one picture", together, images[-1:]),
            ("one by one", one_by_one, few),
        ):
            start, used = time.perf_counter(), cpu_seconds(pid)
            answers = await way(client, given, args.keep, args.clients)
            spent = time.perf_counter() - start
            lines.append(row(f"{args.clients} {name}", answers, spent, cpu_seconds(pid) - used, pixels))
    return lines


def offline(args: argparse.Namespace, pixels: int) -> str:
    """A completion of each of as many pictures, in one call of the package."""
    model = nextpixel.load(args.model)
    squares = np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in pictures(args.clients, model.size[0])])
    sampling = SamplingConfig(speed=args.speed)
    draw(model, squares, keep=0.9, n=1, sampling=sampling)
    start, used = time.perf_counter(), time.process_time()
    drawing = draw(model, squares, keep=args.keep, n=1, sampling=sampling)
    spent = time.perf_counter() - start
    count, cpu = args.clients * pixels, time.process_time() - used
    speed = f"{args.clients / spent:.2f} | {count / spent:,.0f} | {count / cpu:,.0f}"
    return f"| offline, {args.clients} in one call ({drawing.mode}) | 1 | 0 | {speed} | - | {spent:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for nextpixel serve; default: the embedded one")
    parser.add_argument("--speed", default="auto", choices=["auto", "exact"])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")], default=[0.5, 1.0, 2.0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each open loop")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--whole", action="store_true", help="ask for whole answers instead of rows as they are drawn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--out", type=Path, help="write the table here instead of printing it")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    model = nextpixel.load(args.model)
    pixels = (model.size[0] - round(args.keep * model.size[0])) * model.size[1]
    command = [sys.executable, "-m", "nextpixel", "serve", "--port", "0", "--slots", str(args.slots)]
    command += ["--speed", args.speed, "--threads", str(args.threads), "--timeout-seconds", "600"]
    command += ["--model", args.model] if args.model else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            raise SystemExit("the server did not start")
        mode = json.loads(httpx.get(f"{address}/v1/models").text)["models"][0]["mode"]
        lines = asyncio.run(measure(address, server.pid, args, pictures(REQUESTS_AT_MOST, model.size[0]), pixels))
    finally:
        server.terminate()
        server.wait(60)
    lines.append(offline(args, pixels))
    facts = [
        f"{model.config.parameters:,} parameters",
        f"side {model.side}",
        f"keep {args.keep:g}",
        f"{args.slots} slots",
        mode,
        f"{args.threads} thread(s)",
        f"torch {torch.__version__}",
        platform.machine(),
        f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
    ]
    text = "\n".join([", ".join(facts), "", HEAD, *lines]) + "\n"
    if args.out is None:
        print(text)
    else:
        part = args.out.with_name(f".{args.out.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(args.out)


if __name__ == "__main__":
    main()
