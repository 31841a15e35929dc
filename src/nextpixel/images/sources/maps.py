"""Decoded sets on disk: a folder with images of one size in a memory map, and their names and labels."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Fit, Levels, Size, channels_of, side_text, to_size
from nextpixel.errors import InputError
from nextpixel.images import fit_image, from_array
from nextpixel.images.sources.base import NO_LEVELS, Names, Source

IMAGES, META = "squares.u8", "meta.json"
NAMES, NAME_ENDS, LABELS = "names.bin", "name_ends.npy", "labels.npy"
CAPTIONS, CAPTION_ENDS = "captions.bin", "caption_ends.npy"
UNREADABLE_AT_MOST = 0.1


@dataclass
class Part:
    """Pictures that follow each other in a source, as far as they can be read."""

    images: NDArray[np.uint8]
    names: Sequence[str]
    labels: NDArray[np.int64] | None
    unreadable: list[str]
    captions: Sequence[str] | None = None


class StoredNames(Names):
    """Names in a memory map: one after the other in one file, where each ends in another."""

    def __init__(self, folder: Path, file: str = NAMES, ends: str = NAME_ENDS) -> None:
        self.ends = np.load(folder / ends, mmap_mode="r", allow_pickle=False)
        path = folder / file
        self.text = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        if len(self.ends) and self.ends[-1] != len(self.text):
            raise ValueError(f"{file} has {len(self.text)} bytes instead of {self.ends[-1]}")

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


class MapSource(Source):
    """A folder that write_set made. `images` uint8 (N, H, W, 3 or 4) is a memory map; nothing is held or copied.

    `size` is (H, W), and `serves` the smaller size that random crops are made for, or the same. `levels` are those
    they were made with, and `note` a line that says so. `captions_from` says where its captions came from, if any.
    Raises FileNotFoundError where there is no set, InputError for a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        place = Path(folder)
        text = (place / META).read_text(encoding="utf-8", errors="replace")
        try:
            meta = json.loads(text)
            self.size, self.fit = to_size(meta["side"]), meta["fit"]
            self.serves = to_size(meta.get("serves", self.size))
            self.unreadable = meta["unreadable"]
            self.levels, self.note = Levels.among(meta), meta.get("note")
            self.made_from, self.digest = str(meta["source"]), str(meta.get("content"))
            self.pixels: str | None = meta.get("pixels")  # not in sets of earlier versions
            if "names" in meta:  # the user's cache may hold sets from before names had files of their own
                names: Sequence[str] = meta["names"]
                labels = None if meta["labels"] is None else np.array(meta["labels"], np.int64)
            else:
                names = StoredNames(place)
                labels = np.load(place / LABELS, allow_pickle=False) if meta["labelled"] else None
            self.captions_from: str | None = meta.get("captions")
            self._captions = None if self.captions_from is None else StoredNames(place, CAPTIONS, CAPTION_ENDS)
            if self._captions is not None and len(self._captions) != len(names):
                raise ValueError(f"{CAPTIONS} has {len(self._captions)} captions instead of {len(names)}")
            shape = len(names), *self.size, channels_of(self.fit)
            size = (place / IMAGES).stat().st_size
            if size != int(np.prod(shape)) or len(names) != meta.get("images", len(names)):
                raise ValueError(f"{IMAGES} has {size:,} bytes instead of {int(np.prod(shape)):,}")
            self.images: NDArray[np.uint8] = np.memmap(place / IMAGES, np.uint8, "r", shape=shape)
            classes = meta["classes"]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{place}: expected decoded images, got damaged files ({error}); prepare it again"
            ) from None
        super().__init__(str(folder), names, labels, classes)

    def __len__(self) -> int:
        return len(self.images)

    def content(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]

    def image(self, index: int, size: Size, fit: Fit, levels: Levels = NO_LEVELS) -> NDArray[np.uint8]:
        self.check(size, fit)
        if size == self.size:
            return np.array(self.images[index])
        return fit_image(from_array(self.images[index]), size)  # proportions were settled when it was prepared

    def check(self, size: Size, fit: Fit, stored: Size | None = None) -> None:
        """Raises InputError unless images of that size and fit can be had; with `stored`, lie here at that size."""
        if fit == self.fit and size in (self.size, self.serves) and stored in (None, self.size):
            return
        again = f"nextpixel prepare {shlex.quote(self.made_from)} NEW `side={side_text(size)}` `fit={fit}`"
        if stored is not None and stored != size:
            again += f" `store_side={side_text(stored)}`"
        raise InputError(
            f"{self.source_name}: expected images of side {side_text(stored or size)} made with `fit={fit}`, got side "
            f"{side_text(self.size)} and `fit={self.fit}`; make the right ones with: {again}"
        )

    def texts(self, name: str) -> list[str]:
        if self._captions is None or name != self.captions_from:
            had = "without captions" if self.captions_from is None else f"with `captions={self.captions_from}`"
            raise InputError(
                f"{self.source_name}: expected names, folders, a .csv or .jsonl file of file,caption, or what it was "
                f"prepared with, got {name!r}; it was prepared {had}",
                argument="captions",
            )
        return list(self._captions)

    def fingerprint(self) -> str:
        return self.digest


