"""Tables of encoded images: parquet files in the Hugging Face layout, and sets on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextpixel.errors import InputError, WorkError, reason_of, shortened
from nextpixel.files import is_hub_name
from nextpixel.images import EXTENSIONS, UnreadableImage
from nextpixel.images.sources.base import READ_TOGETHER, Numbered, Source, extension, identity, inside, sha256
from nextpixel.images.sources.splits import choose_split
from nextpixel.limits import check_unpacked

BATCH_BYTES = 32 * 2**20
BATCH_BYTES_AT_MOST = 8 * BATCH_BYTES  # limit of a batch, unless it has the fewest rows
BATCH_ROWS = 16, 1000  # at least and at most
SAMPLED_OF_STREAM = 16  # pictures, kept to be read again
BATCHES_KEPT = 4  # threads that read in order are never further apart


@dataclass(frozen=True)
class _Table:
    """A parquet file, opened only to be read: tables may outnumber the files a process may keep open."""

    path: str
    metadata: Any
    schema: Any

    @classmethod
    def read(cls, path: str, source_name: str) -> _Table:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise InputError(f"{source_name}: parquet files need pyarrow; type: pip install pyarrow") from error
        try:
            with parquet.ParquetFile(path, memory_map=True) as file:
                return cls(path, file.metadata, file.schema_arrow)
        except (OSError, ValueError) as error:  # what pyarrow raises for a foreign or damaged file
            raise InputError(f"{path} is not a readable parquet file: {error}") from error

    def open(self) -> Any:
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self.path, metadata=self.metadata, memory_map=True)
        except OSError as error:  # of the whole table, not of one picture
            raise WorkError(f"{self.path} can no longer be opened: {error}; put it back, then start again") from error


class ParquetSource(Source):
    """Parquet files with a column of encoded images: bytes, or a struct of bytes and path.

    Keeps BATCHES_KEPT batches of about BATCH_BYTES. Reading in order is fast; going back within a row group larger
    than a batch reads that group again from its start.
    """

    def __init__(self, source_name: str, paths: list[str]) -> None:
        self.paths = paths
        self.tables = [_Table.read(path, source_name) for path in paths]
        self.image_column, label_column = _columns(self.tables[0].schema, paths[0])
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        prefixes = [os.path.relpath(path, folder).replace(os.sep, "/") + "/" for path in paths]
        self.places = Numbered(zip(prefixes, [table.metadata.num_rows for table in self.tables], strict=True))
        super().__init__(source_name, self.places)
        if len(self) == 0:
            raise InputError(f"{source_name} holds no image: its tables have no rows")
        for table in self.tables:
            if missing := {self.image_column, label_column} - {None, *table.schema.names}:
                raise InputError(
                    f"{table.path} lacks the column {missing.pop()!r} that {paths[0]} has; keep them apart"
                )
        if label_column is not None:
            self.take_labels(*_labels(self.tables, label_column))
        self._groups = [_group_starts(table.metadata) for table in self.tables]
        self.kept: OrderedDict[tuple[int, int, int], Any] = OrderedDict()
        self._stream: tuple[tuple[int, int], int, Iterator[Any]] | None = None  # group, next batch, batches
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:  # another process opens the files itself
        return ParquetSource, (self.source_name, self.paths)

    def content(self, index: int) -> str | bytes:
        file, row = self.places.locate(index)
        name = self.names[index]
        try:
            with self._lock:
                cell = self._cell(file, row)
        except (OSError, ValueError, StopIteration) as error:
            raise UnreadableImage(name, f"its row group is damaged: {error}") from error
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
        path = data if isinstance(data, str) else path
        if data and isinstance(data, bytes):
            return data
        if path and isinstance(path, str):
            return inside(os.path.dirname(self.paths[file]) or ".", path, name)
        raise UnreadableImage(name, "the table has neither its bytes nor its path")

    def texts(self, name: str) -> list[str]:
        found: list[Any] = []
        for table in self.tables:
            if name not in table.schema.names:
                raise _no_texts(table.path, table.schema.names, name)
            try:
                found += list(_label_cells(table, name))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{table.path}: the column {name!r} cannot be read: {error}", argument="captions"
                ) from None
        return _texts(found, self.source_name, name)

    def fingerprint(self) -> str:
        return sha256(os.fsencode(identity(path)) for path in self.paths)

    def _cell(self, file: int, row: int) -> Any:
        group = int(np.searchsorted(self._groups[file], row, side="right")) - 1
        row -= int(self._groups[file][group])
        metadata = self.tables[file].metadata.row_group(group)
        rows = BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
        rows = min(max(rows, BATCH_ROWS[0]), BATCH_ROWS[1])
        key = file, group, row // rows
        if key not in self.kept:
            self.kept[key] = self._batch(file, group, row // rows, rows)
            if len(self.kept) > BATCHES_KEPT:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key][row % rows].as_py()

    def _batch(self, file: int, group: int, wanted: int, rows: int) -> Any:
        """Batch number `wanted` of a row group, from the open stream or from the start of the group."""
        place, start, batches = self._stream or (None, 0, iter(()))
        self._stream = None  # an error below leaves no half-read stream behind
        if place != (file, group) or start > wanted:
            start = 0
            _check_group(self.tables[file].metadata.row_group(group), self.image_column)
            batches = (
                self.tables[file]
                .open()
                .iter_batches(  # one by one, as rows may be huge when decompressed
                    batch_size=1, row_groups=[group], columns=[self.image_column], use_threads=False
                )
            )
        last = self.tables[file].metadata.row_group(group).num_rows
        for number in range(start, wanted + 1):
            batch: list[Any] = []
            size = 0
            for _ in range(number * rows, min((number + 1) * rows, last)):
                row = next(batches).column(0)
                size += row.nbytes
                if len(row) != 1:  # rows would be mixed up
                    raise ValueError(f"{len(row)} rows came instead of 1")
                if size > BATCH_BYTES_AT_MOST and len(batch) >= BATCH_ROWS[0]:
                    raise ValueError(f"its {rows:,} rows become over {BATCH_BYTES_AT_MOST:,} bytes")
                batch.append(row[0])
        self._stream = (file, group), wanted + 1, batches
        return batch


def _check_group(group: Any, name: str) -> None:
    """Raise ValueError for a column with an implausible compression ratio."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.partition(".")[0] == name:
            check_unpacked(column.total_compressed_size, column.total_uncompressed_size)


