"""Limits on untrusted input: endless files, decompression bombs, JPEGs with excessive scans."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from nextpixel.errors import InputError, shortened

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile
    from numpy.typing import NDArray

PICTURE_BYTES = 2 << 30
UNPACKED_BYTES = 1 << 30  # always allowed for compressed data; beyond it, this multiple of its size:
UNPACKED_TIMES = 100
TEXT_BYTES = 64 << 20  # of a text file
FRAMES = 10_000  # of an animation or a sheet
SCANS = 64  # per JPEG: each is a pass over all pixels; progressive files have about ten
SEGMENTS = 1000  # per JPEG
EXIF_SEGMENTS = 16  # per JPEG; Pillow concatenates them
STRAY_BYTES = 1000  # between two segments
SEGMENT = re.compile(rb"\xff([\x01-\xcf\xd9-\xfe])")  # other codes in a scan are pixels or restarts


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file. Raises OSError, and ValueError for a device, a pipe or a socket, which may be endless."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is a device, a pipe or a folder, not a file")
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str], at_most: int = TEXT_BYTES) -> bytes:
    """Read a file of at most `at_most` bytes. Raises OSError and ValueError."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > at_most:
            raise ValueError(f"it has over {at_most:,} bytes")
        return file.read()


def check_unpacked(packed: int, unpacked: int) -> None:
    """Raise ValueError for an implausible compression ratio."""
    if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * packed):
        raise ValueError(f"its {packed:,} bytes would become {unpacked:,}")


def check_array(file: IO[bytes], size: int) -> None:
    """Raise ValueError if the header of a .npy file claims more than its `size` bytes, which numpy would allocate."""
    from numpy.lib import format as npy

    read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read_header(file)
    if min(shape, default=0) < 0 or (math.prod(shape) * kind.itemsize > size and not kind.hasobject):
        raise ValueError(f"its header claims the shape {shortened(shape)}, but it has only {size:,} bytes")


def array_fault(error: Exception) -> str:
    """What is wrong with an array file, without numpy's advice to load it nevertheless."""
    return (
        re.sub(r"\s*(when allow_pickle=False|\n.*|If you trust .*)", "", str(error), flags=re.DOTALL) or "it is cut off"
    )


def open_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Memory-map a .npy file of plain numbers. Raises ValueError for anything else."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, ArithmeticError, MemoryError, SyntaxError, TokenError) as error:
        raise ValueError(array_fault(error)) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays; rename it to .npz")
    return array


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
    """Open a .npz file of plain arrays. Raises OSError, and ValueError for all other errors, also in the block."""
    import numpy as np

    try:
        with open_file(path) as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it is one array, a .npy file")
            with arrays:
                for member in arrays.zip.infolist():
                    check_unpacked(member.compress_size, member.file_size)
                    with arrays.zip.open(member) as part:
                        check_array(part, member.file_size)
                yield arrays
    except (OSError, InputError):
        raise
    except MemoryError:
        raise ValueError("it needs more memory than available") from None
    except Exception as error:  # damaged headers raise anything
        raise ValueError(array_fault(error)) from error


def check_frames(frames: int, pixels: int, pixel_limit: int) -> None:
    """Raise ValueError for too many pictures of that many pixels in one file."""
    if frames > FRAMES or frames * pixels > pixel_limit:
        raise ValueError(f"it has over {FRAMES:,} frames, or over {pixel_limit:,} pixels in all of them")


def check_picture(content: str | bytes) -> None:
    """Check a path or an encoded picture. Raises OSError, and ValueError if it would take too long to decode."""
    if isinstance(content, str):
        with open_file(content) as file:
            begin = file.read(2)
            if file.seek(0, os.SEEK_END) > PICTURE_BYTES:
                raise ValueError(f"it has over {PICTURE_BYTES:,} bytes")
            file.seek(0)
            content = file.read() if begin == b"\xff\xd8" else b""
    if content[:2] == b"\xff\xd8":
        _check_jpeg(content)


def _check_jpeg(content: bytes) -> None:
    place, in_scan, scans, exif = 2, False, 0, 0
    for _ in range(SEGMENTS):
        found = SEGMENT.search(content, place)
        if found is None or found[1] == b"\xd9":  # the end
            return
        if found.start() - place > STRAY_BYTES and not in_scan:
            raise ValueError(f"it has over {STRAY_BYTES:,} stray bytes between two of its segments")
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
        in_scan = found[1] == b"\xda"
        scans += in_scan
        exif += found[1] == b"\xe1" and content[found.end() + 2 : found.end() + 6] == b"Exif"
        if scans > SCANS:
            raise ValueError(f"it has over {SCANS} scans")
        if exif > EXIF_SEGMENTS:
            raise ValueError(f"it has over {EXIF_SEGMENTS} EXIF segments")
    raise ValueError(f"it has over {SEGMENTS:,} segments")
