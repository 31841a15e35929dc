"""The decoded set and the batches drawn from it."""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from nextpixel import InputError, WorkError, files
from nextpixel.data.decoded import Batches, crop_box, decode, read_decoded, split_indices, stored_size
from nextpixel.images import fit_image, save_png
from nextpixel.images.sources.arrays import ArraySource
from nextpixel.images.sources.files import FileSource

SIDE = 8


def noise(count: int, height: int = SIDE, width: int | None = None) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width or height, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures in two classes."""
    for number, picture in enumerate(noise(12)):
        place = tmp_path / "photos" / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        save_png(picture, place / f"{number:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of all files that are decoded, as they are."""
    names: list[str] = []
    original = FileSource.image
    monkeypatch.setattr(
        FileSource, "image", lambda self, i, *args: (names.append(self.names[i]), original(self, i, *args))[1]
    )
    return names


# ---- decoding


def test_pictures_are_decoded_once(folder, reads, cache):
    first = decode(folder, SIDE)
    assert sorted(reads) == sorted(first.names) and len(reads) == 12
    second = decode(str(folder), SIDE)
    assert len(reads) == 12
    assert np.array_equal(first.images, second.images) and first.key == second.key
    assert [path.name for path in (cache / "decoded").iterdir()] == [first.key]
    assert list(folder.rglob("*.png")) and not list(folder.rglob("*.u8"))  # the cache is elsewhere


def test_a_picture_that_can_be_read_at_last_is_no_longer_left_out(folder, reads):
    broken = folder / "cats" / "01.png"
    content, stat = broken.read_bytes(), broken.stat()
    broken.write_bytes(b"?" * len(content))
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for _ in range(2):
        assert len(decode(folder, SIDE)) == 11
    key = decode(folder, SIDE).key
    assert len(reads) == 14  # and no other is decoded again
    broken.write_bytes(content)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = decode(folder, SIDE)
    assert len(found) == 12 and not found.unreadable
    assert len(read_decoded(key)) == 11  # for runs that were trained on it
    before = len(reads)
    assert decode(folder, SIDE).key == found.key and len(reads) <= before + 1


def test_the_set_holds_pixels_names_and_labels_in_the_order_of_the_names(folder):
    decoded = decode(folder, SIDE)
    assert decoded.names == sorted(decoded.names)
    assert decoded.classes == ["cats", "dogs"]
    for square, name, label in zip(decoded.images, decoded.names, decoded.labels, strict=True):
        kind, number = name.removesuffix(".png").split("/")
        assert np.array_equal(square, noise(12)[int(number)])
        assert decoded.classes[label] == kind


