"""Decoding to RGB, fitting, crops, grids, files, terminal text, heat maps."""

import io
import pickle
import struct
import threading
import warnings
import zlib
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextpixel import images
from nextpixel.errors import InputError, WorkError
from nextpixel.images import (
    UnreadableImage,
    crop_resize,
    decode,
    fit_image,
    grid,
    heatmap,
    save_png,
    terminal_row,
    to_rgb,
    zoom_nearest,
)

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
MODES += ["I;16", "I;16L", "I;16B"]
ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def in_mode(pixels: np.ndarray, mode: str) -> Image.Image:
    picture = Image.fromarray(pixels)
    if mode.startswith("I;16"):
        order = ">u2" if mode.endswith("B") else "<u2"
        size = (pixels.shape[1], pixels.shape[0])
        return Image.frombytes(mode, size, (pixels[..., 0].astype(order) * 257).tobytes())
    if mode in ("RGBa", "La"):
        return picture.convert({"RGBa": "RGBA", "La": "LA"}[mode]).convert(mode)
    return picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)


# ---- to RGB


@given(st.sampled_from(MODES), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_any_mode_size_and_aspect_becomes_rgb_at_the_size(mode, height, width, side, seed):
    picture = in_mode(noise(height, width, seed=seed), mode)
    assert to_rgb(picture).mode == "RGB"
    assert to_rgb(picture).size == (width, height)
    image = fit_image(picture, (side, 13 - side))
    assert image.shape == (side, 13 - side, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32"])
def test_16_bit_is_scaled_so_that_65535_is_white(dtype):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_a_16_bit_png_file_keeps_its_whole_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, 0)
    read = np.asarray(decode(encoded(Image.fromarray(ramp)), "ramp.png"))
    assert (read[0, :, 0] == np.arange(256)).all()


def test_integers_out_of_range_are_cut_off():
    assert np.asarray(to_rgb(Image.fromarray(np.array([[-5, 10**9]], np.int32))))[0, :, 0].tolist() == [
        0,
        255,
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-3.0, float("nan"), 1.0], [0, 0, 255]),
        ([float("inf"), float("-inf"), 0.5], [0, 0, 128]),
    ],
)
def test_float_pictures_take_the_smallest_common_range(values, expected):
    picture = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(to_rgb(picture))[0, :, 2].tolist() == expected


@given(st.tuples(*[st.integers(0, 255)] * 4))
def test_transparency_is_laid_over_white(colour):
    red, green, blue, alpha = colour
    seen = np.asarray(to_rgb(Image.new("RGBA", (2, 2), colour)))[0, 0].astype(float)
    truth = np.array([red, green, blue]) * alpha / 255 + 255 - alpha
    assert abs(seen - truth).max() <= 1.0
    if alpha == 255:
        assert seen.tolist() == [red, green, blue]


