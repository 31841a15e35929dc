"""Labels: read them, map them to class numbers, and split images so that every class is in each part."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextpixel.config import side_text
from nextpixel.data.decoded import DecodedSet
from nextpixel.errors import InputError, clipped, shortened
from nextpixel.images.sources.base import label_array
from nextpixel.images.sources.sprites import SpriteSource
from nextpixel.limits import open_file
from nextpixel.progress import say, say_once

FORMULA = tuple("=+-@\t\r'")  # first characters of a spreadsheet formula, and the quote that escapes it
UNLABELLED = ("-1", "-1.0")  # the second from pandas, for a column with empty cells
NO_NAMES = frozenset({"nan", "none", "null", "n/a"})  # written by programs for missing values
ALIASES = {"file": ["file", "file_name"], "caption": ["caption", "text"]}  # the second of the hub's image folders
EXTENSION = re.compile(r"(?<=.)\.[^.]*?(#\d+,\d+)?$")  # of a file, or of a tile of a sheet
HELD_OUT = 0.1
FOLDS = 5
FOLDS_BELOW = 2_000  # training images; with fewer, a single held-out tenth is too noisy


def labels_from_csv(path: str | Path, names: Sequence[str], files: Sequence[str] | None = None) -> NDArray[Any]:
    """The label of each name in a table, see values_of_table; "" where its cell is empty or -1."""
    labels = values_of_table(path, names, "label", files)
    return np.array([label if label.strip() not in UNLABELLED else "" for label in labels], object)


def values_of_table(
    path: str | Path, names: Sequence[str], column: str, files: Sequence[str] | None = None
) -> list[str]:
    """The value of each name in a CSV or JSONL file with a column `file` and one of this name; see also ALIASES.

    A row matches the picture of that path, or else by the longest common end of both paths, with or without the
    extension, where it is unique. Columns `row` and `column`, counted from 0, name the tile FILE#ROW,COLUMN of a sheet.
    A picture without a row of its own has that of its file, of `files`. Raises InputError for a picture without a row,
    and for contradictory rows.
    """
    table: dict[tuple[str, ...], str] = {}
    for file, value in _rows(path, column):
        key = path_parts(file)
        if table.setdefault(key, value) != value:
            raise InputError(
                f"{path}: expected one {column} for {shortened(file)}, got {shortened(table[key])} and "
                f"{shortened(value)}; keep one row",
                argument=f"{column}s",
            )
    found = _match([path_parts(name) for name in names], list(table))
    if files is not None:
        unique = list(dict.fromkeys(files))
        of_files = dict(zip(unique, _match([path_parts(file) for file in unique], list(table)), strict=True))
        found = [own or of_files[file] for own, file in zip(found, files, strict=True)]
    missing = [name for name, key in zip(names, found, strict=True) if key is None]
    if missing:
        held = ", ".join(shortened("/".join(key)) for key in list(table)[:3])
        raise InputError(
            f"{path}: expected one row for each picture, got none or several for {len(missing):,} of "
            f"{len(names):,}: looked for {missing[0]!r}, the column file has {held or 'nothing'}"
            f"{', ...' if len(table) > 3 else ''}; add rows, or make the paths unambiguous",
            argument=f"{column}s",
        )
    return [table[key] for key in found if key is not None]


def _rows(path: str | Path, column: str) -> list[tuple[str, str]]:
    """The file and the value of each row of a table."""
    lines = str(path).lower().endswith(".jsonl")
    rows: list[dict[str, Any]]
    try:
        with io.TextIOWrapper(open_file(path), "utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            if lines:
                rows = [json.loads(line) for line in file if line.strip()]
                if not all(isinstance(row, dict) for row in rows):
                    raise ValueError("a line that is not an object")
                columns: Sequence[str] = list(dict.fromkeys(name for row in rows for name in row))
            else:
                header = file.readline()
                delimiter = max(",;\t", key=header.count)  # where the comma is decimal, Excel writes semicolons
                reader = csv.DictReader(chain([header], file), delimiter=delimiter)
                columns, rows = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        kind = "JSONL" if lines else "CSV"
        if isinstance(error, FileNotFoundError):
            raise InputError(f"no such file: {path}", argument=f"{column}s") from None
        if isinstance(error, UnicodeDecodeError):
            error = ValueError("another encoding than UTF-8; save it as UTF-8")
        raise InputError(
            f"{path}: expected a {kind} file of file,{column}, got something unreadable: {error}",
            argument=f"{column}s",
        ) from None
    chosen = [next((name for name in ALIASES.get(part, [part]) if name in columns), "") for part in ("file", column)]
    if "" in chosen:
        raise InputError(
            f"{path}: expected the columns file and {column}, got {shortened(columns, 200)}", argument=f"{column}s"
        )
    cells = [[row.get(name) for name in chosen] for row in rows]
    wrong = next((cell for pair in cells for cell in pair if not isinstance(cell, str | None)), None)
    if wrong is not None:
        raise InputError(
            f"{path}: expected text in the columns file and {column}, got {shortened(wrong)}", argument=f"{column}s"
        )
    try:
        tiles = [_tile(row) for row in rows]
    except ValueError as error:
        raise InputError(f"{path}: {error}", argument=f"{column}s") from None
    return [(plain_cell(file or "") + tile, plain_cell(value or "")) for (file, value), tile in zip(cells, tiles)]


def _tile(row: dict[str, Any]) -> str:
    """ "#ROW,COLUMN" of the row of a table that has both; pandas writes them as 0.0 where some are missing."""
    if not {"row", "column"} <= row.keys():
        return ""
    place = [str(row.get(name) if row.get(name) is not None else "").strip() for name in ("row", "column")]
    if not any(place):
        return ""
    if not all(re.fullmatch(r"\d+(\.0*)?", cell) for cell in place):
        raise ValueError(f"expected two whole numbers in the columns row and column, or none, got {shortened(place)}")
    return f"#{','.join(str(int(float(cell))) for cell in place)}"


def plain_cell(text: str) -> str:
    """A cell without the quote that keeps a spreadsheet from evaluating it as a formula."""
    return text[1:] if text[:1] == "'" and text[1:2] in FORMULA else text


def path_parts(path: str) -> tuple[str, ...]:
    """The parts of a path of any operating system, in composed Unicode form."""
    parts = unicodedata.normalize("NFC", path.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", "."))


def _match(names: Sequence[tuple[str, ...]], keys: Sequence[tuple[str, ...]]) -> list[tuple[str, ...] | None]:
    """The key of each name: itself, or the one with the longest common end; None where that is ambiguous."""
    exact, by_end, by_stem = set(keys), _ends(keys, stems=False), _ends(keys, stems=True)
    found: list[tuple[str, ...] | None] = []
    for name in names:
        hits = [name] if name in exact else by_end.get(_longest(name, by_end), [])
        if not hits:
            hits = by_stem.get(_longest(_stem(name), by_stem), [])
        found.append(hits[0] if len(hits) == 1 else None)
    taken = Counter(found)
    return [key if key == name or taken[key] == 1 else None for key, name in zip(found, names, strict=True)]


def _ends(keys: Sequence[tuple[str, ...]], *, stems: bool) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """The keys by each of their ends, and with `stems` also by the ends without extension."""
    ends: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for key in keys:
        for form in {key, _stem(key)} if stems else {key}:
            for start in range(len(form)):
                ends.setdefault(form[start:], []).append(key)
    return ends


def _longest(name: tuple[str, ...], ends: dict[tuple[str, ...], Any]) -> tuple[str, ...]:
    return next((name[start:] for start in range(len(name)) if name[start:] in ends), ())


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    return (*parts[:-1], EXTENSION.sub(r"\1", parts[-1])) if parts else ()


def labels_of(source: Any) -> NDArray[Any]:
    """The labels of a source (N,), as class names where it has them; has_label says which are set.

    Raises InputError where no picture has one, and for a number without a name.
    """
    if source.labels is None:
        got = f"unusable labels: {source.label_problem}" if source.label_problem else "images without labels"
        raise InputError(
            f"{source.source_name}: expected labelled images: a sub-folder for each class, a column of one number or "
            f"name for each picture, or a CSV of file,label; got {got}"
        )
    names = source.labels
    if source.classes is not None:
        unnamed = np.flatnonzero((source.labels >= len(source.classes)) | (source.labels < -1))
        if len(unnamed):
            raise InputError(
                f"{source.source_name}: expected labels 0 to {len(source.classes) - 1}, which have names, got "
                f"{source.labels[unnamed[0]]} for {source.names[unnamed[0]]} ({len(unnamed):,} in all); correct the "
                "labels, or the names"
            )
        names = np.array([*source.classes, ""], object)[source.labels]  # -1 is the last
    return _checked(names, source.source_name)


def given_labels(source: Any, labels: ArrayLike | str | Path | None) -> NDArray[Any]:
    """The labels of a source: an array, a CSV file (see labels_from_csv), or by default its own.

    Frames and tiles have the label of their file where there is none for each of them.
    """
    if labels is None:
        return labels_of(source)
    if isinstance(labels, str | Path):
        return _checked(labels_from_csv(labels, source.names, source.file_names), str(labels))
    try:
        names = label_array(labels)
    except ValueError as error:
        raise InputError(f"expected one number or name for each image, got {error}", argument="labels") from None
    if isinstance(source, SpriteSource) and len(names) == len(source.files) != len(source):
        names = names[source.rows]
    if names.shape != (len(source),):
        raise InputError(f"expected {len(source)}, one for each image, got {names.shape}", argument="labels")
    return _checked(names, "labels")


def has_label(names: NDArray[Any]) -> NDArray[np.bool_]:
    """Which labels are set: neither the number -1 nor the empty name."""
    return np.asarray(names != "" if names.dtype == object else names >= 0, bool)


def _checked(names: NDArray[Any], where: str) -> NDArray[Any]:
    """The labels, at least one of them set; prints a warning about suspicious names."""
    labelled = names[has_label(names)]
    if not len(labelled):
        raise InputError(f"{where}: expected labelled images, got none: all {len(names):,} labels are -1 or empty")
    if names.dtype == object:
        alike: dict[str, list[str]] = {}
        for name, count in sorted(Counter(labelled).items()):
            alike.setdefault(plain_name(name), []).append(name)
            if plain_name(name) in NO_NAMES:
                say_once(f"{where}: {count:,} labels are {name!r}, taken as a class of that name; empty cells are none")
        for several in alike.values():
            if len(several) > 1:
                shown = ", ".join(ascii(clipped(name, 60)) for name in several)
                say_once(f"{where}: classes that differ in case, spaces or Unicode form alone, kept apart: {shown}")
    return names


def plain_name(name: str) -> str:
    """A name normalised for comparison: case, spaces, Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def labelled(
    names: NDArray[Any], source: Any, decoded: DecodedSet
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.int64]]:
    """Images (M, H, W, 3), labels (M,) and indices (M,) of the labelled pictures of a decoded set.

    Prints how many have no label. Raises InputError where no readable picture has one, and as labels_of_readable does.
    """
    names, rows = labelled_rows(names, source, decoded)
    return decoded.images if len(rows) == len(decoded) else decoded.images[rows], names, rows