def test_the_set_is_a_memory_map_that_cannot_be_changed(folder):
    squares = decode(folder, SIDE).images
    assert isinstance(squares, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        squares[0] = 0


def test_a_cache_of_ones_own(folder, tmp_path, cache):
    decoded = decode(folder, SIDE, cache=tmp_path / "mine")
    assert (tmp_path / "mine" / "decoded" / decoded.key / "meta.json").is_file()
    assert not cache.exists() or not list(cache.iterdir())


def touch(folder: Path) -> None:
    os.utime(folder / "cats" / "01.png", ns=(1, 1))


def repaint(folder: Path) -> None:
    save_png(noise(1)[0], folder / "cats" / "01.png")


def add(folder: Path) -> None:
    save_png(noise(1)[0], folder / "cats" / "99.png")


def rename(folder: Path) -> None:
    (folder / "cats" / "01.png").rename(folder / "cats" / "98.png")


@pytest.mark.parametrize("change", [touch, repaint, add, rename, lambda folder: (folder / "cats" / "01.png").unlink()])
def test_a_change_of_a_file_is_noticed(folder, reads, change):
    before = decode(folder, SIDE)
    change(folder)
    after = decode(folder, SIDE)
    assert after.key != before.key
    assert len(reads) == len(before) + len(after)


def test_another_side_is_another_set(folder):
    assert decode(folder, SIDE).key != decode(folder, SIDE // 2).key
    assert decode(folder, SIDE // 2).images.shape == (12, SIDE // 2, SIDE // 2, 3)


# ---- unreadable pictures


def test_few_unreadable_pictures_are_left_out_and_listed(folder):
    (folder / "cats" / "03.png").write_bytes(b"no picture")
    decoded = decode(folder, SIDE)
    assert len(decoded) == 11 and "cats/03.png" not in decoded.names
    assert [decoded.classes[label] for label in decoded.labels] == [name.split("/")[0] for name in decoded.names]
    (line,) = decoded.unreadable
    assert "cats/03.png" in line and "not a known image format" in line
    assert read_decoded(decoded.key).unreadable == decoded.unreadable


@pytest.mark.parametrize("broken", [2, 12])
def test_many_or_only_unreadable_pictures_are_bad_input(folder, cache, broken):
    paths = sorted(folder.rglob("*.png"))[:broken]
    for path in paths:
        path.write_bytes(b"")
    sentence = f"{broken} of 12 pictures cannot be read, expected at most one in ten"
    with pytest.raises(InputError, match=sentence) as raised:
        decode(folder, SIDE)
    assert all(path.name in str(raised.value) for path in paths[:5])
    assert str(folder) in str(raised.value)
    assert list((cache / "decoded").iterdir()) == []


def test_one_in_ten_may_be_unreadable(folder):
    for number in (10, 11):
        next(folder.rglob(f"{number}.png")).unlink()
    (folder / "cats" / "03.png").write_bytes(b"")
    assert len(decode(folder, SIDE)) == 9


# ---- the cache


def test_a_full_disk_leaves_no_half_set(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorkError, match=r"cannot be written \(No space left on device\).*NEXTPIXEL_CACHE"):
            decode(folder, SIDE)
    assert list((cache / "decoded").iterdir()) == []
    assert len(decode(folder, SIDE)) == 12


def test_what_a_killed_process_left_is_in_nobodys_way(folder, cache):
    key = decode(folder, SIDE).key
    old, new = cache / "decoded" / f"{key}.part-123", cache / "decoded" / ".nextpixel-0123456789abcdef.part"
    shutil.copytree(cache / "decoded" / key, old)
    (cache / "decoded" / key).rename(new)
    for path in (new, *new.iterdir()):
        os.utime(path, (0, 0))
    files.cleaned.clear()
    assert len(decode(folder, SIDE)) == 12
    assert {path.name for path in (cache / "decoded").iterdir()} == {key, old.name}  # which may be at work


def test_two_processes_that_decode_the_same_set_do_not_mind(folder, cache, monkeypatch):
    rename = os.rename

    def beaten(part, place):  # the other one has just finished
        shutil.copytree(part, place)
        rename(part, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", beaten)
        assert len(decode(folder, SIDE)) == 12
    assert len(list((cache / "decoded").iterdir())) == 1


@pytest.mark.parametrize("name", ["squares.u8", "meta.json", "names.bin", "name_ends.npy", "labels.npy"])
@pytest.mark.parametrize("size", [0, 1, 50, 100])
def test_a_damaged_set_is_made_again(folder, cache, name, size):
    before = decode(folder, SIDE)
    squares, names = np.array(before.images), list(before.names)
    place = cache / "decoded" / before.key
    os.truncate(place / name, min(size, (place / name).stat().st_size - 1))
    again = decode(folder, SIDE)
    assert np.array_equal(again.images, squares) and list(again.names) == names
    assert [path.name for path in (cache / "decoded").iterdir()] == [before.key]


def test_a_large_set_keeps_its_order(monkeypatch):
    images = noise(600, 2)
    assert np.array_equal(decode(images, 2).images, images)
    monkeypatch.setattr(ArraySource, "image", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(decode(images.copy(), 2).images, images)


# ---- the split


@examples(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_split_is_disjoint_and_complete(count, fraction, seed):
    train, held = split_indices(count, fraction, seed)
    assert sorted([*train, *held]) == list(range(count))
    assert len(train) and len(held)
    assert len(held) == pytest.approx(count * fraction, abs=1)
    assert all(np.array_equal(a, b) for a, b in zip((train, held), split_indices(count, fraction, seed), strict=True))


def test_the_split_depends_on_the_seed():
    assert not np.array_equal(split_indices(100, 0.1, 0)[1], split_indices(100, 0.1, 1)[1])


def test_one_picture_cannot_be_split():
    with pytest.raises(InputError, match="at least 2 images"):
        split_indices(1, 0.1, 0)


# ---- sizes


@pytest.mark.parametrize("fit", ["crop", "imagenet", "squash"])
@pytest.mark.parametrize("size", [(8, 8), (24, 16), (3, 9)])
def test_a_set_has_the_size_that_was_asked_for(folder, size, fit):
    found = decode(folder, size, fit=fit)
    assert found.images.shape == (12, *size, 3)
    with Image.open(folder / found.names[5]) as picture:
        assert np.array_equal(found.images[5], fit_image(picture, size, fit))
    assert decode(folder, f"{size[0]}x{size[1]}", fit=fit).key == found.key


def test_the_keys_of_square_sets_are_those_of_earlier_versions():
    keys = {size: decode(noise(3), size).key for size in (SIDE, (SIDE, SIDE), (SIDE, 4))}
    assert keys[SIDE] == keys[SIDE, SIDE] == "07ada4bbb3576a1d1fd2207ccd400fc3"
    assert keys[SIDE, 4] != keys[SIDE]


# ---- batches

AUGMENTATIONS = ["none", "flip", "crop", "pad", "pad-flip"]


def batches(augment="none", count=10, batch_images=4, seed=0, images=None, size=(SIDE, SIDE)) -> Batches:
    images = noise(count + 3, *stored_size(size, augment)) if images is None else images
    chosen = np.arange(len(images))[3:]  # the first three are held out
    return Batches(images, chosen, size=size, batch_images=batch_images, augment=augment, seed=seed)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_batch_is_a_function_of_seed_and_step_alone(augment):
    steps = [7, 0, 3, 3, 2, 30, 0]
    asked = batches(augment)
    in_order = batches(augment)
    expected = {step: in_order(step) for step in range(31)}
    for step in steps:
        assert np.array_equal(asked(step), expected[step])
        assert np.array_equal(batches(augment)(step), expected[step])
    assert not np.array_equal(batches(augment, seed=1)(0), expected[0])


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (5, 9)])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batches_have_the_size_of_the_model(augment, size):
    for step in range(6):
        images = batches(augment, size=size)(step)
        assert images.shape == (4, *size, 3) and images.dtype == np.uint8


def test_only_square_images_are_rotated():
    with pytest.raises(InputError, match="augment: orient needs square pictures, got 24 x 16 pixels"):
        batches("orient", size=(24, 16))
    assert batches("orient", size=(16, 16))(0).shape == (4, 16, 16, 3)


@pytest.mark.parametrize("batch_images", [1, 4, 10, 25])
def test_every_training_image_comes_once_an_epoch_and_in_another_order(batch_images):
    images = np.broadcast_to(np.arange(13, dtype=np.uint8)[:, None, None, None], (13, SIDE, SIDE, 3))
    asked = batches(batch_images=batch_images, images=images)
    shown = np.concatenate([asked(step)[:, 0, 0, 0] for step in range(100 // batch_images)])
    epochs = shown.reshape(-1, 10)
    assert all(sorted(epoch) == list(range(3, 13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_size_of_a_batch_changes_neither_order_nor_flips():
    small, large = batches("flip", batch_images=2), batches("flip", batch_images=6)
    in_small = np.concatenate([small(step) for step in range(9)])
    assert np.array_equal(in_small, np.concatenate([large(step) for step in range(3)]))


def test_augmentation_leaves_the_stored_images_alone():
    images = noise(13)
    images.setflags(write=False)
    for augment in ("flip", "pad-flip"):
        for step in range(5):
            batches(augment, images=images)(step)
    assert np.array_equal(images, noise(13))


def originals(augment: str, steps: int = 50, size=(SIDE, SIDE)) -> list[tuple[np.ndarray, np.ndarray]]:
    """(augmented, as it was) of many images."""
    plain, changed = batches("none", size=size), batches(augment, images=noise(13, *size), size=size)
    return [pair for step in range(steps) for pair in zip(changed(step), plain(step), strict=True)]


def test_about_half_of_the_images_are_mirrored():
    pairs = originals("flip")
    mirrored = [np.array_equal(image, square[:, ::-1]) for image, square in pairs]
    assert all(flip or np.array_equal(image, square) for flip, (image, square) in zip(mirrored, pairs, strict=True))
    assert 0.35 < np.mean(mirrored) < 0.65


def test_the_same_image_is_mirrored_in_some_epochs_only():
    asked = batches("flip", batch_images=10, images=noise(13))
    mean_left = [asked(epoch)[:, :, :4].mean((1, 2, 3)).round(3) for epoch in range(20)]
    assert len({value for values in mean_left for value in values}) == 20  # two for each of ten images


@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
@pytest.mark.parametrize(("augment", "flips"), [("pad", (False,)), ("pad-flip", (False, True))])
def test_padding_shows_every_window_of_the_reflected_image(augment, flips, size):
    (height, width), (rows, columns) = size, (size[0] // 8, size[1] // 8)
    windows = set()
    for image, original in originals(augment, steps=200, size=size):
        padded = np.pad(original, ((rows, rows), (columns, columns), (0, 0)), mode="reflect")
        found = [
            (top, left, flip)
            for top in range(2 * rows + 1)
            for left in range(2 * columns + 1)
            for flip in flips
            if np.array_equal(image[:, ::-1] if flip else image, padded[top : top + height, left : left + width])
        ]
        assert len(found) == 1
        windows |= set(found)
    assert len(windows) == len(flips) * (2 * rows + 1) * (2 * columns + 1)


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (7, 500)])
def test_crops_lie_within_the_image_and_are_those_of_the_paper(size):
    least, most = np.float32(0), np.nextafter(np.float32(1), np.float32(0))
    noise = np.random.default_rng(0).random((500, 3), np.float32)
    shares = []
    for scale, x, y in [*noise, *itertools.product([least, most], repeat=3)]:
        left, top, right, bottom = crop_box(size, scale, x, y)
        assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
        shares.append((right - left) / size[1])
        assert (bottom - top) / size[0] == pytest.approx(shares[-1], abs=1e-4)
    assert min(shares) == pytest.approx(224 / 384, abs=1e-5) and max(shares) == pytest.approx(224 / 256, abs=1e-5)


def test_a_crop_shows_that_part_of_the_image():
    ramp = np.broadcast_to(np.linspace(0, 255, 2 * SIDE).astype(np.uint8)[:, None], (13, 2 * SIDE, 2 * SIDE))
    images = batches("crop", images=np.stack([ramp, ramp.transpose(0, 2, 1), ramp], -1))(0).astype(int)
    assert (np.diff(images[..., 0], axis=2) >= 0).all() or (np.diff(images[..., 0], axis=1) >= 0).all()
    spans = np.ptp(images[..., 0], axis=(1, 2)) / 255
    assert ((spans > 0.4) & (spans < 0.95)).all()
