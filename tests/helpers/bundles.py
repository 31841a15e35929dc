"""Small TensorFlow checkpoints for tests, written from the description of the format: whole ones and wrong ones."""

from pathlib import Path

import google_crc32c
import numpy as np

CODES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}
MAGIC = bytes.fromhex("57fb808b247547db")


def write_bundle(
    prefix: Path,
    tensors: dict[str, np.ndarray],
    *,
    shards: int = 1,
    names_a_block: int = 5,
    endianness: int = 0,
    compression: int = 0,
    partitioned: str = "",
) -> None:
    """Tensors go to the shards in turn; the index has a block for every few names."""
    data = [b""] * shards
    table = {b"": field(1, varint(shards)) + field(2, varint(endianness)) + field(3, field(1, varint(1)), text=True)}
    for number, name in enumerate(sorted(tensors)):
        array = tensors[name]
        shard = number % shards
        content = array.tobytes()
        dims = b"".join(field(2, field(1, varint(size)), text=True) for size in array.shape)
        table[name.encode()] = (
            field(1, varint(CODES[str(array.dtype)]))
            + field(2, dims, text=True)
            + field(3, varint(shard))
            + field(4, varint(len(data[shard])))
            + field(5, varint(len(content)))
            + varint(6 << 3 | 5)
            + checksum(content)
            + (field(7, b"", text=True) if name == partitioned else b"")
        )
        data[shard] += content
    for shard, content in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)

    index, handles = b"", {}
    keys = sorted(table)
    for start in range(0, len(keys), names_a_block):
        part = {key: table[key] for key in keys[start : start + names_a_block]}
        index, handles[max(part)] = append(index, part, compression)
    index, metadata = append(index, {}, 0)
    index, top = append(index, handles, 0)
    Path(f"{prefix}.index").write_bytes(index + (metadata + top).ljust(40, b"\0") + MAGIC)


def append(index: bytes, pairs: dict[bytes, bytes], compression: int) -> tuple[bytes, bytes]:
    """The index with one more block, and that block's handle."""
    block, last = b"", b""
    for key, value in pairs.items():
        shared = next((i for i, (a, b) in enumerate(zip(key, last)) if a != b), min(len(key), len(last)))
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    block += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")  # one restart point, at 0
    handle = varint(len(index)) + varint(len(block))
    block += bytes([compression])
    return index + block + checksum(block), handle


def field(number: int, content: bytes, text: bool = False) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content if text else varint(number << 3) + content


def varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def checksum(content: bytes) -> bytes:
    value = google_crc32c.value(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")
