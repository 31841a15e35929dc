"""Animations, Aseprite files, tilesets; damaged and hostile ones; a toy format in the registry."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextpixel import InputError, limits
from nextpixel.config import Levels
from nextpixel.data.decoded import decode as decode_set
from nextpixel.images import UnreadableImage, decode, formats, read_image
from nextpixel.images.formats import Format
from nextpixel.images.pixels import read_frames
from nextpixel.images.sources import load_images, open_source
from nextpixel.server import decoders

RED, GREEN, BLUE, CLEAR = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [0, 0, 0, 0]


def canvas(*spots: tuple[int, int, list[int]], size: tuple[int, int] = (4, 6)) -> np.ndarray:
    """RGBA with these pixels at row, column."""
    pixels = np.zeros((*size, 4), np.uint8)
    for row, column, colour in spots:
        pixels[row, column] = colour
    return pixels


# ---- animations


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_every_frame_of_an_animation_is_a_picture(tmp_path, kind):
    frames = [canvas((0, 0, RED), (n, n, GREEN)) for n in range(1, 4)]
    first, *rest = [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if kind == "WEBP" else {"disposal": 2} if kind == "GIF" else {}
    first.save(tmp_path / f"walk.{kind.lower()}", kind, save_all=True, append_images=rest, duration=50, **options)
    Image.fromarray(frames[0]).save(tmp_path / "still.png")
    found = decode_set(tmp_path, (4, 6), fit="place")
    file = f"walk.{kind.lower()}"
    assert list(found.names) == ["still.png", f"{file}#0", f"{file}#1", f"{file}#2"]
    assert np.array_equal(found.images, [frames[0], *frames])
    assert load_images(tmp_path / file, (4, 6)).shape == (1, 4, 6, 3)  # elsewhere the first


def test_frames_that_change_a_part_are_shown_as_a_whole(tmp_path):
    """The second frame is one pixel, laid over the first or over what was there before it."""
    for disposal, second in ((1, [RED, GREEN]), (2, [CLEAR, GREEN]), (3, [CLEAR, GREEN])):
        frames = [canvas((0, 0, RED)), canvas((0, 0, second[0]), (2, 3, second[1]))]
        large = [Image.fromarray(frame) for frame in frames]
        large[0].save(tmp_path / "a.gif", save_all=True, append_images=large[1:], disposal=disposal)
        found = [pixels for _, pixels in read_frames(str(tmp_path / "a.gif"), "a.gif")]
        assert np.array_equal(found, frames), disposal


# ---- Aseprite


def chunk(kind: int, data: bytes) -> bytes:
    return struct.pack("<IH", 6 + len(data), kind) + data


def layer(flags: int = 1, kind: int = 0, level: int = 0, blend: int = 0, opacity: int = 255) -> bytes:
    return chunk(0x2004, struct.pack("<HHHHHHB3xH", flags, kind, level, 0, 0, blend, opacity, 1) + b"L")


def cel(pixels, at=0, x=0, y=0, opacity=255, kind=2, shift=0, size=None) -> bytes:
    """`pixels` (h, w, bytes of a pixel), or of a linked cel (kind 1) its frame."""
    head = struct.pack("<HhhBHh5x", at, x, y, opacity, kind, shift)
    if kind == 1:
        return chunk(0x2005, head + struct.pack("<H", pixels))
    data = pixels.tobytes() if kind == 0 else zlib.compress(pixels.tobytes())
    return chunk(0x2005, head + struct.pack("<HH", *(size or pixels.shape[1::-1])) + data)


def palette(colours) -> bytes:
    entries = b"".join(struct.pack("<H4B", 0, *colour) for colour in colours[:-1])
    named = struct.pack("<H4BH", 1, *colours[-1], 3) + b"sky"
    return chunk(0x2019, struct.pack("<III8x", len(colours), 0, len(colours) - 1) + entries + named)


def tags(*names: tuple[str, int, int]) -> bytes:
    found = [struct.pack("<HHBH6x3BxH", a, b, 0, 0, 1, 2, 3, len(name)) + name.encode() for name, a, b in names]
    return chunk(0x2018, struct.pack("<H8x", len(names)) + b"".join(found))


def ase(*frames: list[bytes], size=(4, 6), depth=32, flags=1, clear=0) -> bytes:
    body = b""
    for chunks in frames:
        data = b"".join(chunks)
        body += struct.pack("<IHHH2xI", 16 + len(data), 0xF1FA, min(len(chunks), 0xFFFF), 100, len(chunks)) + data
    height, width = size
    head = struct.pack(
        "<IHHHHHIH8xB3xH", 128 + len(body), 0xA5E0, len(frames), width, height, depth, flags, 100, clear, 0
    )
    return head.ljust(128, b"\0") + body


def pictures(data: bytes) -> dict[str, np.ndarray]:
    return dict(read_frames(data, "a.ase"))


def test_layers_are_laid_over_each_other_as_they_are_shown():
    red, green = np.array([[RED]], np.uint8), np.array([[GREEN]], np.uint8)
    data = ase(
        [
            layer(), layer(flags=0), layer(flags=1, kind=1), layer(level=1), layer(flags=0, kind=1), layer(level=1),
            layer(flags=1 | 64), layer(),
            cel(red, 0, 1, 1), cel(green, 1, 2, 2), cel(green, 3, 3, 3, kind=0), cel(green, 5, 0, 0),
            cel(green, 6, 0, 1), cel(green, 7, 1, 1, shift=-8),
        ]
    )  # fmt: skip
    assert np.array_equal(pictures(data)[""], canvas((1, 1, RED), (3, 3, GREEN)))


def test_opacities_of_cels_layers_and_groups_multiply():
    white = np.full((1, 1, 4), 255, np.uint8)
    chunks = [layer(kind=1, opacity=128), layer(level=1, opacity=128), cel(white, 1, opacity=128)]
    for flags, expected in ((0, 128), (1, 64), (3, 32)):
        assert pictures(ase(chunks, flags=flags))[""][0, 0].tolist() == [255, 255, 255, expected]


@pytest.mark.parametrize("x", [-3, -1, 0, 4, 5, 6, 300])
def test_cels_beyond_the_canvas_are_cut(x):
    pixels = np.random.default_rng(0).integers(1, 256, (5, 4, 4), dtype=np.uint8)
    expected = np.zeros((4, 6, 4), np.uint8)
    for row in range(5):
        for column in range(4):
            if row - 1 in range(4) and column + x in range(6):
                expected[row - 1, column + x] = pixels[row, column]
    assert np.array_equal(pictures(ase([layer(), cel(pixels, x=x, y=-1)]))[""], expected)


def test_indexed_and_grey_files():
    colours = [[9, 9, 9, 255], RED, GREEN, [1, 2, 3, 100]]
    indices = np.array([[0, 1], [2, 3]], np.uint8)[..., None]
    for flags, first in ((1, CLEAR), (1 | 8, [9, 9, 9, 255])):  # a background has no transparent index
        found = pictures(ase([palette(colours), layer(flags), cel(indices)], depth=8, size=(2, 2)))[""]
        assert found.tolist() == [[first, RED], [GREEN, [1, 2, 3, 100]]]
    old = chunk(4, struct.pack("<HBB3BBB3B", 2, 1, 1, 7, 8, 9, 0, 1, 4, 5, 6))
    assert pictures(ase([old, layer(), cel(indices)], depth=8, size=(2, 2)))[""][:, 0].tolist() == [
        CLEAR,
        [4, 5, 6, 255],
    ]
    grey = np.array([[[200, 255], [10, 0]]], np.uint8)
    found = pictures(ase([layer(), cel(grey)], depth=16, size=(1, 2)))[""]
    assert found.tolist() == [[[200, 200, 200, 255], CLEAR]]


def old_palette(*colours: list[int]) -> bytes:
    return chunk(4, struct.pack("<HBB", 1, 0, len(colours)) + bytes(value for colour in colours for value in colour))


def test_palettes_may_change_between_frames():
    one = np.array([[1]], np.uint8)[..., None]
    for new in (False, True):
        first = [palette([CLEAR, RED])] if new else []
        frames = [*first, old_palette([0] * 3, RED[:3]), layer(), cel(one)], [old_palette([0] * 3, GREEN[:3]), cel(one)]
        found = pictures(ase(*frames, depth=8, size=(1, 1)))
        assert [pixels[0, 0].tolist() for pixels in found.values()] == [RED, RED if new else GREEN]


def test_a_group_that_blends_is_refused_where_it_counts():
    red = np.array([[RED]], np.uint8)
    chunks = [layer(kind=1, blend=1), layer(level=1), cel(red, 1)]
    assert np.array_equal(pictures(ase(chunks))[""], canvas((0, 0, RED)))  # only by the flag of the file
    with pytest.raises(UnreadableImage, match="blend mode 1"):
        pictures(ase(chunks, flags=3))


def test_a_linked_cel_has_a_place_of_its_own():
    data = ase([layer(), cel(np.array([[RED]], np.uint8))], [cel(0, x=2, y=1, kind=1)])
    assert np.array_equal(pictures(data)["1"], canvas((1, 2, RED)))


def test_frames_are_called_by_their_tags_and_links_repeat_a_cel():
    red, green = np.array([[RED]], np.uint8), np.array([[GREEN]], np.uint8)
    data = ase(
        [layer(), tags(("idle", 1, 2), ("all", 2, 3)), cel(red)],
        [cel(green, x=1)], [cel(0, kind=1)], [cel(2, kind=1)], [],
    )  # fmt: skip
    found = pictures(data)
    assert list(found) == ["0", "idle,0", "idle,1", "all,0", "4"]
    first, second = canvas((0, 0, RED)), canvas((0, 1, GREEN))
    assert np.array_equal(list(found.values()), [first, second, first, first, canvas()])


def test_aseprite_files_are_read_from_folders_and_by_the_server(tmp_path):
    data = ase([layer(), cel(np.array([[RED]], np.uint8))], [cel(np.array([[GREEN]], np.uint8), x=1)])
    (tmp_path / "hero.aseprite").write_bytes(data)
    (tmp_path / "hero2.ase").write_bytes(data)
    found = decode_set(tmp_path, (4, 6), fit="place")
    assert list(found.names) == ["hero.aseprite#0", "hero.aseprite#1", "hero2.ase#0", "hero2.ase#1"]
    assert np.array_equal(found.images[1], canvas((0, 1, GREEN)))
    assert np.asarray(decode(data, "x"))[0, :2].tolist() == [[255, 0, 0], [255, 255, 255]]  # elsewhere over white
    served = read_image(data, "x", (4, 6), "place", pixel_limit=1000, formats=decoders.FORMATS)
    assert np.array_equal(served, canvas((0, 0, RED)))


SOUND = ase([layer(), palette([RED, GREEN]), tags(("a", 0, 1)), cel(np.full((4, 6, 4), 7, np.uint8))], [cel(0, kind=1)])
ONE = np.array([[RED]], np.uint8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (SOUND[:100], "damaged or cut off"),
        (SOUND[:200], "cut off"),
        (SOUND[:-1], "damaged or cut off"),
        (ase([layer(), cel(0, kind=1)]), "a cel of frame 0 is linked to frame 0, expected an earlier one"),
        (ase([layer(), cel(1, kind=1)], [cel(0, kind=1)]), "frame 0 is linked to frame 1, expected an earlier one"),
        (ase([layer(), cel(ONE, size=(60_000, 60_000))]), "a cel of 60000 x 60000 is over"),
        (ase([layer(), cel(ONE, size=(9, 9))]), "has 4 bytes instead of 324"),
        (ase([layer(), cel(ONE, at=9)]), "damaged or cut off"),
        (ase([layer(), cel(ONE)], size=(60_000, 60_000)), "60000 x 60000 is over"),
        (ase([layer(), cel(ONE)], size=(0, 9)), "got 9 x 0"),
        (ase([layer(), cel(ONE)], depth=24), "not a known image format"),
        (ase([layer(), chunk(0x2005, bytes(7))]), "damaged or cut off"),
        (ase([layer(blend=3), cel(ONE)]), "layer 0 has the blend mode 3, expected pixels in the normal mode"),
        (ase([layer(kind=2), cel(ONE)]), "layer 0 has tiles"),
        (ase([layer(), cel(ONE, kind=3)]), "of the kind 3, expected pixels"),
        (ase([layer(), tags(*[("t", 0, 9)] * 1001)]), "1,001 tags"),
    ],
)
def test_damaged_and_hostile_files_are_refused_with_the_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        read_frames(data, "a.ase")


def test_few_bytes_do_not_become_endless_work(monkeypatch):
    blank = cel(np.zeros((100, 100, 4), np.uint8))
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 1_000_000)
    with pytest.raises(UnreadableImage, match="would become 1,040,000"):
        read_frames(ase(*[[layer(), blank]] * 30, size=(100, 100)), "a.ase")
    linked = [cel(0, kind=1)] * 99
    with pytest.raises(UnreadableImage, match="its layers have over 100,000 pixels in all frames"):
        read_frames(ase([layer(), blank], linked, size=(100, 100)), "a.ase", pixel_limit=10_000)
    with pytest.raises(UnreadableImage, match="over 10,000 frames, or over 10,000 pixels in all of them"):
        read_frames(ase([layer(), blank], [], size=(100, 100)), "a.ase", pixel_limit=10_000)


@given(st.integers(0, len(SOUND) - 1), st.integers(0, 255), st.integers(0, 1))
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_byte_gives_pictures_or_a_reason(place, value, cut):
    data = SOUND[: place + 1] if cut else SOUND[:place] + bytes([value]) + SOUND[place + 1 :]
    try:
        found = read_frames(data, "a.ase", pixel_limit=10_000)
    except UnreadableImage as error:
        assert len(str(error)) < 400
    else:
        assert all(pixels.dtype == np.uint8 and pixels.shape[2] == 4 for _, pixels in found)


# ---- tilesets


@pytest.fixture
def sheets(tmp_path):
    """A sheet of 2 x 3 tiles of 4 x 6 with a margin of 2 and a spacing of 1, and a plain one of 1 x 2."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(1, 256, (6, 4, 6, 4), dtype=np.uint8)
    sheet = np.zeros((2 + 4 + 1 + 4 + 2, 2 + 3 * 6 + 2 + 2, 4), np.uint8)
    for number, tile in enumerate(tiles):
        top, left = 2 + number // 3 * 5, 2 + number % 3 * 7
        sheet[top : top + 4, left : left + 6] = tile
    (tmp_path / "art").mkdir()
    Image.fromarray(sheet).save(tmp_path / "art" / "spaced.png")
    Image.fromarray(np.concatenate(tiles[:2], 1)).save(tmp_path / "art" / "plain.png")
    return tmp_path, tiles


