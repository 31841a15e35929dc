"""DICOM files, through pydicom: the first frame, in the file's own window or, without one, in its units."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from nextpixel.images.numbers import Numbers
from nextpixel.limits import open_file


def matches(head: bytes, end: str) -> bool:
    """By the mark after the preamble, or by a name that ends in .dcm or .dicom."""
    return head[128:132] == b"DICM" or end in ("dcm", "dicom")


def frames(file: str | bytes, pixel_limit: int) -> Iterator[tuple[str, Numbers]]:
    """The first frame alone."""
    yield "", read(file, pixel_limit)


def read(file: str | bytes, pixel_limit: int) -> Numbers:
    """Raises ValueError, also where pydicom is missing, and whatever pydicom raises for a damaged file."""
    try:
        import pydicom
        from pydicom import pixels as processing
    except ImportError:
        raise ValueError("DICOM needs pydicom; type: pip install pydicom") from None
    with open_file(file) if isinstance(file, str) else io.BytesIO(file) as opened:
        found: Any = pydicom.dcmread(opened)
    if "PixelData" not in found and "FloatPixelData" not in found and "DoubleFloatPixelData" not in found:
        raise ValueError("this DICOM file holds no picture")
    if found.Rows * found.Columns > pixel_limit:
        raise ValueError(f"{found.Columns} x {found.Rows} is over {pixel_limit:,} pixels")
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):  # of enhanced objects
        for group in found.get(groups, [])[:1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(name, [])[:1]:
                    found.update(item)
    values = processing.pixel_array(found, index=0)
    interpretation = found.PhotometricInterpretation
    if interpretation == "PALETTE COLOR":
        values = processing.apply_color_lut(values, found)
        return Numbers(values, stated=(0.0, float(np.iinfo(values.dtype).max)))
    if values.ndim == 3:
        return Numbers(values, stated=(0.0, 2.0**found.BitsStored - 1))
    padding = found.get("PixelPaddingValue")
    hidden = np.zeros(values.shape, bool) if padding is None else values == padding
    values = processing.apply_modality_lut(values, found)
    window = _window(values, found, processing)
    if hidden.any():
        values = np.where(hidden, np.nan, values)
    return Numbers(values[..., None], window=window, negative=interpretation == "MONOCHROME1")


def _window(values: np.ndarray, found: Any, processing: Any) -> np.ndarray | None:
    """uint8 (H, W, 1): the values through the file's first window or table; None where it has none."""
    if table := found.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** table[0].LUTDescriptor[2] - 1
    elif found.get("WindowCenter") is not None and found.get("WindowWidth") is not None:
        try:
            low, high = processing.apply_windowing(np.array([-1e9, 1e9]), found)
        except ValueError:  # a width of 0, or below 1 in maps of measurements
            return None
    else:
        return None
    shown = (processing.apply_voi_lut(values, found).astype(np.float64) - low) / (high - low)
    pixels: np.ndarray = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)[..., None]
    return pixels
