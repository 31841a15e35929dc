import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nextpixel import InputError, Palette
from nextpixel.tokens import palette as palette_module
from nextpixel.tokens import reconstruction
from nextpixel.tokens.palette import save_palette

OPENAI = Palette.openai()
images = arrays.arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 6), st.just(3)))


def nearest(image: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The definition: the smallest squared distance in float64, the first on ties."""
    pixels = image.reshape(-1, 3).astype(np.float64) / 127.5 - 1.0
    return ((pixels[:, None] - colors.astype(np.float64)) ** 2).sum(-1).argmin(-1)


@given(images)
def test_tokens_are_the_nearest_colours_in_float64(image: np.ndarray) -> None:
    many = np.concatenate([image] * (1 + palette_module.TABLE_FROM // image[0, :, :, 0].size))  # through the table
    expected = nearest(image, OPENAI.colors)
    assert np.array_equal(OPENAI.encode(many)[-1], expected)
    assert np.array_equal(Palette(OPENAI.colors).encode(image)[0], expected)


@settings(max_examples=25, deadline=None)
@given(images, st.integers(1, 20), st.integers(0, 1000))
def test_any_palette_with_repeated_and_symmetric_colours_takes_the_first_on_ties(
    image: np.ndarray, colours: int, seed: int
) -> None:
    grid = np.random.default_rng(seed).choice([-1.0, -0.5, 0.0, 0.5, 1.0], (colours, 3)).astype(np.float32)
    expected = nearest(image, grid)
    assert np.array_equal(Palette(grid).encode(image)[0], expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(palette_module, "TREE_FROM", 1)
        assert np.array_equal(Palette(grid).encode(image)[0], expected)


@settings(max_examples=20, deadline=None)
@given(images)
def test_the_tree_finds_openai_s_nearest_colours(image: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(palette_module, "TREE_FROM", 1)
        assert np.array_equal(Palette(OPENAI.colors).encode(image)[0], nearest(image, OPENAI.colors))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of colours of each search by tree."""
    counts: list[int] = []

    class Recorded(scipy.spatial.KDTree):
        def query(self, x: np.ndarray, *args: Any, **options: Any) -> Any:
            counts.append(len(x))
            return super().query(x, *args, **options)

    monkeypatch.setattr(scipy.spatial, "KDTree", Recorded)
    return counts


def test_many_colours_take_the_tree_and_without_scipy_the_tokens_are_the_same(
    searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 100, 100, 3), np.uint8)
    tokens = Palette.openai().encode(image)
    assert sum(searches) > 9_900
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    assert np.array_equal(Palette.openai().encode(image), tokens)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_tokens_of_the_cpu() -> None:
    image = torch.randint(0, 256, (2, 50, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(OPENAI.encode(image.cuda()).cpu(), OPENAI.encode(image))


def test_a_search_holds_few_distances_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    search = palette_module._nearest
    monkeypatch.setattr(palette_module, "_nearest", lambda c, k: sizes.append(len(c) * len(k)) or search(c, k))
    for colours, device, most in ((512, "cpu", 1 << 17), (4_096, "meta", 1 << 22)):
        colors = torch.zeros(colours, 3, dtype=torch.float64, device=device)
        found = palette_module._brute_force(torch.zeros(5_000, dtype=torch.int64, device=device), colors)
        assert found.shape == (5_000,) and max(sizes) <= most and sum(sizes) == 5_000 * colours
        sizes.clear()


def test_openai_s_palette_is_the_published_one() -> None:
    assert OPENAI.colors.shape == (512, 3)
    assert OPENAI.colors[:2].ravel() == pytest.approx(
        [0.88664436, 0.66188294, 0.38917464, -0.60425591, -0.02295009, 0.54237974], abs=1e-7
    )


def test_decode_then_encode_gives_every_token_back() -> None:
    tokens = np.arange(512)[:, None]
    assert np.array_equal(OPENAI.encode(OPENAI.decode(tokens)), tokens)


def test_decoding_rounds_half_to_even_and_clips() -> None:
    palette = Palette(np.array([[-1.0, 0.0, 1.0], [1.00005, -1.00005, 0.5]]))
    assert palette.rgb.tolist() == [[0, 128, 255], [255, 0, 191]]


def test_a_saved_table_is_used_and_a_damaged_one_is_not(
    tmp_path: Path, searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(palette_module, "TREE_FROM", 1)
    monkeypatch.setattr(palette_module, "SAVE_TABLE_FROM", 1)
    monkeypatch.setattr(palette_module, "TABLE_FROM", 0)
    image = np.random.default_rng(2).integers(0, 256, (1, 20, 20, 3), np.uint8)
    expected = Palette.openai(tmp_path).encode(image)
    [table] = (tmp_path / "colour-tables").iterdir()
    (tmp_path / "plain").touch()
    assert table.stat().st_mode == (tmp_path / "plain").stat().st_mode  # a shared cache is for others to read as well
    assert len(searches) == 1
    assert np.array_equal(Palette.openai(tmp_path).encode(image), expected) and len(searches) == 1
    table.write_bytes(table.read_bytes()[:1000])
    assert np.array_equal(Palette.openai(tmp_path).encode(image), expected) and len(searches) == 2


def test_many_small_calls_come_to_use_the_table(
    searches: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training batch of small pictures is small, and there are thousands."""
    monkeypatch.setattr(palette_module, "TREE_FROM", 1)
    palette, image = Palette.openai(tmp_path), np.random.default_rng(4).integers(0, 256, (1, 16, 16, 3), np.uint8)
    calls = 1 + palette_module.TABLE_FROM // 256
    tokens = [palette.encode(image) for _ in range(calls)]
    assert len(searches) == calls
    tokens.append(palette.encode(image))
    assert len(searches) == calls
    assert all(np.array_equal(tokens[0], other) for other in tokens)


def test_two_threads_that_copy_a_saved_table_at_once_lose_nothing(
    searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(palette_module, "TABLE_FROM", 0)
    monkeypatch.setattr(palette_module, "TREE_FROM", 1)
    first_copies, second_copies, first_done = threading.Event(), threading.Event(), threading.Event()

    class Saved(np.ndarray):
        def copy(self, order: str = "C") -> np.ndarray:
            if first_copies.is_set():
                second_copies.set()
                first_done.wait(5)
            first_copies.set()
            second_copies.wait(0.2)
            return np.array(self)

    saved = np.zeros(1 << 24, np.uint16).view(Saved)
    saved.flags.writeable = False
    monkeypatch.setattr(palette_module, "is_sealed", lambda path: True)
    monkeypatch.setattr(np, "memmap", lambda *args, **options: saved)
    palette = Palette.openai()
    pictures = np.random.default_rng(5).integers(0, 256, (2, 1, 5, 5, 3), np.uint8)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(palette.encode, pictures[0])
        assert first_copies.wait(5)
        second = threads.submit(palette.encode, pictures[1])
        tokens = [first.result().numpy()]
        first_done.set()
        tokens.append(second.result().numpy())
    searched = len(searches)
    for picture, found in zip(pictures, tokens, strict=True):
        assert np.array_equal(found[0], nearest(picture, OPENAI.colors))
        assert np.array_equal(palette.encode(picture), found)
    assert len(searches) == searched == 2  # no colour that is known is searched for again


@pytest.mark.parametrize(
    "colors", [np.zeros((4, 4)), np.zeros(3), np.full((2, 3), 200.0), np.array([[np.nan, 0, 0]]), np.zeros((0, 3))]
)
def test_what_is_no_palette_is_refused(colors: np.ndarray) -> None:
    with pytest.raises(InputError, match="palette: expected"):
        Palette(colors)


def test_a_fitted_palette_serves_its_images_and_gives_its_tokens_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sky = np.array([90, 140, 220]) + rng.normal(0, 12, (4, 16, 16, 3))
    pictures = sky.clip(0, 255).astype(np.uint8)
    palette = Palette.fit(pictures, colors=32, seed=1)
    assert len(np.unique(palette.rgb, axis=0)) == 32
    assert np.array_equal(palette.encode(palette.decode(np.arange(32)[:, None])), np.arange(32)[:, None])
    own, openai = (reconstruction(one, pictures).psnr_of_mean_error_db for one in (palette, OPENAI))
    assert own > openai
    save_palette(palette, tmp_path / "own.npy")
    (tmp_path / "plain").touch()
    assert (tmp_path / "own.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode  # for others to read as well
    assert {path.name for path in tmp_path.iterdir()} == {"own.npy", "plain"}
    assert np.array_equal(Palette.read(tmp_path / "own.npy").colors, palette.colors)


def test_a_palette_of_every_colour_is_exact_and_more_than_there_are_is_refused() -> None:
    pictures = np.random.default_rng(4).integers(0, 256, (1, 3, 3, 3), np.uint8)
    found = reconstruction(Palette.fit(pictures, colors=9), pictures)
    assert found.psnr_db == found.psnr_of_mean_error_db == pytest.approx(10 * np.log10(255**2 * 12))
    assert found.codes_used == 1
    with pytest.raises(InputError, match="at most 9"):
        Palette.fit(pictures, colors=10)


def test_images_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(B, H, W, 3\)"):
        OPENAI.encode(np.zeros((1, 4, 4, 3), np.float32))