TSX = '<?xml version="1.0"?>\n<tileset name="a" tilewidth="6" tileheight="4" {}>\n <image source="{}"/>\n</tileset>'
SPACED = {"name": "s", "tilewidth": 6, "tileheight": 4, "margin": 2, "spacing": 1, "image": "art/spaced.png"}
PLAIN = {"name": "p", "tilewidth": 6, "tileheight": 4, "image": "art/plain.png", "margin": 0, "spacing": 0}


def test_the_tiles_of_tilesets_are_pictures(sheets):
    folder, tiles = sheets
    (folder / "a.tsx").write_text(TSX.format('spacing="1" margin="2"', "art/spaced.png"))
    (folder / "a.json").write_text(json.dumps(SPACED | {"type": "tileset"}))
    (folder / "a.tmx").write_text('<map version="1.10">\n <tileset firstgid="1" source="a.tsx"/>\n</map>')
    ldtk = [
        {"identifier": "s", "relPath": "art/spaced.png", "tileGridSize": 6, "padding": 2, "spacing": 1},
        {"identifier": "icons", "relPath": None, "tileGridSize": 16, "padding": 0, "spacing": 0},
    ]
    for name in ("a.tsx", "a.json", "a.tmx"):
        found = decode_set(folder / name, (4, 6), fit="place", levels=Levels(scale=1))
        assert list(found.names) == [f"{name}#{row},{column}" for row in range(2) for column in range(3)]
        assert np.array_equal(found.images, tiles)
    (folder / "a.ldtk").write_text(json.dumps({"defs": {"tilesets": ldtk}}))
    assert decode_set(folder / "a.ldtk", 6, fit="place").images.shape == (3, 6, 6, 4)  # squares, as LDtk's are


