"""WebDataset shards: .tar files in which the files of one sample follow each other and share a name up to a dot."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from array import array
from collections.abc import Iterator

import numpy as np

from nextpixel.errors import InputError
from nextpixel.images import EXTENSIONS, Picture, UnreadableImage, decode
from nextpixel.sources.base import Source, checked_labels, extension, identity, sha256

CLASS = "cls"  # the file of a sample that holds its class, a number or a name


class ShardSource(Source):
    """The pictures of plain .tar files, shard after shard, each in the order in which it was written.

    Listing reads the headers alone; of the shards only the places of the pictures are held. A sample's picture is the
    first of its files that is one; those named key.png come before key.mask.png. Raises InputError.
    """

    def __init__(self, source_name: str, paths: list[str]) -> None:
        self.paths = paths
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        names: list[str] = []
        classes: list[str | None] = []
        self.shards, self.offsets, self.sizes = array("i"), array("q"), array("q")
        for shard, path in enumerate(paths):
            prefix = os.path.relpath(path, folder).replace(os.sep, "/")
            for name, offset, size, kind in _samples(path):
                names.append(f"{prefix}/{name}")
                self.shards.append(shard)
                self.offsets.append(offset)
                self.sizes.append(size)
                classes.append(kind)
        if not names:
            raise InputError(f"{source_name} holds no image: no file in its shards ends in .jpg, .png or the like")
        super().__init__(source_name, names)
        found = [kind for kind in classes if kind is not None]
        if len(found) == len(names):
            is_number = all(re.fullmatch(r"-?\d{1,18}", kind) for kind in found)
            values = np.array([int(kind) for kind in found], np.int64) if is_number else np.array(found)
            self.labels, self.classes = checked_labels(values, None, len(names), source_name)

    def read(self, index: int) -> Picture:
        name, path = self.names[index], self.paths[self.shards[index]]
        try:
            with open(path, "rb") as file:  # opened anew: there may be more shards than files that may be open
                file.seek(self.offsets[index])
                data = file.read(self.sizes[index])
        except OSError as error:
            raise UnreadableImage(name, f"{path} cannot be read: {error.strerror}") from error
        return decode(data, name)

    def fingerprint(self) -> str:
        return sha256(identity(path).encode() for path in self.paths)


def _samples(path: str) -> Iterator[tuple[str, int, int, str | None]]:
    """Of each sample with a picture: its name in the shard, where its bytes begin, how many, and its class."""
    key, picture, kind = None, None, None
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as shard:
            while (member := shard.next()) is not None:
                shard.members = []  # type: ignore[attr-defined]  # it would keep them all
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                if (folder, stem) != key:
                    if picture is not None:
                        yield *picture, kind
                    key, picture, kind = (folder, stem), None, None
                if extension(base) in EXTENSIONS and (
                    picture is None or (ending.lower() in EXTENSIONS and picture[0].count(".") > member.name.count("."))
                ):
                    picture = member.name, member.offset_data, member.size
                elif ending == CLASS and member.size < 1000:
                    place = raw.tell()
                    raw.seek(member.offset_data)
                    kind = raw.read(member.size).decode("utf-8", "replace").strip()
                    raw.seek(place)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: expected a plain .tar file, got a problem: {error}; repair it, or unpack it if it is compressed"
        ) from error
    if picture is not None:
        yield *picture, kind


def is_pattern(path: str) -> bool:
    """Whether it stands for several files, as in shards/{000..127}.tar or shards/*.tar."""
    return any(mark in path for mark in "*?{[")


def expand(pattern: str) -> list[str]:
    """The files that a pattern means, sorted. Raises InputError where there are none, or a numbered one is missing."""
    found: set[str] = set()
    for name in _braces(pattern):
        if any(mark in name for mark in "*?["):
            found.update(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        elif os.path.isfile(name):
            found.add(name)
        else:
            raise InputError(f"{pattern}: no such file: {name}; expected all files of the pattern")
    if not found:
        raise InputError(f"{pattern}: no file has such a name; expected a pattern as in shards/{{000..127}}.tar")
    return sorted(found)


def _braces(pattern: str) -> Iterator[str]:
    """The first {000..127} or {a,b} filled in, and so on."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    if words is None:
        words = ",".join(f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    for word in words.split(","):
        yield from _braces(pattern[: match.start()] + word + pattern[match.end() :])
