"""File formats beyond those that PIL reads: one function each, named in FORMATS.

That entry makes a format readable from files, folders, shards, tables and the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from nextpixel.images import dicom
from nextpixel.images.formats import aseprite, tilesets
from nextpixel.images.numbers import Numbers
from nextpixel.limits import open_file

HEAD_BYTES = 512
Frames: TypeAlias = Iterator[tuple[str, Image.Image | Numbers]]


@dataclass(frozen=True)
class Format:
    """How files of one format are recognised and read."""

    extensions: frozenset[str]
    """The ends of names by which folders and shards find its files, without the dot."""
    matches: Callable[[bytes, str], bool]
    """Whether a file is of this format, by its first HEAD_BYTES and the end of its name ("" where it has none)."""
    frames: Callable[[str | bytes, int], Frames]
    """The pictures of a path or of encoded bytes, of at most that many pixels, each behind what distinguishes it in the
    file. Raises any exception, whose text says what is wrong."""
    served: bool = True
    """Whether the server reads it."""


FORMATS: dict[str, Format] = {
    "Aseprite": Format(frozenset({"ase", "aseprite"}), aseprite.matches, aseprite.frames),
    "DICOM": Format(frozenset(), dicom.matches, dicom.frames, served=False),  # its extensions need a library
    "tileset": Format(frozenset(), tilesets.matches, tilesets.frames, served=False),  # its sheet is in the folder too
}


def find_format(content: str | bytes, *, served: bool = False) -> Format | None:
    """The format in FORMATS of a path or encoded bytes; with `served`, of those that the server reads."""
    if isinstance(content, bytes):
        head, end = content[:HEAD_BYTES], ""
    else:
        end = content.rpartition(".")[2].lower()
        try:
            with open_file(content) as file:
                head = file.read(HEAD_BYTES)
        except (OSError, ValueError):
            head = b""
    return next((f for f in FORMATS.values() if (f.served or not served) and f.matches(head, end)), None)
