"""Aseprite files, .ase and .aseprite: every frame, its visible layers laid over each other.

The format: github.com/aseprite/aseprite, docs/ase-file-specs.md.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextpixel.limits import check_unpacked, read_bytes

FILE_BYTES = 256 << 20
TAGS_AT_MOST = 1_000
DRAWN_TIMES = 10  # the most pixels of a picture: what all layers of all frames may have
HEADER, FRAME, CHUNK = struct.Struct("<IHHHHHI10xB"), struct.Struct("<IHHH2xI"), struct.Struct("<IH")
FILE_MARK, FRAME_MARK = 0xA5E0, 0xF1FA
OLD_PALETTE, LAYER, CEL, TAGS, PALETTE = 0x0004, 0x2004, 0x2005, 0x2018, 0x2019
VISIBLE, BACKGROUND, REFERENCE = 1, 8, 64  # flags of a layer
GROUP, TILES = 1, 2  # kinds of layers, besides 0
RAW, LINKED, COMPRESSED = 0, 1, 2  # kinds of cels
BYTES = {32: 4, 16: 2, 8: 1}  # by bits a pixel: RGBA, grey with alpha, indexed

Pixels = NDArray[np.uint8]


@dataclass
class Layer:
    flags: int
    opacity: float  # 0 to 1, with that of the groups it is in; 0 if hidden


@dataclass
class Cel:
    order: tuple[int, int]  # from the bottom up
    layer: int
    x: int
    y: int
    opacity: int
    pixels: Pixels  # (h, w, bytes of a pixel)


@dataclass
class File:
    width: int
    height: int
    frames: int
    depth: int
    clear: int  # the transparent index
    has_opacity: tuple[bool, bool]  # layers, groups
    packed_bytes: int
    pixel_limit: int
    unpacked_bytes: int = 0
    drawn_pixels: int = 0
    has_palette: bool = False  # of the newer kind, beside which the older is repeated for older programs
    palette: Pixels = field(default_factory=lambda: np.zeros((256, 4), np.uint8))
    layers: list[Layer] = field(default_factory=list)
    tags: dict[int, str] = field(default_factory=dict)  # by frame
    groups: list[float] = field(default_factory=list)  # the opacity of the last layer of each level


def matches(head: bytes, end: str) -> bool:
    return head[4:6] == FILE_MARK.to_bytes(2, "little") and head[12:14] in (b"\x20\0", b"\x10\0", b"\x08\0")


def frames(content: str | bytes, pixel_limit: int) -> Iterator[tuple[str, Image.Image]]:
    """RGBA frames; a frame is called TAG,NUMBER within its first tag, or by its number. Raises ValueError."""
    data = read_bytes(content, FILE_BYTES) if isinstance(content, str) else content
    try:
        yield from _frames(data, pixel_limit)
    except (struct.error, IndexError, zlib.error) as error:
        raise ValueError(f"it is damaged or cut off ({error})") from None


def _frames(data: bytes, pixel_limit: int) -> Iterator[tuple[str, Image.Image]]:
    _, _, count, width, height, depth, flags, clear = HEADER.unpack_from(data)
    if depth not in BYTES or not width * height or not count:
        raise ValueError(f"expected a picture of 8, 16 or 32 bits a pixel, got {width} x {height} at {depth}")
    if width * height > pixel_limit:
        raise ValueError(f"{width} x {height} is over {pixel_limit:,} pixels")
    file = File(width, height, count, depth, clear, (bool(flags & 1), bool(flags & 2)), len(data), pixel_limit)
    cels: dict[tuple[int, int], Cel] = {}  # the last of each layer and frame, for links
    place = 128
    starts: dict[str, int] = {}
    for number in range(count):
        size, mark, old_chunks, _, chunks = FRAME.unpack_from(data, place)
        if mark != FRAME_MARK or size < FRAME.size or place + size > len(data):
            raise ValueError(f"frame {number} is damaged or cut off")
        own = []
        for kind, chunk in _chunks(data[place + FRAME.size : place + size], chunks or old_chunks):
            if kind == CEL:
                cel = _cel(chunk, file, number, cels)
                cels[cel.layer, number] = cel
                own.append(cel)
            else:
                _read_chunk(kind, chunk, file)
        place += size
        tag = file.tags.get(number)
        part = str(number) if tag is None else f"{tag},{number - starts.setdefault(tag, number)}"
        yield part if count > 1 else "", _drawn(file, own)


def _chunks(data: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    place = 0
    for _ in range(count):
        size, kind = CHUNK.unpack_from(data, place)
        if size < CHUNK.size or place + size > len(data):
            raise ValueError("one of its chunks is cut off")
        yield kind, data[place + CHUNK.size : place + size]
        place += size


def _read_chunk(kind: int, data: bytes, file: File) -> None:
    if kind == LAYER:
        flags, sort, level, _, _, blend, opacity = struct.unpack_from("<HHHHHHB", data)
        given = opacity / 255 if file.has_opacity[sort == GROUP] else 1.0
        shown = given * math.prod(file.groups[:level]) * bool(flags & VISIBLE and not flags & REFERENCE)
        file.groups[level:] = [given if shown else 0.0]
        blends = blend != 0 and (sort != GROUP or file.has_opacity[True])
        if shown and (blends or sort == TILES):
            what = "tiles" if sort == TILES else f"the blend mode {blend}"
            raise ValueError(f"layer {len(file.layers)} has {what}, expected pixels in the normal mode; export a PNG")
        file.layers.append(Layer(flags, shown))
    elif kind == PALETTE:
        _, first, last = struct.unpack_from("<III", data)
        file.has_palette, place = True, 20
        for index in range(first, min(last, 255) + 1):
            (named,) = struct.unpack_from("<H", data, place)
            file.palette[index] = list(struct.unpack_from("<4B", data, place + 2))
            place += 6
            if named & 1:
                place += 2 + struct.unpack_from("<H", data, place)[0]
    elif kind == OLD_PALETTE and not file.has_palette:
        (packets,), place, index = struct.unpack_from("<H", data), 2, 0
        for _ in range(packets):
            skipped, colours = struct.unpack_from("<BB", data, place)
            index, place = index + skipped, place + 2
            for _ in range(colours or 256):
                file.palette[index] = [*struct.unpack_from("<3B", data, place), 255]
                index, place = index + 1, place + 3
    elif kind == TAGS:
        (tags,), place = struct.unpack_from("<H", data), 10
        if tags > TAGS_AT_MOST:
            raise ValueError(f"it has {tags:,} tags, expected at most {TAGS_AT_MOST:,}")
        for _ in range(tags):
            first, last = struct.unpack_from("<HH", data, place)
            (length,) = struct.unpack_from("<H", data, place + 17)
            name = data[place + 19 : place + 19 + length].decode("utf-8", "replace")
            for frame in range(first, min(last, file.frames - 1) + 1):
                file.tags.setdefault(frame, name)
            place += 19 + length


def _cel(data: bytes, file: File, number: int, before: dict[tuple[int, int], Cel]) -> Cel:
    layer, x, y, opacity, kind, shift = struct.unpack_from("<HhhBHh", data)
    order = layer + shift, shift
    if kind == LINKED:
        (target,) = struct.unpack_from("<H", data, 16)
        if (layer, target) not in before or target >= number:
            raise ValueError(
                f"a cel of frame {number} is linked to frame {target}, expected an earlier one with pixels"
            )
        linked = before[layer, target]
        return Cel(order, layer, x, y, opacity, linked.pixels)
    if kind not in (RAW, COMPRESSED):
        if not file.layers[layer].opacity:
            return Cel(order, layer, 0, 0, 0, np.zeros((0, 0, BYTES[file.depth]), np.uint8))
        raise ValueError(f"a cel of frame {number} is of the kind {kind}, expected pixels; export a PNG")
    width, height = struct.unpack_from("<HH", data, 16)
    if width * height > file.pixel_limit:
        raise ValueError(f"a cel of {width} x {height} is over {file.pixel_limit:,} pixels")
    size = width * height * BYTES[file.depth]
    file.unpacked_bytes += size
    check_unpacked(file.packed_bytes, file.unpacked_bytes)
    pixels = data[20:] if kind == RAW else zlib.decompressobj().decompress(data[20:], max(size, 1))
    if len(pixels) < size:
        raise ValueError(f"a cel of frame {number} has {len(pixels):,} bytes instead of {size:,}")
    return Cel(order, layer, x, y, opacity, np.frombuffer(pixels[:size], np.uint8).reshape(height, width, -1))


def _drawn(file: File, cels: list[Cel]) -> Image.Image:
    canvas = Image.new("RGBA", (file.width, file.height))
    for cel in sorted(cels, key=lambda cel: cel.order):
        layer = file.layers[cel.layer]
        top, left = max(0, -cel.y), max(0, -cel.x)
        seen = cel.pixels[top : max(0, file.height - cel.y), left : max(0, file.width - cel.x)]
        if not layer.opacity or not seen.size:
            continue
        file.drawn_pixels += seen.shape[0] * seen.shape[1]
        if file.drawn_pixels > DRAWN_TIMES * file.pixel_limit:
            raise ValueError(f"its layers have over {DRAWN_TIMES * file.pixel_limit:,} pixels in all frames")
        rgba = np.array(_rgba(file, seen, layer))
        rgba[..., 3] = np.rint(rgba[..., 3] * (layer.opacity * cel.opacity / 255))
        canvas.alpha_composite(Image.fromarray(rgba), (cel.x + left, cel.y + top))
    return canvas


def _rgba(file: File, pixels: Pixels, layer: Layer) -> Pixels:
    if file.depth == 32:
        return pixels
    if file.depth == 16:
        return np.concatenate([pixels[..., :1].repeat(3, -1), pixels[..., 1:]], -1)
    rgba: Pixels = file.palette[pixels[..., 0]]
    if not layer.flags & BACKGROUND:
        rgba[pixels[..., 0] == file.clear] = 0
    return rgba
