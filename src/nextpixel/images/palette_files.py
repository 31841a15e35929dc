"""Palette files of drawing programs: GIMP's .gpl, .hex, JASC's .pal, a .png with a pixel for each colour, and .npy."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextpixel.errors import InputError, shortened
from nextpixel.files import new_file
from nextpixel.limits import array_fault, check_array, read_bytes

FILE_BYTES = 4 << 20
STRIP_PIXELS = 1 << 22
COLUMNS = re.compile(r"\s+")
COMPONENT = re.compile(r"[0-9]{1,3}")
HEX = re.compile(r"#?([0-9a-fA-F]{6}|[0-9a-fA-F]{8})")

Colours = NDArray[np.uint8]  # (K, 4)


class Format(NamedTuple):
    description: str
    read: Callable[[bytes], Colours]
    """Raises ValueError."""
    write: Callable[[Colours], bytes]


def read_palette_file(path: str | Path) -> Colours:
    """The different colours of a palette file in its order, uint8 (K, 4); all that are fully transparent are one.

    Raises InputError.
    """
    kind = _format(path)
    try:
        colours = kind.read(read_bytes(path, FILE_BYTES)).copy()
    except FileNotFoundError:
        raise InputError(f"{path}: expected {kind.description}, got no such file") from None
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TokenError) as error:
        raise InputError(f"{path}: expected {kind.description}; {error}") from None
    if len(colours) == 0:
        raise InputError(f"{path}: expected {kind.description}, got no colour")
    colours[colours[:, 3] == 0] = 0
    _, firsts = np.unique(colours, axis=0, return_index=True)
    return colours[np.sort(firsts)]


def write_palette_file(path: Path, colours: Colours) -> None:
    """Write colours uint8 (K, 4), atomically. Raises InputError and WorkError."""
    content = _format(path).write(colours)
    with new_file(path) as file:
        file.write(content)


def is_palette_file(path: str | Path) -> bool:
    """Whether `path` ends as a palette file does."""
    return Path(path).suffix.lower() in FORMATS


def holds_exact_colours(path: str | Path) -> bool:
    """Whether `path` is a palette file of exact colours; a .npy file may also have OpenAI's, numbers from -1 to 1."""
    if Path(path).suffix.lower() != ".npy":
        return is_palette_file(path)
    with suppress(Exception):  # whoever reads it says what is wrong
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).dtype == np.uint8)
    return False


def _format(path: str | Path) -> Format:
    if not is_palette_file(path):
        raise InputError(f"expected a file that ends in {', '.join(FORMATS)}, got {str(path)!r}", argument="palette")
    return FORMATS[Path(path).suffix.lower()]


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty."""
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _components(number: int, line: str, parts: Sequence[str]) -> list[int]:
    """Red, green, blue and perhaps alpha of a line."""
    if len(parts) in (3, 4) and all(COMPONENT.fullmatch(part) and int(part) <= 255 for part in parts):
        return [*map(int, parts), 255][:4]
    raise ValueError(f"line {number}: expected three or four numbers from 0 to 255, got {shortened(line)}")


def _array(rows: list[list[int]]) -> Colours:
    return np.array(rows, np.uint8).reshape(-1, 4)


def _shown(colour: Sequence[int] | Colours) -> Sequence[int] | Colours:
    """Without alpha where it is 255."""
    return colour if colour[3] < 255 else colour[:3]


def _read_gpl(content: bytes) -> Colours:
    lines = list(_lines(content))
    if not lines or lines[0][1] != "GIMP Palette":
        raise ValueError("its first line is not GIMP Palette")
    components, rows = 3, []
    for number, line in lines[1:]:
        if line.startswith("Channels:"):  # Aseprite's
            components = 4 if line.split(":")[1].strip() == "RGBA" else 3
        elif not line.startswith(("#", "Name:", "Columns:")):
            rows.append(_components(number, line, COLUMNS.split(line, components)[:components]))
    return _array(rows)


def _write_gpl(colours: Colours) -> bytes:
    has_alpha = bool((colours[:, 3] < 255).any())
    head = ["GIMP Palette", *(["Channels: RGBA"] if has_alpha else []), "#"]
    count = 4 if has_alpha else 3
    lines = [" ".join(f"{part:3d}" for part in row[:count]) + "\t" + bytes(_shown(row)).hex() for row in colours]
    return "\n".join([*head, *lines, ""]).encode()


def _read_hex(content: bytes) -> Colours:
    rows = []
    for number, line in _lines(content):
        if (match := HEX.fullmatch(line)) is None:
            raise ValueError(f"line {number}: expected a colour such as ff8800, got {shortened(line)}")
        rows.append([*bytes.fromhex(match[1]), 255][:4])
    return _array(rows)


def _write_hex(colours: Colours) -> bytes:
    return "".join(bytes(_shown(colour)).hex() + "\n" for colour in colours).encode()


def _read_jasc(content: bytes) -> Colours:
    if content[:4] == b"RIFF":
        raise ValueError("it is Microsoft's kind of .pal; save it as JASC, .gpl or .hex")
    lines = list(_lines(content))
    if [line for _, line in lines[:2]] != ["JASC-PAL", "0100"]:
        raise ValueError("its first lines are not JASC-PAL and 0100")
    rows = [_components(number, line, COLUMNS.split(line)) for number, line in lines[3:]]
    if lines[2:3] and lines[2][1] != str(len(rows)):
        raise ValueError(f"its third line claims {shortened(lines[2][1])} colours, but {len(rows)} follow")
    return _array(rows)


def _write_jasc(colours: Colours) -> bytes:
    lines = [" ".join(map(str, _shown(colour))) for colour in colours]
    return "\r\n".join(["JASC-PAL", "0100", str(len(colours)), *lines, ""]).encode()


def _read_strip(content: bytes) -> Colours:
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise ValueError("it is of another kind or cut off")
    width, height = struct.unpack(">II", content[16:24])
    if width * height > STRIP_PIXELS:
        raise ValueError(f"{width} x {height} is over {STRIP_PIXELS:,} pixels")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        return np.asarray(picture.convert("RGBA")).reshape(-1, 4)


def _write_strip(colours: Colours) -> bytes:
    strip = io.BytesIO()
    Image.fromarray(colours[None]).save(strip, "PNG")
    return strip.getvalue()


def _read_npy(content: bytes) -> Colours:
    try:
        check_array(file := io.BytesIO(content), len(content))
        file.seek(0)
        array = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(array_fault(error)) from None
    if array.ndim != 2 or array.shape[1] not in (3, 4) or array.dtype != np.uint8:
        raise ValueError(f"its array is {array.dtype} {array.shape}")
    return array if array.shape[1] == 4 else np.pad(array, ((0, 0), (0, 1)), constant_values=255)


def _write_npy(colours: Colours) -> bytes:
    file = io.BytesIO()
    np.save(file, colours)
    return file.getvalue()


FORMATS = {
    ".gpl": Format("a GIMP palette", _read_gpl, _write_gpl),
    ".hex": Format("a line such as ff8800 for each colour", _read_hex, _write_hex),
    ".pal": Format("a JASC palette", _read_jasc, _write_jasc),
    ".png": Format("a PNG with a pixel for each colour", _read_strip, _write_strip),
    ".npy": Format("an array uint8 of shape (colours, 3 or 4)", _read_npy, _write_npy),
}
