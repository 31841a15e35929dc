"""WebDataset shards: .tar files in which the files of one sample follow each other and share a name up to a dot."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage, readable_extensions
from nextpixel.images.sources.base import Source, extension, identity, sha256
from nextpixel.images.sources.files import count_kinds, unread_kind
from nextpixel.limits import PICTURE_BYTES, open_file
from nextpixel.progress import say_once

HEADER_BYTES = 1 << 20  # of headers that continue another, such as long names
EXTENSIONS_OF_HEADERS = b"xgXLK"
CLASS = "cls"  # the file of a sample that holds its class, a number or a name
TEXT_BYTES = 1 << 16  # of a caption
NO_PICTURE = "sample without a picture"
FURTHER = "further picture of a sample"


class ShardSource(Source):
    """The pictures of plain .tar files, shard after shard, each in the order in which it was written.

    Listing reads only headers and keeps only the offsets of the pictures. A sample's picture is its first file that is
    one; key.png comes before key.mask.png. Raises InputError.
    """

    def __init__(self, source_name: str, paths: list[str]) -> None:
        self.paths = paths
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        self.prefixes = [os.path.relpath(path, folder).replace(os.sep, "/") + "/" for path in paths]
        names: list[str] = []
        classes: list[str | None] = []
        entries: list[tuple[str, str]] = []
        self.shards, self.offsets, self.sizes = array("i"), array("q"), array("q")
        for shard, path in enumerate(paths):
            prefix = self.prefixes[shard]
            for name, offset, size, kind in _samples(path):
                if offset < 0:
                    entries.append((f"{prefix}{name}", str(kind)))
                    continue
                names.append(f"{prefix}{name}")
                self.shards.append(shard)
                self.offsets.append(offset)
                self.sizes.append(size)
                classes.append(kind)
        others = count_kinds(entries)
        entries = [entry for entry in entries if entry[1] != FURTHER]
        if not names:
            raise InputError(
                f"{source_name} holds no image: no file in its shards ends in .jpg, .png or the like"
                f"{others and '; they hold ' + others}"
            )
        if others:
            say_once(f"{source_name}: skipped {others}")
        super().__init__(source_name, names)
        self.unreadable = [str(UnreadableImage(name, kind)) for name, kind in entries if kind != NO_PICTURE]
        self.skipped = [f"{name}: {kind}" for name, kind in entries if kind == NO_PICTURE]
        if any(classes):
            are_numbers = all(re.fullmatch(r"-?\d{1,18}", kind) for kind in classes if kind)
            self.take_labels([int(kind) if kind and are_numbers else kind or None for kind in classes])

    def content(self, index: int) -> bytes:
        name, path = self.names[index], self.paths[self.shards[index]]
        try:
            if self.sizes[index] > PICTURE_BYTES:
                raise UnreadableImage(name, f"it has over {PICTURE_BYTES:,} bytes")
            with open(path, "rb") as file:  # shards may outnumber the files a process may keep open
                file.seek(self.offsets[index])
                return file.read(self.sizes[index])
        except OSError as error:
            raise UnreadableImage(name, f"{path} cannot be read: {error.strerror}") from error

    def texts(self, name: str) -> list[str]:
        """The samples' files with that ending: 0001.txt beside 0001.png."""
        found: dict[tuple[int, str], str] = {}
        for shard, path in enumerate(self.paths):
            for raw, member, key, ending in _members(path):
                if ending.lower() == name.lower() and member.size <= TEXT_BYTES:
                    found[shard, key] = _read(raw, member)
        if not found:
            return super().texts(name)
        keys = (_cut(path[len(self.prefixes[shard]) :])[0] for shard, path in zip(self.shards, self.names))
        return [found.get(place, "") for place in zip(self.shards, keys)]

    def fingerprint(self) -> str:
        return sha256(os.fsencode(identity(path)) for path in self.paths)


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in EXTENSIONS_OF_HEADERS and header.size > HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")  # tarfile would read it whole
        return header


