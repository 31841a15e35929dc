"""Pictures of more than 8 bits a channel, whose values PIL would cut."""

import re
import sys
from typing import Any

import numpy as np

from nextpixel.images import multiband
from nextpixel.images.numbers import Numbers
from nextpixel.images.opened import Picture, info_of, is_opacity, open_picture, turn_upright

WIDE = re.compile(r"(LA|RGB|RGBA|RGBa|RGBX);16([BLN])")  # raw modes of which PIL keeps only the high byte
PHOTOMETRIC, GDAL_NODATA, BITS, SAMPLE_FORMAT = 262, 42113, 258, 339  # TIFF tags


def of_grey(picture: Picture, info: dict[str, Any], kind: str | None, tags: Any) -> Numbers:
    """One channel of more than 8 bits."""
    values = np.asarray(picture)[..., None]
    if tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,) and values.dtype == np.int32:  # as PIL has it
        values = values.view(np.uint32)
    stated, transparent = None, info.get("transparency")
    if kind in ("PPM", "JPEG2000") and picture.mode != "F":  # PIL has brought them to 16 bits
        stated = 0.0, 65535.0
    elif tags.get(BITS) == (12,):
        stated = 0.0, 4095.0
    opacity = (values[..., 0] != transparent).astype(np.float32) if isinstance(transparent, int) else None
    return Numbers(
        values,
        opacity,
        stated,
        negative=tags.get(PHOTOMETRIC) == 0,
        no_data=multiband.no_data(tags.get(GDAL_NODATA)),
        info=info,
    )


def wide_mode(picture: Picture) -> tuple[str, str] | None:
    """("RGB", "B") or the like, channels and byte order, where the file has 16 bits a channel and PIL would take 8."""
    tiles: Any = getattr(picture, "tile", None)
    args = tiles[0][3] if tiles else None
    match = WIDE.fullmatch(str(args[0] if isinstance(args, tuple) else args))
    return (match[1], match[2]) if match else None


def file_of(picture: Picture) -> bytes:
    """The encoded bytes of a picture that PIL has opened but not decoded."""
    file: Any = picture.fp  # type: ignore[attr-defined]
    file.seek(0)
    return bytes(file.read())


def of_wide(file: str | bytes, kind: str, channels: str, order: str, tags: Any) -> Numbers:
    """PIL unpacks one byte of each 16-bit value, so unpack twice, once for each byte."""
    high = {"N": "L" if sys.byteorder == "little" else "B"}.get(order, order)
    if channels == "LA":
        both, info = _unpacked(file, kind, "RGBA", "RGBA")  # all four bytes at once
        values = both[..., ::2].astype(np.uint16) * 256 + both[..., 1::2]
    else:
        mode = "RGB" if channels == "RGB" else "RGBA"
        upper, info = _unpacked(file, kind, mode, f"{mode};16{high}")
        lower, _ = _unpacked(file, kind, mode, f"{mode};16{'B' if high == 'L' else 'L'}")
        values = upper.astype(np.uint16) * 256 + lower
    values, fourth = values[..., :-1] if values.shape[2] in (2, 4) else values, values[..., -1]
    opacity: np.ndarray | None = None
    bands: tuple[int, ...] = ()
    if channels in ("LA", "RGBA", "RGBa"):
        if kind != "TIFF" or is_opacity(tags):
            opacity = fourth / np.float32(65535)
        else:
            bands = 1, 2, 3
    if channels == "RGBX":
        bands = 1, 2, 3
    if channels == "RGBa" and opacity is not None:  # premultiplied
        values = multiband.straight(values, opacity)
    transparent = info.get("transparency")
    if opacity is None and isinstance(transparent, tuple):
        opacity = (values != np.array(transparent)).any(-1).astype(np.float32)
    no_data = multiband.no_data(tags.get(GDAL_NODATA))
    return Numbers(values, opacity, no_data=no_data, bands=bands, band_count=4 if bands else 0, info=info)


def _unpacked(file: str | bytes, kind: str, mode: str, raw: str) -> tuple[np.ndarray, dict[str, Any]]:
    with open_picture(file, (kind,)) as opened:
        picture: Any = opened
        picture._mode = mode
        tiles = []
        for tile in picture.tile:
            args = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
            tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args))
        picture.tile = tiles
        picture.load()
        return np.asarray(turn_upright(picture)), info_of(picture)
