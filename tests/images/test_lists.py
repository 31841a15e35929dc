"""Pictures as a list that a notebook shows, as a grid, and joined to their originals."""

import io

import numpy as np
import pytest
from PIL import Image

import nextpixel
from nextpixel import InputError
from nextpixel.images import fit_image, join_pictures


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_pictures_stay_a_list_of_pil_images_and_show_as_a_grid(model):
    drawn = nextpixel.sample(model, n=3, seed=0)
    assert isinstance(drawn, list) and all(isinstance(picture, Image.Image) for picture in drawn)
    assert repr(drawn) == "<3 PIL pictures of 4 x 4 pixels>"
    shown = Image.open(io.BytesIO(drawn._repr_png_()))
    assert (np.asarray(shown) == np.asarray(nextpixel.grid(drawn))).all()
    halves = nextpixel.complete(model, noise(4, 4), n=2, seed=0)
    assert repr(halves[:1] + halves) == repr([halves[0], *halves]), "slices are plain lists"
    assert nextpixel.PictureList()._repr_png_() is None and repr(nextpixel.PictureList()) == "<0 PIL pictures>"


@pytest.mark.parametrize("channels", [3, 4])
def test_grid_enlarges_pictures_and_arrays_row_by_row(channels):
    pixels = noise(5, 4, channels)
    pixels[..., 3:] = 255
    one = nextpixel.grid([pixels, Image.fromarray(pixels), pixels], 2, zoom=3)
    assert (np.asarray(one)[16:31, 16:28] == pixels.repeat(3, 0).repeat(3, 1)[..., :3]).all()
    assert one.size == (4 * 3 * 2 + 5 * 8, 5 * 3 * 2 + 5 * 8)
    assert nextpixel.grid([pixels]).size == (4 * 19 + 32, 5 * 19 + 32)


def test_bad_grids_are_refused():
    with pytest.raises(InputError, match="at least one image"):
        nextpixel.grid([])
    with pytest.raises(InputError, match=r"pictures: expected PIL pictures or arrays, got \[\]"):
        nextpixel.grid([[], []])
    for name in ("columns", "zoom"):
        with pytest.raises(InputError, match=f"{name}: expected at least 1, got 0"):
            nextpixel.grid([noise(2, 2)], **{name: 0})


@pytest.mark.parametrize("fit", ["crop", "imagenet", "squash"])
@pytest.mark.parametrize(("height", "width"), [(90, 60), (60, 90), (64, 64), (61, 97)])
def test_kept_rows_are_the_picture_itself_and_drawn_ones_are_enlarged(fit, height, width):
    picture = Image.fromarray(noise(height, width))
    kept = np.arange(8)[:, None].repeat(8, 1) < 4
    drawn = np.where(kept[..., None], fit_image(picture, (8, 8), fit), 77).astype(np.uint8)
    joined = np.asarray(join_pictures(picture, drawn, kept, fit))
    side = min(height, width)
    top, left = (0, 0) if fit == "squash" else ((height - side) // 2, (width - side) // 2)
    rows, columns = (height, width) if fit == "squash" else (side, side)
    assert joined.shape == (rows, columns, 3)
    original = np.asarray(picture)[top : top + rows, left : left + columns]
    assert (joined[: rows // 2] == original[: rows // 2]).all()
    assert (joined[-rows // 8 :] == 77).all()  # far from the seam the drawn colour alone


def test_drawn_pixels_fade_into_the_picture_beside_them():
    picture = Image.fromarray(np.full((64, 96, 3), 200, np.uint8))
    kept = np.ones((8, 12), bool)
    kept[2:, 3:] = False
    joined = np.asarray(join_pictures(picture, np.full((8, 12, 3), 180, np.uint8), kept)).astype(int)
    column, row = joined[:, 70, 0], joined[40, :, 0]
    for line, edge in ((column, 16), (row, 24)):
        assert (line[:edge] == 200).all() and (line[edge + 24 :] == 180).all()
        assert (np.diff(line) <= 0).all() and np.diff(line).min() > -4 and 195 < line[edge] < 200


def test_small_pictures_are_enlarged_to_what_the_model_sees_and_placed_ones_refused():
    kept = np.ones((8, 8), bool)
    assert join_pictures(Image.fromarray(noise(3, 3)), noise(8, 8), kept).size == (8, 8)
    with pytest.raises(InputError, match="fit: expected pictures that are resized"):
        join_pictures(Image.fromarray(noise(3, 3)), noise(8, 8), kept, "place")


def test_public_objects_describe_themselves(model):
    parameters = f"{model.config.parameters:,} parameters"
    assert repr(model) == f"ImageGPT(2 layers x 24, 3 heads, 4 x 4 pixels, 16 colours, {parameters})"
    assert repr(model.tokenizer).startswith("Palette(16 colours, ")
    probe = nextpixel.LinearProbe(model)
    assert repr(probe) == "LinearProbe(layer='best', not fitted)"
    probe.fit(np.concatenate([np.zeros((6, 4, 4, 3), np.uint8), noise(24, 4).reshape(6, 4, 4, 3)]), [0] * 6 + [1] * 6)
    assert repr(probe).startswith("LinearProbe(2 classes, layers [")
