"""The blocks of a network with int8 weights over an int8 cache on a CPU, in C.

On a CPU, torch reads a bf16 cache at 3 GB/s with one query per row, has no attention over an int8 cache, and no fast
product of int8 weights with more than a few rows; these kernels do (docs/performance.md). The machine's C compiler
builds them once, in about a second, into the user's cache, or for this process alone where that is not writable.
Without a compiler `load` returns None, and drawing uses torch alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextpixel.config import Activation
from nextpixel.errors import WorkError
from nextpixel.files import is_sealed, user_cache, write_sealed
from nextpixel.progress import say

# No -ffast-math: linking with it changes how the whole process treats subnormal numbers. No contraction: a row must not
# depend on the tile it is computed in.
FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math".split()
FLAGS += "-Wno-psabi -fopenmp -shared -fPIC".split()
COMPILE_SECONDS = 300  # at most; a second is usual, a minute on a busy machine
ACTIVATIONS: tuple[Activation | None, ...] = (None, "quick-gelu", "squared-relu")  # as numbered in C
_LOCK = threading.Lock()


def load() -> ctypes.CDLL | None:
    """`build`, once per process. Thread-safe."""
    with _LOCK:
        return _built()


@functools.cache
def _built() -> ctypes.CDLL | None:
    return build()


def build() -> ctypes.CDLL | None:
    """The kernels, from the cache or compiled; None without a compiler that builds them."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None or platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        return None
    source = (resources.files("nextpixel.network.int8") / "kernels.c").read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join([source, compiler, *FLAGS, _processor()]).encode()).hexdigest()[:16]
    try:
        library = _open_or_build(user_cache("kernels") / f"{key}.so", source, compiler)
    except (OSError, WorkError):  # a full disk, or a cache folder mounted noexec
        try:
            with tempfile.TemporaryDirectory() as folder:
                library = _open_or_build(Path(folder) / "kernels.so", source, compiler)
        except (OSError, subprocess.SubprocessError):
            return None
    except subprocess.SubprocessError:
        return None
    pointer, number, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for function, arguments in (
        (library.lanes, 0),
        (library.multiply_room, 1),
        (library.blocks_room, 1),
        (library.scratch_room, 3),
    ):
        function.argtypes, function.restype = [number] * arguments, number
    for function, pointers, numbers in ((library.multiply, 8, 4), (library.attend, 9, 9), (library.blocks, 11, 14)):
        function.argtypes, function.restype = [*[pointer] * pointers, *[number] * numbers, threads], None
    return library


def _open_or_build(path: Path, source: str, compiler: str) -> ctypes.CDLL:
    if not is_sealed(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, path.name)
            command = [*compiler.split(), *FLAGS, "-x", "c", "-", "-o", str(part), "-lm"]
            slow = path.with_suffix(".slow")
            if slow.exists():  # another process has waited already
                raise subprocess.TimeoutExpired(command, COMPILE_SECONDS)
            try:
                _compile(command, source)
            except subprocess.TimeoutExpired:
                slow.touch()
                say(
                    f"{compiler} did not compile the CPU kernels in {COMPILE_SECONDS} s; continuing with torch alone, "
                    f"which is slower (delete {slow} to try again)"
                )
                raise
            write_sealed(path, part.read_bytes())
    return ctypes.CDLL(str(path))


def _compile(command: list[str], source: str) -> None:
    """In a session of its own, so that the compiler's subprocesses end with it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            process.communicate(source, timeout=COMPILE_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _processor() -> str:
    """What -march=native depends on: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))}))


