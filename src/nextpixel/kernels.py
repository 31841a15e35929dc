"""Attention of one query and products with int8 weights on a CPU, in C.

torch reads a bf16 cache at 3 GB/s there when each row asks one query, attends over no int8 cache, and slows down where
a few rows meet int8 weights; these loops do not (docs/performance.md). The machine's own C compiler builds them once,
in half a second, into the user's cache, or for this process alone where that cannot be written. Without one, `load`
says so by None and drawing goes on with torch alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from nextpixel.palette import user_cache

# Without -ffast-math: linking with it changes how the whole process treats the smallest numbers.
FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -Wno-psabi -fopenmp -shared -fPIC".split()
SECONDS = 60


_LOCK = threading.Lock()


def load() -> ctypes.CDLL | None:
    """The loops, or None where there is no compiler that builds them. Threads may ask at once."""
    with _LOCK:
        return _load()


@functools.cache
def _load() -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None or platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        return None
    source = (resources.files("nextpixel") / "kernels.c").read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join([source, compiler, *FLAGS, _processor()]).encode()).hexdigest()[:16]
    try:
        library = _open_or_build(user_cache() / f"kernels-{key}.so", source, compiler)
    except (OSError, RuntimeError):  # no home, a cache that cannot be written, a file in it that is damaged
        try:
            with tempfile.TemporaryDirectory() as folder:
                library = _open_or_build(Path(folder) / "kernels.so", source, compiler)
        except (OSError, subprocess.SubprocessError):
            return None
    except subprocess.SubprocessError:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.int8_rows.argtypes, library.int8_rows.restype = [], number
    for function in (library.attend_float, library.attend_int8_t):
        function.argtypes, function.restype = [pointer] * 9 + [number] * 4 + [ctypes.c_int], None
    for name in ("multiply_int8", "multiply_int8_bf16"):
        if hasattr(library, name):  # the second only where the processor multiplies bf16
            function = getattr(library, name)
            function.argtypes, function.restype = [pointer] * 4 + [number] * 3 + [ctypes.c_int], None
    return library


def _open_or_build(path: Path, source: str, compiler: str) -> ctypes.CDLL:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kernels-", dir=path.parent) as folder:  # others may build it too
            part = Path(folder) / path.name
            command = [*compiler.split(), *FLAGS, "-x", "c", "-", "-o", str(part), "-lm"]
            subprocess.run(command, input=source, text=True, capture_output=True, check=True, timeout=SECONDS)
            with part.open("rb+") as file:
                os.fsync(file.fileno())  # a machine that stops here must not leave half a library under the name
            part.replace(path)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    """What -march=native looks at: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))}))


def int8_rows() -> int:
    """The most rows of input for which int8 weights are the fastest on this processor: 4, or 16 where it has bf16."""
    library = load()
    return library.int8_rows() if library is not None else 0


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (..., C) and fp32 scales (...): the largest number of each row becomes 127."""
    scale = x.float().abs().amax(-1).clamp_min(1e-12) / 127
    return (x.float() / scale[..., None]).round().to(torch.int8), scale


def attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scales: tuple[Tensor, Tensor], positions: Tensor
) -> Tensor:
    """Store k and v (B, N, 1, E) in slot positions[b] of keys and values (B, N, T, E); attend to the slots up to it.

    The cache is fp32, or int8 with fp32 scales (B, N, T) of the keys and of the values (ones for fp32); the arithmetic
    is fp32. Returns fp32 (B, N, 1, E).
    """
    library = load()
    assert library is not None
    q, k, v = (x.float().contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    function = library.attend_int8_t if keys.dtype == torch.int8 else library.attend_float
    tensors = (q, k, v, keys, values, *scales, positions, out)
    function(*(x.data_ptr() for x in tensors), *keys.shape, torch.get_num_threads())
    return out


def multiply_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (M, C) times int8 weight (R, C) transposed, each row of it times its scale (R,): fp32 (M, R).

    R is a multiple of 4, C of 64. Above two rows x is rounded to bf16 where the processor multiplies bf16.
    """
    library = load()
    assert library is not None
    narrow = x.shape[0] > 2 and hasattr(library, "multiply_int8_bf16")
    function = library.multiply_int8_bf16 if narrow else library.multiply_int8
    x = x.to(torch.bfloat16 if narrow else torch.float32).contiguous()
    out = torch.empty((x.shape[0], weight.shape[0]))
    tensors = (x, weight, scale, out)
    function(*(t.data_ptr() for t in tensors), x.shape[0], *weight.shape, torch.get_num_threads())
    return out