def _group_starts(metadata: Any) -> np.ndarray:
    return np.cumsum([0] + [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)])


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The features that `datasets` stores in an Arrow schema, by column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: features[name] for name in schema.names if isinstance(features.get(name), dict)}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _labels(tables: list[_Table], column: str) -> tuple[Any, list[str] | None]:
    """The values of a column in all files, and class names; equal names are one class in all files."""
    from pyarrow import types

    values: list[np.ndarray] = []
    classes: list[str] | None = None
    for table in tables:
        kind = table.schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        try:
            if not (types.is_integer(kind) or types.is_boolean(kind)):
                values.append(_label_cells(table, column))
                continue
            with table.open() as file:
                cells = file.read(columns=[column], use_threads=False).column(0)
            numbers = np.asarray(cells.cast("int64").fill_null(-1))
        except (OSError, ValueError) as error:
            raise InputError(f"the column {column!r} cannot be read: {error}; repair or leave out that table") from None
        names = _features(table.schema).get(column, {}).get("names")
        if names and classes is None:
            classes = list(names)
        elif names and classes is not None and names != classes[: len(names)]:
            classes += [name for name in names if name not in classes]
            place = np.array([classes.index(name) for name in names])
            known = (numbers >= 0) & (numbers < len(names))
            numbers = np.where(known, place[np.where(known, numbers, 0)], np.where(numbers < 0, numbers, len(classes)))
        values.append(numbers)
    return np.concatenate(values), classes


def _label_cells(table: _Table, column: str) -> np.ndarray:
    """A column of other values than whole numbers, objects (N,). Raises ValueError for a decompression bomb."""
    from pyarrow import types

    cells: list[Any] = []
    size = 0
    for group in range(table.metadata.num_row_groups):
        _check_group(table.metadata.row_group(group), column)
    with table.open() as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS[0], columns=[column], use_threads=False):
            part = batch.column(0)
            part = part.dictionary_decode() if types.is_dictionary(part.type) else part
            size += part.nbytes
            if size > BATCH_BYTES_AT_MOST:
                raise ValueError(f"it becomes over {BATCH_BYTES_AT_MOST:,} bytes")
            cells += part.to_pylist()
    return np.fromiter(cells, object, len(cells))


