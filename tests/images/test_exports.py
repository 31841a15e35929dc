"""Indexed PNGs, sheets with an index and animations, read back with Pillow."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextpixel import WorkError
from nextpixel.images import grid, png_bytes, save_png, terminal_row, to_picture, write_animation, write_sheet
from nextpixel.images.canvas import BACKGROUND

CLEAR, GLASS, RED, BLUE = (0, 0, 0, 0), (200, 10, 0, 90), (200, 0, 0, 255), (0, 0, 250, 255)
PALETTE = np.array([CLEAR, GLASS, RED, BLUE], np.uint8)


def of(numbers: object, palette: np.ndarray = PALETTE) -> np.ndarray:
    return palette[np.array(numbers)]


def many(colours: int) -> np.ndarray:
    numbers = np.arange(colours)
    return np.stack([numbers % 256, numbers // 256, 0 * numbers + 9, 255 - numbers % 3], -1).astype(np.uint8)


def rgba(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGBA"))


@pytest.mark.parametrize("colours", [1, 2, 3, 16, 17, 255, 256])
def test_up_to_256_colours_are_an_indexed_png_with_exactly_that_palette(colours: int, tmp_path: Path) -> None:
    palette = many(colours)
    numbers = np.random.default_rng(0).integers(0, colours, (5, 7))
    save_png(to_picture(palette[numbers], palette), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as read:
        read.load()
        assert read.mode == "P" and np.array_equal(np.asarray(read), numbers)
        kept = np.array(read.getpalette(), np.uint8).reshape(-1, 3)[:colours]
        assert np.array_equal(kept, palette[:, :3])
        assert np.array_equal(rgba(read), palette[numbers])


def test_more_colours_and_plain_ones() -> None:
    palette = many(300)
    pixels = palette[np.arange(300).reshape(10, 30)]
    picture = to_picture(pixels, palette)
    assert picture.mode == "RGBA" and np.array_equal(np.asarray(picture), pixels)
    assert to_picture(pixels).mode == "RGBA"
    assert to_picture(pixels[..., :3].copy()).mode == "RGB"


def test_an_opaque_palette_has_no_transparency(tmp_path: Path) -> None:
    save_png(to_picture(of([[2, 3]]), PALETTE), tmp_path / "with.png")
    save_png(to_picture(of([[0, 1]], PALETTE[2:]), PALETTE[2:]), tmp_path / "without.png")
    assert b"tRNS" in (tmp_path / "with.png").read_bytes()
    assert b"tRNS" not in (tmp_path / "without.png").read_bytes()


@pytest.mark.parametrize("palette", [PALETTE, PALETTE[1:], None])
def test_a_sheet_holds_every_picture_where_its_index_says(palette: np.ndarray | None, tmp_path: Path) -> None:
    images = of(np.random.default_rng(1).integers(1, 4, (5, 3, 2)))  # 3 columns, 2 rows, one place left
    names = [f"{i}_a.png" for i in range(5)]
    index = write_sheet(tmp_path / "sheet.png", images, names, palette)
    assert index == tmp_path / "sheet.json"
    values = json.loads(index.read_text())
    with Image.open(tmp_path / "sheet.png") as read:
        assert read.size == (6, 6) and read.mode == ("RGBA" if palette is None else "P")
        sheet = rgba(read)
    assert list(values["frames"]) == names
    for name, image in zip(names, images, strict=True):
        frame = values["frames"][name]["frame"]
        assert (frame["w"], frame["h"]) == (2, 3)
        assert np.array_equal(sheet[frame["y"] : frame["y"] + 3, frame["x"] : frame["x"] + 2], image)
    left = sheet[3:, 4:].reshape(-1, 4)
    assert np.unique(left, axis=0).tolist() == [list(GLASS if palette is not None and len(palette) == 3 else CLEAR)]
    assert values["meta"]["image"] == "sheet.png" and values["meta"]["size"] == {"w": 6, "h": 6}


def test_a_sheet_without_alpha(tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, 3, 3, 3), np.uint8)
    write_sheet(tmp_path / "s.png", images, ["a.png", "b.png"])
    with Image.open(tmp_path / "s.png") as read:
        assert read.mode == "RGB" and np.array_equal(np.asarray(read), np.concatenate(images, 1))


def frames(path: Path) -> list[np.ndarray]:
    found = []
    with Image.open(path) as read:
        for number in range(read.n_frames):
            read.seek(number)
            found.append(rgba(read))
    return found


@pytest.mark.parametrize("drawn_at", [[[0, 0], [1, 1], [2, 2]], [[2, 0], [2, 1], [2, 1]]])
def test_an_animation_shows_what_is_drawn_at_each_step(drawn_at: list[list[int]], tmp_path: Path) -> None:
    images = of([[[2, 3], [0, 2], [3, 3]], [[3, 2], [2, 2], [2, 0]]])
    steps = np.array(drawn_at)
    write_animation(tmp_path / "d.gif", images, steps, zoom=2)
    shown = frames(tmp_path / "d.gif")
    assert len(shown) == 3
    for step, frame in enumerate(shown):
        expected = np.where((steps <= step)[..., None], images, np.uint8(0))
        assert np.array_equal(frame[..., 3], np.concatenate(expected, 1).repeat(2, 0).repeat(2, 1)[..., 3])
        visible = frame[..., 3] > 0
        assert np.array_equal(frame[visible], np.concatenate(expected, 1).repeat(2, 0).repeat(2, 1)[visible])


def test_an_animation_of_255_colours_is_exact_and_of_more_is_near(tmp_path: Path) -> None:
    for colours, at_most in ((255, 0), (4_000, 40)):
        sweep = np.linspace(0, 255, colours).astype(np.uint8)
        image = np.stack([sweep, np.arange(colours).astype(np.uint8) % 16, 255 - sweep], -1)[None]
        write_animation(tmp_path / "d.gif", image[None], np.zeros((1, colours), np.int64))
        [frame] = frames(tmp_path / "d.gif")
        assert np.abs(frame[..., :3].astype(int) - image).max() <= at_most and (frame[..., 3] == 255).all()


def test_faint_pixels_of_an_animation_are_transparent(tmp_path: Path) -> None:
    write_animation(tmp_path / "d.gif", of([[[0, 1, 2]]]), np.zeros((1, 3), np.int64))
    [frame] = frames(tmp_path / "d.gif")
    assert frame[0, :, 3].tolist() == [0, 0, 255] and frame[0, 2].tolist() == list(RED)
    write_animation(tmp_path / "d.gif", of([[[0, 1]]]), np.zeros((1, 2), np.int64))
    assert (frames(tmp_path / "d.gif")[0][..., 3] == 0).all()


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program ffmpeg that does this, the first in the path."""
    (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_video_has_the_frames_of_the_animation_on_a_light_ground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, f'cat > {tmp_path}/raw; printf "%s " "$@" > {tmp_path}/words; echo video')
    images = of([[[2, 3], [0, 2], [3, 3]], [[3, 2], [2, 2], [2, 0]]])
    steps = np.array([[0, 0], [1, 1], [2, 2]])
    for name in ("d.gif", "d.mp4"):
        write_animation(tmp_path / name, images, steps, zoom=2)
    assert (tmp_path / "d.mp4").read_text() == "video\n"
    raw = np.frombuffer((tmp_path / "raw").read_bytes(), np.uint8).reshape(-1, 6, 8, 3)
    assert len(raw) == 2 + 2 and (raw[-1] == raw[-2]).all()  # the last one is shown for 1.5 s, others for 0.67 s
    for shown, frame in zip(raw, frames(tmp_path / "d.gif")):
        assert np.array_equal(shown, np.where(frame[..., 3:] > 0, frame[..., :3], BACKGROUND))
    words = (tmp_path / "words").read_text()
    assert "-video_size 8x6 -framerate 1.500 " in words and "-c:v libx264 -pix_fmt yuv420p" in words