def labelled_rows(names: NDArray[Any], source: Any, decoded: DecodedSet) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """`labelled` without the images, which may be many."""
    names = labels_of_readable(names, source, decoded)
    rows = np.flatnonzero(has_label(names))
    if not len(rows):
        raise InputError(f"{source.source_name}: expected labelled images, got none that can be read")
    if len(rows) < len(names):
        say_once(f"{source.source_name}: {len(names) - len(rows):,} of {len(names):,} images have no label, left out")
    return names[rows], rows


def labels_of_readable(labels: NDArray[Any], source: Any, decoded: DecodedSet) -> NDArray[Any]:
    """The labels of the pictures of a source that could be decoded.

    Raises InputError where these cannot be identified by name.
    """
    if decoded.names is source.names or list(decoded.names) == list(source.names):
        return labels
    readable = np.isin(list(source.names), list(decoded.names))
    if readable.sum() == len(decoded):
        return labels[readable]
    rows = _files_of(decoded.names, source.names)
    if any(row is None for row in rows):
        raise InputError(
            f"{source.source_name}: some pictures cannot be read and share their names with others, so their labels "
            "are ambiguous; remove or repair them"
        )
    return labels[np.array(rows, np.int64)]


def _files_of(names: Sequence[str], files: Sequence[str]) -> list[int | None]:
    """The numbers of the files of pictures called FILE, FILE#FRAME or FILE#ROW,COLUMN; None where it is ambiguous."""
    numbers: dict[str, int | None] = {}
    for number, file in enumerate(files):
        numbers[file] = None if file in numbers else number
    found = []
    for name in names:
        while name not in numbers and "#" in name:
            name = name.rpartition("#")[0]
        found.append(numbers.get(name))
    return found


