"""What input may cost, whatever it says of itself: files without end, pictures that are decoded again and again."""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, BinaryIO

from nextpixel.errors import shortened

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

PICTURE_BYTES = 2 << 30
UNPACKED_BYTES = 1 << 30  # which compressed data may become in any case, and this many times its size:
UNPACKED_TIMES = 100
TEXT_BYTES = 64 << 20  # of a file of settings
SCANS = 64  # of a JPEG: each is a pass over all its pixels; progressive ones have about ten
SEGMENTS = 1000  # of a JPEG
EXIF_SEGMENTS = 16  # of a JPEG, which Pillow appends one to another
STRAY_BYTES = 1000  # between two of its segments
SEGMENT = re.compile(rb"\xff([\x01-\xcf\xd9-\xfe])")  # others in a scan are pixels or restarts


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file of the disk. Raises OSError, and ValueError for a device, a pipe or a socket, which may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is a device, a pipe or a folder, not a file")
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str], at_most: int = TEXT_BYTES) -> bytes:
    """All of a file. Raises as open_file does, and ValueError for one that is longer."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > at_most:
            raise ValueError(f"it has over {at_most:,} bytes")
        return file.read()


def check_unpacked(packed: int, unpacked: int) -> None:
    """Raises ValueError for compressed data that claims to be far more than pictures and numbers come to."""
    if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * packed):
        raise ValueError(f"its {packed:,} bytes would become {unpacked:,}")


def check_array(file: IO[bytes], size: int) -> None:
    """Raises ValueError for a .npy file of that many bytes whose header claims more: numpy would make room for it."""
    from numpy.lib import format as npy

    read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read_header(file)
    if min(shape, default=0) < 0 or (math.prod(shape) * kind.itemsize > size and not kind.hasobject):
        raise ValueError(f"its header claims the shape {shortened(shape)}, its {size:,} bytes hold less")


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
    """A .npz file of plain arrays. Raises OSError, and ValueError for whatever else is wrong, in the block as well."""
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
    except (OSError, ValueError):
        raise
    except MemoryError:
        raise ValueError("it needs more memory than there is") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, ArithmeticError, EOFError, LookupError) as error:
        raise ValueError(f"{error}" or "it is cut off") from error
    except (
        AttributeError,
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        TokenError,
        TypeError,
    ) as error:  # of a damaged header
        raise ValueError(f"it is damaged: {error}") from error


def check_picture(content: str | bytes) -> None:
    """A path or an encoded picture. Raises OSError, and ValueError for one that takes longer than its size explains."""
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
