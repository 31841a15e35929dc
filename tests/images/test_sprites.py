"""Pixel art: exact colours, anchors, sheets, enlargements, and sets of it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from nextpixel import InputError
from nextpixel.config import Levels, side_text
from nextpixel.data.decoded import decode
from nextpixel.data.labels import labelled, labels_of
from nextpixel.data.prepared import Job, merge, prepare
from nextpixel.images import UnreadableImage, read_image
from nextpixel.images.sources import MapSource, load_images, open_source, settle, sprites_of, with_canvas
from nextpixel.images.sources.masks import load_masks
from nextpixel.images.sprites import read_sprites


def art(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGBA noise with binary opacity, as files of pixel art are read: no colour where it is transparent."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[rng.random((height, width)) < 0.4] = 0
    pixels[0, :2] = [[255, 0, 0, 255], [0, 255, 0, 255]]  # neither flat nor enlarged
    pixels[1:3, 0] = [[0, 0, 255, 255], [9, 9, 9, 255]]
    return pixels


def enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, 0).repeat(factor, 1)


def png(picture: Image.Image | np.ndarray, **options: object) -> bytes:
    content = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(content, "PNG", **options)
    return content.getvalue()


def write(folder, **pictures: np.ndarray):
    folder.mkdir(exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


# ---- exact colours


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_rgba_files_keep_every_value_and_transparent_pixels_are_nothing(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[::2, ::2, 3] = 0
    expected = np.where(pixels[..., 3:] == 0, 0, pixels)
    assert np.array_equal(read_image(png(pixels), "a.png", (height, width), "place", Levels(scale=1)), expected)


def test_indexed_files_have_the_colours_and_opacities_of_their_palette():
    palette = np.random.default_rng(0).integers(0, 256, (16, 4), dtype=np.uint8)
    palette[:4, 3] = 0, 1, 128, 255
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16) % 16
    picture = Image.frombytes("P", (16, 16), indices.tobytes())
    picture.putpalette(palette[:, :3].tobytes())
    expected = np.where(palette[:, 3:] == 0, 0, palette)[indices]
    data = png(picture, transparency=palette[:, 3].tobytes())
    assert np.array_equal(read_image(data, "a.png", (16, 16), "place"), expected)


@pytest.mark.parametrize(
    ("mode", "transparency"), [("L", 7), ("RGB", (7, 7, 7)), ("P", 7), ("LA", None), ("1", None), ("RGB", None)]
)
def test_other_modes_are_exact_too(mode, transparency):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    picture = Image.fromarray(grey).convert(mode)
    data = png(picture) if transparency is None else png(picture, transparency=transparency)
    found = read_image(data, "a.png", (8, 8), "place", Levels(scale=1))
    expected = np.asarray(picture.convert("RGBA")).copy()
    if transparency is not None:
        expected[grey == 7] = 0
    assert np.array_equal(found, expected)


def test_srgb_profiles_change_nothing_and_others_are_converted():
    pixels = art(8, 8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read_image(png(pixels, icc_profile=profile), "a.png", (8, 8), "place"), pixels)
    for gamma, changes in ((45_455, False), (100_000, True)):
        info = PngImagePlugin.PngInfo()
        info.add(b"gAMA", gamma.to_bytes(4, "big"))
        found = read_image(png(pixels, pnginfo=info), "a.png", (8, 8), "place")
        assert np.array_equal(found[..., 3], pixels[..., 3]) and (found != pixels).any() == changes


@pytest.mark.parametrize("content", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.float32)])
def test_more_than_8_bits_are_refused(content):
    with pytest.raises(UnreadableImage, match="expected uint8"):
        read_image(content, "a", (8, 8), "place")
    with pytest.raises(UnreadableImage, match="expected 8 bits a channel for exact colours"):
        read_image(png(Image.fromarray(np.zeros((4, 4), np.uint16))), "a.png", (8, 8), "place")


# ---- the place on the canvas


@pytest.mark.parametrize(
    ("anchor", "top", "left"),
    [
        (None, 2, 1), ("center", 2, 1), ("top", 0, 1), ("bottom", 5, 1), ("left", 2, 0), ("right", 2, 3),
        ("top-left", 0, 0), ("top-right", 0, 3), ("bottom-left", 5, 0), ("bottom-right", 5, 3),
    ],
)  # fmt: skip
def test_smaller_pictures_lie_where_the_anchor_says(anchor, top, left):
    expected = np.zeros((11, 8, 4), np.uint8)
    expected[top : top + 6, left : left + 5] = art(6, 5)
    assert np.array_equal(read_image(art(6, 5), "a", (11, 8), "place", Levels.of(anchor=anchor)), expected)


@pytest.mark.parametrize("size", [(6, 4), (5, 5), (1, 1)])
def test_larger_pictures_are_refused_with_what_to_do(size):
    with pytest.raises(UnreadableImage, match=r"its 6 x 5 pixels do not fit on . x .$"):
        read_image(art(6, 5), "a", size, "place")
    with pytest.raises(InputError, match=r"do not fit on . x .; cut a sheet with `slice`, as in .*side$") as found:
        load_images(art(6, 5), size, fit="place")
    assert "repair" not in str(found.value)


# ---- sheets


def test_sheets_are_cut_into_tiles_and_smaller_pictures_are_not():
    tiles = [art(4, 6, seed) for seed in range(6)]
    sheet = np.concatenate([np.concatenate(tiles[:3], 1), np.concatenate(tiles[3:], 1)])
    found = read_sprites(sheet, "a", Levels.of(slice="4x6"))
    assert [sprite.part for sprite in found] == ["0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]
    assert all(np.array_equal(sprite.pixels, tile) for sprite, tile in zip(found, tiles, strict=True))
    assert [sprite.part for sprite in read_sprites(art(4, 5), "a", Levels.of(slice="4x6"))] == [""]


@pytest.mark.parametrize("slice", ["5x6", "4x7", "4x5", (8, 4), 5])
def test_a_sheet_that_no_slice_divides_is_refused(slice):
    with pytest.raises(UnreadableImage, match=r"its 8 x 18 pixels are not whole tiles of \d x \d; change `slice`"):
        read_sprites(art(8, 18), "a", Levels.of(slice=slice))


def test_a_set_has_the_tiles_of_its_sheets_by_name_and_says_which_were_empty(tmp_path, capsys):
    sheet = np.zeros((16, 24, 4), np.uint8)
    sheet[:8, 8:16], sheet[8:, :8] = art(8, 8, 1), art(8, 8, 2)
    folder = write(tmp_path / "set", single=art(5, 7), sheet=sheet)
    found = decode(folder, 8, fit="place", levels=Levels.of(slice=8))
    assert list(found.names) == ["sheet.png#0,1", "sheet.png#1,0", "single.png"]
    assert np.array_equal(found.images[:2], [art(8, 8, 1), art(8, 8, 2)])
    assert np.array_equal(found.images[2, 1:6, :7], art(5, 7))
    assert capsys.readouterr().err.count("4 empty tiles or frames are dropped") == 1
    assert np.array_equal(load_images(folder, 8, fit="place", levels=Levels.of(slice=8)), found.images)
    assert found.images.dtype == np.uint8 and found.images.shape == (3, 8, 8, 4)


def test_tiles_have_the_class_of_their_sheet(tmp_path):
    for name in ("orcs", "elves"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, sheet=np.concatenate([art(8, 8, 1), art(8, 8, 2)], 1), one=art(8, 8, 3))
    source = open_source(tmp_path)
    names = labels_of(source)
    found = decode(source, 8, fit="place", levels=Levels.of(slice=8))
    images, classes, _ = labelled(names, source, found)
    assert images.shape == (6, 8, 8, 4) and classes.tolist() == ["elves"] * 3 + ["orcs"] * 3


def test_pictures_that_do_not_fit_are_left_out_as_far_as_one_in_ten(tmp_path):
    pictures = {f"p{number:02d}": art(8, 8, number) for number in range(19)}
    folder = write(tmp_path / "set", large=art(9, 8), **pictures)
    found = decode(folder, 8, fit="place")
    assert len(found) == 19 and len(found.unreadable) == 1
    assert "large.png: its 9 x 8 pixels do not fit on 8 x 8" in found.unreadable[0]
    sprites = sprites_of(open_source(folder), (8, 8), "place", Levels())
    assert decode(sprites, 8, fit="place").unreadable == found.unreadable  # from the cache
    assert decode(sprites, 8, fit="place", cache=tmp_path / "new").unreadable == found.unreadable
    assert decode(folder, 8, fit="place", cache=tmp_path / "new").unreadable == found.unreadable
    with pytest.raises(InputError, match=r"large\.png: its 9 x 8 pixels do not fit"):
        load_images(folder, 8, fit="place")
    write(folder, larger=art(8, 9), largest=art(20, 20))
    with pytest.raises(InputError, match="3 of 22 pictures cannot be read"):
        decode(folder, 8, fit="place")


# ---- enlargements


@given(st.integers(3, 7), st.integers(3, 7), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_factor_of_an_enlargement_is_found(height, width, factor, seed):
    [found] = read_sprites(enlarged(art(height, width, seed), factor), "a")
    assert found.factor == factor and np.array_equal(found.pixels, art(height, width, seed))


@pytest.mark.parametrize("change", [(0, 0), (5, 4), (11, 14)])
def test_one_other_pixel_makes_it_no_enlargement(change):
    pixels = enlarged(art(4, 5), 3)
    pixels[change] = 77
    assert read_sprites(pixels, "a")[0].factor == 1


def test_a_whole_set_is_reduced_by_its_common_factor(tmp_path, capsys):
    pictures = {f"p{n}": enlarged(art(6, 6, n), 2 if n else 4) for n in range(5)}
    folder = write(tmp_path / "set", **pictures)
    found = decode(folder, 24, fit="place")
    assert np.array_equal(found.images[1, 9:15, 9:15], art(6, 6, 1))
    assert np.array_equal(found.images[0, 6:18, 6:18], enlarged(art(6, 6), 2))  # of which twice as much is left
    assert found.levels.scale == 2
    assert "5 of 5 pictures were enlarged 2 times, which is undone (give `scale=1`" in capsys.readouterr().err
    kept = decode(folder, 24, fit="place", levels=Levels.of(scale=1))
    assert np.array_equal(kept.images[0], enlarged(art(6, 6), 4)) and kept.note is None


def test_a_factor_is_found_anew_only_where_a_picture_would_not_fit():
    """As a model uses them one by one: no colour of its own is taken for an enlargement."""
    two, three = enlarged(art(4, 4), 2), enlarged(art(4, 4), 6)
    assert np.array_equal(load_images(two, 8, fit="place")[0], two)
    assert np.array_equal(load_images(two, 7, fit="place")[0, 1:5, 1:5], art(4, 4))
    assert np.array_equal(load_images(three, 8, fit="place")[0], two)  # the smallest factor that is enough
    assert np.array_equal(load_images(two, 8, fit="place", levels=Levels(scale=2))[0, 2:6, 2:6], art(4, 4))
    assert np.array_equal(load_images(art(8, 8), 8, fit="place", levels=Levels(scale=2))[0], art(8, 8))


def test_flat_pictures_neither_decide_nor_shrink_to_a_pixel(tmp_path):
    flat = np.full((8, 8, 4), 255, np.uint8)
    assert np.array_equal(load_images(flat, 8, fit="place")[0], flat)
    assert np.array_equal(load_images(np.stack([flat] * 9), 8, fit="place"), np.stack([flat] * 9))
    folder = write(tmp_path / "set", flat=flat, **{f"p{n}": art(8, 8, n) for n in range(4)})
    assert np.array_equal(decode(folder, 8, fit="place").images[0], flat)
    large = np.full((16, 16, 4), 255, np.uint8)
    assert np.array_equal(load_images(large, 8, fit="place")[0], flat)


def test_three_pictures_do_not_agree_on_a_factor(tmp_path):
    folder = write(tmp_path / "set", **{f"p{n}": enlarged(art(4, 4, n), 2) for n in range(3)})
    found = decode(folder, 8, fit="place")
    assert found.levels.scale is None and np.array_equal(found.images[0], enlarged(art(4, 4), 2))


# ---- sets and settings


def test_a_set_is_kept_in_the_cache_by_its_settings(tmp_path, cache, monkeypatch):
    folder = write(tmp_path / "set", **{f"p{n}": art(6, 5, n) for n in range(5)})
    settings = [Levels(), Levels.of(anchor="bottom"), Levels.of(scale=2), Levels.of(slice=3), Levels.of(slice=(3, 5))]
    keys = {decode(folder, (8, 8), fit="place", levels=levels).key for levels in settings[:3]}
    assert len(keys) == 3 and not keys & {decode(folder, (8, 8)).key}
    found = decode(folder, (8, 8), fit="place", levels=settings[1])
    monkeypatch.setattr("nextpixel.images.sources.sprites.read_sprites", None)  # nothing is read again
    again = decode(folder, (8, 8), fit="place", levels=settings[1])
    assert np.array_equal(found.images, again.images) and again.levels == found.levels


def test_prepared_folders(tmp_path, cache):
    pictures = {f"p{n:02d}": enlarged(art(6, 4, n), 2) for n in range(20)} | {"large": art(30, 30)}
    folder = write(tmp_path / "set", **pictures)
    levels = Levels.of(anchor="bottom")
    expected = decode(folder, (8, 6), fit="place", levels=levels)
    found = prepare(folder, tmp_path / "out", side="8x6", fit="place", levels=levels)
    assert isinstance(found, MapSource) and np.array_equal(found.images, expected.images)
    assert found.levels == expected.levels and found.levels.scale == 2 and found.note == expected.note
    assert list(found.names) == list(expected.names) and len(found.unreadable) == 1
    for number in (2, 1):
        prepare(folder, tmp_path / "jobs", side="8x6", fit="place", levels=levels, job=Job(number, 2))
    assert np.array_equal(merge(tmp_path / "jobs").images, expected.images)
    used = decode(tmp_path / "out", (8, 6), fit="place", levels=levels)
    assert np.array_equal(used.images, expected.images)
    with pytest.raises(InputError, match="expected images prepared with anchor top, got bottom"):
        decode(tmp_path / "out", (8, 6), fit="place", levels=Levels.of(anchor="top"))
    with pytest.raises(InputError, match="store_side: expected none for pictures that are placed"):
        prepare(folder, tmp_path / "other", side=8, store_side=16, fit="place")


def test_every_tile_of_a_prepared_sheet_has_its_caption(tmp_path, cache):
    folder = write(tmp_path / "set", red_orcs=np.concatenate([art(8, 8, 1), art(8, 8, 2)]), elf_1=art(8, 8, 3))
    found = prepare(folder, tmp_path / "out", side=8, fit="place", levels=Levels.of(slice=8), captions="names")
    assert isinstance(found, MapSource) and found.texts("names") == ["elf", "red orcs", "red orcs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"anchor": "middle"}, "anchor: expected one of center, top, .* got 'middle'"),
        ({"slice": "16"}, None),
        ({"slice": "0x16"}, "slice: expected at least 1 .* as in 24x16, got 0x16"),
        ({"slice": [4, 4, 4]}, "slice: expected at least 1"),
        ({"scale": 0}, "scale: expected at least 1, got 0"),
        ({"scale": 1.5}, "scale: expected a whole number"),
    ],
)
def test_levels_check_their_values(given, message):
    if message is None:
        assert Levels.of(**given).values() == {"slice": [16, 16]}
        return
    with pytest.raises(InputError, match=message):
        Levels.of(**given)


def test_levels_survive_json_and_the_keys_of_older_caches_stay():
    levels = Levels.of("0,4095", "3,2,1", "top-left", (8, 16), 3)
    assert Levels.among(levels.values() | {"other": 1}) == levels
    assert Levels().over(levels) == levels and Levels.of(anchor="top").over(levels).anchor == "top"
    assert str(Levels.of("0,1")) == "Levels(range=(0.0, 1.0), bands=None)"
    assert str(levels) != str(Levels.of("0,4095", "3,2,1", "top", (8, 16), 3))


# ---- canvases that the pictures choose


@pytest.mark.parametrize(
    ("sizes", "factor", "expected"),
    [
        ([(5, 5), (7, 3), (4, 6)], 1, (7, 6)),
        ([(4, 4)] * 5, 4, (4, 4)),  # all are enlarged
        ([(16, 24), (9, 40)], 1, (16, 24)),  # one is too large, and refused
        ([(33, 33)], 1, (32, 32)),
    ],
)
def test_the_canvas_is_as_large_as_the_largest_picture(sizes, factor, expected, tmp_path, capsys):
    pictures = [enlarged(art(*size, seed=i), factor) for i, size in enumerate(sizes)]
    folder = write(tmp_path / "in", **{f"p{i}": pixels for i, pixels in enumerate(pictures)})
    source, size = with_canvas(open_source(folder), None, Levels())
    assert size == expected and all(source.image(i, size, "place").shape == (*size, 4) for i in range(len(source)))
    kept = sum(max(size) <= 32 or size == (40, 9) for size in sizes) if len(source) else 0
    said = f"Side {side_text(expected)}, by the largest of {kept:,} pictures (give a `side` to change that)\n"
    assert capsys.readouterr().err == (said if kept else "")
    assert with_canvas(source, (50, 40), Levels()) == (source, (50, 40))


def test_a_prepared_set_has_its_own_canvas(tmp_path):
    prepare(write(tmp_path / "in", a=art(5, 7), b=art(3, 4)), tmp_path / "out", fit="place")
    source, size = with_canvas(open_source(tmp_path / "out"), None, Levels())
    assert isinstance(source, MapSource) and size == source.size == (5, 7)


@pytest.mark.parametrize(
    ("suffix", "options", "lossy"),
    [("jpg", {}, True), ("webp", {"quality": 60}, True), ("webp", {"lossless": True}, False), ("gif", {}, False)],
)
def test_lossy_files_are_named_with_the_colours_they_add(suffix, options, lossy, tmp_path):
    folder = write(tmp_path / "in", a=art(8, 8), b=art(8, 8, seed=1))
    Image.fromarray(art(8, 8)).convert("RGB").save(folder / f"c.{suffix}", **options)
    _, _, note = settle(open_source(folder), (8, 8), "place", Levels())
    if not lossy:
        assert note is None
        return
    pictures = [load_images(folder / name, 8, fit="place") for name in ("a.png", "b.png", f"c.{suffix}")]
    own, other = (
        {tuple(c) for one in part for c in one.reshape(-1, 4).tolist()} for part in (pictures[2:], pictures[:2])
    )
    assert f"files add {len(own - other):,} colours that no other picture has: c.{suffix} (leave them out" in note


@pytest.mark.parametrize(
    ("fit", "given"), [("crop", {"slice": 4}), ("squash", {"scale": 2}), ("crop", {"anchor": "top"})]
)
def test_levels_without_effect_are_refused(fit, given):
    with pytest.raises(InputError, match=f"{next(iter(given))}: has no effect here, as it is for exact colours"):
        load_images(art(4, 4), 4, fit=fit, levels=Levels.of(**given))
    with pytest.raises(InputError, match="range: has no effect here, as it is for pictures that are resized"):
        load_images(art(4, 4), 4, fit="place", levels=Levels.of(range="0,9"))


# ---- masks


WHITE = np.zeros((6, 4), np.uint8)
WHITE[1:3, 2:] = 255


@pytest.mark.parametrize("anchor", [None, "bottom", "top-left"])
@pytest.mark.parametrize("factor", [1, 3])
def test_a_mask_lies_where_its_picture_does(anchor, factor, tmp_path):
    levels, size = Levels.of(anchor=anchor), (9, 7)
    picture = enlarged(np.dstack([WHITE, WHITE, WHITE, np.full_like(WHITE, 255)]), factor)
    picture[..., 0] += enlarged(art(6, 4, seed=3), factor)[..., 3] // 2  # so that the mask is none of its colours
    squares = load_images(picture, size, fit="place", levels=levels)
    source = open_source(picture)
    expected = (squares[0][..., 1] == 255) & (squares[0][..., 3] == 255)
    for mask in (enlarged(WHITE, factor), WHITE, expected):
        assert np.array_equal(load_masks(mask, source, squares, "place", levels=levels), expected[None])
    with pytest.raises(InputError, match=rf"mask: expected {4 * factor} x {6 * factor} pixels as .*7 x 9, got 8 x 12$"):
        load_masks(enlarged(WHITE, 2), source, squares, "place", levels=levels)


@pytest.mark.parametrize("anchor", [None, "bottom", "top-left"])
@pytest.mark.parametrize("factor", [1, 3])
def test_an_inverted_mask_keeps_the_margin_of_its_picture(anchor, factor):
    levels, size = Levels.of(anchor=anchor, scale=factor), (9, 7)
    picture = enlarged(art(6, 4), factor)
    squares, source = load_images(picture, size, fit="place", levels=levels), open_source(picture)

    def masks(mask, **options):
        return load_masks(mask, source, squares, "place", levels=levels, **options)

    assert np.array_equal(masks(enlarged(WHITE, factor), invert=True), masks(255 - enlarged(WHITE, factor)))
    assert masks(WHITE, invert=True).sum() == (WHITE == 0).sum()
    canvas = masks(WHITE)[0]
    assert np.array_equal(masks(canvas, invert=True)[0], ~canvas)


@pytest.mark.parametrize("anchor", [None, "bottom-right"])
def test_the_mask_of_a_canvas_is_no_sheet(anchor):
    levels, size = Levels.of(slice=(6, 4), anchor=anchor), (8, 10)
    sheet = np.concatenate([art(6, 4, seed=1), art(6, 4, seed=2)], 1)
    squares, source = load_images(sheet, size, fit="place", levels=levels), open_source(sheet)
    canvas = np.random.default_rng(0).random(size) < 0.5
    assert np.array_equal(load_masks(canvas, source, squares, "place", levels=levels), canvas[None].repeat(2, 0))
    for other in ((7, 9), (6, 12), (12, 8), (9, 11), (6, 9)):  # neither the tile's nor the sheet's nor the canvas's
        with pytest.raises(InputError, match=r"mask: expected 4 x 6 pixels as .*, or the model's 10 x 8, got "):
            load_masks(np.eye(*other, dtype=bool), source, squares, "place", levels=levels)


def test_the_mask_of_a_sheet_is_cut_as_the_sheet_is():
    tiles = [art(6, 4, seed=i) for i in range(6)]
    tiles[4][:] = 0  # empty
    sheet = np.concatenate([np.concatenate(tiles[:3], 1), np.concatenate(tiles[3:], 1)])
    masks = [np.roll(WHITE, i, 0) for i in range(6)]
    white = np.concatenate([np.concatenate(masks[:3], 1), np.concatenate(masks[3:], 1)])
    levels = Levels.of(slice=(6, 4), anchor="top-left")
    squares = load_images(sheet, (8, 8), fit="place", levels=levels)
    found = load_masks(white, open_source(sheet), squares, "place", levels=levels)
    expected = np.zeros((5, 8, 8), bool)
    expected[:, :6, :4] = np.stack([mask for i, mask in enumerate(masks) if i != 4]) > 0
    assert np.array_equal(found, expected)
    one = load_masks(WHITE, open_source(sheet), squares, "place", levels=levels)
    assert np.array_equal(one, np.repeat(expected[:1], 5, 0))
    two = load_masks(
        [white, np.roll(white, 1, 0)], open_source([sheet, sheet]), squares.repeat(2, 0), "place", levels=levels
    )
    assert np.array_equal(two[:5], expected) and not np.array_equal(two[5:], expected)
    with pytest.raises(InputError, match="mask: expected one, or one for each of 5 pictures, got 2"):
        load_masks([WHITE, WHITE], open_source(sheet), squares, "place", levels=levels)
    with pytest.raises(InputError, match=r"mask: expected transparent pixels, .*got none"):
        load_masks("alpha", open_source(sheet), np.full((1, 8, 8, 4), 255, np.uint8), "place", levels=levels)


def test_some_enlarged_pictures_do_not_enlarge_the_canvas(tmp_path):
    pictures = {f"p{i}": enlarged(art(6, 5, seed=i), 1 + i % 2) for i in range(6)}
    source, size = with_canvas(open_source(write(tmp_path / "in", **pictures)), None, Levels())
    assert size == (6, 5) and all(np.array_equal(source.image(i, size, "place"), art(6, 5, seed=i)) for i in range(6))
    assert source.note is not None and "3 of 6 pictures were enlarged 2 times, which is undone" in source.note
    assert with_canvas(open_source(tmp_path / "in"), None, Levels(scale=1))[1] == (12, 10)
