"""Pictures: decoding to RGB, squares, crops, grids, terminal text, heat maps. The only module that uses PIL.

H and W are rows and columns of pixels, S the side of a square. Images are uint8 (H, W, 3), 0-255, sRGB.
"""

import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextpixel.config import Fit
from nextpixel.errors import InputError
from nextpixel.files import new_file
from nextpixel.limits import check_picture

Picture = Image.Image

IMAGENET_SIDE = 224  # Chen et al. 2020, section 3.1
PIXEL_LIMIT = 178_956_970  # half a GiB of RGB: where PIL itself refuses unless told otherwise

# Without EPS, which starts an outside program, and without formats that PIL knows by name only.
FORMATS = "AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP XBM".split()
EXTENSIONS = frozenset(
    "apng avif avifs bmp bw dds dib gif icns ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pfm "
    "pgm png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm".split()
)
PLUGINS = {  # kind -> extensions, the module that reads them, what pip calls it
    "HEIC": (frozenset({"heic", "heics", "heif", "hif"}), "pillow_heif", "pillow-heif"),
    "JPEG XL": (frozenset({"jxl"}), "pillow_jxl", "pillow-jxl-plugin"),
    "DICOM": (frozenset({"dcm", "dicom"}), "pydicom", "pydicom"),
}
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
UPRIGHT = {  # EXIF orientation (tag 0x0112) -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """One picture that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both as args, so that the exception survives pickling
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.name}: {self.reason}"


# ---- decoding


def readable_extensions() -> frozenset[str]:
    """EXTENSIONS, and those of the kinds in PLUGINS whose library is installed; none is imported."""
    return EXTENSIONS.union(*(ends for ends, module, _ in PLUGINS.values() if find_spec(module)))


def missing_plugin(extension: str) -> tuple[str, str] | None:
    """(kind, what to install) where files of that extension need a library that is not installed."""
    for kind, (ends, module, package) in PLUGINS.items():
        if extension in ends and not find_spec(module):
            return kind, package
    return None


def decode(
    file: str | bytes, name: str, *, pixel_limit: int = PIXEL_LIMIT, formats: tuple[str, ...] | None = None
) -> Picture:
    """A path (str) or encoded bytes -> RGB, first frame, upright. Raises UnreadableImage only.

    Of more pixels than the limit nothing but the header is read. `formats` are some of FORMATS; all unless told.
    """
    with _quiet_pil():
        try:
            check_picture(file)
            with Image.open(
                io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats or _formats()
            ) as picture:
                if picture.width * picture.height > pixel_limit:
                    raise ValueError(f"{picture.width} x {picture.height} is over {pixel_limit:,} pixels")
                return to_rgb(picture)
        except Exception as error:  # hostile bytes make PIL raise nearly anything: struct.error, SyntaxError, ...
            missing = missing_plugin(name.rpartition(".")[2].lower())
            reason = f"{missing[0]} needs {missing[1]}; type: pip install {missing[1]}" if missing else _reason(error)
            raise UnreadableImage(name, reason) from error


def to_rgb(picture: Picture) -> Picture:
    """Any PIL picture -> mode RGB, upright by its EXIF orientation, transparency laid over white.

    Integer pictures of more than 8 bits are scaled so that 65535 is white. Float pictures are taken as 0..1,
    0..255 or 0..65535, the smallest range that holds their largest value. An animation gives the frame it is
    at: the first of a file just opened. A picture that is RGB already is returned itself, not copied.
    """
    with _quiet_pil():
        picture.load()
        picture = _upright(picture)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            return Image.fromarray(_to_8_bit(np.asarray(picture))).convert("RGB")
        if picture.mode in ("La", "RGBa"):  # premultiplied
            picture = picture.convert(picture.mode.upper())
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def from_array(pixels: np.ndarray) -> Picture:
    """uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4: over white) -> RGB picture."""
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return to_rgb(Image.fromarray(pixels))


