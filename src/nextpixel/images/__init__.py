"""Pictures: read from files and arrays (pixels), fitted to a size, drawn on a canvas. Only this room uses PIL.

H and W are rows and columns of pixels. Images are uint8 (H, W, 3), 0-255, sRGB.
"""

from nextpixel.images.canvas import (
    BACKGROUND,
    HEAT,
    INK,
    grid,
    heatmap,
    png_bytes,
    save_png,
    terminal_row,
    zoom_nearest,
)
from nextpixel.images.exports import to_picture, write_animation, write_sheet
from nextpixel.images.fitting import crop_resize, fit_image, join_pictures, orient, undo_orient
from nextpixel.images.lists import PictureList
from nextpixel.images.numbers import Numbers, coloured, find_range
from nextpixel.images.palette_files import FORMATS as PALETTE_FORMATS
from nextpixel.images.palette_files import is_palette_file, read_palette_file, write_palette_file
from nextpixel.images.pixels import (
    EXTENSIONS,
    FORMATS,
    PIXEL_LIMIT,
    Content,
    Picture,
    UnreadableImage,
    decode,
    from_array,
    missing_plugin,
    read_frames,
    read_pixels,
    readable_extensions,
    to_rgb,
)
from nextpixel.images.sprites import place_first, read_image, transparency

__all__ = [
    "BACKGROUND",
    "EXTENSIONS",
    "FORMATS",
    "HEAT",
    "INK",
    "PALETTE_FORMATS",
    "PIXEL_LIMIT",
    "Content",
    "Numbers",
    "Picture",
    "PictureList",
    "UnreadableImage",
    "coloured",
    "crop_resize",
    "decode",
    "find_range",
    "fit_image",
    "from_array",
    "grid",
    "heatmap",
    "is_palette_file",
    "join_pictures",
    "missing_plugin",
    "orient",
    "place_first",
    "png_bytes",
    "read_palette_file",
    "read_frames",
    "read_image",
    "read_pixels",
    "readable_extensions",
    "save_png",
    "terminal_row",
    "to_picture",
    "to_rgb",
    "transparency",
    "undo_orient",
    "write_animation",
    "write_palette_file",
    "write_sheet",
    "zoom_nearest",
]