def test_the_transparent_colour_of_a_tileset_is_transparent(sheets):
    folder, _ = sheets
    sheet = np.full((4, 6, 3), (255, 0, 255), np.uint8)
    sheet[1, 2] = 9, 8, 7
    Image.fromarray(sheet).save(folder / "art" / "magenta.png")
    (folder / "a.tsx").write_text(TSX.format("", "art/magenta.png").replace('png"', 'png" trans="ff00ff"'))
    (folder / "a.json").write_text(json.dumps(PLAIN | {"image": "art/magenta.png", "transparentcolor": "#ff00ff"}))
    for name in ("a.tsx", "a.json"):
        [(_, pixels)] = read_frames(str(folder / name), name)
        assert pixels[1, 2].tolist() == [9, 8, 7, 255] and (pixels.any(-1).sum(), pixels[0, 0].any()) == (1, False)


def test_a_changed_sheet_makes_another_set(sheets):
    folder, tiles = sheets
    (folder / "a.tsx").write_text(TSX.format("", "art/plain.png"))
    before = decode_set(folder / "a.tsx", (4, 6), fit="place", levels=Levels(scale=1))
    Image.fromarray(np.concatenate(tiles[2:4], 1)).save(folder / "art" / "plain.png")
    after = decode_set(folder / "a.tsx", (4, 6), fit="place", levels=Levels(scale=1))
    assert np.array_equal(before.images, tiles[:2]) and np.array_equal(after.images, tiles[2:4])