def _samples(path: str) -> Iterator[tuple[str, int, int, str | None]]:
    """For each sample: its picture's name in the shard, offset and number of bytes, and the sample's class.

    For a sample without a readable picture, and for each further one: a name, -1, 0 and the reason. Raises InputError,
    also for a truncated file.
    """
    sample: dict[str, Any] = {}

    def found() -> Iterator[tuple[str, int, int, str | None]]:
        if "picture" in sample:
            yield *sample["picture"], sample.get("class")
            yield from ((name, -1, 0, FURTHER) for name in sample["further"])
        elif sample:
            yield sample["name"], -1, 0, sample.get("unread", NO_PICTURE)

    endings = readable_extensions()
    for raw, member, key, ending in _members(path):
        if key != sample.get("key"):
            yield from found()
            sample = {"key": key, "name": member.name, "further": []}
        picture, end = sample.get("picture"), extension(os.path.basename(member.name))
        if end in endings and (
            picture is None or (ending.lower() in endings and picture[0].count(".") > member.name.count("."))
        ):
            if picture is not None:
                sample["further"].append(picture[0])
            sample["picture"] = member.name, member.offset_data, member.size
        elif end in endings:
            sample["further"].append(member.name)
        elif kind := unread_kind(end):
            sample |= {"name": member.name, "unread": kind}
        elif ending == CLASS and member.size < 1000:
            sample["class"] = _read(raw, member)
    yield from found()


def _members(path: str) -> Iterator[tuple[BinaryIO, tarfile.TarInfo, str, str]]:
    """For each file of a shard: the open shard, the file's header, the key of its sample, and its ending.

    The consumer may seek in the shard between two files. Raises InputError.
    """
    try:
        with open_file(path) as raw, tarfile.open(fileobj=raw, mode="r:", tarinfo=_Header) as shard:
            before = -1
            while (member := shard.next()) is not None:
                if member.size < 0 or shard.offset <= before:  # it leads back: an endless loop
                    raise ValueError(f"a negative size of {member.name}")
                before = shard.offset
                shard.members = []  # type: ignore[attr-defined]  # otherwise all headers are kept
                key, ending = _cut(member.name)
                if member.isfile() and not key.endswith("/"):
                    place = raw.tell()
                    yield raw, member, key, ending
                    raw.seek(place)
            _check_end(raw, shard.offset, path)
    except InputError:
        raise
    except Exception as error:  # tarfile raises anything for hostile bytes
        raise InputError(
            f"{path}: expected a plain .tar file, got a problem: {error}; repair it, or unpack it if it is compressed"
        ) from error


def _cut(name: str) -> tuple[str, str]:
    """The key of a file's sample, its path up to the first dot of the name, and the file's ending."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}", ending


def _read(raw: BinaryIO, member: tarfile.TarInfo) -> str:
    raw.seek(member.offset_data)
    return raw.read(member.size).decode("utf-8", "replace").strip()


def _check_end(raw: BinaryIO, offset: int, path: str) -> None:
    """Raise InputError unless the shard ends there, with two empty blocks and only zeros after them.

    tarfile takes a truncated or damaged header for the end and would drop the rest.
    """
    raw.seek(offset)
    end = raw.read(2 * tarfile.BLOCKSIZE)
    if len(end) < 2 * tarfile.BLOCKSIZE or any(end):
        raise InputError(
            f"{path}: expected the end mark of a .tar file after {offset:,} bytes, got none: it is truncated or "
            "damaged; copy or make it again"
        )
    while more := raw.read(2**20):
        if any(more):
            raise InputError(
                f"{path}: expected nothing after the end mark of a .tar file, got more: several files in one; "
                "pass them separately"
            )


def is_pattern(path: str) -> bool:
    """Whether a path is a pattern, as in shards/{000..127}.tar or shards/*.tar."""
    return any(mark in path for mark in "*?{[")


def expand(pattern: str) -> list[str]:
    """The files of a pattern, sorted. Raises InputError if there are none, or a numbered one is missing."""
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
    """Expand {000..127} and {a,b}."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    if words is None:
        words = ",".join(f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    for word in words.split(","):
        yield from _braces(pattern[: match.start()] + word + pattern[match.end() :])