def padded(count: int) -> int:
    """The next multiple of 16, to which slots and the numbers of a head are padded."""
    return -(-count // 16) * 16


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (..., C) and fp32 scales (...): the largest absolute value of each row becomes 127."""
    scale = x.float().abs().amax(-1).clamp_min(1e-12) / 127
    return (x.float() / scale[..., None]).round().to(torch.int8), scale


def pack(weight: Tensor) -> Tensor:
    """int8 (R, C) in the layout that `multiply` reads, as bytes; R and C are multiples of 16."""
    rows, columns = weight.shape
    lanes = _library().lanes()
    parts = (weight.to(torch.int16) + 128).to(torch.uint8).view(rows // lanes, lanes, columns // 4, 4)
    return parts.transpose(1, 2).contiguous().view(rows, columns)


def multiply(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    *,
    gain: Tensor | None = None,
    activation: Activation | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """add + activation(norm(x) W^T): fp32 (M, R) of fp32 x (M, C), W being `pack`ed bytes (R, C) times scale (R,).

    With a gain (C,), x is normalised first, as by model.Norm. Where the processor multiplies bytes, each group of 64
    numbers of a row is then rounded to 8 bits, with an error of at most 3.1%, and mostly below 1.8%, of their root
    mean square. A row does not depend on the other rows.
    """
    (rows, columns), count = x.shape, weight.shape[0]
    library = _library()
    x, add = x.contiguous(), None if add is None else add.contiguous()
    out, room = x.new_empty(rows, count), x.new_empty(rows * library.multiply_room(columns))
    tensors = (x, gain, weight, scale, add, out, room, _scratch(columns))
    _call(library.multiply, tensors, rows, count, columns, ACTIVATIONS.index(activation))
    return out


class Cache(NamedTuple):
    """The cache of all blocks: bytes (L, B, N, T, E) in the kernels' layout, T and E `padded`, and fp32 scales."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor
    """(L, B, N, T)"""
    value_scales: Tensor


def attend(
    qkv: Tensor, cache: Cache, positions: Tensor, *, rotations: Tensor | None = None, qk_norm: bool = False
) -> Tensor:
    """Store k and v in the slots of the first block's cache from positions[b] on; each query sees those up to its own.

    qkv is fp32 (B, Q, 3, N, E), `rotations` as Positions.rotations_of returns them, the result (B, Q, N, E). `blocks`
    does the same for each block; this function is for tests.
    """
    batch, slots, _, heads, width = qkv.shape
    qkv, out = qkv.clone(memory_format=torch.contiguous_format), qkv.new_empty(batch, slots, heads, width)
    rotations, *steps = _contiguous(rotations)
    tensors = (qkv, rotations, *cache, positions, out, _scratch(0, cache))
    _call(_library().attend, tensors, batch, slots, heads, width, *cache.keys.shape[3:], *steps, qk_norm)
    return out


def pointers(parts: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """The table (L, 11) that `blocks` reads; it holds addresses, so the tensors must outlive it.

    For each block: mix or None, the gains of both norms, then the `pack`ed weight and the scale of qkv, out, up, down.
    """
    return torch.tensor([[0 if x is None else x.data_ptr() for x in block] for block in parts], dtype=torch.int64)


def blocks(
    table: Tensor,
    h: Tensor,
    x0: Tensor,
    rotations: Tensor | None,
    cache: Cache,
    positions: Tensor,
    heads: int,
    qk_norm: bool,
    activation: Activation,
    causal: bool = True,
) -> Tensor:
    """The output of all blocks, fp32, for the stream h and the network's input x0, both (B, Q, D).

    See `attend` for the cache; a cache of a single block is reused by all where nothing is drawn afterwards. If not
    `causal`, all Q slots see each other.
    """
    batch, slots, width = h.shape
    library = _library()
    h, x0 = h.clone(memory_format=torch.contiguous_format), x0.contiguous()
    room = h.new_empty(batch * slots * library.blocks_room(width))
    rotations, *steps = _contiguous(rotations)
    tensors = (table, h, x0, rotations, *cache, positions, room, _scratch(width, cache))
    one_cache = len(cache.keys) == 1
    sizes = (len(table), one_cache, cache.keys.shape[1], batch, slots, heads, width // heads, *cache.keys.shape[3:])
    _call(library.blocks, tensors, *sizes, *steps, qk_norm, causal, ACTIVATIONS.index(activation))
    return h


def _contiguous(rotations: Tensor | None) -> tuple[Tensor | None, int, int]:
    """Contiguous rotations, and the strides of their parts and rows."""
    if rotations is None:
        return None, 0, 0
    rotations = rotations.contiguous()
    return rotations, rotations.stride(0), rotations.stride(1) if rotations.shape[1] > 1 else 0


def _scratch(width: int, cache: Cache | None = None) -> Tensor:
    """Scratch memory of all threads."""
    slots, head_width = (0, 0) if cache is None else cache.keys.shape[3:]
    return torch.empty(torch.get_num_threads() * _library().scratch_room(slots, head_width, width))


def _library() -> ctypes.CDLL:
    library = load()
    assert library is not None
    return library


def _call(function: Any, tensors: tuple[Any, ...], *numbers: int) -> None:
    """Call with the tensors' addresses; the caller keeps the tensors alive."""
    pointers = [x.data_ptr() if isinstance(x, Tensor) else x for x in tensors]
    function(*pointers, *numbers, torch.get_num_threads())
