"""Pictures and shards of one colour on disk."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def picture(path: Path, colour: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, colour, colour)).save(path)
    return path


def png(colour: int = 90) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, colour, colour)).save(data, "PNG")
    return data.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return path
