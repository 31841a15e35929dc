"""Files, PIL pictures and arrays -> RGB, upright by the EXIF orientation, as a viewer shows them; or exact RGBA."""

import itertools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from nextpixel.config import Levels
from nextpixel.errors import clipped
from nextpixel.images import multiband
from nextpixel.images.formats import FORMATS as FURTHER_FORMATS
from nextpixel.images.formats import find_format
from nextpixel.images.multiband import choose_bands
from nextpixel.images.numbers import Numbers, coloured
from nextpixel.images.opened import Picture, info_of, means_opacity, open_picture, turn_upright
from nextpixel.images.profiles import to_srgb
from nextpixel.images.wide import BITS, PHOTOMETRIC, SAMPLE_FORMAT, file_of, of_grey, of_wide, wide_mode
from nextpixel.limits import check_frames, check_picture

Content = str | bytes | Picture | np.ndarray  # a path, an encoded picture, or pixels

PIXEL_LIMIT = 178_956_970  # half a GiB of RGB: where PIL itself refuses by default

# Without EPS, which runs another program, and formats that PIL only identifies.
FORMATS = "AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP XBM".split()
EXTENSIONS = frozenset(
    "apng avif avifs bmp bw dds dib gif icns ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pfm "
    "pgm png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm".split()
)
SAMPLES, PLANAR = 277, 284  # TIFF tags
ANIMATED = ("GIF", "PNG", "WEBP")  # other files of several pictures hold one in several sizes, or pages
PLUGINS = {  # kind -> extensions, the module that reads them, what pip calls it
    "HEIC": (frozenset({"heic", "heics", "heif", "hif"}), "pillow_heif", "pillow-heif"),
    "JPEG XL": (frozenset({"jxl"}), "pillow_jxl", "pillow-jxl-plugin"),
    "DICOM": (frozenset({"dcm", "dicom"}), "pydicom", "pydicom"),
}


