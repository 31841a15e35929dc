"""The queue of fillings, without networks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `server`")

from nextpixel.server.calls import Call
from nextpixel.server.engine import Waiting
from nextpixel.server.holes import Fills


@pytest.fixture
def fills() -> Iterator[Fills]:
    with ThreadPoolExecutor(1) as thread:
        yield Fills(thread, 1, "exact", lambda *_: None)


def call(seconds: float = 5.0) -> Call[Any]:
    model: Any = SimpleNamespace(config=SimpleNamespace(columns=1), size=(2, 2))
    body: Any = SimpleNamespace(n=1, particles=1, caption=None, seed=0)
    return Call(None, body, "tiny", model, seconds, time.monotonic() + seconds)  # type: ignore[arg-type]


def filling(pixels: int = 3) -> Any:
    return SimpleNamespace(rounds=lambda every: iter([1] * pixels), new_rows=lambda: [(0, 0)], tokens=pixels)


async def drawn(fills: Fills, asked: Call[Any]) -> list[Any]:
    return [one async for one in fills.draw(asked, filling())]


def test_a_place_that_is_left_while_the_client_reads_is_noticed(fills: Fills) -> None:
    async def scene() -> Any:
        first, second = call(), call(0.5)
        fills.join(first, 3)
        fills.join(second, 3)
        events = fills.draw(second, filling())
        assert isinstance(await anext(events), Waiting)
        fills.leave(first)
        return await anext(events)

    assert asyncio.run(scene()) == [(0, 0)]
