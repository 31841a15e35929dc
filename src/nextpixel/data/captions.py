"""Captions of pictures: from their names, their folders, a table, or texts of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.data.labels import labels_of, values_of_table
from nextpixel.errors import InputError
from nextpixel.images.sources import JoinedSource, MapSource, Source
from nextpixel.images.sources.files import FileSource
from nextpixel.images.sources.sprites import SpriteSource

TABLES = (".csv", ".jsonl")


def captions_of(source: Source, captions: str | Path | Sequence[str]) -> NDArray[Any]:
    """The caption of each picture of a source, str objects (N,), "" where there is none.

    captions  "names": file names without numbers, "red potion" of red_potion_01.png;
              "folders": the folders of each picture, outermost first, or else its class;
              a .csv or .jsonl file with `file` (or `file_name`), `caption` (or `text`) and, for the tiles of a sheet,
              `row` and `column`, see values_of_table;
              the name of a text column of a parquet file or hub set, of a member of a shard's samples (txt), or of the
              files beside the pictures (txt); of a prepared folder whatever it was prepared with;
              or a sequence, one caption for each picture

    Frames and tiles have the caption of their file where a table has no row for them. Raises InputError.
    """
    if not isinstance(captions, str | Path):
        found = list(captions)
        if len(found) != len(source) or not all(isinstance(caption, str) for caption in found):
            raise InputError(f"expected {len(source)} texts, one for each image, got {len(found)}", argument="captions")
        return _array(found)
    name = str(captions)
    found = _texts(source, name)
    if not any(caption.strip() for caption in found):
        raise InputError(
            f"expected captions in {source.source_name} by {name!r}, got only empty ones", argument="captions"
        )
    return _array(found)


def _texts(source: Source, name: str) -> list[str]:
    if isinstance(source, MapSource) and source.captions_from == name:
        return source.texts(name)
    if name.lower().endswith(TABLES):
        return values_of_table(name, source.names, "caption", source.file_names)
    if isinstance(source, SpriteSource):
        found = _texts(source.files, name)
        return [found[row] for row in source.rows]
    if isinstance(source, JoinedSource):
        return [text for part in source.parts for text in _texts(part, name)]
    if name == "names":
        return [_of_name(PurePosixPath(path.replace("\\", "/")).stem) for path in source.names]
    return _of_folders(source) if name == "folders" else source.texts(name)


NO_WORD = re.compile(r"\d+x\d+(?![^\W_])|[_\-.()\[\]]+|(?<!\d)\d+(?![^\W_])")


def _array(captions: Sequence[str]) -> NDArray[Any]:
    found = np.empty(len(captions), object)
    found[:] = [caption.replace("\0", " ") for caption in captions]
    return found


def _of_name(stem: str) -> str:
    """Words of a file or folder name, without sizes such as 32x32 and without numbers, alone or at their ends."""
    return " ".join(NO_WORD.sub(" ", stem.replace("-", "_")).split())


def _of_folders(source: Source) -> list[str]:
    folders = [PurePosixPath(name.replace("\\", "/")).parts[:-1] for name in source.names]
    if any(folders) and isinstance(source, FileSource):
        return [", ".join(map(_of_name, parts)) for parts in folders]
    try:
        labels = labels_of(source)
    except InputError as error:
        raise InputError(
            f"expected pictures in folders, or with labels: {error.message}", argument="captions"
        ) from None
    return [_of_name(str(label)) if label not in ("", -1) else "" for label in labels]
