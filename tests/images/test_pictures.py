"""A picture is what a viewer shows: orientation once, colours in sRGB, opacity where the format means it."""

import asyncio
import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from nextpixel.config import Levels
from nextpixel.images import decode, fit_image, read_frames, to_rgb
from nextpixel.images.sources import load_images, open_source
from nextpixel.images.sources.tables import HubSource
from nextpixel.server.decoders import Decoders

FITS = ("crop", "squash", "imagenet")
UPRIGHT = np.zeros((64, 64, 3), np.uint8)  # all corners differ, in blocks that survive JPEG
UPRIGHT[:32, :32], UPRIGHT[:32, 32:], UPRIGHT[32:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STORED = {  # by the EXIF standard
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation])), kind, exif=exif, quality=95)


def row(data: bytes) -> list[list[int]]:
    return np.asarray(decode(data, "x"))[0].tolist()


# ---- orientation


def as_file(data, folder):
    (folder / "photo.jpg").write_bytes(data)
    return str(folder / "photo.jpg")


def as_table(data, folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [{"bytes": data, "path": "photo.jpg"}]}), folder / "x.parquet")
    return str(folder / "x.parquet")


def as_shard(data, folder):
    with tarfile.open(folder / "x.tar", "w") as shard:
        member = tarfile.TarInfo("photo.jpg")
        member.size = len(data)
        shard.addfile(member, io.BytesIO(data))
    return str(folder / "x.tar")


def as_hub_set(data, folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image()})
    return HubSource("owner/set", "train", datasets.Dataset.from_dict({"image": [{"bytes": data}]}, features=features))


def converted(data, folder):
    return Image.open(io.BytesIO(data)).convert("RGB")  # EXIF stays in info


WAYS = [as_file, as_table, as_shard, as_hub_set, lambda data, folder: Image.open(io.BytesIO(data)), converted]


