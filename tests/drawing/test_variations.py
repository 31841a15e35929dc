"""Variations of pictures: which part is redrawn, with which colours, and mistakes."""

import numpy as np
import pytest
import torch
from models import lively
from PIL import Image

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig, InputError
from nextpixel.config import Part, SamplingConfig
from nextpixel.drawing.variations import draw_variations, part_mask

PALETTE = [(0, 0, 0, 0), (200, 0, 0, 255), (0, 0, 250, 255), (0, 90, 0, 255), (90, 90, 0, 255)]
RED, BLUE = "#c80000", "#0000fa"
EXACT = SamplingConfig(speed="exact", seed=3)
H, W = 6, 5


@pytest.fixture
def model() -> ImageGPT:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=(H, W), colors=5), torch.float32)
    model.tokenizer, model.fit = ExactPalette(PALETTE), "place"
    return model


@pytest.fixture
def squares(model: ImageGPT) -> np.ndarray:
    """Two pictures without the last two colours."""
    tokens = np.random.default_rng(0).integers(0, 3, (2, H * W))
    return model.tokenizer.decode(tokens, W)


@pytest.mark.parametrize(
    ("part", "strength", "box"),
    [
        ("top", 0.5, (0, 3, 0, 5)),
        ("bottom", 0.5, (3, 6, 0, 5)),
        ("left", 0.4, (0, 6, 0, 2)),
        ("right", 0.4, (0, 6, 3, 5)),
        ("center", 0.25, (1, 4, 1, 3)),
        ("center", 1, (0, 6, 0, 5)),
        ("random", 1, (0, 6, 0, 5)),
        ("top", 0.01, (0, 1, 0, 5)),
    ],
)
def test_parts_of_a_picture(part: Part, strength: float, box: tuple[int, int, int, int]) -> None:
    expected = np.zeros((H, W), bool)
    expected[box[0] : box[1], box[2] : box[3]] = True
    assert np.array_equal(part_mask((H, W), strength, part), expected)
    assert not part_mask((H, W), 0, part).any()


def test_random_parts_are_everywhere_and_of_one_size() -> None:
    masks = np.stack([part_mask((H, W), 0.3, "random", (1, 2, i)) for i in range(200)])
    assert (masks.sum((1, 2)) == 9).all() and masks.any(0).all()  # 3 x 3 of 30 pixels
    assert len(np.unique(masks.reshape(200, -1), axis=0)) == 4 * 3


def test_the_part_is_redrawn_and_the_rest_is_kept(model: ImageGPT, squares: np.ndarray) -> None:
    found = draw_variations(model, squares, 0.3, 4, "random", None, EXACT)
    originals = squares.repeat(4, 0)
    assert found.images.shape == (8, H, W, 4) and found.drawn_at.shape == (8, H, W) and found.nats.shape == (8,)
    assert np.array_equal(found.images[found.kept], originals[found.kept])
    for i in range(8):
        part = part_mask((H, W), 0.3, "random", (3, *divmod(i, 4)))
        assert np.array_equal(found.drawn_at[i] > 0, part)
        assert (found.images[i] != originals[i]).any() and np.isfinite(found.nats[i])
    again = draw_variations(model, squares, 0.3, 4, "random", None, EXACT)
    assert np.array_equal(found.images, again.images) and len(np.unique(found.images.reshape(8, -1), axis=0)) == 8


def test_pixels_of_other_colours_are_redrawn_in_those_that_are_given(model: ImageGPT, squares: np.ndarray) -> None:
    found = draw_variations(model, squares, 0, 3, "random", f"{RED},#5a5a00", EXACT)
    drawn = found.drawn_at > 0
    codes = model.tokenizer.encode(found.images).numpy().reshape(6, H, W)
    assert set(codes[drawn].tolist()) <= {1, 4} and 2 not in codes  # no blue, and what was solid stays so
    assert np.array_equal(drawn, (squares.repeat(3, 0) == PALETTE[2]).all(-1))
    with pytest.raises(InputError, match="colors: expected `strength` above 0, as the pictures have no other colours"):
        draw_variations(model, squares, 0, 3, "random", f"{RED},{BLUE}", EXACT)


def test_transparency_is_drawn_in_the_part_alone(model: ImageGPT, squares: np.ndarray) -> None:
    with torch.no_grad():
        model.head.weight.zero_()  # all tokens alike
    squares = model.tokenizer.decode(np.full((1, H * W), 2), W)
    found = draw_variations(model, squares, 0.5, 20, "top", RED, EXACT)
    clear = found.images[..., 3] == 0
    assert clear[:, :3].any() and not clear[:, 3:].any()
    only_clear = draw_variations(model, squares, 0, 1, "random", "#00000000", EXACT)
    assert not only_clear.images.any()
    mixed = squares.copy()
    mixed[0, 0] = 0
    kept = draw_variations(model, mixed, 0, 2, "random", RED, SamplingConfig(speed="exact", forbid_colors="#00000000"))
    assert not kept.images[:, 0].any() and (kept.images[:, 1:] == PALETTE[1]).all()  # nothing clear is filled


def test_a_picture_that_has_only_these_colours_stays(model: ImageGPT, squares: np.ndarray) -> None:
    squares[0][(squares[0] == PALETTE[2]).all(-1)] = PALETTE[1]
    found = draw_variations(model, squares, 0, 2, "random", RED, EXACT)
    assert np.array_equal(found.images[:2], squares[[0, 0]]) and (found.nats[:2] == 0).all()
    assert found.kept[:2].all() and not found.kept[2:].all() and (found.nats[2:] > 0).all()


def test_python_takes_pictures_and_settings(model: ImageGPT, squares: np.ndarray) -> None:
    picture = Image.fromarray(squares[0])
    found = nextpixel.vary(model, picture, 0.5, 2, part="bottom", seed=1, speed="exact")
    assert [one.mode for one in found] == ["P", "P"] and found[0].size == (W, H)
    top = [np.asarray(one.convert("RGBA"))[:3] for one in found]
    assert all(np.array_equal(one, squares[0, :3]) for one in top)
    assert len(nextpixel.vary(model, [picture, picture], n=3, caption=None)) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, "strength: expected a fraction of the pixels from 0 to 1, got 1.5"),
        ({"strength": float("nan")}, "strength: expected a fraction"),
        ({"strength": "0.3"}, "strength: expected a fraction of the pixels from 0 to 1, got '0.3'"),
        ({"strength": 0}, "strength: expected more than 0, or `colors` to draw with"),
        ({"strength": 0, "part": "top", "colors": RED}, "part: has no effect with `strength=0`"),
        ({"part": "middle"}, "part: expected one of random, top, bottom, left, right, center, got 'middle'"),
        ({"n": 0}, "n: expected"),
        ({"colors": "#123456"}, "colors: expected colours of the model, got #123456, which is none of its 5; near"),
        ({"colors": "red"}, "colors: expected #rrggbb"),
        ({"colors": ["#123456"]}, "colors: expected text as in"),
        ({"colors": RED, "allow_colors": BLUE}, "colors: cannot be combined with `allow_colors`"),
        ({"colors": RED, "forbid_colors": f"{RED},0"}, "colors: expected at least one of 5 colours to be left"),
        ({"caption": "red"}, "caption"),
    ],
)
def test_mistakes_are_named(model: ImageGPT, squares: np.ndarray, settings: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        nextpixel.vary(model, Image.fromarray(squares[0]), **settings)
    assert message in str(error.value)
