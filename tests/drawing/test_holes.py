"""Holes of any shape through the public functions: masks, turning, streams, captions, colours, grids of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from averages import Averages
from hypothesis import given, settings
from hypothesis import strategies as st
from models import lively, with_words
from PIL import Image

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig, InputError, Palette, complete, stream
from nextpixel.config import SamplingConfig, to_side
from nextpixel.drawing.guide import FREE
from nextpixel.drawing.holes import Filling, best_turn, count_blind, turns
from nextpixel.drawing.sampling import draw, load_holes
from nextpixel.images.sources.masks import box_mask
from nextpixel.tokens.codec import Codec, CodecShape
from nextpixel.tokens.learned import Learned
from nextpixel.tokens.patches import Patches

PICTURES = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3), np.uint8)
RING = np.zeros((6, 6), bool)
RING[2:5, 1:4] = True
RING[3, 2] = False


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    return palette_model(side=6)


def palette_model(**options: Any) -> ImageGPT:
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, colors=12, **options))
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    return model


def array(picture: Any) -> np.ndarray:
    return np.asarray(picture)


def test_a_hole_is_filled_and_the_rest_is_kept(model: ImageGPT) -> None:
    kept = model.palette.decode(model.palette.encode(PICTURES), 6)
    pictures = [array(p) for p in complete(model, PICTURES, mask=RING, n=2, speed="exact")]
    assert len(pictures) == 6
    for i, picture in enumerate(pictures):
        assert np.array_equal(picture[~RING], kept[i // 2][~RING])
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize(
    "kind", ["bool", "bytes", "ones", "floats", "picture", "path", "list", "stack", "tensor", "names", "small"]
)
def test_a_mask_is_of_any_kind(model: ImageGPT, kind: str, tmp_path: Path) -> None:
    white = RING.astype(np.uint8) * 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    mask = {
        "bool": RING,
        "bytes": white,
        "ones": RING.astype(np.int64),
        "floats": RING.astype(np.float32),
        "picture": Image.fromarray(white),
        "path": tmp_path / "mask.png",
        "list": [RING] * 3,
        "stack": np.stack([RING] * 3),
        "tensor": torch.from_numpy(RING),
        "names": [str(tmp_path / "mask.png")] * 3,
        "small": RING.astype(np.int8),
    }[kind]
    assert (load_holes(model, PICTURES, mask)[1] == RING).all()
    assert np.array_equal(load_holes(model, PICTURES, mask, invert=True)[1][0], ~RING)


def test_a_large_mask_is_brought_to_the_grid_as_its_picture_is(model: ImageGPT) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8))
    white = np.zeros((60, 120), np.uint8)
    white[20:40, 30:50] = 255  # the crop begins at column 30
    masks = load_holes(model, picture, white)[1]
    expected = np.zeros((6, 6), bool)
    expected[2:4, 0:2] = True
    assert np.array_equal(masks[0], expected)
    thin = np.zeros((60, 120), np.uint8)
    thin[:, 63:66] = 255
    assert load_holes(model, picture, thin)[1][0].any(1).all()


def test_white_on_a_transparent_layer_is_the_mask(model: ImageGPT, tmp_path: Path) -> None:
    layer = np.zeros((*RING.shape, 4), np.uint8)
    layer[RING] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    for mask in (tmp_path / "layer.png", Image.fromarray(layer)):
        assert np.array_equal(load_holes(model, PICTURES[:1], mask)[1][0], RING)
    layer[..., :3] = np.where(RING[..., None], 0, 255)
    layer[..., 3] = np.where(RING, 255, 0)  # black on a transparent layer: what is black is kept
    assert np.array_equal(load_holes(model, PICTURES[:1], Image.fromarray(layer))[1][0], ~RING)


def test_transparent_pixels_are_the_mask(model: ImageGPT, tmp_path: Path) -> None:
    rgba = np.dstack([PICTURES[0], np.where(RING, 0, 255).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "holes.png")
    assert np.array_equal(load_holes(model, tmp_path / "holes.png", "alpha")[1][0], RING)


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
def test_a_mask_of_the_lower_rows_is_as_keeping_the_upper_ones(model: ImageGPT, keep: int) -> None:
    mask = np.arange(6)[:, None].repeat(6, 1) >= keep
    if keep == 0:
        with pytest.raises(InputError, match="sample draws whole pictures"):
            complete(model, PICTURES, mask=mask)
        return
    sampling = SamplingConfig(seed=3, temperature=0.8)
    rows = draw(model, PICTURES, keep=keep / 6, n=2, sampling=sampling)
    hole = Filling(model, PICTURES, mask, n=2, sampling=sampling).draw()
    assert np.array_equal(rows.images, hole.images) and np.allclose(rows.nats, hole.nats, atol=1e-5)
    assert np.array_equal(rows.drawn_at, hole.drawn_at)
    assert hole.evidence is not None and (hole.evidence.log_evidence == 0).all()


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_masks_of_any_grid(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([(4, 4), (2, 6), (5, 3)]))
    model = palette_model(
        side=to_side(size), orientations=data.draw(st.sampled_from([1, 8])) if size[0] == size[1] else 1
    )
    squares = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    pixels = 2 * size[0] * size[1]
    alone = st.integers(0, pixels - 1).map(lambda place: [i == place for i in range(pixels)])
    masks = np.array(data.draw(st.lists(st.booleans(), min_size=pixels, max_size=pixels) | alone)).reshape(2, *size)
    drawing = Filling(model, squares, masks, n=2, particles=3).draw()
    kept = model.palette.decode(model.palette.encode(squares), size[1])
    each = np.repeat(masks, 2, 0)
    assert np.array_equal(drawing.images[~each], np.repeat(kept, 2, 0)[~each])
    assert (np.broadcast_to(drawing.kept, each.shape) == ~each).all()
    rows = {}
    for row in (
        stream(model, squares, mask=masks, n=2, particles=3)
        if masks.any((1, 2)).all() and not (masks.all((1, 2)).any())
        else []
    ):
        assert (row.candidates.start, row.y) not in rows
        rows[row.candidates.start, row.y] = row.pixels[0]
    for (i, y), pixels in rows.items():
        assert np.array_equal(pixels, drawing.images[i, y])
    if rows:
        assert set(rows) == {(i, y) for i in range(4) for y in np.flatnonzero(each[i].any(1))}


def test_known_pixels_come_soonest() -> None:
    every = range(8)
    upper, left, lines = (np.zeros((6, 6), bool) for _ in range(3))
    upper[:3], left[:, :3], lines[:, 1::2] = True, True, True
    assert best_turn(upper, every) in (2, 6) and best_turn(left, every) in (1, 5)
    assert best_turn(lines, every) == best_turn(lines.T, every) == 0
    assert best_turn(left, (0, 4)) == best_turn(left[:4], (0, 4, 2, 6)) == 4  # pixel art; grids that are not square
    assert best_turn(~left, (0, 4)) == best_turn(~lines, (0, 4)) == 0
    assert best_turn(upper | left, (0, 4, 2, 6)) == 2  # a turn that gains more than mirroring
    assert best_turn(upper, (0, 4)) == 0 and best_turn(np.zeros((6, 6), bool), every) == 0
    eye = np.zeros((32, 32), bool)
    eye[8:12, 2:6] = True
    assert best_turn(eye, (0, 4)) == best_turn(eye, every) == 4 and best_turn(eye[:, ::-1], every) == 0
    assert best_turn(np.ones((6, 6), bool), every) == 0
    middle = np.zeros((6, 6), bool)
    middle[2:4, 2:4] = True
    assert best_turn(middle, every) == 0
    assert count_blind(upper) == 0 and count_blind(~middle) == 0
    tall = np.ones((10, 3), bool)
    tall[7] = False
    assert count_blind(tall) == 9


def test_models_trained_with_orientations_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = palette_model(side=4, orientations=8)
    upper = np.arange(4)[:, None].repeat(4, 1) < 2
    squares = PICTURES[:, :4, :4]
    turned = draw(model, squares, keep=0.5, keep_side="bottom", n=2, sampling=SamplingConfig(seed=1))
    hole = Filling(model, squares, upper, n=2, sampling=SamplingConfig(seed=1)).draw()
    assert np.array_equal(turned.images, hole.images)
    assert np.array_equal(turned.drawn_at, hole.drawn_at)


def test_pixel_art_keeps_its_colours_and_is_not_turned_upside_down() -> None:
    rgba = np.array([[0, 0, 0, 0], [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 128]], np.uint8)
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=4), torch.float32)
    model.tokenizer = ExactPalette(rgba)
    assert list(turns(model)) == [0, 4]
    squares = rgba[np.random.default_rng(0).integers(0, 4, (2, 4, 4))]
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:] = True
    drawing = Filling(model, squares, mask, n=3, sampling=SamplingConfig(allow_colors="#ff0000,#00000000")).draw()
    tokens = model.tokenizer.encode(drawing.images).numpy().reshape(6, 4, 4)
    assert set(tokens[:, mask].ravel().tolist()) == {0, 1}
    assert np.array_equal(drawing.images[:, ~mask], np.repeat(squares, 3, 0)[:, ~mask])
    left = np.arange(4)[None].repeat(4, 0) < 2
    filling = Filling(model, squares, left)
    assert [hole.orientation for hole in filling.holes] == [4, 4]
    assert np.array_equal(filling.draw().images[:, ~left], squares[:, ~left])


def test_captions_and_guidance_steer_a_hole() -> None:
    model = with_words(ImageGPTConfig(layers=2, width=64, heads=2, side=4, colors=12))
    mask = np.zeros((4, 4), bool)
    mask[1:3] = True
    squares = PICTURES[:, :4, :4]
    plain = Filling(model, squares, mask, n=2, caption="red hair").draw()
    guided = Filling(model, squares, mask, n=2, caption="red hair", sampling=SamplingConfig(guidance=3)).draw()
    assert not np.array_equal(plain.images, guided.images)
    each = Filling(model, squares, mask, caption=["red hair", "hat", "green shirt"]).draw()
    assert np.array_equal(each.images[0], plain.images[0])
    with pytest.raises(InputError, match="caption: expected one, or one for each of 3 pictures, got 2"):
        Filling(model, squares, mask, caption=["hat", "hair"]).draw()


CODES = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), np.uint8)
LEARNED = Learned(Codec(CodecShape(patch=2, codes=1_000, width=8, blocks=2)))


@pytest.mark.parametrize("tokenizer", [Averages(8), Patches(CODES), LEARNED], ids=lambda one: one.kind)
@pytest.mark.parametrize("grid", [3, (3, 4), (4, 2)])
def test_a_hole_grows_to_the_tokens_that_see_it(tokenizer: Any, grid: Any) -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=grid, colors=len(tokenizer)), torch.float32)
    model.tokenizer = tokenizer
    squares = np.random.default_rng(1).integers(0, 256, (2, *model.size, 3), np.uint8)
    mask = np.zeros(model.size, bool)
    mask[2, 2] = mask[5, 3] = True
    filling = Filling(model, squares, mask, n=2, particles=3)
    assert filling.steps_left > filling.tokens * 3
    assert [hole.known.tolist().count(FREE) for hole in filling.holes] == [2, 2]
    drawn, drawing = {(row.candidates.start, row.y): row.pixels[0] for row in filling.stream()}, filling.drawing()
    assert np.array_equal(drawing.kept, ~mask)
    assert np.array_equal(drawing.images[:, ~mask], np.repeat(squares, 2, 0)[:, ~mask])  # pixels, not only tokens
    assert filling.steps_left == 0
    assert {y for _, y in drawn} == {2, 5}
    assert all(np.array_equal(pixels, drawing.images[i, y]) for (i, y), pixels in drawn.items())


def test_only_what_is_being_drawn_holds_noise_and_particles(model: ImageGPT) -> None:
    filling = Filling(model, PICTURES[:1], RING[None], n=40, particles=8)
    most = 0
    for _ in filling.rounds():
        most = max(most, sum("rows" in vars(one) and len(one.rows) > 0 for one in filling.runs))
    assert 0 < most <= filling.room // 8 < 40
    assert all(one.tokens.base.shape == (36,) and not one.rows for one in filling.runs)  # one row, seen eight times


def test_rows_keep_no_more_than_themselves(model: ImageGPT) -> None:
    filling = Filling(model, PICTURES[:1], RING[None], n=2, particles=2)
    list(filling.rounds())
    rows = filling.new_rows()
    assert len(rows) == 2 * RING.any(1).sum() and all(pixels.base is None for *_, pixels in rows)


def test_streamed_rows_are_not_decoded_beside_a_token_that_was_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=len(LEARNED)), torch.float32)
    model.tokenizer = LEARNED
    square, mask = np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8), bool)
    filling = Filling(model, square, mask, particles=2)
    assert len(filling.runs[0].rows) == 1  # nothing known, nothing to weigh
    filling.runs[0].tokens[:, :6] = [7, 8, 9, 10, 11, 12]
    filling.runs[0].tokens[:, 6:] = FREE
    decoded: list[list[int]] = []
    monkeypatch.setattr(LEARNED, "decode", lambda tokens, columns: decoded.append(tokens[0].tolist()) or square)
    filling.image(0)
    assert decoded == [[7, 8, 9, 10, 11, 12, 9, 10, 11, 12, 9, 10, 11, 12, 9, 10]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((6, 6), bool), "mask: expected white pixels, which are filled, got none$"),
        (np.ones((6, 6), bool), "mask: expected black pixels, which are kept, got none"),
        (np.stack([RING, RING]), "mask: expected one, or one for each of 3 pictures, got 2"),
        (np.stack([RING, RING, RING & False]), "mask: expected white pixels.*in mask 3 of 3"),
        (np.zeros((4, 9, 2, 3)), r"mask: expected numbers of shape \(H, W\)"),
        (np.zeros(6), r"mask: expected numbers of shape \(H, W\)"),
        (np.zeros((0, 6)), r"mask: expected numbers of shape \(H, W\)"),
        (np.full((6, 6), np.nan), "mask: expected numbers from 0 to 1"),
        (np.full((6, 6), 3.5), "mask: expected numbers from 0 to 1, got 3.5"),
        (np.full((6, 6), -1), "mask: expected numbers from 0 to 255, got -1"),
        (np.full((6, 6), 256), "mask: expected numbers from 0 to 255, got 256"),
        (np.full((6, 6), "x"), r"mask: expected numbers of shape \(H, W\)"),
        (np.ones((12, 6), np.uint8), "mask: expected the proportions of .*6 x 6.*got 6 x 12"),
        (3, "mask: expected a picture, or an array"),
        ("nowhere.png", "mask: .*nowhere.png"),
        ([], "mask: "),
        ({}, "mask: "),
        ("alpha", "mask: expected transparent pixels, which are filled, got none"),
    ],
)
def test_bad_masks_are_refused(model: ImageGPT, mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete(model, PICTURES, mask=mask)


def test_particles_without_a_hole_are_refused(model: ImageGPT) -> None:
    for function in (complete, stream):
        with pytest.raises(InputError, match="particles: requires `mask`"):
            list(function(model, PICTURES, particles=16))
    assert len(complete(model, PICTURES[:1], mask=RING[None], particles=np.int64(2))) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "particles: expected 1 to 256, got 0"),
        ({"particles": 2.5}, "particles: expected a whole number"),
        ({"particles": 257}, "particles: expected 1 to 256, got 257"),
        ({"keep": 0.25}, "keep: cannot be combined with `mask`"),
        ({"keep_side": "left"}, "keep_side: cannot be combined with `mask`"),
        ({"n": 0}, "n: expected at least 1"),
        ({"allow_colors": "99"}, "allow_colors: "),
    ],
)
def test_bad_settings_of_a_hole_are_refused(model: ImageGPT, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete(model, PICTURES, mask=RING, **settings)


@pytest.mark.parametrize(
    "box", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "3,3,3,5", "5,1,2,4", "0,0,7,6", "-1,0,2,2", "1.5,0,3,3"]
)
def test_bad_boxes_are_refused(box: str) -> None:
    with pytest.raises(InputError, match="box: expected LEFT,TOP,RIGHT,BOTTOM"):
        box_mask(box, (6, 6))


def test_a_box_of_the_whole_picture_is_refused() -> None:
    with pytest.raises(InputError, match="box: 0,0,5,6 covers the whole picture"):
        box_mask("0,0,5,6", (6, 5))


def test_a_box_is_in_pixels_of_the_model() -> None:
    assert np.argwhere(box_mask("1,2,3,4", (6, 5))).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]


def test_a_masked_model_cannot_fill_holes() -> None:
    with pytest.raises(InputError, match="masked model has no order"):
        complete(palette_model(side=6, objective="masked"), PICTURES, mask=RING)


def test_batches_cut_by_memory_change_no_pixel(model: ImageGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Filling(model, PICTURES, RING, n=3, particles=4).draw()
    monkeypatch.setattr(nextpixel.drawing.holes, "MAX_ROWS", 9)
    cut = Filling(model, PICTURES, RING, n=3, particles=4).draw()
    assert np.array_equal(whole.images, cut.images)
    assert whole.evidence is not None and cut.evidence is not None
    assert np.allclose(whole.evidence.log_evidence, cut.evidence.log_evidence)