def test_transparent_palette_entries_and_colours_become_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        data = encoded(palette, transparency=transparency)
        assert np.asarray(decode(data, "p.png"))[0].tolist() == [[200, 0, 0], [255, 255, 255]]
    grey = Image.fromarray(np.array([[10, 20]], np.uint8))
    assert np.asarray(decode(encoded(grey, transparency=20), "l.png"))[0, :, 0].tolist() == [10, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(kind, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)  # all corners differ, in blocks that survive JPEG
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {  # the definition in the EXIF standard: where row 0 and column 0 of the stored pixels belong
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, quality=95)
    read = np.asarray(decode(data, "turned")).astype(int)
    assert read.shape == upright.shape
    assert abs(read - upright)[4:12:7, 8:24:15].max() < 12


def test_broken_exif_is_ignored():
    data = encoded(Image.fromarray(noise(8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert decode(data, "x.jpg").size == (8, 8)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(decode(data, "moving"))[0, 0].tolist() == [255, 0, 0]


def test_rgb_is_returned_itself():
    picture = Image.fromarray(noise(3, 4))
    assert to_rgb(picture) is picture


# ---- files that cannot be read


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_random_bytes_are_unreadable_and_nothing_else(data):
    for start in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"\xff\xd8\xff",
        b"BM",
        b"RIFF\x10\0\0\0WEBP",
    ):
        try:
            decode(start + data, "noise.png")
        except UnreadableImage as error:
            assert error.name == "noise.png"
            assert error.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_unreadable(kind):
    data = encoded(Image.fromarray(noise(40, 40)), kind)
    with pytest.raises(UnreadableImage, match="cannot read the image half"):
        decode(data[: len(data) // 2], "half")


def test_reasons_are_readable(tmp_path):
    with pytest.raises(UnreadableImage, match="not a known image format"):
        decode(b"hello", "a.png")
    with pytest.raises(UnreadableImage, match=r"cannot read the image gone\.png: no such file"):
        decode(str(tmp_path / "gone.png"), "gone.png")
    with pytest.raises(UnreadableImage, match="not a known image format"):  # would start Ghostscript
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"), "a.eps")


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused(monkeypatch):
    with pytest.raises(UnreadableImage, match="pixels"):
        decode(bomb(50_000), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some programs do
    with pytest.raises(UnreadableImage, match="50000 x 50000 is over 178,956,970 pixels"):
        decode(bomb(50_000), "bomb.png")


def test_pil_warnings_do_not_leak_even_from_threads(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # PIL warns above this, refuses above twice as many
    data = encoded(Image.fromarray(noise(9, 9)))
    before = list(warnings.filters)
    failed = []

    def read() -> None:
        for _ in range(50):
            try:
                assert decode(data, "big.png").size == (9, 9)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert warnings.filters == before


def test_unreadable_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "it is torn")))
    assert (error.name, error.reason, str(error)) == (
        "a.png",
        "it is torn",
        "cannot read the image a.png: it is torn",
    )


# ---- fitting and crops


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99), st.sampled_from(["PNG", "BMP", "TIFF", "GIF"]))
@settings(max_examples=40, deadline=None)
def test_a_lossless_file_at_its_own_size_is_bit_identical(height, width, seed, kind):
    pixels = noise(height, width, seed=seed)
    if kind == "GIF":
        pixels = pixels[..., :1].repeat(3, axis=2)
    assert (fit_image(decode(encoded(Image.fromarray(pixels), kind), "x"), (height, width)) == pixels).all()


@pytest.mark.parametrize("fit", ["crop", "imagenet"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(5, 8, (5, 5)), (5, 9, (5, 5)), (8, 5, (5, 5)), (9, 5, (5, 5)), (9, 4, (6, 4)), (6, 9, (6, 4)), (4, 9, (4, 6))],
)
def test_where_one_side_fits_it_is_only_cropped(height, width, size, fit):
    pixels = noise(height, width)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    expected = pixels[top : top + size[0], left : left + size[1]]
    assert (fit_image(Image.fromarray(pixels), size, fit) == expected).all()


@pytest.mark.parametrize(("columns", "left"), [(30, 10), (50, 0), (20, 15)])
def test_a_crop_is_resize_then_centre_crop(columns, left):
    picture = Image.fromarray(noise(60, 100)).resize((200, 120), Image.Resampling.BICUBIC)  # smooth
    whole = np.asarray(picture.resize((50, 30), Image.Resampling.BILINEAR))
    assert (fit_image(picture, (30, columns)) == whole[:, left : left + columns]).all()


@pytest.mark.parametrize("size", [(32, 32), (24, 16), (16, 40)])
def test_imagenet_goes_by_a_shorter_side_of_224(size):
    picture = Image.fromarray(noise(300, 500))
    first = round(size[0] * 224 / min(size)), round(size[1] * 224 / min(size))
    middle = Image.fromarray(fit_image(picture, first))
    expected = np.asarray(middle.resize(size[::-1], Image.Resampling.BILINEAR))
    assert (fit_image(picture, size, "imagenet") == expected).all()
    assert not (fit_image(picture, size) == expected).all()


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1)])
def test_extreme_aspects_work(size):
    assert (fit_image(Image.new("RGB", size, (9, 8, 7)), (32, 20)) == (9, 8, 7)).all()


