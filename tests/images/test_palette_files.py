"""Palette files of drawing programs, read and written."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextpixel import InputError
from nextpixel.images.palette_files import FORMATS, read_palette_file, write_palette_file

components = st.integers(0, 255)
colours = st.lists(
    st.tuples(components, components, components, components).map(lambda c: c if c[3] else (0, 0, 0, 0)),
    min_size=1,
    max_size=40,
    unique=True,
)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=30, deadline=None)
@given(colours)
def test_every_format_gives_back_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, colours: list[tuple[int, ...]]
) -> None:
    path = tmp_path_factory.mktemp("palette") / f"p{suffix}"
    write_palette_file(path, np.array(colours, np.uint8))
    assert read_palette_file(path).tolist() == [list(colour) for colour in colours]


@pytest.mark.parametrize("suffix", FORMATS)
def test_opaque_colours_need_no_alpha(tmp_path: Path, suffix: str) -> None:
    colours = [[255, 136, 0, 255], [0, 0, 128, 255]]
    write_palette_file(tmp_path / f"p{suffix}", np.array(colours, np.uint8))
    assert read_palette_file(tmp_path / f"p{suffix}").tolist() == colours


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.gpl", "GIMP Palette\nName: Dusk\nColumns: 4\n# by hand\n255 136   0\tOrange 7 up\n\n  0   0 128 navy\n"),
        ("a.gpl", "GIMP Palette\r\nChannels: RGBA\r\n#\r\n255 136 0 255 Orange\r\n0 0 128 255 Untitled\r\n"),
        ("a.hex", "ff8800\n000080\n"),
        ("a.hex", "\ufeff#FF8800\r\n\r\n#000080FF"),
        ("A.PAL", "JASC-PAL\r\n0100\r\n2\r\n255 136 0\r\n0 0 128\r\n"),
        ("a.pal", "JASC-PAL\n0100\n3\n255 136 0 255\n0 0 128 255\n255 136 0\n"),
    ],
)
def test_files_as_programs_write_them(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_palette_file(tmp_path / name).tolist() == [[255, 136, 0, 255], [0, 0, 128, 255]]


def test_an_enlarged_strip_and_an_indexed_one(tmp_path: Path) -> None:
    strip = np.array([[(255, 136, 0, 255), (0, 0, 128, 255), (9, 9, 9, 0)]], np.uint8)
    expected = [[255, 136, 0, 255], [0, 0, 128, 255], [0, 0, 0, 0]]
    Image.fromarray(strip.repeat(8, 0).repeat(8, 1)).save(tmp_path / "large.png")
    assert read_palette_file(tmp_path / "large.png").tolist() == expected
    indexed = Image.fromarray(np.array([[1, 0, 2]], np.uint8), "P")
    indexed.putpalette([0, 0, 128, 255, 136, 0, 9, 9, 9])
    indexed.save(tmp_path / "indexed.png", transparency=b"\xff\xff\0")
    assert read_palette_file(tmp_path / "indexed.png").tolist() == expected


def test_an_array_of_three_components_is_opaque(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([[255, 136, 0], [0, 0, 128]], np.uint8))
    assert read_palette_file(tmp_path / "p.npy").tolist() == [[255, 136, 0, 255], [0, 0, 128, 255]]


def strip(width: int, height: int) -> bytes:
    """A PNG that claims so many pixels and has none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.gpl", b"255 0 0", "a GIMP palette; its first line is not GIMP Palette"),
        ("p.gpl", b"", "its first line is not GIMP Palette"),
        ("p.gpl", b"GIMP Palette\n#\n", "got no colour"),
        ("p.gpl", b"GIMP Palette\n255 0 256 red\n", "line 2: expected three or four numbers from 0 to 255"),
        ("p.gpl", b"GIMP Palette\n255 0\n", "line 2: expected three or four numbers"),
        ("p.hex", b"ff8800\nff88\n", "line 2: expected a colour such as ff8800, got 'ff88'"),
        ("p.hex", b"\xff\xfe\0f", "line 1: expected a colour"),
        ("p.hex", b"1" * 5_000_000, "over 4,194,304 bytes"),
        ("p.pal", b"RIFF\x10\0\0\0PAL data", "Microsoft's kind of .pal"),
        ("p.pal", b"JASC-PAL\n0100\n2\n1 2 3\n", "claims '2' colours, but 1 follow"),
        ("p.pal", b"JASC-PAL\n0100\n1\n-1 2 3\n", "line 4: expected three or four numbers"),
        ("p.pal", b"JASC-PAL\n", "its first lines are not JASC-PAL and 0100"),
        ("p.png", b"\x89PNG\r\n\x1a\n", "a PNG with a pixel for each colour; it is of another kind or cut off"),
        ("p.png", b"GIF89a", "it is of another kind or cut off"),
        ("p.png", strip(60_000, 60_000), "60000 x 60000 is over 4,194,304 pixels"),
        ("p.png", strip(2, 2), "a PNG with a pixel for each colour; "),
        ("p.npy", npy(np.zeros((2, 4))), r"its array is float64 \(2, 4\)"),
        ("p.npy", npy(np.array([None])), "pickled|Object arrays"),
        ("p.npy", npy(np.zeros((2, 4), np.uint8))[:-1], "an array uint8 .*expected 8 bytes got 7"),
        ("p.npy", b"", "an array uint8"),
        ("p.aco", b"\0\1", r"ends in \.gpl, \.hex, \.pal, \.png, \.npy, got '.*p\.aco'"),
    ],
)
def test_hostile_files_are_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_palette_file(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value) and len(str(refused.value)) < 400


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.gpl: expected a GIMP palette, got no such file"):
        read_palette_file(tmp_path / "p.gpl")
    (tmp_path / "f.hex").mkdir()
    with pytest.raises(InputError, match=r"f\.hex: .*folder"):
        read_palette_file(tmp_path / "f.hex")