@pytest.mark.parametrize("way", WAYS, ids=["file", "parquet", "shard", "hub", "PIL, opened", "PIL, converted"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_once(way, orientation, tmp_path):
    source = open_source(way(photo(orientation), tmp_path))
    for fit in FITS:
        square = load_images(source, 32, fit=fit)[0].astype(int)
        assert abs(square - UPRIGHT[::2, ::2])[8::16, 8::16].max() < 12, fit


@pytest.mark.parametrize("fit", FITS)
def test_orientation_is_applied_once_to_bytes_and_uploads(fit):
    async def served(data: bytes) -> np.ndarray:
        decoders = Decoders(10**6)
        try:
            return await decoders.decode(data, (32, 32), fit, Levels())
        finally:
            decoders.close()

    for data in (photo(6), photo(5, "PNG"), photo(8, "WEBP")):
        for square in (fit_image(decode(data, "x"), (32, 32), fit), asyncio.run(served(data))):
            assert abs(square.astype(int) - UPRIGHT[::2, ::2])[8::16, 8::16].max() < 12


def test_what_is_rgb_already_changes_no_more():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.array([[10, 20], [30, 40]], np.uint8))
    for picture in (
        Image.open(io.BytesIO(photo(6))),
        Image.open(io.BytesIO(encoded(grey, "PNG", transparency=20, exif=exif))),
        Image.open(io.BytesIO(encoded(grey, "PNG", icc_profile=profile("GRAY")))),
    ):
        once = to_rgb(picture)
        assert once.info == {} and dict(once.getexif()) == {} and to_rgb(once) is once


# ---- colour profiles


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


SRGB_D50 = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def profile(space: str, primaries=SRGB_D50, kind: str = "mntr", connection: str = "XYZ ") -> bytes:
    """A small ICC profile (version 2): linear light, or for CMYK a table in which cyan is sRGB's red."""
    linear = b"curv" + bytes(8)
    tags = {"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78), "cprt": b"text" + bytes(4) + b"x\0"}
    tags["wtpt"] = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
    if space == "GRAY":
        tags["kTRC"] = linear
    elif space == "RGB ":
        for name, xyz in zip("rgb", primaries, strict=True):
            tags[f"{name}XYZ"], tags[f"{name}TRC"] = b"XYZ " + bytes(4) + fixed(*xyz), linear
    else:
        kind, connection = "prtr", "Lab "
        corners = [(255, 128, 128) if i == 0 else (138, 209, 198) if i == 8 else (0, 128, 128) for i in range(16)]
        table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        tags["A2B0"] = table + bytes(range(256)) * 4 + bytes(sum(corners, ())) + bytes(range(256)) * 3
    index, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        index += name.encode() + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, kind.encode(), space.encode(), connection.encode()
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + index + body


COLOURS = Image.fromarray(np.array([[[255, 0, 0], [128, 128, 128], [0, 0, 0]]], np.uint8))


def near(found: list[list[int]], expected: list[list[int]], tolerance: int = 1) -> bool:
    return bool(abs(np.array(found) - expected).max() <= tolerance)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_profiles_become_srgb(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    linear = encoded(COLOURS, kind, icc_profile=profile("RGB "), **options)
    assert near(row(linear), [[255, 0, 0], [188] * 3, [0, 0, 0]])
    swapped = profile("RGB ", (SRGB_D50[1], SRGB_D50[0], SRGB_D50[2]))
    assert near(row(encoded(COLOURS, kind, icc_profile=swapped, **options)), [[0, 255, 0], [188] * 3, [0, 0, 0]])


def test_profiles_of_grey_cmyk_palettes_and_16_bits():
    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    assert near(row(encoded(grey, "PNG", icc_profile=profile("GRAY"))), [[0] * 3, [188] * 3, [255] * 3])
    deep = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert near(row(encoded(deep, "PNG", icc_profile=profile("GRAY"))), [[0] * 3, [188] * 3, [255] * 3])
    indexed = COLOURS.quantize(3)
    assert near(row(encoded(indexed, "PNG", icc_profile=profile("RGB "))), [[255, 0, 0], [188] * 3, [0, 0, 0]])
    clear = Image.merge("LA", (grey, Image.fromarray(np.array([[255, 255, 0]], np.uint8))))
    assert near(row(encoded(clear, "PNG", icc_profile=profile("GRAY"))), [[0] * 3, [188] * 3, [255] * 3])
    inks = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK")
    assert row(encoded(inks, "TIFF")) == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]
    assert near(row(encoded(inks, "TIFF", icc_profile=profile("CMYK"))), [[255] * 3, [255, 0, 0], [0, 0, 0]], 6)


@pytest.mark.parametrize("of", ["sRGB", "broken", "cut", "another space"])
def test_profiles_that_change_nothing(of):
    made = {
        "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "broken": b"no profile",
        "cut": profile("RGB ")[:200],
        "another space": profile("CMYK"),
    }
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    read = decode(encoded(Image.fromarray(noise), "PNG", icc_profile=made[of]), "x")
    assert (np.asarray(read) == noise).all()


# ---- PNG: gamma, primaries, 16 bits


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: list, colour: int, *extra: bytes, bits: int = 8) -> bytes:
    """One row of pixels."""
    values = np.array([pixels], ">u2" if bits == 16 else "u1")
    header = struct.pack(">IIBBBBB", values.shape[1], 1, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + data + chunk(b"IEND", b"")


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def test_gamma_and_primaries_become_srgb():
    grey = [0, 128, 255]
    assert row(png(grey, 0, gama(1.0)))[1] == [188] * 3
    assert row(png(grey, 0, gama(1 / 1.8)))[1] == [146] * 3  # (128 / 255) ** 1.8 by sRGB's curve
    assert row(png(grey, 0, gama(0.45455)))[1] == [128] * 3  # what sRGB files say of themselves
    assert row(png(grey, 0, chunk(b"sRGB", b"\0"), gama(1.0)))[1] == [128] * 3
    adobe = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    chrm = chunk(b"cHRM", b"".join(struct.pack(">I", round(value * 100_000)) for value in adobe))
    assert row(png([[0, 255, 0], [200, 100, 50], [128] * 3], 2, gama(0.45455), chrm)) == [
        [0, 255, 0], [226, 100, 46], [128] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_is_transparent(bits: int):
    """PIL scales the pixels to 0 to 255, but not the transparent value."""
    white = 2**bits - 1
    packed = int("".join(f"{value:0{bits}b}" for value in (white, 0) * 4), 2).to_bytes(bits, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", white))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    [(_, pixels)] = read_frames(file, "x.png")
    assert pixels[0, :2].tolist() == [[0, 0, 0, 0], [0, 0, 0, 255]]


def test_the_poster_of_an_animation_is_none_of_its_frames():
    colours = [Image.new("RGB", (2, 2), colour) for colour in ("red", "lime", "blue")]
    for has_poster in (False, True):
        file = io.BytesIO()
        colours[0].save(file, "PNG", save_all=True, append_images=colours[1:], default_image=has_poster)
        frames = [pixels[0, 0, :3].tolist() for _, pixels in read_frames(file.getvalue(), "x.png")]
        assert frames == [[255, 0, 0], [0, 255, 0], [0, 0, 255]][has_poster:]


def test_transparency_counts_at_16_bits():
    assert row(png([[65535, 0, 0, 65535], [0, 0, 0, 32768], [0, 0, 0, 0]], 6, bits=16)) == [
        [255, 0, 0], [127] * 3, [255] * 3,
    ]  # fmt: skip
    assert row(png([[0, 65535], [0, 32768], [65535, 65535], [9, 0]], 4, bits=16)) == [
        [0] * 3,
        [127] * 3,
        [255] * 3,
        [255] * 3,
    ]
    grey = png([0, 300, 301, 65535], 0, chunk(b"tRNS", struct.pack(">H", 300)), bits=16)
    assert row(grey) == [[0] * 3, [255] * 3, [1] * 3, [255] * 3]
    colour = [[300, 301, 302], [300, 301, 303], [65535, 0, 0]]
    keyed = png(colour, 2, chunk(b"tRNS", struct.pack(">3H", *colour[0])), bits=16)
    assert row(keyed) == [[255] * 3, [1, 1, 1], [255, 0, 0]]
    with Image.open(io.BytesIO(keyed)) as opened:  # PIL's own, not yet decoded
        assert np.asarray(to_rgb(opened))[0].tolist() == row(keyed)


# ---- opacity where the format means it

FOURTH = [(10, 20, 30, 0), (40, 50, 60, 128), (1, 2, 3, 255)]
OPAQUE = [[10, 20, 30], [40, 50, 60], [1, 2, 3]]
OVER_WHITE = [[255, 255, 255], [147, 152, 157], [1, 2, 3]]


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def bgra(pixels: list) -> bytes:
    return bytes(value for r, g, b, a in pixels for value in (b, g, r, a))


def bmp(pixels: list, mask: int = 0xFF000000) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 108, len(pixels), 1, 1, 32, 3, 0, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, mask) + b"BGRs" + bytes(48)
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(header) + 4 * len(pixels), 0, 0, 14 + len(header)) + header + bgra(pixels)
    )


def tga(pixels: list, attribute_bits: int) -> bytes:
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, len(pixels), 1, 32, 0x20 | attribute_bits)
    return header + bgra(pixels)


