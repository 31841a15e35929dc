"""Copies of training pictures are found by exact pixels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextpixel import InputError
from nextpixel.tokens.training_pictures import FILE, PICTURES_AT_MOST, TrainingPictures

ROWS, COLUMNS = 4, 3


def some(count: int, seed: int = 0, colours: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, colours, (count, ROWS * COLUMNS))


def kept(blank: int = 0, count: int = 6) -> TrainingPictures:
    return TrainingPictures.of(some(count), some(3, 1), COLUMNS, blank, 5)


def corner(grid: np.ndarray, blank: int) -> np.ndarray:
    """The definition: rows and columns of blanks at the top and left go to the other end."""
    rows = list(grid.tolist())
    while any(c != blank for row in rows for c in row) and all(c == blank for c in rows[0]):
        rows = [*rows[1:], rows[0]]
    while any(c != blank for row in rows for c in row) and all(row[0] == blank for row in rows):
        rows = [[*row[1:], row[0]] for row in rows]
    return np.array(rows)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.sampled_from([2, 5]), st.sampled_from([-1, 0]))
def test_distances_are_those_of_the_definition(seed: int, colours: int, blank: int) -> None:
    train, drawn = (some(4, seed + i, colours).reshape(-1, ROWS, COLUMNS) for i in range(2))
    train[:2, 0], drawn[:2, :, 0] = 0, 0  # with margins
    made = TrainingPictures.of(train.reshape(4, -1), drawn.reshape(4, -1), COLUMNS, blank, colours)
    expected = []
    for picture in drawn:
        pairs = [[corner(one, blank) if blank >= 0 else one for one in (picture, picture[:, ::-1], t)] for t in train]
        expected.append([min((a != t).sum(), (b != t).sum()) for a, b, t in pairs])
    distances, nearest = made.distances(drawn.reshape(4, -1))
    assert distances.tolist() == np.min(expected, 1).tolist() == made.held_out.tolist()
    assert nearest.tolist() == np.argmin(expected, 1).tolist()


def test_copies_moved_or_mirrored_are_copies() -> None:
    train = np.zeros((3, ROWS, COLUMNS), int)
    train[:, 0, 0], train[:, 0, 1], train[1, 1, 0] = 1, 2, 3
    made = TrainingPictures.of(train.reshape(3, -1), some(1), COLUMNS, 0, 5)
    moved = np.roll(train[1], (2, 1), (0, 1))
    for picture, distance in ((train[1], 0), (moved, 0), (moved[:, ::-1], 0), (np.where(moved == 3, 4, moved), 1)):
        found, nearest = made.distances(picture.reshape(1, -1))
        assert found.tolist() == [distance] and (distance or nearest.tolist() == [1])


def test_they_are_written_and_read(tmp_path: Path) -> None:
    made = kept()
    made.write(tmp_path)
    again = TrainingPictures.read(tmp_path, ROWS * COLUMNS, 5)
    assert again is not None and again.tokens.dtype == np.uint8
    assert np.array_equal(again.tokens, made.tokens) and np.array_equal(again.held_out, made.held_out)
    drawn = some(4, 7)
    assert np.array_equal(again.distances(drawn), made.distances(drawn))
    assert TrainingPictures.read(tmp_path / "none", 12, 5) is None


def test_numbers_beyond_a_byte_are_kept() -> None:
    tokens = some(4, colours=1000)
    made = TrainingPictures.of(tokens, tokens[:2], COLUMNS, -1, 1000)
    assert np.array_equal(made.tokens, tokens) and made.held_out.tolist() == [0, 0]


def test_a_set_that_is_too_large_is_not_kept() -> None:
    assert TrainingPictures.can_keep(PICTURES_AT_MOST, 1_024) and not TrainingPictures.can_keep(PICTURES_AT_MOST + 1, 1)
    assert not TrainingPictures.can_keep(20_000, 4_096)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"tokens": some(2)},
        {"tokens": some(2)[:, :5], "grid": [3, 0], "held_out": [1]},
        {"tokens": some(2) * 0.5, "grid": [3, 0], "held_out": [1]},
        {"tokens": some(2), "grid": [5, 0], "held_out": [1]},
        {"tokens": some(2), "grid": [0, 0], "held_out": [1]},
        {"tokens": some(2), "grid": [3, 9], "held_out": [1]},
        {"tokens": some(2), "grid": [3, 0], "held_out": np.array(["a"])},
        {"tokens": np.array([None]), "grid": [3, 0], "held_out": [1]},
        {"tokens": some(2)[:0], "grid": [3, 0], "held_out": [1]},
    ],
)
def test_damaged_files_are_named(tmp_path: Path, arrays: dict) -> None:
    np.savez(tmp_path / FILE, **arrays)
    with pytest.raises(InputError, match=f"{FILE}: expected"):
        TrainingPictures.read(tmp_path, ROWS * COLUMNS, 5)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\0" * 100])
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=f"{FILE}: expected the tokens"):
        TrainingPictures.read(tmp_path, ROWS * COLUMNS, 5)
