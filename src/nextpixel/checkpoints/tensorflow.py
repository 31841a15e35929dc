"""TensorFlow checkpoints (V2 bundles), read without TensorFlow.

`<prefix>.index` is a LevelDB table of sorted names: the empty name maps to a BundleHeaderProto, any other to the
BundleEntryProto of a tensor (type, shape, shard, offset, size, checksum). The shards `<prefix>.data-00000-of-00032`,
... hold the raw bytes.

The crc32c of every index block and every tensor is verified, and on opening that all shards exist and are long enough.
TensorFlow writes the index uncompressed; compressed blocks are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextpixel.errors import InputError

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER_BYTES = 48  # two block handles, zeros, the magic number
TRAILER_BYTES = 5  # of a block: compression type, masked crc32c
FLOAT32 = 1
DTYPES = {1: "float32", 2: "float64", 3: "int32", 7: "string", 9: "int64", 10: "bool", 14: "bfloat16", 19: "float16"}


@dataclass(frozen=True)
class Entry:
    """Type, shape and location of a tensor."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


class Bundle:
    """The tensors of a checkpoint by name. `prefix` is the common start of its file names, as `model.ckpt-1000000`.

    Raises InputError for missing, truncated or damaged files, and for files of another kind.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", str(prefix))
        self.index = Path(f"{self.prefix}.index")
        if not self.index.is_file():
            raise InputError(
                f"{prefix}: expected the prefix of a TensorFlow checkpoint, as in folder/model.ckpt-1000000, "
                f"got nothing: there is no file {self.index}"
            )
        try:
            table = dict(_table(self.index.read_bytes()))
            header = dict(fields(table.pop(b"", b"")))
            self.shards = _number(header.get(1, 0))
            self.entries = {name.decode("utf-8", "replace"): _entry(value) for name, value in table.items()}
            if header.get(2, 0) != 0:
                raise ValueError("one written on a big-endian machine")
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{self.index}: expected the index of a TensorFlow checkpoint, got {error}") from None
        self._check_shards()

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        shape = self._entry(name).shape
        if len(shape) != axes:
            raise InputError(f"{self.index}: {name}: expected {axes} axes, got shape {shape}")
        return shape

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """One tensor, its checksum verified."""
        entry = self._entry(name)
        where = f"{self.index}: {name}"
        if entry.shape != shape:
            raise InputError(f"{where}: expected shape {shape}, got {entry.shape}")
        if entry.dtype != FLOAT32:
            raise InputError(f"{where}: expected float32, got {DTYPES.get(entry.dtype, f'type {entry.dtype}')}")
        if entry.partitioned:
            raise InputError(f"{where}: expected a whole tensor, got a partitioned one; save it without a partitioner")
        if entry.size != 4 * math.prod(shape):
            raise InputError(f"{where}: expected {4 * math.prod(shape)} bytes for {shape}, got {entry.size}")
        path = self._shard(entry.shard)
        values = np.fromfile(path, "<f4", math.prod(shape), offset=entry.offset)
        if values.nbytes != entry.size or _masked_checksum(values.tobytes()) != entry.checksum:
            raise InputError(f"{path}: {name}: expected the recorded checksum, got another one; download it again")
        return values.reshape(shape)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise InputError(f"{self.index}: expected a tensor {name!r}, found none")
        return self.entries[name]

    def _shard(self, number: int) -> Path:
        return Path(f"{self.prefix}.data-{number:05d}-of-{self.shards:05d}")

    def _check_shards(self) -> None:
        needed: dict[int, int] = {}
        for entry in self.entries.values():
            if not entry.partitioned:
                needed[entry.shard] = max(needed.get(entry.shard, 0), entry.offset + entry.size)
        for number, size in sorted(needed.items()):
            path = self._shard(number)
            if not path.is_file():
                raise InputError(f"{path}: no such file; this checkpoint has {self.shards} such files, all needed")
            if path.stat().st_size < size:
                raise InputError(
                    f"{path}: expected at least {size} bytes, got {path.stat().st_size}: the file is cut short; "
                    "download it again"
                )


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every (key, value) of a LevelDB table. ValueError tells what was found instead."""
    footer = data[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or not footer.endswith(MAGIC):
        raise ValueError("a file without its end: cut short, or of another kind")
    _, position = _handle(footer, 0)  # of a block without content
    (offset, size), _ = _handle(footer, position)
    for _, handle in pairs(_block(data, offset, size)):
        (offset, size), _ = _handle(handle, 0)
        yield from pairs(_block(data, offset, size))


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _block(data: bytes, offset: int, size: int) -> bytes:
    block = data[offset : offset + size + TRAILER_BYTES]
    if len(block) != size + TRAILER_BYTES:
        raise ValueError("one cut short")
    if _masked_checksum(block[:-4]) != int.from_bytes(block[-4:], "little"):
        raise ValueError("a damaged one (its checksum is wrong); download it again")
    if block[-TRAILER_BYTES] != 0:
        raise ValueError("a compressed one, which TensorFlow does not write; save it again with tf.train.Saver")
    return block[:-TRAILER_BYTES]


def pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A key is what it shares with the key before it, and the rest; restart points at the end are for searches."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    key, position = b"", 0
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + rest]
        position += rest + length
        if len(key) != shared + rest or position > end:
            raise ValueError("a damaged one (an entry is cut short)")
        yield key, block[position - length : position]


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of a protobuf message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a damaged one (a field of kind {kind})")
        position += length
        if position > len(message):
            raise ValueError("a damaged one (a field is cut short)")
        content = message[position - length : position]
        yield tag >> 3, content if kind == 2 else int.from_bytes(content, "little")


def _entry(message: bytes) -> Entry:
    found = dict(fields(message))
    dims = [dict(fields(_message(dim))) for number, dim in fields(_message(found.get(2, b""))) if number == 2]
    return Entry(
        dtype=_number(found.get(1, 0)),
        shape=tuple(_number(dim.get(1, 0)) for dim in dims),
        shard=_number(found.get(3, 0)),
        offset=_number(found.get(4, 0)),
        size=_number(found.get(5, 0)),
        checksum=_number(found.get(6, 0)),
        partitioned=7 in found,
    )


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a damaged one (text where a number belongs)")
    return value


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a damaged one (a number where a message belongs)")
    return value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the position after it."""
    value = 0
    for count, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, position + count + 1
    raise ValueError("a damaged one (a number is cut short)")


def _masked_checksum(data: bytes) -> int:
    """The CRC-32C of data as LevelDB stores it, masked so that checksums of data with checksums in it stay sound."""
    try:
        import google_crc32c
    except ImportError:
        raise InputError('reading TensorFlow checkpoints needs: pip install "nextpixel[openai]"') from None
    checksum: int = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