def psd(pixels: list, layers: int | None) -> bytes:
    section = b"" if layers is None else struct.pack(">Ih", 4, layers) + bytes(2)
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 4, 1, len(pixels), 8, 3)
    planes = bytes(pixel[channel] for channel in range(4) for pixel in pixels)
    return header + bytes(8) + struct.pack(">I", len(section)) + section + bytes(2) + planes


def test_opacity_counts_only_where_it_is_meant():
    four = np.array([FOURTH], np.uint8)
    zero = [(*colour[:3], 0) for colour in FOURTH]
    for data in (tiff(four, photometric="rgb", extrasamples=[2]), bmp(FOURTH), tga(FOURTH, 8), psd(FOURTH, -1)):
        assert row(data) == OVER_WHITE
    for data in (
        tiff(four, photometric="rgb", extrasamples=[0]),
        tiff(four, photometric="rgb", extrasamples=[0]).replace(b"\x52\x01\x03\0", b"\xe8\xfd\x03\0"),  # no such tag
        bmp(FOURTH, mask=0),
        bmp(zero),
        tga(FOURTH, 0),
        tga(zero, 8),
        psd(FOURTH, None),
        psd(FOURTH, 1),
    ):
        assert row(data) == OPAQUE
    deep = four.astype(np.uint16) * 257
    for extra, expected in ((2, OVER_WHITE), (0, OPAQUE)):
        read = decode(tiff(deep, photometric="rgb", extrasamples=[extra]), "x", levels=Levels((0, 65535)))
        assert near(np.asarray(read)[0].tolist(), expected)
    assert row(png(FOURTH, 6)) == OVER_WHITE and row(png(zero, 6)) == [[255] * 3] * 3


@pytest.mark.parametrize("kind", ["ICO", "DDS"])
def test_a_fourth_byte_that_nobody_set_is_no_opacity(kind):
    picture = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    assert row(encoded(picture, kind))[0] == [10, 20, 30]
    picture.putpixel((1, 0), (40, 50, 60, 255))
    assert row(encoded(picture, kind))[:2] == [[255, 255, 255], [40, 50, 60]]


def test_a_codestream_of_jpeg_2000_declares_no_opacity():
    picture = Image.fromarray(np.tile(np.array(FOURTH[0], np.uint8), (16, 16, 1)))
    assert row(encoded(picture, "JPEG2000", no_jp2=True))[0] == [10, 20, 30]
    assert row(encoded(picture, "JPEG2000"))[0] == [255, 255, 255]


# ---- negatives


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (np.uint8, [0, 128, 255]),
        (np.uint16, [0, 32896, 65535]),
        (np.uint32, [0, 32896, 65535]),
        (np.int16, [-1000, 4, 1000]),
        (np.float32, [0, 0.502, 1]),
        (np.float64, [0, 0.502, 1]),
    ],
)
def test_where_white_is_zero_the_picture_is_turned_once(kind, values, order):
    data = tiff(np.array([values], kind), photometric="miniswhite", byteorder=order)
    assert row(data) == [[255] * 3, [127] * 3, [0] * 3]


@pytest.mark.parametrize("compression", ["group4", "group3", "packbits"])
def test_a_scan_of_one_bit_is_turned_once(compression):
    picture = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    data = encoded(picture, "TIFF", compression=compression, tiffinfo={262: 0})
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert row(data) == np.asarray(opened.convert("RGB"))[0].tolist()
    assert row(tiff(np.array([[True, False, False]]), photometric="miniswhite")) == [[0] * 3, [255] * 3, [255] * 3]
