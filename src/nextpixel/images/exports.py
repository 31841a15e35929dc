"""Pictures for other programs: indexed PNGs, sheets with an index, animations of a drawing."""

from __future__ import annotations

import io
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextpixel.errors import InputError, WorkError, shortened
from nextpixel.files import new_file, read_json, write_json
from nextpixel.images.canvas import BACKGROUND, save_png
from nextpixel.images.pixels import Picture

INDEXED_COLOURS = 256  # of a PNG
GIF_COLOURS = 255  # beside the transparent one
GIF_SECONDS = 2.0
LAST_FRAME_SECONDS = 1.5
GIF_TICK_SECONDS = 0.02  # the shortest that browsers honour

Colours = NDArray[np.uint8]  # (K, 4)


def to_picture(pixels: NDArray[np.uint8], palette: Colours | None = None) -> Picture:
    """An RGB picture of uint8 (H, W, 3), or an RGBA one of (H, W, 4).

    With `palette`, which has all of these RGBA colours, and at most 256 of them: an indexed picture with exactly this
    palette.
    """
    if palette is None or len(palette) > INDEXED_COLOURS:
        return Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    indexed = Image.frombytes("P", (width, height), _indices(pixels, palette).astype(np.uint8).tobytes())
    indexed.putpalette(palette[:, :3].tobytes())
    if (palette[:, 3] < 255).any():
        indexed.info["transparency"] = palette[:, 3].tobytes()
    return indexed


APP = "nextpixel"  # in the index of a sheet


def is_index(path: Path) -> bool:
    """Whether a file is the index of a sheet that write_sheet wrote."""
    try:
        return read_json(path)["meta"]["app"] == APP
    except (InputError, KeyError, TypeError, OSError):
        return False