def test_a_changed_tileset_of_a_map_makes_another_set(sheets):
    folder, _ = sheets
    (folder / "a.tmx").write_text('<map version="1.10">\n <tileset firstgid="1" source="a.tsx"/>\n</map>')
    found = []
    for margin in ("", 'margin="4"'):
        (folder / "a.tsx").write_text(TSX.format(margin, "art/plain.png"))
        found.append(open_source(folder / "a.tmx").fingerprint())
    assert found[0] != found[1]


def test_maps_with_several_tilesets_name_them(sheets):
    folder, tiles = sheets
    (folder / "both.tmj").write_text(json.dumps({"tilesets": [SPACED, PLAIN]}))
    found = read_frames(str(folder / "both.tmj"), "both.tmj")
    assert [part for part, _ in found][5:] == ["s,1,2", "p,0,0", "p,0,1"]
    assert np.array_equal([pixels for _, pixels in found], [*tiles, *tiles[:2]])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.tsx", "<tileset", "unclosed token|no element"),
        ("a.tsx", '<tileset name="a"/>', "expected a tileset with the picture of its tiles"),
        ("a.tsx", TSX.format("", "gone.png"), "gone.png: no such file"),
        ("a.tsx", TSX.format("", "/etc/passwd"), "relative to the tileset, got '/etc/passwd'"),
        ("a.tsx", TSX.format('spacing="-7"', "art/plain.png"), "expected tiles of at least 1 x 1"),
        ("a.tsx", '<tileset tilewidth="0" tileheight="4"><image source="art/plain.png"/></tileset>', "at least 1 x 1"),
        ("a.tsx", '<tileset tilewidth="99" tileheight="4"><image source="art/plain.png"/></tileset>', "is smaller"),
        ("a.tsx", "<!DOCTYPE x [<!ENTITY a 'b'>]>\n<tileset/>", "without a document type"),
        ("a.tmx", '<map><tileset source="a.tmx"/></map>', "."),
        ("a.tmx", '<map><tileset source="b.tsx"/></map>', "no such file"),
        ("a.json", "{", "."),
        ("a.json", '{"tilesets": ' + "[" * 100_000, "."),
        ("a.json", '{"image": 7, "tilewidth": 1, "tileheight": 1}', "relative to the tileset, got 7"),
        ("a.ldtk", "{}", "expected a tileset of Tiled or LDtk, got a problem with 'defs'"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_tilesets_are_refused_with_the_reason(sheets, name, text, reason):
    (sheets[0] / name).write_text(text)
    with pytest.raises(UnreadableImage, match=reason):
        read_frames(str(sheets[0] / name), name)
    with pytest.raises(InputError, match=name):
        load_images(sheets[0] / name, 6, fit="place")


# ---- a format is one function in one registry


def toy(content, pixel_limit):
    """TOY, a width, and grey values."""
    data = content if isinstance(content, bytes) else open_bytes(content)
    yield "", Image.frombytes("L", (data[3], len(data[4:]) // data[3]), data[4:])


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_a_format_is_one_function_in_one_registry(tmp_path, monkeypatch):
    kind = Format(frozenset({"toy"}), lambda head, end: head[:3] == b"TOY", toy)
    monkeypatch.setitem(formats.FORMATS, "Toy", kind)
    data, expected = b"TOY\x02" + bytes([10, 20, 30, 40, 50, 60]), [[10, 20], [30, 40], [50, 60]]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.toy").write_bytes(data)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        member = tarfile.TarInfo("a.toy")
        member.size = len(data)
        shard.addfile(member, io.BytesIO(data))
    for place in (tmp_path / "folder", tmp_path / "folder" / "a.toy", tmp_path / "shard.tar"):
        source = open_source(place)
        assert len(source) == 1 and not source.unreadable
        assert load_images(source, (3, 2))[0, ..., 0].tolist() == expected
        assert load_images(source, (3, 2), fit="place")[0, ..., 1].tolist() == expected
    served = read_image(data, "x", (3, 2), "crop", pixel_limit=100, formats=decoders.FORMATS)
    assert served[..., 2].tolist() == expected
    monkeypatch.setitem(formats.FORMATS, "Toy", Format(kind.extensions, kind.matches, toy, served=False))
    with pytest.raises(UnreadableImage, match="not a known image format"):
        read_image(data, "x", (3, 2), "crop", formats=decoders.FORMATS)
