"""Metrics in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nextpixel.server.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Meters:
    """The metrics of one server, in their own registry, so that one process can have several servers."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def histogram(name: str, text: str, label: str) -> Histogram:
            return Histogram(f"nextpixel_{name}", text, [label], buckets=SECONDS, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"nextpixel_{name}", text, ["model"], registry=registry)

        self._requests = Counter("nextpixel_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._request_seconds = histogram("request_seconds", "From the first byte in to the last out.", "route")
        self._seconds = {
            "queue_seconds": histogram("queue_seconds", "Drawings: wait for a slot.", "model"),
            "first_row_seconds": histogram("first_row_seconds", "Drawings: until the first row.", "model"),
        }
        self._pixels = Counter("nextpixel_pixels", "Pixels drawn.", ["model"], registry=registry)
        self._speed = gauge("pixels_per_second", "While drawing.")
        self._used = gauge("slots_used", "Pictures being drawn.")
        self._slots = gauge("slots", "Pictures that can be drawn at once.")
        self._waiting = gauge("queue_length", "Requests that wait.")

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def drawing(self, model: str, what: str, value: float) -> None:
        """The `observe` of an engine."""
        if what == "pixels":
            self._pixels.labels(model).inc(value)
        elif what == "pixels_per_second":
            self._speed.labels(model).set(value)
        else:
            self._seconds[what].labels(model).observe(value)

    def text(self, engines: Mapping[str, Engine], fills_waiting: Callable[[str], int]) -> bytes:
        for name, engine in engines.items():
            self._used.labels(name).set(engine.used)
            self._slots.labels(name).set(engine.slots)
            self._waiting.labels(name).set(engine.waiting + fills_waiting(name))
        return generate_latest(self._registry)