def test_a_video_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo Unknown encoder >&2; exit 1")
    with pytest.raises(WorkError, match=r"d\.mp4: ffmpeg failed: 'Unknown encoder'"):
        write_animation(tmp_path / "d.mp4", of([[[0, 1]]]), np.zeros((1, 2), np.int64))
    assert not (tmp_path / "d.mp4").exists()


def test_a_grid_lays_transparency_over_its_ground_and_never_over_checks() -> None:
    sheet = np.asarray(grid([[of([[0, 2], [1, 3]])]], zoom=1, gap=0))
    ground = np.array([247, 247, 245])
    assert sheet[0, 0].tolist() == ground.tolist() and sheet[0, 1].tolist() == list(RED[:3])
    glass = np.rint(np.array(GLASS[:3]) * 90 / 255 + ground * 165 / 255)
    assert np.abs(sheet[1, 0] - glass).max() <= 1


def test_the_terminal_lays_transparency_over_checks() -> None:
    clear = terminal_row([np.zeros((4, 4, 4), np.uint8)])
    assert "140;140;140" in clear and "115;115;115" in clear
    opaque = of(np.full((4, 4), 2))
    assert terminal_row([opaque]) == terminal_row([opaque[..., :3]])


def test_png_bytes_keep_alpha() -> None:
    image = of([[0, 1], [2, 3]])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)
