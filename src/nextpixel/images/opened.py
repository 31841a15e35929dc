"""A picture that PIL has opened: its orientation, its metadata, and whether its last channel is opacity."""

import io
from typing import Any

from PIL import Image

Picture = Image.Image

EXTRA_SAMPLES = 338  # a TIFF tag
EXIF_TRANSPOSITIONS = {  # EXIF orientation (tag 0x0112) -> the transposition that makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(file: str | bytes, formats: tuple[str, ...]) -> Picture:
    picture = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats)
    transparent, tile = picture.info.get("transparency"), getattr(picture, "tile", None)
    if picture.format == "PNG" and isinstance(transparent, int) and tile and tile[0][3] in ("L;2", "L;4"):
        picture.info["transparency"] = transparent * (255 // (2 ** int(tile[0][3][2:]) - 1))  # as PIL scales its pixels
    return picture


def info_of(picture: Picture) -> dict[str, Any]:
    return {str(name): value for name, value in picture.info.items()}


def turn_upright(picture: Picture) -> Picture:
    try:
        # After load(): PIL turns a TIFF upright itself while loading and then drops the tag.
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # broken metadata is no reason to refuse sound pixels
        return picture
    return picture.transpose(EXIF_TRANSPOSITIONS[orientation]) if orientation in EXIF_TRANSPOSITIONS else picture


def is_opacity(tags: Any) -> bool:
    """Whether a TIFF's extra sample is declared as opacity; 999 is Corel Draw's code."""
    return (tags.get(EXTRA_SAMPLES) or (0,))[0] in (1, 2, 999)


def means_opacity(picture: Picture, tags: Any) -> bool:
    """Whether PIL's opacity channel is opacity by the file format. Call before loading."""
    kind, file = picture.format, getattr(picture, "fp", None)
    if picture.mode not in ("RGBA", "RGBa", "LA", "La", "PA"):
        return True
    if kind == "TIFF":
        return is_opacity(tags)
    if kind == "TGA" and file is not None:
        place = file.tell()
        file.seek(17)
        attribute_bits = file.read(1)[0] & 15
        file.seek(place)
        if attribute_bits == 0:
            return False
    if kind == "PSD" and file is not None:
        return _has_psd_opacity(file)
    if kind == "JPEG2000" and file is not None:
        place = file.tell()
        file.seek(0)
        boxes = file.read(1 << 16).partition(b"jp2c")[0]
        file.seek(place)
        _, found, definition = boxes.partition(b"cdef")
        count = int.from_bytes(definition[:2], "big")
        kinds = [int.from_bytes(definition[4 + 6 * i : 6 + 6 * i], "big") for i in range(min(count, 8))]
        return bool(found) and any(value in (1, 2) for value in kinds)
    if kind in ("BMP", "DIB", "DDS", "ICO", "TGA") and picture.mode in ("RGBA", "LA"):
        return picture.getchannel("A").getextrema() != (0, 0)  # an unused byte
    return True


def _has_psd_opacity(file: Any) -> bool:
    """In a PSD file a negative number of layers means that the fourth channel is opacity, not a selection."""
    place = file.tell()
    try:
        file.seek(26)
        for _ in range(2):  # colour table, resources
            file.seek(int.from_bytes(file.read(4), "big"), 1)
        section, layers = (int.from_bytes(file.read(4), "big") for _ in range(2))
        return section > 0 and layers > 0 and int.from_bytes(file.read(2), "big", signed=True) < 0
    finally:
        file.seek(place)