class UnreadableImage(ValueError):
    """One picture that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both as args, so that the exception survives pickling
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return clipped(f"cannot read the image {self.name}: {self.reason}")


def readable_extensions() -> frozenset[str]:
    """EXTENSIONS, those of FURTHER_FORMATS and those in PLUGINS whose library is installed; none is imported."""
    further = (format.extensions for format in FURTHER_FORMATS.values())
    return EXTENSIONS.union(*further, *(ends for ends, module, _ in PLUGINS.values() if find_spec(module)))


def missing_plugin(extension: str) -> tuple[str, str] | None:
    """(kind, what to install) where files of that extension need a library that is not installed."""
    for kind, (ends, module, package) in PLUGINS.items():
        if extension in ends and not find_spec(module):
            return kind, package
    return None


def decode(
    content: Content,
    name: str,
    *,
    levels: Levels = Levels(),  # noqa: B008
    pixel_limit: int = PIXEL_LIMIT,
    formats: tuple[str, ...] | None = None,
) -> Picture:
    """A path, encoded bytes, a PIL picture or an array -> RGB, first frame, upright. Raises UnreadableImage only.

    Of a picture over the limit only the header is read. `formats` are some of FORMATS; by default all.
    """
    pixels = read_pixels(content, name, bands=levels.bands, pixel_limit=pixel_limit, formats=formats)
    return pixels if isinstance(pixels, Picture) else coloured(pixels, levels)


def read_pixels(
    content: Content,
    name: str,
    *,
    bands: tuple[int, ...] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
    formats: tuple[str, ...] | None = None,
    peek: bool = False,
) -> Picture | Numbers:
    """The same, but numbers whose range the format does not state, or of more than three bands, stay as they are.

    With `peek` only these are decoded; of any other file the header is read.
    """
    with _readable(name, pixel_limit):
        if isinstance(content, np.ndarray):
            return _of_array(content, bands)
        if isinstance(content, Picture):
            return _of_picture(content, bands, peek=peek)
        check_picture(content)
        if further := find_format(content, served=formats is not None):
            _, frame = next(further.frames(content, pixel_limit))
            return _of_picture(frame, bands) if isinstance(frame, Picture) else frame
        try:
            opened = open_picture(content, formats or all_formats())
        except Image.UnidentifiedImageError:
            if formats is None and multiband.is_tiff(content):
                return multiband.read(content, bands, pixel_limit)
            raise
        with opened as picture:
            _check_size(picture, pixel_limit)
            return _of_picture(picture, bands, content, peek)


def read_frames(
    content: Content, name: str, *, pixel_limit: int = PIXEL_LIMIT, formats: tuple[str, ...] | None = None
) -> list[tuple[str, np.ndarray]]:
    """Every picture of a file, an array or a PIL picture with its exact colours. Raises UnreadableImage only.

    Each is what distinguishes it in the file, "" for a single one, and uint8 (H, W, 4); fully transparent pixels are
    (0, 0, 0, 0). An animation gives its frames as they are shown.
    """
    with _readable(name, pixel_limit):
        found: list[tuple[str, np.ndarray]] = []
        for part, frame in _frames(content, pixel_limit, formats):
            check_frames(len(found) + 1, frame.width * frame.height, pixel_limit)
            found.append((part, _exact(frame)))
        if not found:
            raise ValueError("it holds no picture")
        return found


def _frames(content: Content, pixel_limit: int, formats: tuple[str, ...] | None) -> Iterator[tuple[str, Picture]]:
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim not in (2, 3) or content.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(f"expected uint8 (H, W), (H, W, 3) or (H, W, 4), got {content.dtype} {content.shape}")
        yield "", Image.fromarray(np.ascontiguousarray(content[..., 0] if content.shape[2:] == (1,) else content))
    elif isinstance(content, Picture):
        yield "", content
    else:
        check_picture(content)
        if further := find_format(content, served=formats is not None):
            for part, frame in further.frames(content, pixel_limit):
                if not isinstance(frame, Picture):
                    raise ValueError("expected 8 bits a channel for exact colours, got more")
                yield part, frame
            return
        with open_picture(content, formats or all_formats()) as picture:
            _check_size(picture, pixel_limit)
            if picture.format not in ANIMATED or not getattr(picture, "is_animated", False):
                yield "", picture
                return
            poster = bool(getattr(picture, "default_image", False))  # of an APNG, not part of the animation
            for number, frame in enumerate(itertools.islice(ImageSequence.Iterator(picture), poster, None)):
                yield str(number), frame.copy()


def _check_size(picture: Picture, pixel_limit: int) -> None:
    if picture.width * picture.height > pixel_limit:
        raise ValueError(f"{picture.width} x {picture.height} is over {pixel_limit:,} pixels")


@contextmanager
def _readable(name: str, pixel_limit: int) -> Iterator[None]:
    """Anything raised becomes an UnreadableImage of that name."""
    with _quiet_pil():
        try:
            yield
        except Exception as error:  # hostile bytes make PIL raise nearly anything: struct.error, SyntaxError, ...
            missing = missing_plugin(name.rpartition(".")[2].lower())
            reason = (
                f"{missing[0]} needs {missing[1]}; type: pip install {missing[1]}"
                if missing
                else _reason(error, pixel_limit)
            )
            raise UnreadableImage(name, reason) from error


def to_rgb(picture: Picture, levels: Levels = Levels()) -> Picture:  # noqa: B008
    """Any PIL picture -> RGB in sRGB, upright by its EXIF orientation, transparency laid over white.

    Metadata is dropped, so the function is idempotent. Values of more than 8 bits are scaled by `levels`. Of an
    animation it is the current frame. A plain RGB picture is returned itself.
    """
    with _quiet_pil():
        pixels = _of_picture(picture, levels.bands)
        return pixels if isinstance(pixels, Picture) else coloured(pixels, levels)


def from_array(pixels: np.ndarray) -> Picture:
    """uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4: over white) -> RGB picture."""
    return decode(pixels, "the array")


def as_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (N, H, W, 3 or 4) -> (N, H, W, channels): four become three over white, three become opaque."""
    if images.shape[3] == channels:
        return images
    if channels == 4:
        return np.pad(images, [(0, 0)] * 3 + [(0, 1)], constant_values=255)
    return np.stack([np.asarray(from_array(image)) for image in images])


def _of_array(array: np.ndarray, bands: tuple[int, ...] | None) -> Picture | Numbers:
    values = array[..., None] if array.ndim == 2 else array
    if values.ndim != 3 or not values.size:
        raise ValueError(f"expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with pixels, got the shape {array.shape}")
    channels = values.shape[2]
    if array.dtype == np.uint8 and (channels in (1, 3) or (channels == 4 and bands is None)):
        return _of_picture(Image.fromarray(np.ascontiguousarray(values[..., 0] if channels == 1 else values)), None)
    values, taken = choose_bands(values, bands)
    stated = (0.0, 255.0) if array.dtype == np.uint8 else None
    return Numbers(values, stated=stated, bands=taken, band_count=channels)