def write_sheet(path: Path, images: NDArray[np.uint8], names: Sequence[str], palette: Colours | None = None) -> Path:
    """Write pictures (N, H, W, C) side by side into one PNG, without gaps, and an index as .json beside it.

    The index has the common format of texture packers, a hash of frames by name. Returns its path. Raises InputError
    and WorkError.
    """
    sheet, columns = _tiled(images, _empty(images, palette)), _columns(len(images))
    height, width = images.shape[1:3]
    save_png(to_picture(sheet, palette), path)
    frames: dict[str, Any] = {}
    for i, name in enumerate(names):
        frames[name] = {
            "frame": {"x": i % columns * width, "y": i // columns * height, "w": width, "h": height},
            "rotated": False,
            "trimmed": False,
            "spriteSourceSize": {"x": 0, "y": 0, "w": width, "h": height},
            "sourceSize": {"w": width, "h": height},
        }
    meta = {
        "app": APP,
        "image": path.name,
        "format": "RGBA8888" if images.shape[3] == 4 else "RGB888",
        "size": {"w": sheet.shape[1], "h": sheet.shape[0]},
        "scale": "1",
    }
    index = path.with_suffix(".json")
    write_json(index, {"frames": frames, "meta": meta})
    return index


def write_animation(path: Path, images: NDArray[np.uint8], drawn_at: NDArray[np.integer], zoom: int = 1) -> None:
    """Animate how pictures (N, H, W, C) were drawn, side by side: `drawn_at` is the step of each pixel, from 0.

    It is (H, W), or (N, H, W) where the pictures differ. The file is a .gif, or an .mp4, which needs ffmpeg.
    Transparent pixels and those not yet drawn are transparent (in a video light grey), opacity below a half is none.
    Colours are exact where there are at most 255. Raises WorkError.
    """
    sheet = _tiled(images, np.zeros(images.shape[3], np.uint8))
    steps = _tiled(np.broadcast_to(drawn_at, images.shape[:3])[..., None], np.zeros(1, drawn_at.dtype))
    codes = (sheet[..., :3].astype(np.int64) << [16, 8, 0]).sum(-1)
    clear = sheet[..., 3] < 128 if sheet.shape[2] == 4 else np.zeros(codes.shape, bool)
    found, indices = np.unique(np.where(clear, codes[~clear].min(initial=1 << 24), codes), return_inverse=True)
    if len(found) <= GIF_COLOURS:
        palette = bytes(np.stack([found >> 16 & 255, found >> 8 & 255, found & 255], -1).astype(np.uint8))
    else:
        quantised = Image.fromarray(sheet[..., :3]).quantize(GIF_COLOURS, dither=Image.Dither.NONE)
        indices, palette = np.asarray(quantised), bytes(quantised.getpalette() or ())
    frames = []
    for step in np.unique(drawn_at):
        shown = np.where(clear | (steps[..., 0] > step), GIF_COLOURS, indices.reshape(codes.shape))
        large = shown.astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
        frame = Image.frombytes("P", (large.shape[1], large.shape[0]), large.tobytes())
        frame.putpalette(palette.ljust(3 * (GIF_COLOURS + 1), b"\0"))
        frames.append(frame)
    seconds = [max(GIF_TICK_SECONDS, GIF_SECONDS / len(frames))] * (len(frames) - 1) + [LAST_FRAME_SECONDS]
    if path.suffix.lower() == ".mp4":
        return _write_mp4(path, frames, seconds[0] if len(frames) > 1 else LAST_FRAME_SECONDS)
    content = io.BytesIO()
    frames[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[round(1000 * one) for one in seconds],
        loop=0,
        transparency=GIF_COLOURS,
        disposal=1,
        optimize=False,
    )
    with new_file(path) as file:
        file.write(content.getvalue())


def _write_mp4(path: Path, frames: list[Picture], seconds: float) -> None:
    """H.264 in fragments, which need no seeking; each frame for so long, the last one for LAST_FRAME_SECONDS."""
    repeats = [1] * (len(frames) - 1) + [max(1, round(LAST_FRAME_SECONDS / seconds))]
    stream = bytearray()
    for frame, count in zip(frames, repeats):
        opaque = Image.new("RGB", frame.size, BACKGROUND)
        opaque.paste(frame, mask=frame.point([255] * GIF_COLOURS + [0], "L"))
        stream += opaque.tobytes() * count
    size = "{}x{}".format(*frames[0].size)
    source = f"-f rawvideo -pix_fmt rgb24 -video_size {size} -framerate {1 / seconds:.3f} -i -"
    coded = (
        "-vf pad=ceil(iw/2)*2:ceil(ih/2)*2 -c:v libx264 -pix_fmt yuv420p -movflags frag_keyframe+empty_moov -f mp4 -"
    )
    command = ["ffmpeg", "-loglevel", "error", *source.split(), *coded.split()]
    try:
        done = subprocess.run(command, input=stream, capture_output=True)
    except OSError as error:
        raise WorkError(f"{path}: ffmpeg could not be started: {error}") from None
    if done.returncode:
        raise WorkError(f"{path}: ffmpeg failed: {shortened(done.stderr.decode(errors='replace').strip())}")
    with new_file(path) as file:
        file.write(done.stdout)


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _tiled(images: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W, C) side by side, (rows * H, columns * W, C); `empty` (C,) fills the places that are left."""
    count, height, width, channels = images.shape
    columns = _columns(count)
    rows = -(-count // columns)
    cells = np.empty((rows * columns, height, width, channels), images.dtype)
    cells[:count], cells[count:] = images, empty
    ordered = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)  # (rows, H, columns, W, C)
    return np.ascontiguousarray(ordered).reshape(rows * height, columns * width, channels)


def _empty(images: NDArray[np.uint8], palette: Colours | None) -> NDArray[np.uint8]:
    """What fills a sheet: transparency, or, where the palette has none, its first colour."""
    if images.shape[3] == 3:
        return np.array(BACKGROUND, np.uint8)
    return np.zeros(4, np.uint8) if palette is None or not palette.any(1).all() else palette[0]


def _indices(pixels: NDArray[np.uint8], palette: Colours) -> NDArray[np.int64]:
    """Indices (H, W) of pixels (H, W, 4), all of which the palette has."""
    codes, own = (np.ascontiguousarray(one).view(np.uint32)[..., 0] for one in (pixels, palette))
    order = np.argsort(own)
    found = order[np.searchsorted(own, codes, sorter=order).clip(max=len(own) - 1)]
    assert np.array_equal(own[found], codes)
    return found