def _columns(schema: Any, path: str) -> tuple[str, str | None]:
    """The columns of images and labels, by the features in an Arrow schema, else by name."""
    kinds = {name: feature.get("_type") for name, feature in _features(schema).items()}
    noted = [name for name, kind in kinds.items() if kind == "Image"]
    named = [name for name in ("image", "img", "images", "bytes") if name in schema.names]
    structs = [name for name in schema.names if str(schema.field(name).type).startswith("struct<bytes: ")]
    if not (candidates := [*noted, *named, *structs]):
        found = ", ".join(schema.names) or "none"
        raise InputError(f"{path} has no column of images: expected 'image' with encoded bytes, got {found}")
    labelled = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    return candidates[0], label_column(schema.names, labelled)


def label_column(names: list[str], labelled: list[str]) -> str | None:
    """`label` or `labels`, else the first column whose feature is a class."""
    return next((name for name in ("label", "labels", *labelled) if name in names), None)


def _no_texts(where: str, columns: Sequence[str], name: str) -> InputError:
    listed = ", ".join(columns)
    return InputError(f"{where}: expected one of its columns, {listed}, got {name!r}", argument="captions")


def _texts(cells: Sequence[Any], where: str, name: str) -> list[str]:
    """Texts, or lists of them as tags."""
    tags = [", ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells]
    wrong = next((cell for cell in tags if not isinstance(cell, str | None)), None)
    if wrong is not None:
        raise InputError(f"{where}: expected text in the column {name!r}, got {shortened(wrong)}", argument="captions")
    return [cell or "" for cell in tags]


def _columns_of(kind: type, features: Mapping[str, Any]) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, kind)]


class HubSource(Source):
    """One split of a set loaded by `datasets`, memory-mapped in that library's cache."""

    def __init__(self, source_name: str, split: str, rows: Any) -> None:
        from datasets import ClassLabel, Image

        super().__init__(source_name, Numbered([(f"{split}/", len(rows))]))
        images, labelled = (_columns_of(kind, rows.features) for kind in (Image, ClassLabel))
        if not images or len(rows) == 0:
            raise InputError(f"{source_name} has no images; its columns are {', '.join(rows.features)}")
        label = label_column(list(rows.features), labelled)
        if label is not None:
            classes = rows.features[label].names if label in labelled else None
            self.take_labels(rows[label][:], classes)
        self.column, self.table = images[0], rows
        self.rows = rows.select_columns([self.column]).cast_column(self.column, Image(decode=False))
        self._fingerprint = sha256(part.encode() for part in (source_name, split, rows._fingerprint))

    def texts(self, name: str) -> list[str]:
        if name not in self.table.column_names:
            raise _no_texts(self.source_name, self.table.column_names, name)
        return _texts(self.table[name][:], self.source_name, name)

    def content(self, index: int) -> str | bytes:
        return _encoded(self.rows[index][self.column] or {}, self.names[index])

    def fingerprint(self) -> str:
        return self._fingerprint


def _encoded(cell: Mapping[str, Any], name: str) -> str | bytes:
    """The bytes of a cell, or its path in the cache of the hub's files."""
    data, path = cell.get("bytes"), cell.get("path")
    if not data and path:
        from datasets.config import HF_CACHE_HOME, HF_DATASETS_CACHE
        from huggingface_hub.constants import HF_HUB_CACHE

        caches = [os.path.realpath(cache) + os.sep for cache in (HF_CACHE_HOME, HF_DATASETS_CACHE, HF_HUB_CACHE)]
        data = os.path.realpath(path)
        if not data.startswith(tuple(caches)):
            raise UnreadableImage(name, "its path leads out of the cache of hub files")
    if not data:
        raise UnreadableImage(name, "the set has neither its bytes nor its path")
    return data


