"""Output: grids, PNG files, terminal text, heat maps."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextpixel.errors import InputError
from nextpixel.files import new_file
from nextpixel.images.pixels import Picture

# ---- grids and files

BACKGROUND = (247, 247, 245)
INK = (64, 64, 68)
CHECKS = (140, 115)
CHECK_PIXELS = 2


def zoom_nearest(pixels: np.ndarray, zoom: int) -> np.ndarray:
    """Each pixel becomes zoom x zoom: (H, W, C) -> (H * zoom, W * zoom, C)."""
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
    """Rows of images, uint8 (h, w, 3 or 4) each, as one RGB picture on a light ground.

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
                place = (lefts[c] + (widths[c] - large.width) // 2, top)
                sheet.paste(large, place, large if large.mode == "RGBA" else None)
            if text := caption(r, c):
                middle = (lefts[c] + widths[c] / 2, top + heights[r] + line * 0.55)
                draw.text(middle, text, INK, font, anchor="mm")
        top += heights[r] + lines[r] + gap
    return sheet


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3 or 4) or (H, W) as the content of a PNG file, at the highest compression."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def save_png(image: Picture | np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a PNG file atomically. Raises InputError or WorkError."""
    path = os.fspath(path)
    if not path.lower().endswith(".png"):
        raise InputError(f"{path}: expected a name that ends in .png")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; name a file that ends in .png")
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    with new_file(Path(path)) as file:
        picture.save(file, "PNG")


# ---- terminal and heat maps


def terminal_row(images: Sequence[np.ndarray], width_limit: int = 80, *, gap: int = 2) -> str:
    """Images uint8 (h, w, 3 or 4) side by side as half blocks in 24-bit ANSI colours, two pixel rows a line.

    Transparency is over a checkerboard. Images wider than `width_limit` columns are shrunk, and where a row is full the
    next one begins below. Every line of an image ends with a reset; there is no final newline.
    """
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
    if image.shape[2] == 4:
        image = _over_checkerboard(image)
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


def _over_checkerboard(image: np.ndarray) -> np.ndarray:
    """(h, w, 4) -> (h, w, 3)"""
    rows, columns = np.indices(image.shape[:2]) // CHECK_PIXELS
    ground = np.array(CHECKS)[(rows + columns) % 2][..., None]
    alpha = image[..., 3:] / 255
    return np.rint(image[..., :3] * alpha + ground * (1 - alpha)).astype(np.uint8)


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
