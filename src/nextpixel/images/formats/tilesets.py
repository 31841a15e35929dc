"""Tilesets of Tiled (.tsx, .tmx, .tsj, .tmj, .json) and LDtk (.ldtk): the tiles of the sheets that they name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from nextpixel.limits import read_bytes

XML, JSON = frozenset({"tsx", "tmx"}), frozenset({"tsj", "tmj", "json", "ldtk"})


@dataclass(frozen=True)
class Sheet:
    """A picture of tiles, all lengths in pixels."""

    name: str
    path: str
    height: int
    width: int
    margin: int
    """Around the tiles."""
    spacing: int
    """Between them."""
    clear: tuple[int, ...] | None
    """The colour (R, G, B) that is transparent."""
    described_in: str | None
    """The tileset that a map refers to."""


def matches(head: bytes, end: str) -> bool:
    return (end in XML and (b"<tileset" in head or b"<map" in head)) or (end in JSON and head.lstrip()[:1] == b"{")


def frames(content: str | bytes, pixel_limit: int) -> Iterator[tuple[str, Image.Image]]:
    """RGBA tiles, each called ROW,COLUMN, or NAME,ROW,COLUMN where there are several sheets. Raises ValueError."""
    from nextpixel.images.pixels import read_frames

    if isinstance(content, bytes):
        raise ValueError("a tileset needs its sheets beside it; give the file itself")
    sheets = sheets_of(content)
    if not sheets:
        raise ValueError("expected a tileset with the picture of its tiles, got none")
    for sheet in sheets:
        [(_, pixels), *_] = read_frames(sheet.path, os.path.basename(sheet.path), pixel_limit=pixel_limit)
        if sheet.clear is not None:
            pixels[(pixels[..., :3] == sheet.clear).all(-1)] = 0
        rows, columns = (
            max(0, (length - sheet.margin + sheet.spacing) // (size + sheet.spacing))
            for length, size in zip(pixels.shape[:2], (sheet.height, sheet.width), strict=True)
        )
        if not rows * columns:
            raise ValueError(f"{sheet.path} is smaller than its tiles of {sheet.height} x {sheet.width}")
        for row in range(rows):
            for column in range(columns):
                top = sheet.margin + row * (sheet.height + sheet.spacing)
                left = sheet.margin + column * (sheet.width + sheet.spacing)
                tile = pixels[top : top + sheet.height, left : left + sheet.width]
                place = f"{row},{column}"
                yield place if len(sheets) == 1 else f"{sheet.name},{place}", Image.fromarray(tile)


def sheets_of(path: str) -> list[Sheet]:
    """The sheets that the file names. Raises ValueError and OSError."""
    try:
        return _sheets(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected a tileset of Tiled or LDtk, got a problem with {error}") from None


def _sheets(path: str) -> list[Sheet]:
    folder, end = os.path.dirname(path), path.rpartition(".")[2].lower()
    values = _xml(path) if end in XML else json.loads(read_bytes(path))
    if end == "ldtk":
        found = [
            {
                "name": one["identifier"], "image": one["relPath"], "tilewidth": one["tileGridSize"],
                "tileheight": one["tileGridSize"], "margin": one["padding"], "spacing": one["spacing"],
            }
            for one in values["defs"]["tilesets"]
            if one.get("relPath")
        ]  # fmt: skip
    else:
        found = []
        for one in values.get("tilesets", [values]):
            if "source" in one:  # a map refers to a tileset in another file, which refers to no further one
                other = _beside(folder, one["source"])
                read = _xml(other) if other.lower().endswith("tsx") else json.loads(read_bytes(other))
                found.append(read | {"described_in": other})
            else:
                found.append(one)
    return [_sheet(folder, one) for one in found if "image" in one]


def _sheet(folder: str, values: dict[str, Any]) -> Sheet:
    other = values.get("described_in")
    name, image = str(values.get("name", "")), _beside(os.path.dirname(other) if other else folder, values["image"])
    height, width = int(values["tileheight"]), int(values["tilewidth"])
    margin, spacing = int(values.get("margin") or 0), int(values.get("spacing") or 0)
    if min(height, width) < 1 or min(margin, spacing) < 0:
        raise ValueError(
            f"expected tiles of at least 1 x 1, got {height} x {width}, margin {margin}, spacing {spacing}"
        )
    clear = values.get("transparentcolor")
    colour = None if clear is None else tuple(bytes.fromhex(clear.removeprefix("#")[-6:]))
    return Sheet(name, image, height, width, margin, spacing, colour, other)


def _beside(folder: str, path: Any) -> str:
    if not isinstance(path, str) or os.path.isabs(path) or "\0" in path:
        raise ValueError(f"expected the path of a file relative to the tileset, got {path!r}")
    return os.path.join(folder, path.replace("\\", "/"))


def _xml(path: str) -> dict[str, Any]:
    """A tileset or a map, as Tiled's JSON has it."""
    text = read_bytes(path)
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("expected XML without a document type, as Tiled writes it")
    root = ElementTree.fromstring(text)
    if root.tag == "map":
        return {"tilesets": [_attributes(one) for one in root.iter("tileset")]}
    if root.tag != "tileset":
        raise ValueError(f"expected a tileset or a map, got {root.tag}")
    return _attributes(root)


def _attributes(tileset: ElementTree.Element) -> dict[str, Any]:
    image = tileset.find("image")
    if image is None:
        return dict(tileset.attrib)
    clear = {"transparentcolor": image.get("trans")} if image.get("trans") else {}
    return dict(tileset.attrib) | {"image": image.get("source")} | clear
