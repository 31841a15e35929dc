"""Decode uploaded pictures in separate processes, which can be killed at any time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
from anyio import CancelScope, CapacityLimiter, to_thread
from numpy.typing import NDArray

from nextpixel.config import Fit, Levels, Size
from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage, decode, read_frames, read_image, transparency

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # few and widely reviewed decoders
PROCESSES = 2
CPU_SECONDS = 5.0  # per picture; valid ones of 16 million pixels take less than one
MEMORY_BYTES = 1 << 30  # per process, plus for each pixel of the limit:
PIXEL_BYTES = 64


class Decoders:
    """A few processes, started on demand and killed when cancelled or over time.

    `pixel_limit` is the maximum of width times height.
    """

    def __init__(self, pixel_limit: int) -> None:
        self._pixel_limit = pixel_limit
        self._idle: list[subprocess.Popen[bytes]] = []
        self._limiter = CapacityLimiter(PROCESSES)
        self.close = weakref.finalize(self, _end, self._idle)

    async def decode(
        self,
        image: bytes,
        size: Size,
        fit: Fit,
        levels: Levels,
        *,
        of: bytes | None = None,
        transparent: bool = False,
    ) -> NDArray[np.uint8]:
        """The picture at `size`, (H, W, C), or white where it is transparent; or with `of` the mask of that picture.

        Raises UnreadableImage, and InputError where the sizes of mask and picture differ.
        """
        async with self._limiter:
            while self._idle and self._idle[-1].poll() is not None:  # it was killed by someone else
                _end([self._idle.pop()])
            process = self._idle.pop() if self._idle else _start(self._pixel_limit)
            try:
                files = [image] if of is None else [image, of]
                asked = [[len(file) for file in files], size, fit, levels.values(), transparent]
                pixels = await to_thread.run_sync(_ask, process, files, asked, abandon_on_cancel=True)
            except (UnreadableImage, InputError):
                if process.poll() is None:
                    self._idle.append(process)
                raise
            except BaseException:
                process.kill()  # ends the thread of _ask
                with CancelScope(shield=True):  # or it stays a zombie with open pipes
                    await to_thread.run_sync(_end, [process])
                raise
            self._idle.append(process)
            return pixels


def _start(pixel_limit: int) -> subprocess.Popen[bytes]:
    # Not multiprocessing, which would import the caller's main module.
    code = f"import sys; sys.path[:] = {sys.path!r}; from nextpixel.server.decoders import work; "
    code += f"work({pixel_limit}, {CPU_SECONDS})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # only the server handles Ctrl-C
    )


def _ask(process: subprocess.Popen[bytes], files: list[bytes], asked: list[Any]) -> NDArray[np.uint8]:
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"".join([json.dumps(asked).encode(), b"\n", *files]))
        process.stdin.flush()
    if not (line := process.stdout.readline()):
        _end([process])
        late = process.returncode == -signal.SIGPROF
        reason = f"decoding it takes over {CPU_SECONDS:g} s" if late else "its decoder crashed"
        raise UnreadableImage("in the request", reason)
    shape, reason, argument = json.loads(line)
    if argument:
        raise InputError(reason, argument=argument)
    if reason:
        raise UnreadableImage("in the request", reason)
    return np.frombuffer(process.stdout.read(math.prod(shape)), np.uint8).reshape(shape).copy()


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    while processes:
        with suppress(BrokenPipeError), processes.pop() as process:
            process.kill()


# ---- in the decoding process


def work(pixel_limit: int, cpu_seconds: float) -> None:
    """Decode pictures from stdin until it closes. Both directions are a line of JSON, then bytes of files or pixels."""
    with suppress(ImportError, OSError, ValueError):  # some systems lack these limits
        import resource

        most = MEMORY_BYTES + PIXEL_BYTES * pixel_limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked, answer = sys.stdin.buffer, sys.stdout.buffer
    while line := asked.readline():
        counts, size, fit, levels, transparent = json.loads(line)
        files = [asked.read(count) for count in counts]
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # the signal ends the process
        found, reason, argument = np.empty(0, np.uint8), None, None
        try:
            found = _decoded(files, tuple(size), fit, Levels.of(**levels), transparent, pixel_limit)
        except UnreadableImage as error:
            reason = error.reason
        except InputError as error:
            reason, argument = error.message, error.argument
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer.write(json.dumps([found.shape, reason, argument]).encode() + b"\n" + found.tobytes())
        answer.flush()


def _decoded(
    files: list[bytes], size: Size, fit: Fit, levels: Levels, transparent: bool, pixel_limit: int
) -> NDArray[np.uint8]:
    name = "in the request"
    limits: Any = {"pixel_limit": pixel_limit, "formats": FORMATS}
    if len(files) == 1:
        return (transparency if transparent else read_image)(files[0], name, size, fit, levels, **limits)
    from nextpixel.images.sources import open_source
    from nextpixel.images.sources.masks import fit_masks

    given, whole = files
    # decoded as a picture: an array of values up to 1 would be taken for one of 0 and 1
    mask = decode(255 - read_frames(given, name, **limits)[0][1][..., 3] if transparent else given, name, **limits)
    exact = fit == "place"
    picture = open_source(
        read_frames(whole, name, **limits)[0][1] if exact else decode(whole, name, levels=levels, **limits)
    )
    picture.names = ["the picture"]
    return fit_masks(mask, picture, size, fit, levels=levels)[0, ..., None] * np.uint8(255)
