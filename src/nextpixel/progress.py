"""Messages and progress on stderr: a live bar on a terminal, occasional lines elsewhere.

Under torchrun only the first process prints.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

from nextpixel.errors import clipped

Advance = Callable[..., None]
SILENT_SECONDS = 2.0
LINE_EVERY_SECONDS = 15.0
LINES_AT_MOST = 10
CONTROLS = {  # control, bidirectional and line-separating characters
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
_silent: ContextVar[bool] = ContextVar("silent", default=False)
_quiet = False  # of all threads
_spell: Callable[[str], str] = str  # likewise


def is_first() -> bool:
    """Whether this is the only process, or rank 0 of torchrun."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(count, note="")`, which shows speed and time left after SILENT_SECONDS.

    `total` and `done` are in `unit`s. The bar needs rich and a terminal.
    """
    if _silent.get() or _quiet or not is_first():
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

    with live or nullcontext():
        yield advance


@contextmanager
def silent() -> Iterator[None]:
    """Show no progress of this thread's work, as for requests of a server."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@contextmanager
def quiet() -> Iterator[None]:
    """Print no progress and no messages, from any thread."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


@contextmanager
def spelled(by: Callable[[str], str]) -> Iterator[None]:
    """Write the arguments that messages name in backticks by this function, as the command line has its own names."""
    global _spell
    before, _spell = _spell, by
    try:
        yield
    finally:
        _spell = before


def say(line: str, everywhere: bool = False) -> None:
    """Print a line on stderr, from the first process or from all (`everywhere`), where the others say who they are."""
    line = _spell(line)
    if _quiet:
        return
    if not is_first():
        if not everywhere:
            return
        line = f"process {os.environ['RANK']}: {line}"
    sys.stderr.write(printable(clipped(line)) + "\n")
    sys.stderr.flush()


def printable(line: str) -> str:
    """Escape characters that control a terminal, as file names may contain."""
    return line.translate(CONTROLS)


@cache
def say_once(line: str) -> None:
    """`say`, but each line only once per process, as when a source is opened several times."""
    say(line)


def say_left_out(unreadable: Sequence[str]) -> None:
    """Print the first lines about unreadable pictures, and the number of the others."""
    for line in unreadable[:LINES_AT_MOST]:
        say(f"left out: {line}")
    if len(unreadable) > LINES_AT_MOST:
        say(f"and {len(unreadable) - LINES_AT_MOST:,} more")


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 5 min 10 s, 3 h 20 min, 2.5 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    if seconds < 172_800:
        return "{} h {} min".format(*divmod(round(seconds / 60), 60))
    return f"{seconds / 86_400:.1f} days"


def capacity(count: float) -> str:
    """Format a number of bytes: 640 kB, 11.4 MB, 2.9 GB."""
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
