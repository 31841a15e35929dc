"""Pictures: read from files and arrays (pixels), fitted to a size, drawn on a canvas. Only this package uses PIL.

H and W are rows and columns of pixels. Images are uint8 (H, W, 3), 0-255, sRGB.
"""

from nextpixel.images.canvas import (
    BACKGROUND,
    HEAT,
    grid,
    heatmap,
    png_bytes,
    save_png,
    terminal_row,
    zoom_nearest,
)
from nextpixel.images.exports import to_picture, write_animation, write_sheet
from nextpixel.images.fitting import crop_resize, fit_image, join_pictures, orient, spread, undo_orient
from nextpixel.images.lists import PictureList
from nextpixel.images.numbers import Numbers, find_range
from nextpixel.images.palette_files import FORMATS as PALETTE_FORMATS
from nextpixel.images.palette_files import read_palette_file, write_palette_file
from nextpixel.images.pixels import (
    EXTENSIONS,
    FORMATS,
    Content,
    Picture,
    UnreadableImage,
    as_channels,
    decode,
    from_array,
    missing_plugin,
    read_frames,
    read_pixels,
    readable_extensions,
    to_rgb,
)
from nextpixel.images.sprites import read_image, transparency
