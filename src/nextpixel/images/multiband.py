"""TIFF files that PIL cannot read, such as those of many bands, through tifffile; and which bands are shown."""

import io
from typing import Any

import numpy as np

from nextpixel.images.numbers import Numbers
from nextpixel.limits import open_file

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def choose_bands(values: np.ndarray, bands: tuple[int, ...] | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """(H, W, C) -> (H, W, 1 or 3) and the chosen bands: of two or more than three, `bands` or the first ones.

    Raises ValueError for a missing band.
    """
    count = values.shape[2]
    if count in (1, 3):
        return values, ()
    taken = bands or ((1,) if count == 2 else (1, 2, 3))
    if max(taken) > count:
        raise ValueError(f"it has {count} bands, but bands asks for number {max(taken)}")
    return values[..., [band - 1 for band in taken]], taken


def straight(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Undo premultiplication by opacity (H, W), for whole numbers (H, W, C)."""
    opacity = opacity[..., None]
    found = np.divide(values, opacity, out=np.zeros(values.shape, np.float32), where=opacity > 0)
    return np.rint(np.minimum(found, np.iinfo(values.dtype).max)).astype(values.dtype)


def no_data(text: Any) -> float | None:
    """The value of GDAL's no-data tag."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def is_tiff(file: str | bytes) -> bool:
    if isinstance(file, bytes):
        return file[:4] in MARKS
    try:
        with open_file(file) as opened:
            return opened.read(4) in MARKS
    except (OSError, ValueError):
        return False


def read(file: str | bytes, bands: tuple[int, ...] | None, pixel_limit: int) -> Numbers:
    """The first picture of a TIFF file. Raises ValueError, also where tifffile is missing, and what that raises."""
    try:
        import tifffile
    except ImportError:
        raise ValueError("this kind of TIFF needs tifffile; type: pip install tifffile imagecodecs") from None
    with tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
        page: Any = opened.pages[0]
        if page.imagewidth * page.imagelength > pixel_limit:
            raise ValueError(f"{page.imagewidth} x {page.imagelength} is over {pixel_limit:,} pixels")
        if page.photometric not in (0, 1, 2):
            raise ValueError(f"a TIFF of the kind {page.photometric.name} with {page.dtype} cannot be read")
        values = np.asarray(page.asarray())
        tags = {code: page.tags[code].value for code in (274, 42113) if code in page.tags}
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"expected rows, columns and bands, got the axes {page.axes}")
    values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values.reshape(*values.shape[:2], -1)
    turn = int(tags.get(0x0112, 1))  # TIFF's orientation
    values = values.swapaxes(0, 1) if 5 <= turn <= 8 else values
    values = values[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]
    is_whole = values.dtype.kind in "iu"
    opacity, extra = None, [int(kind) for kind in page.extrasamples]
    for place, kind in enumerate(extra, values.shape[2] - len(extra)):
        if kind in (1, 2) and is_whole:
            opacity = values[..., place] / np.float32(np.iinfo(values.dtype).max)
            colours = np.delete(values, place, axis=2)
            values = straight(colours, opacity) if kind == 1 else colours
            break
    count = values.shape[2]
    chosen, taken = choose_bands(values, bands)
    return Numbers(
        chosen,
        opacity,
        stated=(0.0, 255.0) if page.dtype == np.uint8 else None,
        negative=page.photometric == 0,
        no_data=no_data(tags.get(42113)),
        bands=taken,
        band_count=count,
        info={"icc_profile": page.iccprofile} if page.iccprofile else {},
    )
