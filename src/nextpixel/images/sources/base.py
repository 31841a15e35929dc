"""The interface of sources, and what they share: names made on demand, labels, hashes."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from nextpixel.config import Fit, Levels, Size
from nextpixel.errors import InputError
from nextpixel.images import Content, Picture, UnreadableImage, decode, read_image

NO_LEVELS = Levels()
READ_TOGETHER = 256  # pictures that threads read at the same time, which a streaming source must keep


class Source(ABC):
    """An ordered set of pictures.

    source_name  how messages call it
    names        one stable name for each picture: a relative POSIX path, or a zero-padded number
    labels       int64 (N,), -1 for a picture without one; None where the source knows none
    classes      the name of each label, or None
    label_problem  why the labels cannot be used, if there are any
    split        the split, if the source has several
    unreadable   a line for each picture known to be unreadable without opening it; not in `names`
    skipped      a line for each other file or folder that was found beside the pictures
    file_names   the name of each picture's file, of frames and tiles
    """

    split: str | None = None
    label_problem: str | None = None
    unreadable: Sequence[str] = ()
    skipped: Sequence[str] = ()
    file_names: Sequence[str] | None = None

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

    def take_labels(self, values: Any, classes: Sequence[str] | None = None) -> None:
        """Set labels of any kind, see label_array; a problem is kept for those who need labels."""
        try:
            labels = label_array(values)
            if len(labels) != len(self):
                raise ValueError(f"{len(labels)} labels for {len(self)} images")
        except ValueError as error:
            self.label_problem = str(error)
            return
        if labels.dtype == object:
            classes = [str(name) for name in np.unique(labels) if name]
            number = {name: label for label, name in enumerate(classes)} | {"": -1}
            labels = np.array([number[name] for name in labels], np.int64)
        self.labels, self.classes = labels, None if classes is None else list(classes)

    def texts(self, name: str) -> list[str]:
        """The text of that name of each picture, "" where it has none. Raises InputError where no picture has one."""
        raise InputError(
            f"expected names, folders or a .csv or .jsonl file of file,caption, got {name!r}, which no picture of "
            f"{self.source_name} has",
            argument="captions",
        )

    @abstractmethod
    def content(self, index: int) -> Content:
        """Picture `index` before decoding. Raises UnreadableImage. Several threads may call it at once."""

    def read(self, index: int, levels: Levels = NO_LEVELS) -> Picture:
        """Picture `index` in RGB. Raises UnreadableImage."""
        return decode(self.content(index), self.names[index], levels=levels)

    def image(self, index: int, size: Size, fit: Fit, levels: Levels = NO_LEVELS) -> np.ndarray:
        """Picture `index` at a size, uint8 (H, W, 3), or placed, (H, W, 4). Raises as read does."""
        return read_image(self.content(index), self.names[index], size, fit, levels)

    def sampled(self, count: int) -> range:
        """Numbers of at most `count` evenly spaced pictures, to measure the range of a set."""
        return range(0, len(self), max(1, -(-len(self) // count)))

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex SHA-256 that changes when the pictures do (for files: their names, sizes or times)."""


class Names(Sequence[str]):
    """Names made on demand, for large sets."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of that number, which is in range."""

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
    """The extension of a name, without its dot, in lower case."""
    return os.path.splitext(name)[1][1:].lower()


def label_array(values: Any) -> np.ndarray:
    """Labels of any kind, (N,) or (N, 1) -> int64 (N,), -1 where there is none; or str objects (N,), "" where none is.

    None, NaN and -1 are no label. Raises ValueError, whose text says what the values are instead.
    """
    try:
        values = np.asarray(values)
    except ValueError:
        raise ValueError("lists of different lengths") from None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"several values for each picture, {values.shape}")
    if (
        values.dtype.kind == "f"
        and (np.isnan(values) | (values == np.floor(values))).all()
        and not np.isinf(values).any()
    ):
        values = np.where(np.isnan(values), -1, values)  # whole numbers with gaps, as pandas has them
    elif values.dtype.kind in "US":
        values = values.astype(str).astype(object)
    elif values.dtype.kind == "O":
        missing = np.array([value is None or value != value for value in values], bool)
        kinds = {type(value) for value in values[~missing]}
        if all(issubclass(kind, str) for kind in kinds) and kinds:
            values = np.where(missing, "", values)
        elif all(issubclass(kind, int | np.integer) for kind in kinds):
            values = np.where(missing, -1, values).astype(np.int64)
        elif all(issubclass(kind, int | float | np.number) for kind in kinds):
            return label_array(np.where(missing, np.nan, values).astype(np.float64))
        else:
            raise ValueError(f"values of type {', '.join(sorted(kind.__name__ for kind in kinds))}")
    elif values.dtype.kind not in "iub":
        raise ValueError(f"{values.dtype} numbers" if values.dtype.kind in "fc" else f"values of type {values.dtype}")
    if values.dtype != object:
        if len(values) and (values.min() < -1 or values.max() > np.iinfo(np.int64).max):
            raise ValueError(f"the number {values.min() if values.min() < -1 else values.max()}")
        values = values.astype(np.int64)
    return values


def inside(folder: str, path: str, name: str) -> str:
    """Resolve a path in a table, including links.

    Raises UnreadableImage if it leads out of the table's folder: a table must not read arbitrary files.
    """
    root = os.path.realpath(folder)
    place = os.path.realpath(os.path.join(root, path))
    if not place.startswith(os.path.join(root, "")):
        raise UnreadableImage(
            name, f"its path leads out of {folder}, where the table lies; move the pictures there or store their bytes"
        )
    return place


def identity(path: str, *more: str) -> str:
    """Path, size and time of a file, for fingerprints."""
    stat = os.stat(path)
    return "\0".join([os.path.abspath(path), str(stat.st_size), str(stat.st_mtime_ns), *more])


def sha256(parts: Iterable[Any]) -> str:
    """Hex digest of byte strings or contiguous arrays, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
