"""Palettes of exact colours with transparency."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from models import lively

import nextpixel
from nextpixel import ImageGPTConfig, InputError
from nextpixel.tokens import read_tokenizer, write_tokenizer
from nextpixel.tokens.exact import COLOURS_AT_MOST, ExactPalette

pictures = arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.just(4)))
CLEAR, RED, BLUE, GLASS = (0, 0, 0, 0), (200, 0, 0, 255), (0, 0, 250, 255), (200, 0, 0, 90)


def cleared(images: np.ndarray) -> np.ndarray:
    """All fully transparent pixels as one colour."""
    return np.where(images[..., 3:] == 0, np.uint8(0), images)


def premultiplied(images: np.ndarray) -> np.ndarray:
    alpha = images[..., 3:] / 255
    return np.concatenate([images[..., :3] * alpha, 255 * alpha], -1)


def nearest(pixels: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """The definition: the smallest squared distance of (r a, g a, b a, 255 a), the first on ties."""
    points, colours = ([[*(int(c) * int(x[3]) for c in x[:3]), 255 * int(x[3])] for x in y] for y in (pixels, rgba))
    distances = [[sum((a - b) ** 2 for a, b in zip(p, c, strict=True)) for c in colours] for p in points]
    return np.array([row.index(min(row)) for row in distances])


@settings(deadline=None)
@given(pictures)
def test_pictures_of_the_palette_s_colours_come_back_exactly(images: np.ndarray) -> None:
    palette = ExactPalette.fit(images)
    tokens = palette.encode(images)
    assert np.array_equal(palette.decode(tokens, images.shape[2]), cleared(images))
    assert torch.equal(palette.encode(torch.from_numpy(images)), tokens)
    members = palette.encode(palette.rgba[None, None])
    assert members.tolist() == [list(range(len(palette)))]


@settings(deadline=None)
@given(pictures, pictures)
def test_other_colours_are_the_nearest_premultiplied_ones_however_they_are_asked_for(
    images: np.ndarray, others: np.ndarray
) -> None:
    palette = ExactPalette.fit(images)
    expected = nearest(cleared(others).reshape(-1, 4), palette.rgba)
    assert np.array_equal(palette.encode(others).reshape(-1), expected)
    pixel_by_pixel = [palette.encode(pixel[None, None, None]).item() for pixel in others.reshape(-1, 4)]
    assert np.array_equal(pixel_by_pixel, expected)


def test_the_first_of_equally_near_colours_is_taken() -> None:
    palette = ExactPalette([(10, 0, 0, 255), (20, 0, 0, 255), (0, 0, 0, 255)])
    assert palette.encode(np.array([[[(15, 0, 0, 255), (5, 0, 0, 255)]]], np.uint8)).tolist() == [[0, 0]]


def test_colours_with_transparency_come_first_and_then_the_frequent_ones() -> None:
    image = np.array([[RED, BLUE, BLUE, (9, 9, 9, 0)], [GLASS, BLUE, RED, (1, 2, 3, 0)]], np.uint8)[None]
    palette = ExactPalette.fit(image)
    assert palette.rgba.tolist() == [list(colour) for colour in (CLEAR, GLASS, BLUE, RED)]
    assert ExactPalette.fit(np.concatenate([image[:, 1:], image[:, :1]], 1)).hash == palette.hash


def test_its_hash_is_that_of_its_colours_and_their_order() -> None:
    assert ExactPalette([RED, BLUE]).hash == ExactPalette(np.array([RED, BLUE], np.int64)).hash
    others = {ExactPalette(colours).hash for colours in ([RED, BLUE], [BLUE, RED], [RED], [GLASS, BLUE])}
    assert len(others) == 4


@pytest.mark.parametrize("has_clear", [True, False])
def test_of_more_colours_k_means_selects_and_says_so(has_clear: bool, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 4), np.uint8)
    images[..., 3] |= 1
    images[0, 0, 0] = (7, 7, 7, 0 if has_clear else 255)
    palette = ExactPalette.fit(images, 40)
    assert len(palette) == 40 and (CLEAR in [tuple(colour) for colour in palette.rgba]) == has_clear
    assert "1,600 colours; expected at most 40, so k-means selected 40" in capsys.readouterr().err
    own = {tuple(colour) for colour in cleared(images).reshape(-1, 4)}
    assert {tuple(colour) for colour in palette.rgba} <= own
    assert ExactPalette.fit(images, 40).hash == palette.hash
    drawn = ExactPalette(np.random.default_rng(1).permutation(cleared(images).reshape(-1, 4))[:40])
    error, floor = (
        np.square(premultiplied(one.decode(one.encode(images), 20)) - premultiplied(images)).mean()
        for one in (palette, drawn)
    )
    assert error < 0.9 * floor


def test_more_than_the_largest_number_of_colours(capsys: pytest.CaptureFixture[str]) -> None:
    ramp = np.arange(1_500)
    image = np.stack([ramp % 256, ramp // 256, 0 * ramp, 0 * ramp + 255], -1).astype(np.uint8).reshape(1, 30, 50, 4)
    palette = ExactPalette.fit(image)
    assert len(palette) == COLOURS_AT_MOST and "1,500 colours" in capsys.readouterr().err
    assert torch.equal(palette.encode(palette.rgba[None, None])[0], torch.arange(COLOURS_AT_MOST))


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        ([RED, RED], "1 repeated"),
        ([(1, 2, 3, 0), CLEAR, RED], "1 repeated; all that are fully transparent are one"),
        ([RED[:3]], r"got \(1, 3\)"),
        (np.zeros((0, 4), np.uint8), r"got \(0, 4\)"),
        (np.arange(1_025 * 4).reshape(-1, 4) % 256, r"1 to 1,024 colours .* got \(1025, 4\)"),
        ([(1, 2, 3, 256)], "whole numbers from 0 to 255"),
        ([(0.5, 0, 0, 1)], "whole numbers from 0 to 255"),
    ],
)
def test_what_is_no_palette(colours: list, message: str) -> None:
    with pytest.raises(InputError, match=f"palette: .*{message}"):
        ExactPalette(colours)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2, 4)), np.zeros((2, 2, 4), np.uint8)]
)
def test_it_encodes_pictures_with_alpha_only(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(B, H, W, 4\)"):
        ExactPalette([RED]).encode(images)


def test_it_travels_with_a_model(tmp_path: Path) -> None:
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=(3, 2), colors=4), torch.float32)
    model.tokenizer = ExactPalette([CLEAR, GLASS, RED, BLUE])
    nextpixel.save(model, tmp_path / "model")
    again = nextpixel.load(tmp_path / "model").tokenizer
    assert isinstance(again, ExactPalette) and again.hash == model.tokenizer.hash
    assert again.rgba.tolist() == model.tokenizer.rgba.tolist()
    facts = json.loads(json.dumps(write_tokenizer(again, tmp_path)))
    assert facts["rgba"] == ["00000000", "c800005a", "c80000ff", "0000faff"] and facts["kind"] == "exact"
    assert read_tokenizer(facts).hash == again.hash


@pytest.mark.parametrize("rgba", [["c80000ff", "c80000ff"], ["c80000"], ["red"], [], 7, [1]])
def test_damaged_values_in_a_checkpoint_are_named(tmp_path: Path, rgba: object) -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=2, colors=2), torch.float32)
    model.tokenizer = ExactPalette([CLEAR, RED])
    nextpixel.save(model, tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values["nextpixel"]["tokenizer"]["rgba"] = rgba
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"preprocessor_config\.json: tokenizer: "):
        nextpixel.load(tmp_path / "model")