def test_the_resize_is_antialiased():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(fit_image(Image.fromarray(checks), (8, 8)).astype(int) - 127.5).max() < 8


def test_bad_sizes_and_empty_pictures_are_refused():
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(InputError, match="expected a size of at least 1 x 1 pixels, got 3 x 0"):
        fit_image(picture, (3, 0), "squash")
    with pytest.raises(InputError, match="at least one pixel, got 0 x 4"):
        fit_image(Image.new("RGB", (0, 4)), (2, 3))


def test_crop_resize_of_whole_pixels_is_a_crop():
    square = noise(16, 16)
    assert (crop_resize(square, (3, 2, 11, 10), (8, 8)) == square[2:10, 3:11]).all()
    assert crop_resize(square, (0.5, 1.25, 12.25, 13.0), (5, 7)).shape == (5, 7, 3)
    flat = np.full((9, 9, 3), 77, np.uint8)
    assert (crop_resize(flat, (0.3, 0.3, 8.9, 8.9), (4, 3)) == 77).all()


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 4, 17), (4, 0, 4, 4), (0, 5, 4, 4), (0, 0, float("nan"), 4)])
def test_crop_boxes_outside_the_square_are_refused(box):
    with pytest.raises(InputError, match="a crop box must lie within 0, 0, 16, 16"):
        crop_resize(noise(16, 16), box, (4, 4))


# ---- grids and files


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_grid_dimensions_and_pixels(rows, columns, zoom, gap, side):
    cells = [[noise(side, side, seed=10 * r + c) for c in range(columns)] for r in range(rows)]
    sheet = np.asarray(grid(cells, zoom, gap=gap))
    assert sheet.shape == (
        rows * side * zoom + (rows + 3) * gap,
        columns * side * zoom + (columns + 3) * gap,
        3,
    )
    for r in range(rows):
        for c in range(columns):
            top, left = 2 * gap + r * (side * zoom + gap), 2 * gap + c * (side * zoom + gap)
            cell = sheet[top : top + side * zoom, left : left + side * zoom]
            assert (cell == zoom_nearest(cells[r][c], zoom)).all()


def test_titles_and_captions_are_drawn_and_make_room():
    cells = [[noise(8, 8), noise(8, 8), noise(4, 6)], [noise(8, 8), None]]
    plain = grid(cells, 4)
    titled = grid(cells, 4, titles=["input", "1", "original"])
    full = grid(cells, 4, titles=["input", "1", "a very long title"], captions=[["2.31", None, ""], ["x", "y"]])
    assert plain.width < titled.width < full.width or plain.width == titled.width < full.width
    assert plain.height < titled.height < full.height
    top = np.asarray(titled)[16 : titled.height - plain.height + 16]
    assert (top.min(axis=(0, 2)) < 150).any()  # ink above the cells
    assert (np.asarray(full)[:, -16:] == images.BACKGROUND).all()  # the margin stays free


def test_grids_refuse_what_does_not_fit():
    with pytest.raises(InputError, match="at least one image"):
        grid([[]])
    with pytest.raises(InputError, match="2 columns needs as many titles, got 1"):
        grid([[noise(2, 2)] * 2], titles=["a"])
    with pytest.raises(InputError, match="the shape of the cells"):
        grid([[noise(2, 2)] * 2], captions=[["a"]])
    with pytest.raises(InputError, match="zoom must be at least 1, got 0"):
        grid([[noise(2, 2)]], zoom=0)