def _upright(picture: Picture) -> Picture:
    try:
        # After load(): PIL turns a TIFF upright itself while loading and then drops the tag.
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # broken metadata is no reason to refuse sound pixels
        return picture
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        peak = values.max(initial=0.0)
        scale = 255.0 if peak <= 1.0 else 1.0 if peak <= 255.0 else 1.0 / 257.0
        return np.rint(np.clip(values * scale, 0.0, 255.0)).astype(np.uint8)
    return ((np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded v / 257


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is no known image format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims to have over {PIXEL_LIMIT:,} pixels"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(f"{error or type(error).__name__}".split())


@cache
def _formats() -> tuple[str, ...]:
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
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_outer is not None:
                _quiet_outer.__exit__(None, None, None)


# ---- squares


def orient(squares: np.ndarray, orientation: int) -> np.ndarray:
    """Squares (N, S, S, C) turned: by `orientation` % 4 quarter turns counter-clockwise, and from 4 on then mirrored.

    One turn brings the right side to the top, two the bottom, three the left.
    """
    turned = np.rot90(squares, orientation % 4, axes=(1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if orientation >= 4 else turned)


def upright(squares: np.ndarray, orientation: int) -> np.ndarray:
    """What `orient` made of squares, turned back."""
    turned = squares[:, :, ::-1] if orientation >= 4 else squares
    return np.ascontiguousarray(np.rot90(turned, -(orientation % 4), axes=(1, 2)))


def fit_square(picture: Picture, side: int, *, fit: Fit = "crop", filter: str = "bilinear") -> np.ndarray:
    """The picture as a square, uint8 (side, side, 3), antialiased.

    fit  crop: shorter side to `side`, then the centre; imagenet: the same at 224 and then down to `side`, which is how
         Chen et al. 2020 evaluate; squash: width and height to `side` each, which is what transformers does

    A crop is one resize of the centre square, so that a strip of 1 x 10,000 pixels costs no memory. A picture whose
    shorter side is `side` already is only cropped (unless squashed), bit for bit. Raises InputError.
    """
    picture = to_rgb(picture)
    shorter = min(picture.size)
    if shorter == 0:
        raise InputError(f"an image must have at least one pixel, got {picture.width} x {picture.height}")
    if fit == "squash":
        return np.array(picture.resize(_square(side), _filter(filter)))
    if fit == "imagenet" and shorter != side:
        square = fit_square(picture, IMAGENET_SIDE, filter=filter)
        return crop_resize(square, (0, 0, IMAGENET_SIDE, IMAGENET_SIDE), side, filter=filter)
    left, top = (picture.width - shorter) // 2, (picture.height - shorter) // 2
    box = (left, top, left + shorter, top + shorter)
    if shorter == side:
        return np.array(picture.crop(box))
    return np.array(picture.resize(_square(side), _filter(filter), box=box))


def crop_resize(
    square: np.ndarray, box: tuple[float, float, float, float], side: int, *, filter: str = "bilinear"
) -> np.ndarray:
    """The part `box` of a square: uint8 (S, S, 3) -> (side, side, 3), antialiased. Raises InputError.

    box  left, top, right, bottom in pixels of the square and fractions of them
    """
    left, top, right, bottom = box
    height, width = square.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(f"a crop box must lie within 0, 0, {width}, {height}; got {box}")
    return np.array(Image.fromarray(square).resize(_square(side), _filter(filter), box=box))


def _square(side: int) -> tuple[int, int]:
    if side < 1:
        raise InputError(f"side must be at least 1 pixel, got {side}")
    return side, side


def _filter(name: str) -> Image.Resampling:
    if name not in FILTERS:
        raise InputError(f"filter must be one of {', '.join(FILTERS)}; got {name!r}")
    return FILTERS[name]


# ---- grids and files

BACKGROUND = (247, 247, 245)
INK = (64, 64, 68)


def zoom_nearest(pixels: np.ndarray, zoom: int) -> np.ndarray:
    """Each pixel becomes zoom x zoom: (H, W, 3) -> (H * zoom, W * zoom, 3)."""
    if zoom < 1:
        raise InputError(f"zoom must be at least 1, got {zoom}")
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


def grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    zoom: int = 4,
    *,
    gap: int = 8,
    titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str | None]] | None = None,
    text_height: int = 13,
) -> Picture:
    """Rows of images, uint8 (h, w, 3) each, as one RGB picture on a light ground.

    zoom         screen pixels per image pixel; sizes may differ between cells, None leaves a place empty
    gap          pixels between the cells; the outer margin is twice that
    titles       one text above each column
    captions     one text under each cell (None: none); a column grows where its text is wider than its images
    text_height  pixels

    Without text, R rows of C cells of s x s are C*s*zoom + (C+3)*gap wide and R*s*zoom + (R+3)*gap high.
    """
    columns = max((len(row) for row in cells), default=0)
    if columns == 0:
        raise InputError("a grid needs at least one image, got none")
    if titles is not None and len(titles) != columns:
        raise InputError(f"a grid of {columns} columns needs as many titles, got {len(titles)}")
    if captions is not None and [len(row) for row in captions] != [len(row) for row in cells]:
        raise InputError("captions must have the shape of the cells: one text or None for each")
    font = ImageFont.load_default(text_height)
    line = text_height + text_height // 2  # a line of text with the air around it

    def caption(row: int, column: int) -> str:
        return (captions[row][column] or "") if captions else ""

    widths = [int(font.getlength(title)) + 1 if title else 0 for title in titles or [""] * columns]
    heights = [0] * len(cells)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            text = caption(r, c)
            widths[c] = max(widths[c], int(font.getlength(text)) + 1 if text else 0)
            if cell is not None:
                widths[c] = max(widths[c], cell.shape[1] * zoom)
                heights[r] = max(heights[r], cell.shape[0] * zoom)

    margin = 2 * gap
    lines = [line if any(caption(r, c) for c in range(len(row))) else 0 for r, row in enumerate(cells)]
    title_line = line if titles and any(titles) else 0
    width = 2 * margin + sum(widths) + gap * (columns - 1)
    height = 2 * margin + title_line + sum(heights) + sum(lines) + gap * (len(cells) - 1)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    lefts = [margin + sum(widths[:c]) + gap * c for c in range(columns)]
    for left, column_width, title in zip(lefts, widths, titles or [], strict=False):
        draw.text((left + column_width / 2, margin + line / 3), title, INK, font, anchor="mm")
    top = margin + title_line
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            if cell is not None:
                large = Image.fromarray(zoom_nearest(cell, zoom))
                sheet.paste(large, (lefts[c] + (widths[c] - large.width) // 2, top))
            if text := caption(r, c):
                middle = (lefts[c] + widths[c] / 2, top + heights[r] + line * 0.55)
                draw.text(middle, text, INK, font, anchor="mm")
        top += heights[r] + lines[r] + gap
    return sheet


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) or (H, W) as the content of a PNG file, compressed as far as it goes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def save_png(image: Picture | np.ndarray, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, whole or not at all. Raises InputError or WorkError."""
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    if not path.lower().endswith(".png"):
        raise InputError(f"{path}: images are written as PNG, so the name must end in .png")
    if not os.path.isdir(folder):
        raise InputError(f"{path}: the folder {folder} does not exist; create it first or name another place")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; name a file that ends in .png")
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    with new_file(Path(path)) as file:
        picture.save(file, "PNG")


# ---- terminal and heat maps


def terminal_picture(image: np.ndarray, width_limit: int = 80) -> str:
    """uint8 (h, w, 3) -> lines of half blocks in 24-bit ANSI colours, two pixel rows a line.

    Wider than `width_limit` columns it is shrunk. Every line ends with a reset; no newline after the last.
    """
    return "\n".join(_terminal_lines(image, width_limit))


def terminal_row(images: Sequence[np.ndarray], width_limit: int = 80, *, gap: int = 2) -> str:
    """Images side by side, going on in a further band below where `width_limit` columns are full."""
    bands: list[list[tuple[list[str], int]]] = []
    used = 0  # columns of the last band
    for image in images:
        width = min(image.shape[1], width_limit)
        if not bands or used + gap + width > width_limit:
            bands.append([])
            used = -gap
        bands[-1].append((_terminal_lines(image, width_limit), width))
        used += gap + width
    texts = []
    for band in bands:
        height = max(len(lines) for lines, _ in band)
        even = [lines + [" " * width] * (height - len(lines)) for lines, width in band]
        texts.append("\n".join((" " * gap).join(row).rstrip(" ") for row in zip(*even, strict=True)))
    return "\n\n".join(texts)


def _terminal_lines(image: np.ndarray, width_limit: int) -> list[str]:
    if width_limit < 1:
        raise InputError(f"a terminal needs at least 1 column, got {width_limit}")
    height, width = image.shape[:2]
    if width > width_limit:
        size = (width_limit, max(1, round(height * width_limit / width)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    lines = []
    for top in range(0, len(image), 2):
        line, last = "", ""
        for column in range(image.shape[1]):
            code = "38;2;{};{};{}".format(*image[top, column])
            if top + 1 < len(image):
                code += ";48;2;{};{};{}".format(*image[top + 1, column])
            line += "▀" if code == last else f"\x1b[{code}m▀"
            last = code
        lines.append(line + "\x1b[0m")
    return lines


HEAT = np.array(  # black, purple, red, orange, yellow: after matplotlib's inferno, so lightness only rises
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ]
)  # fmt: skip


def heatmap(values: np.ndarray, vmax: float | None = None, vmin: float = 0.0) -> np.ndarray:
    """Numbers (H, W) -> uint8 (H, W, 3): vmin is black, vmax (None: the largest) pale yellow, NaN grey."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"a heat map needs values of shape (H, W), got {values.shape}")
    finite = np.isfinite(values)
    if vmax is None:
        vmax = float(values[finite].max()) if finite.any() else vmin
    span = vmax - vmin if vmax > vmin else 1.0
    place = np.nan_to_num(np.clip((values - vmin) / span, 0.0, 1.0)) * (len(HEAT) - 1)
    channels = [np.interp(place, range(len(HEAT)), HEAT[:, c]) for c in range(3)]
    colours = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    colours[np.isnan(values)] = 128
    return colours