def is_map(folder: str | Path) -> bool:
    """Whether a folder holds a decoded set."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in (META, IMAGES))


def write_set(folder: Path, parts: Iterable[Part], facts: dict[str, Any], left_out: Sequence[str] = ()) -> None:
    """Write the files of a decoded set into an existing folder, in one pass; the last of them is meta.json.

    `facts` are source, side (see config.to_side), fit, classes and whatever else is to be recorded; `left_out` are
    lines about pictures that were known not to be readable before. Raises InputError when more than one picture in
    ten cannot be read, or none can.
    """
    digest, shown = hashlib.sha256(), hashlib.sha256()
    ends, labels, unreadable, count = array("q"), [], list(left_out), 0
    captions: list[str] = []
    digest.update(f"{facts['side']} {facts['fit']} {facts['classes']}".encode())
    with (folder / IMAGES).open("wb") as images, (folder / NAMES).open("wb") as names:
        for part in parts:
            pixels = np.ascontiguousarray(part.images)
            images.write(pixels.data)  # a plain write: a full disk is an error, not a bus fault
            shown.update(pixels.data)
            for name in part.names:
                text = name.encode("utf-8", "surrogatepass")  # a file name need not be text
                names.write(text)
                digest.update(text + b"\0")
                ends.append((ends[-1] if ends else 0) + len(text))
            if part.labels is not None:
                labels.append(np.asarray(part.labels, np.int64))
                digest.update(labels[-1].data)
            captions += part.captions or ()
            unreadable += part.unreadable
            count += len(part.names)
        check_readable(facts["source"], unreadable, count + len(unreadable))
    np.save(folder / NAME_ENDS, np.frombuffer(ends, np.int64))
    labelled = sum(map(len, labels)) == count
    if labelled:
        np.save(folder / LABELS, np.concatenate(labels))
    if facts.get("captions") is not None:
        texts = [caption.encode("utf-8", "surrogatepass") for caption in captions]
        (folder / CAPTIONS).write_bytes(b"".join(texts))
        np.save(folder / CAPTION_ENDS, np.cumsum([len(text) for text in texts], dtype=np.int64))
        digest.update(b"\0".join(texts))
    digest.update(shown.digest())
    made = {"images": count, "labelled": labelled, "unreadable": unreadable}
    made |= {"content": digest.hexdigest(), "pixels": shown.hexdigest()}
    (folder / META).write_text(json.dumps(facts | made), encoding="utf-8")


def check_readable(source_name: str, unreadable: Sequence[str], count: int) -> None:
    """Raises InputError when more than one in ten of `count` pictures cannot be read, or none can."""
    if len(unreadable) > UNREADABLE_AT_MOST * count or len(unreadable) == count:
        names: dict[str, list[str]] = {}  # by reason
        for line in unreadable:
            name, _, reason = line.partition(": ")
            names.setdefault(reason, []).append(name.removeprefix("cannot read the image "))
        lines = [f"{', '.join(some[:5])}{', ...' if len(some) > 5 else ''}: {why}" for why, some in names.items()]
        shown = "; ".join(lines[:5]) + ("; ..." if len(lines) > 5 else "")
        remedy = "" if "`slice" in shown else ". Remove or repair them"
        raise InputError(
            f"{source_name}: {len(unreadable)} of {count} pictures cannot be read, expected at most "
            f"one in ten: {shown}{remedy}"
        )
