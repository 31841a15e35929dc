"""Progress of long work, on stderr: a live bar on a terminal, a plain line now and then elsewhere.

Of several processes only the first one speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from nextpixel.errors import clipped

Advance = Callable[..., None]
SILENT_SECONDS = 2.0
LINE_EVERY_SECONDS = 15.0
LINES_AT_MOST = 10
CONTROLS = {  # control characters, and those that turn the direction of writing or end a line
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
_silent: ContextVar[bool] = ContextVar("silent", default=False)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks: alone, or number 0 of those that torchrun started."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(count, note="")`; shows speed and time left once the work has taken a while.

    `total` and `done` count `unit`s. Rich draws the bar where it is installed and stderr is a terminal.
    """
    if _silent.get() or not is_first():
        yield lambda count, note="": None
        return
    start = time.monotonic()
    state = {"done": done, "shown": start - LINE_EVERY_SECONDS + SILENT_SECONDS}
    live = _rich_bar(label, total, unit, done) if sys.stderr.isatty() else None

    def advance(count: int, note: str = "") -> None:
        state["done"] += count
        now = time.monotonic()
        speed = (state["done"] - done) / max(now - start, 1e-9)
        left = (total - state["done"]) / speed if speed else 0.0
        detail = f"{speed:,.{0 if speed >= 100 else 1}f} {unit}/s, {duration(left)} left"
        if live is not None:
            live.update(live.task_ids[0], completed=state["done"], note=", ".join(filter(None, (note, detail))))
        elif now - state["shown"] >= LINE_EVERY_SECONDS:
            state["shown"] = now
            notes = ", ".join(filter(None, (note, detail)))
            say(f"{label}: {int(state['done']):,} of {total:,} {unit}, {notes}")

    if live is None:
        yield advance
    else:
        with live:
            yield advance


@contextmanager
def silent() -> Iterator[None]:
    """No progress of what this thread does within: for a server's requests, which nobody watches."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def say(line: str, everywhere: bool = False) -> None:
    """One line for whoever watches, on stderr, from the first process or `everywhere`."""
    if not (everywhere or is_first()):
        return
    sys.stderr.write(printable(clipped(line)) + "\n")
    sys.stderr.flush()


def printable(line: str) -> str:
    """With escapes for what would steer a terminal: a name of a file or of a set may hold anything."""
    return line.translate(CONTROLS)


@cache
def say_once(line: str) -> None:
    """`say`, but the same line only once in a process: a source may be opened several times."""
    say(line)


def say_left_out(unreadable: Sequence[str]) -> None:
    """The first of the lines about pictures that could not be read, and the number of the others."""
    for line in unreadable[:LINES_AT_MOST]:
        say(f"left out: {line}")
    if len(unreadable) > LINES_AT_MOST:
        say(f"and {len(unreadable) - LINES_AT_MOST:,} more")


def duration(seconds: float) -> str:
    """A length of time as a person says it: 42 s, 5 min 10 s, 3 h 20 min, 2.5 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 172_800:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 86_400:.1f} days"


def capacity(count: float) -> str:
    """A number of bytes as a person says it: 640 kB, 11.4 MB, 2.9 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def _rich_bar(label: str, total: int, unit: str, done: int):  # type: ignore[no-untyped-def]
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        return None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + ", {task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(escape(printable(label)), total=total, completed=done, note="")
    return bar