def _of_picture(
    picture: Picture, bands: tuple[int, ...] | None, file: str | bytes | None = None, peek: bool = False
) -> Picture | Numbers:
    tags = getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}
    samples = int(tags.get(SAMPLES, 1))
    wide = wide_mode(picture)
    in_planes = tags.get(PLANAR) == 2 and max(tags.get(BITS, (8,))) > 8  # which PIL takes for bytes
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2 and tags.get(BITS) == (8,)  # which PIL takes for unsigned
    if in_planes or signed or (bands and samples > 3):
        return multiband.read(file or file_of(picture), bands, PIXEL_LIMIT)
    if wide:
        return of_wide(file or file_of(picture), str(picture.format), *wide, tags)
    is_wide = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    if peek and not is_wide and samples <= 3:
        return picture
    is_opaque = not means_opacity(picture, tags)
    picture.load()
    info = info_of(picture)
    upright = turn_upright(picture)
    if is_wide:
        return of_grey(upright, info, picture.format, tags)
    if is_opaque:
        info.pop("transparency", None)
        upright = upright.convert("RGB") if upright.mode in ("RGBA", "RGBa", "P", "PA") else upright
        upright = upright.convert("L") if upright.mode in ("LA", "La") else upright
        upright.info.pop("transparency", None)
    if samples > 3 and (is_opaque or picture.mode == "RGB") and tags.get(PHOTOMETRIC) == 2:
        return Numbers(np.asarray(upright), stated=(0.0, 255.0), bands=(1, 2, 3), band_count=samples, info=info)
    return _plain(_over_white(upright, info), picture)


def _plain(rgb: Picture, original: Picture) -> Picture:
    """Drop metadata that would be applied twice: orientation, profile, gamma, transparent colour."""
    if rgb is original and type(rgb) is Picture and not rgb.info and not rgb.getexif():
        return rgb
    rgb = rgb.copy()
    rgb.info = {}
    return rgb


def _exact(picture: Picture) -> np.ndarray:
    """uint8 (H, W, 4) in sRGB; values of files in sRGB are unchanged."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16") or wide_mode(picture):
        raise ValueError("expected 8 bits a channel for exact colours, got more")
    is_opaque = not means_opacity(picture, getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {})
    picture.load()
    pixels = np.array(_with_opacity(turn_upright(picture), info_of(picture)).convert("RGBA"))
    if is_opaque:
        pixels[..., 3] = 255
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def _over_white(picture: Picture, info: dict[str, Any]) -> Picture:
    """8 bits -> RGB in sRGB."""
    pixels = _with_opacity(picture, info)
    if pixels.mode == "RGB":
        return pixels
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


def _with_opacity(picture: Picture, info: dict[str, Any]) -> Picture:
    """8 bits -> RGB in sRGB, or RGBA where it has transparency."""
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    if not picture.has_transparency_data:
        return to_srgb(picture, info)
    rgba = picture.convert("RGBA")
    if picture.mode == "LA":
        colours = picture.getchannel("L")
    else:
        colours = rgba.convert("RGB")
    pixels = to_srgb(colours, info).convert("RGBA")
    pixels.putalpha(rgba.getchannel("A"))
    return pixels


def _reason(error: Exception, pixel_limit: int) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is not a known image format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims to have over {pixel_limit:,} pixels"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = re.sub(r"""\bb(['"])(.*?)\1""", r"\2", str(error))  # PIL quotes bytes
    return " ".join(text.split()) or type(error).__name__


@cache
def all_formats() -> tuple[str, ...]:
    for library in ("PIL", "tifffile", "pydicom"):  # or they would print what errors say as well
        logging.getLogger(library).addHandler(logging.NullHandler())
    Image.init()  # fills Image.OPEN with what this build of PIL can read
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  # registers itself
    return tuple(name for name in (*FORMATS, "HEIF", "JXL") if name in Image.OPEN)


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_outer: warnings.catch_warnings | None = None


@contextmanager
def _quiet_pil() -> Iterator[None]:
    """Silences PIL's warnings (odd metadata, large pictures), which would be errors under `python -W error`.

    Counted under a lock: warnings.catch_warnings saves and restores one global list, and threads that decode
    at the same time would restore each other's.
    """
    global _quiet_depth, _quiet_outer
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_outer = warnings.catch_warnings()
            _quiet_outer.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom|tifffile)(\.|$)")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_outer is not None:
                _quiet_outer.__exit__(None, None, None)