def test_save_png_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    pixels = noise(5, 6)
    save_png(pixels, path)
    save_png(Image.fromarray(pixels), str(path))
    assert (np.asarray(Image.open(path)) == pixels).all()

    def torn(self: Image.Image, file: BinaryIO, *_: object) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(WorkError, match=r"a\.png: cannot be written \(No space left"):
        save_png(noise(2, 2), path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]  # nothing left behind, the old one intact
    assert (np.asarray(Image.open(path)) == pixels).all()


def test_save_png_needs_a_png_name(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a\.jpg: expected a name that ends in \.png"):
        save_png(noise(2, 2), tmp_path / "a.jpg")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        save_png(noise(2, 2), tmp_path / "d.png")
    monkeypatch.chdir(tmp_path)
    save_png(noise(2, 2), "here.png")
    assert (tmp_path / "here.png").is_file()


# ---- terminal and heat maps


def test_terminal_pictures_are_half_blocks_in_true_colour():
    image = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]], [[0, 0, 0], [0, 0, 0]]], np.uint8)
    first, second = terminal_row([image]).split("\n")
    assert first == "\x1b[38;2;1;2;3;48;2;7;8;9m▀\x1b[38;2;4;5;6;48;2;10;11;12m▀\x1b[0m"
    assert second == "\x1b[38;2;0;0;0m▀▀\x1b[0m"  # an odd last row has no lower half


def plain(text: str) -> list[str]:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_terminal_pictures_keep_to_the_width(height, width, limit):
    lines = terminal_row([noise(height, width)], limit).split("\n")
    assert all(line.endswith("\x1b[0m") for line in lines)
    assert {len(line) for line in plain("\n".join(lines))} == {min(width, limit)}


def test_terminal_rows_stand_side_by_side_and_wrap():
    row = terminal_row([noise(8, 10)] * 3, 22)
    assert plain(row) == ["▀" * 10 + "  " + "▀" * 10] * 4 + [""] + ["▀" * 10] * 4
    mixed = plain(terminal_row([noise(2, 3), noise(6, 4)], 80, gap=1))
    assert mixed == ["▀▀▀ ▀▀▀▀", "    ▀▀▀▀", "    ▀▀▀▀"]
    assert all(not line or line.endswith("\x1b[0m") for line in row.split("\n"))
    assert terminal_row([]) == ""
    with pytest.raises(InputError, match="at least 1 column"):
        terminal_row([noise(2, 2)], 0)


def test_heat_maps_grow_lighter_from_black_to_yellow():
    colours = heatmap(np.linspace(0, 1, 500)[None])[0].astype(float)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= -1.0).all()  # rounding of three channels
    assert colours[0].tolist() == [0, 0, 4]
    assert colours[-1].tolist() == [252, 255, 164]


def test_heat_map_limits():
    values = np.array([[-1.0, 0.0, 2.0, 4.0, 9.0, np.nan, np.inf]])
    seen = heatmap(values, vmax=4.0)[0].tolist()
    assert seen[0] == seen[1] == [0, 0, 4]
    assert seen[3] == seen[4] == seen[6] == [252, 255, 164]
    assert seen[5] == [128, 128, 128]
    assert heatmap(values).shape == (1, 7, 3)
    assert (heatmap(np.zeros((2, 2))) == [0, 0, 4]).all()
    assert (heatmap(np.full((2, 2), np.nan)) == 128).all()
    with pytest.raises(InputError, match=r"\(H, W\), got \(3,\)"):
        heatmap(np.zeros(3))


def test_the_extensions_are_those_of_the_formats():
    Image.init()
    for end in images.EXTENSIONS:
        assert Image.EXTENSION.get(f".{end}", "WEBP") in images.FORMATS, end
    unknown = {end for end in images.EXTENSIONS if f".{end}" not in Image.EXTENSION}
    assert unknown <= {"avif", "avifs", "webp", "psd"}  # a build of PIL may lack these