def class_numbers(labels: ArrayLike, classes: NDArray[Any], what: str = "labels") -> NDArray[np.int64]:
    """The index in `classes` of each label, (N,); a number and its digits are the same class.

    Raises InputError, which begins with `what`, for any other label.
    """
    number = {str(name): i for i, name in enumerate(classes)}
    names = [str(name) for name in np.asarray(labels).tolist()]
    unknown = next((name for name in names if name not in number), None)
    if unknown is not None:
        near = next((name for name in number if plain_name(name) == plain_name(unknown)), None)
        hint = "" if near is None else f", which looks like {clipped(near, 60)!a}"
        raise InputError(
            f"{what}: expected the classes of the training images, got {clipped(unknown, 60)!a} as well{hint}"
        )
    return np.array([number[name] for name in names], np.int64)


def refuse_overlap(seen: NDArray[np.bool_], where: str) -> None:
    """Raises InputError where all test images are training images, see seen_before."""
    if seen.all():
        raise InputError(
            f"{where}: expected test images other than the training images, got only these; hold some out for `test`"
        )


def seen_before(
    train: Iterable[NDArray[np.uint8]],
    test: NDArray[np.uint8],
    where: str,
    what: str = "test images",
    of: str = "training images",
) -> NDArray[np.bool_]:
    """Which images of `test` (N, H, W, 3) are also in `train`, pixel by pixel, (N,); prints how many, if any."""

    def digests(images: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
        return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)

    known = set(digests(train))
    seen = np.fromiter((digest in known for digest in digests(test)), np.bool_, len(test))
    if seen.any():
        both = what == "test images" and not seen.all()
        say(
            f"{where}: {seen.sum():,} of {len(seen):,} {what} are {of}, pixel by pixel at side "
            f"{side_text(test.shape[1:3])}{'; figures are given with and without them' * both}"
        )
    return seen


