"""What every source shares: the interface, names made on demand, the choice of a split, labels, hashes."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from nextpixel.config import Fit, Levels
from nextpixel.errors import InputError
from nextpixel.images import Content, Picture, UnreadableImage, decode, fit_square

NO_LEVELS = Levels()
READ_TOGETHER = 256  # pictures that threads read before the next ones: what a source that streams must keep


class Source(ABC):
    """An ordered set of pictures.

    source_name  how messages call it
    names        one stable name for each picture: a relative POSIX path, or a zero-padded number
    labels       int64 (N,), or None where the source knows none
    classes      the name of each label, or None
    split        which of several splits these are, or None
    unreadable   a line for each picture that is known not to be readable without looking into it; not in `names`
    passed_over  a line for each other file or folder that was found beside the pictures
    """

    split: str | None = None
    unreadable: Sequence[str] = ()
    passed_over: Sequence[str] = ()

    def __init__(
        self,
        source_name: str,
        names: Sequence[str],
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.source_name = source_name
        self.names = names
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def content(self, index: int) -> Content:
        """Picture `index` before decoding. Raises UnreadableImage. Several threads may call it at once."""

    def read(self, index: int, levels: Levels = NO_LEVELS) -> Picture:
        """Picture `index` in RGB. Raises UnreadableImage."""
        return decode(self.content(index), self.names[index], levels=levels)

    def square(self, index: int, side: int, fit: Fit, levels: Levels = NO_LEVELS) -> np.ndarray:
        """Picture `index` as a square, uint8 (side, side, 3), see images.fit_square. Raises as read does."""
        return fit_square(self.read(index, levels), side, fit=fit)

    def sampled(self, count: int) -> range:
        """Numbers of at most `count` pictures, evenly spaced, by which the range of a set is found."""
        return range(0, len(self), max(1, -(-len(self) // count)))

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex SHA-256 that changes when the pictures do (for files: their names, sizes or times)."""


class Names(Sequence[str]):
    """Names that a large set need not hold: each is made when it is asked for."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The one with that number, which lies within them."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(len(self))[index]  # negative numbers, slices and IndexError as in any sequence
        return self.name(numbers) if isinstance(numbers, int) else [self.name(number) for number in numbers]


class Numbered(Names):
    """A prefix and a zero-padded number, block after block."""

    def __init__(self, blocks: Iterable[tuple[str, int]]) -> None:
        self.blocks = list(blocks)
        self.starts = np.cumsum([0] + [count for _, count in self.blocks])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        block, place = self.locate(index)
        prefix, count = self.blocks[block]
        return f"{prefix}{place:0{len(str(count - 1))}d}"

    def locate(self, index: int) -> tuple[int, int]:
        """Index -> (block, place within it)."""
        index = range(len(self))[index]
        block = int(np.searchsorted(self.starts, index, side="right")) - 1
        return block, index - int(self.starts[block])


def extension(name: str) -> str:
    """The end of a name without its dot, in lower case."""
    return os.path.basename(name).rpartition(".")[2].lower()


def checked_labels(
    values: np.ndarray | None, classes: list[str] | None, count: int, source_name: str
) -> tuple[np.ndarray | None, list[str] | None]:
    """Integers (N,) or (N, 1), or names (N,) -> int64 (N,) and classes; several labels a picture -> none."""
    if values is None or (values.ndim == 2 and values.shape[1] != 1):
        return None, None
    values = values.reshape(-1)
    if len(values) != count:
        raise InputError(f"{source_name} holds {count} images but {len(values)} labels; it must be one each")
    if values.dtype.kind in "US" or (values.dtype.kind == "O" and all(isinstance(v, str) for v in values)):
        found, numbers = np.unique(values.astype(str), return_inverse=True)
        return numbers.astype(np.int64), [str(name) for name in found]
    if values.dtype.kind not in "iub":
        raise InputError(f"labels in {source_name} must be integers or names, got {values.dtype}")
    return values.astype(np.int64), classes


def inside(folder: str, path: str, name: str) -> str:
    """Where a path that a table holds leads, below the table's folder, links followed.

    Raises UnreadableImage for a path that leads elsewhere: nobody who opens a table expects it to read other files.
    """
    root = os.path.realpath(folder)
    place = os.path.realpath(os.path.join(root, path))
    if not place.startswith(os.path.join(root, "")):
        raise UnreadableImage(
            name, f"its path leads out of {folder}, where the table lies; move the pictures there or store their bytes"
        )
    return place


def identity(path: str, *more: str) -> str:
    """What stands for a file's content in a fingerprint: its path, size and time."""
    stat = os.stat(path)
    return "\0".join([os.path.abspath(path), str(stat.st_size), str(stat.st_mtime_ns), *more])


def sha256(parts: Iterable[Any]) -> str:
    """Hex digest of byte strings or contiguous arrays, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
