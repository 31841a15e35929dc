"""The heap of glibc: what is kept while a network is trained or scores pictures, and what is returned."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**25  # what glibc's own adjustment reaches, and before 2.35 the most that it takes

_kept = False


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, this process keeps the memory that it frees and uses it again; at the end it is returned.

    By default glibc returns large blocks to the kernel, which clears each page before it gives it out again. Blocks
    over 32 MiB are still returned: kept ones into which no later block fits would fill the memory. Does nothing with
    another C library, or where the environment already configures glibc's heap.
    """
    global _kept
    configured = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if _kept or configured or (mallopt := _glibc("mallopt")) is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, -1)
    _kept = True
    try:
        yield
    finally:
        return_freed_memory()
        mallopt(TRIM_THRESHOLD, 2 * LARGEST)  # as after glibc's adjustment
        _kept = False


def return_freed_memory() -> None:
    """Return what `freed_memory_kept` has kept so far to the kernel, so that it counts as free."""
    if _kept:
        trim()


def trim() -> None:
    """Return freed memory to the kernel, also what lies between blocks in use; does nothing with another C library."""
    if (function := _glibc("malloc_trim")) is not None:
        function(0)


def _glibc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of glibc; None on Windows and macOS and with musl, which have none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, TypeError, AttributeError):
        return None