def choose_labels(labels: NDArray[Any], per_class: int | None, seed: int, repeat: int) -> NDArray[np.int64]:
    """Sorted indices of `per_class` random images of each class; all images for None."""
    if per_class is None:
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, 0xFE7, per_class, repeat])
    chosen = []
    for name in np.unique(labels):
        members = np.flatnonzero(labels == name)
        if len(members) < per_class:
            raise InputError(
                f"expected at most {len(members)}, all of class {name}, got {per_class}", argument="labels_per_class"
            )
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def folds_of(labels: NDArray[np.integer], seed: int) -> list[NDArray[np.bool_]]:
    """Masks (N,) of held-out images for model selection: one tenth, or several folds for few images.

    Stratified: every class is on both sides, except that the only image of a class is never held out. Empty where all
    classes have a single image.
    """
    counts = np.bincount(labels)
    several = counts > 1
    if not several.any():
        return []
    if len(labels) >= FOLDS_BELOW:
        return [held_out(labels, HELD_OUT, seed)]
    rank = _ranks(labels, seed)
    folds = min(FOLDS, int(counts[several].min()))
    return [(rank % folds == fold) & several[labels] for fold in range(folds)]


def held_out(labels: NDArray[np.integer], fraction: float, seed: int) -> NDArray[np.bool_]:
    """A stratified mask (N,) of labels 0..C-1: that fraction of each class, at least one image but never all."""
    counts = np.bincount(labels)
    held = np.minimum(np.maximum(1, counts * fraction).astype(np.int64), counts - 1)
    return np.asarray(_ranks(labels, seed) < held[labels])


def _ranks(labels: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """0, 1, 2, ... within each class, in random order, (N,)."""
    rng = np.random.default_rng([seed, 0xF01D])
    rank = np.empty(len(labels), np.int64)
    for number in range(labels.max() + 1):
        members = np.flatnonzero(labels == number)
        rank[members] = rng.permutation(len(members))
    return rank
