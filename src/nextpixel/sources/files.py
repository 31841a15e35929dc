"""Image files: single, in a list, or in a folder, with or without a folder for each class."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from nextpixel.errors import InputError
from nextpixel.images import EXTENSIONS, Picture, decode
from nextpixel.sources.base import Source, extension

SAMPLED_FILES = 8
SAMPLED_BYTES = 65536


class FileSource(Source):
    """Image files: `folder` joined with a name is the path. No file is opened before read()."""

    def __init__(
        self,
        source_name: str,
        folder: str,
        names: list[str],
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(source_name, names, labels, classes)
        self.folder = folder

    def read(self, index: int) -> Picture:
        name = self.names[index]
        return decode(os.path.join(self.folder, name), name)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        try:
            for name in self.names:
                stat = os.stat(os.path.join(self.folder, name))
                digest.update(os.fsencode(name) + b"\0%d %d\0" % (stat.st_size, stat.st_mtime_ns))
        except OSError as error:
            raise InputError(f"{name} in {self.source_name} cannot be read: {error.strerror}") from error
        # Frames or scans unpacked with fixed times have equal names, sizes and times and yet differ, so the
        # beginnings of a few files count too.
        for name in self.names[:: max(1, len(self.names) // SAMPLED_FILES)]:
            with suppress(OSError), open(os.path.join(self.folder, name), "rb") as file:
                digest.update(file.read(SAMPLED_BYTES))
        return digest.hexdigest()


def image_folder(folder: str, names: list[str]) -> Source:
    """Sorted names below a folder; if each lies exactly one folder deep, the sub-folders are the classes."""
    parents = [name.rpartition("/")[0] for name in names]
    if not all(parent and "/" not in parent for parent in parents):
        return FileSource(folder, folder, names)
    classes = sorted(set(parents))
    number = {name: label for label, name in enumerate(classes)}
    return FileSource(folder, folder, names, np.array([number[p] for p in parents], np.int64), classes)


def is_image(path: str) -> bool:
    """Whether a name ends as images do; nothing is opened."""
    return extension(path) in EXTENSIONS


def walk(folder: str, extensions: frozenset[str]) -> Iterator[str]:
    """Relative POSIX paths of the files with such an extension below a folder; hidden ones are left out.

    Links are followed, but never in a circle. No file is opened and nothing held. Raises InputError.
    """
    yield from _walk(folder, extensions, "", ())


def _walk(folder: str, extensions: frozenset[str], prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        stat = os.stat(folder)
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _walk(entry.path, extensions, f"{prefix}{entry.name}/", (*above, here))
                elif extension(entry.name) in extensions and entry.is_file():
                    yield prefix + entry.name
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be listed: {error.strerror}") from error