class StreamSource(Source):
    """One split of a set on the hub, streamed in order; threads may be READ_TOGETHER pictures apart.

    Other jumps restart the stream. Labels are known once their pictures have been read. Raises WorkError when the hub
    stops answering.
    """

    def __init__(self, source_name: str, split: str, rows: Any, count: int, version: str) -> None:
        from datasets import ClassLabel, Image

        super().__init__(source_name, Numbered([(f"{split}/", count)]))
        images, labelled = (_columns_of(kind, rows.features) for kind in (Image, ClassLabel))
        if not images:
            raise InputError(f"{source_name} has no images; its columns are {', '.join(rows.features)}")
        self.label = label_column(labelled, labelled)
        if self.label is not None:
            self.labels, self.classes = np.full(count, -1, np.int64), rows.features[self.label].names
        self.column = images[0]
        columns = [self.column, *([] if self.label is None else [self.label])]
        self.rows = rows.select_columns(columns).cast_column(self.column, Image(decode=False))
        self._fingerprint = sha256(part.encode() for part in (source_name, split, version, str(count)))
        self._lock = threading.Lock()
        self._place: int | None = None  # of the row that the stream gives next
        self._stream: Iterator[Any] = iter(())
        self._kept: dict[int, Any] = {}

    def content(self, index: int) -> str | bytes:
        with self._lock:
            if index not in self._kept:
                self._go_to(index)
            cell = self._kept[index] if index in self.sampled(READ_TOGETHER) else self._kept.pop(index)
        return _encoded(cell, self.names[index])

    def texts(self, name: str) -> list[str]:
        raise InputError(
            f"{self.source_name}: expected a .csv or .jsonl file of file,caption, as a streamed set has no texts "
            f"before its pictures are read, got {name!r}; or download it, and prepare the files",
            argument="captions",
        )

    def fingerprint(self) -> str:
        return self._fingerprint

    def sampled(self, count: int) -> range:
        return range(min(count, SAMPLED_OF_STREAM, READ_TOGETHER, len(self)))  # others would be asked for anew

    def _go_to(self, index: int) -> None:
        start = index - index % READ_TOGETHER
        try:
            if self._place is None or not start <= self._place <= index:
                self._kept.clear()
                self._place, self._stream = start, iter(self.rows.skip(start))
            for row in self._stream:
                self._kept[self._place] = row[self.column] or {}
                if self.label is not None and self.labels is not None and row[self.label] is not None:
                    self.labels[self._place] = row[self.label]
                self._place += 1
                if self._place > index:
                    return
        except Exception as error:  # the network, the hub or a damaged file
            raise WorkError(
                f"{self.source_name}: the hub stopped answering ({reason_of(error)}); type the command again"
            ) from error
        raise WorkError(
            f"{self.source_name}: expected {len(self):,} pictures, as announced, but the stream ended after "
            f"{self._place:,}; download it, and prepare the files"
        )


def _version(rows: Any) -> str:
    """The hub's version of a streamed set."""
    return str(sorted((rows.info.download_checksums or {}).items())) + str(rows.info.version)


def check_set_name(name: str) -> None:
    """Raise InputError for a mistyped path, which is not worth a call to the hub."""
    repository = name.partition(":")[0]
    if extension(repository) in EXTENSIONS | {"npy", "npz", "parquet"} or not is_hub_name(repository):
        raise InputError(f"no such file or folder: {name}; expected a path or a set on the hub as owner/name")


def open_hub(name: str, split: str | None, *, stream: bool = False) -> Source:
    """A set on the hub, owner/name or owner/name:config. Raises InputError, also for a mistyped path.

    With `stream` it is not downloaded first, if the hub knows its number of pictures.
    """
    check_set_name(name)
    repository, _, config = name.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"no such file or folder: {name}; if it is a set on the hub, type: pip install datasets"
        ) from error
    try:
        if stream:
            splits = datasets.load_dataset(repository, config or None, streaming=True)
            chosen = choose_split(splits, split, name)
            rows = splits[chosen]
            count = rows.info.splits[chosen].num_examples if chosen in (rows.info.splits or {}) else None
            if count and rows.features:
                streamed = StreamSource(name, chosen, rows, count, version=_version(rows))
                streamed.split = chosen if len(splits) > 1 else None
                return streamed
        splits = datasets.load_dataset(repository, config or None)
    except InputError:
        raise
    except Exception as error:  # no network, no such set, a missing configuration
        raise InputError(
            f"no such file or folder: {name}; as a set on the hub it does not load: {reason_of(error)}"
        ) from error
    chosen = choose_split(splits, split, name)
    source = HubSource(name, chosen, splits[chosen])
    source.split = chosen if len(splits) > 1 else None
    return source
