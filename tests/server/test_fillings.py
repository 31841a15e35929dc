"""The queue of fillings, without networks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

pytest.importorskip("fastapi", reason="needs the extra `server`")

from nextpixel.config import SamplingConfig
from nextpixel.errors import InputError
from nextpixel.server import holes
from nextpixel.server.calls import Call
from nextpixel.server.engine import Row, Waiting
from nextpixel.server.holes import Fills, fill

SQUARE, MASK = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool)


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fills]:
    monkeypatch.setattr(holes, "SLICE_SECONDS", 0)
    with ThreadPoolExecutor(1) as thread:
        yield Fills(thread, 1, "exact", lambda *_: None, lambda: False)


def call(seconds: float = 5.0) -> Call[Any]:
    model: Any = SimpleNamespace(config=SimpleNamespace(columns=1), size=(2, 2))
    body: Any = SimpleNamespace(n=1, particles=1, caption=None, guidance=1.0, seed=0, sampling=SamplingConfig)
    return Call(None, body, "tiny", model, seconds, time.monotonic() + seconds)  # type: ignore[arg-type]


class Stub:
    """A filling of three pixels, one a slice while `go` is set."""

    decoder = SimpleNamespace(name="exact")

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.steps_left, self.go = error, 3, threading.Event()
        self.drawn = 0
        self.go.set()

    def rounds(self) -> Iterator[int]:
        while self.steps_left:
            if self.error:
                raise self.error
            time.sleep(0.001)
            self.drawn = int(self.go.is_set())
            self.steps_left -= self.drawn
            yield self.drawn

    def new_rows(self) -> list[tuple[int, int, Any]]:
        return [(0, 0, SQUARE[0])] * self.drawn

    def drawing(self) -> Any:
        evidence = SimpleNamespace(log_evidence=np.zeros(1), ancestors=np.ones(1))
        return SimpleNamespace(images=SQUARE[None], nats=np.zeros(1), evidence=evidence)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The fillings that were prepared; an error put there is that of the next one."""
    found: list[Any] = []

    def prepare(*_: Any, **__: Any) -> Stub:
        error = found.pop() if found and isinstance(found[-1], Exception) else None
        if isinstance(error, InputError):
            raise error
        found.append(Stub(error))
        return found[-1]

    monkeypatch.setattr(holes, "Filling", prepare)
    return found


def test_a_place_that_is_left_while_the_client_reads_is_noticed(fills: Fills) -> None:
    async def scene() -> Any:
        first, second = call(), call(0.5)
        fills.join(first)
        fills.join(second)
        found: list[Any] = []
        drawing = asyncio.create_task(fills.draw(second, Stub(), found.append))
        while not found:
            await asyncio.sleep(0)
        fills.leave(first)
        await drawing
        return [type(event) for event in found]

    assert asyncio.run(scene()) == [Waiting, Row, Row, Row]


async def news(fills: Fills, asked: Call[Any]) -> list[tuple[str, Any]]:
    return [one async for one in (await fill(asked, fills, SQUARE, MASK)).events()]


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_draining_refuses_waiting_and_new_fillings(fills: Fills, made: list[Any], seconds: float) -> None:
    async def scene() -> None:
        running = (await fill(call(), fills, SQUARE, MASK)).events()
        assert [(await anext(running))[0] for _ in range(2)] == ["start", "row"]
        made[0].go.clear()
        waiting = asyncio.create_task(news(fills, call()))
        while len(made) < 2:
            await asyncio.sleep(0.001)
        fills.drain(seconds)
        made[0].go.set()
        assert [(name, data.get("status")) for name, data in await waiting][-1] == ("error", 503)
        with pytest.raises(HTTPException) as refused:
            await fill(call(), fills, SQUARE, MASK)
        assert refused.value.status_code == 503
        *_, (name, data) = [one async for one in running]
        assert name == "done" if seconds else data["status"] == 503

    asyncio.run(scene())


def test_a_full_queue_refuses_before_anything_is_prepared(fills: Fills, made: list[Any]) -> None:
    async def scene() -> list[Any]:
        asked = [fill(call(), fills, SQUARE, MASK) for _ in range(5)]
        return await asyncio.gather(*asked, return_exceptions=True)

    refused = [one.status_code for one in asyncio.run(scene()) if isinstance(one, HTTPException)]
    assert refused == [429] * 3 and len(made) == 2


def test_a_filling_that_cannot_be_prepared_leaves_its_place(fills: Fills, made: list[Any]) -> None:
    made.append(InputError("no such colour"))
    with pytest.raises(InputError):
        asyncio.run(fill(call(), fills, SQUARE, MASK))
    assert asyncio.run(news(fills, call()))[-1][0] == "done"


def test_a_failure_is_logged_and_told(fills: Fills, made: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    made.append(RuntimeError("no memory"))
    *_, (name, data) = asyncio.run(news(fills, call()))
    assert (name, data["status"]) == ("error", 500) and "memory" not in data["message"]
    assert "no memory" in caplog.text


def test_drawing_does_not_wait_for_its_reader_and_ends_with_it(fills: Fills, made: list[Any]) -> None:
    async def scene() -> None:
        unread = await fill(call(), fills, SQUARE, MASK)
        assert [name for name, _ in await news(fills, call())][-1] == "done"
        assert [name for name, _ in [one async for one in unread.events()]] == ["start", "row", "row", "row", "done"]
        left = await fill(call(), fills, SQUARE, MASK)
        made[-1].go.clear()
        left.end()
        assert [name for name, _ in await news(fills, call())][-1] == "done"
        assert made[-2].steps_left

    asyncio.run(scene())


def test_time_left_is_that_of_the_model_and_the_kind_of_work(fills: Fills, made: list[Any]) -> None:
    async def scene() -> None:
        first = await fill(call(), fills, SQUARE, MASK)
        assert first.seconds_left is None  # nothing has been measured
        async for name, data in first.events():
            assert name in ("start", "done") or data["seconds_left"] is not None
        pace = fills._seconds_per_step["tiny", False]
        again = await fill(call(), fills, SQUARE, MASK)
        assert again.seconds_left == pytest.approx(3 * pace)
        made[-1].go.clear()
        other = call()
        other.body.guidance = 2.0
        guided = await fill(other, fills, SQUARE, MASK)
        assert guided.seconds_left is None
        fills._seconds_per_step["tiny", True] = 100.0
        name, waiting = [await anext(guided.events()) for _ in range(2)][1]
        assert name == "waiting" and waiting["ahead"] == 1
        assert fills.seconds_left(other) == pytest.approx(300, rel=0.1)
        guided.end()
        again.end()

    asyncio.run(scene())


def test_engines_get_as_much_time_as_a_filling(fills: Fills, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "SLICE_SECONDS", 0.02)
    fills.engines_draw = lambda: True
    filling, took = Stub(), [0.0, 0.0]  # of the filling, and of steps of an engine that draws all the time
    filling.steps_left = 60

    def timed(which: int, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        try:
            return work()
        finally:
            took[which] += time.monotonic() - start

    async def engine() -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(fills.thread, timed, 1, lambda: time.sleep(0.001))

    async def scene() -> None:
        asked = call()
        fills.join(asked)
        rounds, found = filling.rounds(), []
        monkeypatch.setattr(filling, "rounds", lambda: iter(lambda: timed(0, lambda: next(rounds)), None))
        drawing = asyncio.create_task(engine())
        await fills.draw(asked, filling, found.append)
        drawing.cancel()
        assert found

    asyncio.run(scene())
    assert 0.5 < took[1] / took[0] < 2
