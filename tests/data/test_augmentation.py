"""Augmentations of pixel art: moved within the margin, rolled around, recoloured; each alone and combined."""

import itertools

import numpy as np
import pytest

from nextpixel import InputError
from nextpixel.config import AUGMENTATIONS, PretrainConfig, augmentations
from nextpixel.data.decoded import Batches
from nextpixel.data.recolour import (
    COLOURS,
    WORDS,
    ColourWords,
    Recolouring,
    apply_colours,
    colour_name,
    find_ramps,
)

H, W = 6, 5
REDS, BLUES = [(90, 5, 5), (160, 20, 10), (240, 60, 50)], [(5, 10, 90), (20, 40, 170), (60, 90, 240), (120, 150, 255)]
GREY, GREENS = (99, 99, 99), [(5, 90, 10), (20, 190, 40)]


def art(count: int, seed: int = 0, colours: list = REDS) -> np.ndarray:
    """Pictures (count, H, W, 4) of 3 x 2 opaque pixels at a random place, no two alike."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, H, W, 4), np.uint8)
    for image in images:
        y, x = rng.integers(0, H - 2), rng.integers(0, W - 1)
        numbers = rng.permutation([*range(len(colours)), *[0] * 6][:6])
        image[y : y + 3, x : x + 2] = np.array([(*colours[i], 255) for i in numbers]).reshape(3, 2, 4)
    return images


def batches(images: np.ndarray, augment: str, seed: int = 0) -> Batches:
    return Batches(images, np.arange(len(images)), size=(H, W), batch_images=len(images), augment=augment, seed=seed)


def pairs(images: np.ndarray, augment: str, steps: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    """(augmented, original)"""
    made = batches(images, augment)
    return [pair for step in range(steps) for pair in zip(made(step), images[made.numbers(step)], strict=True)]


def drawn(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((image[..., 3] > 0).any(axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_shifts_stay_within_the_margin_and_reach_every_place() -> None:
    images, places = art(8), set()
    for changed, original in pairs(images, "shift"):
        assert np.array_equal(drawn(changed), drawn(original)) and (changed[..., 3] > 0).sum() == 6
        places.add(tuple(np.argwhere(changed[..., 3])[0].tolist()))
    assert places == set(itertools.product(range(H - 2), range(W - 1)))


def test_pictures_that_fill_their_canvas_or_are_empty_are_not_shifted() -> None:
    full = np.random.default_rng(0).integers(1, 256, (2, H, W, 4), np.uint8)
    for images in (full, np.zeros_like(full)):
        assert all(np.array_equal(*pair) for pair in pairs(images, "shift", 3))


def test_wrapped_pictures_are_rolled_by_every_offset() -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, H, W, 4), np.uint8)
    seen, every = set(), set(itertools.product(range(H), range(W)))
    for changed, original in pairs(images, "wrap", 60):
        [offset] = [by for by in every if np.array_equal(np.roll(original, by, (0, 1)), changed)]
        seen.add(offset)
    assert seen == every


def test_recoloured_pictures_take_ramps_of_others_dark_for_dark() -> None:
    images = np.concatenate([art(6, colours=REDS), art(6, 1, colours=BLUES)])
    red, blue = ({(*c, 255) for c in colours} for colours in (REDS, BLUES))
    kinds = set()
    for changed, original in pairs(images, "recolour"):
        assert np.array_equal(changed[..., 3], original[..., 3])
        old, new = ({tuple(c) for c in drawn(one).reshape(-1, 4).tolist()} for one in (original, changed))
        kinds.add((old <= red, new <= red))
        assert new <= red or new <= blue
        if old <= red and new <= blue:
            light = [np.argsort(drawn(one).reshape(-1, 4)[:, :3].sum(1), kind="stable") for one in (original, changed)]
            assert np.array_equal(*light)
    assert kinds == {(True, True), (True, False), (False, False)}  # four blues do not fit three reds


def test_all_together_and_one_after_the_other_are_functions_of_seed_and_step() -> None:
    images = np.concatenate([art(6, colours=REDS), art(6, 1, colours=BLUES)])
    for augment in ("shift", "wrap", "recolour", "shift,flip,recolour", "flip,wrap,recolour", "pad,recolour"):
        asked, in_order = batches(images, augment), batches(images, augment)
        expected = [in_order(step) for step in range(4)]
        assert all(np.array_equal(asked(step), expected[step]) for step in (3, 0, 2))
        assert not np.array_equal(batches(images, augment, seed=1)(0), expected[0])
        halves = [
            Batches(images, np.arange(12), size=(H, W), batch_images=12, augment=augment, seed=0, part=(i, 2))(1)
            for i in range(2)
        ]
        assert np.array_equal(np.concatenate(halves), expected[1])


def test_flip_alone_is_what_it_was_beside_others() -> None:
    images = art(12)
    both, shifted = batches(images, "shift,flip"), batches(images, "shift")
    mirrored = both.mirrored(0)
    assert 0 < mirrored.sum() < 12 and not shifted.mirrored(0).any()
    flipped = shifted(0).copy()
    flipped[mirrored] = flipped[mirrored, :, ::-1]
    assert np.array_equal(both(0), flipped)


def test_ramps_are_runs_of_similar_hue_from_dark_to_light() -> None:
    colours = [*REDS[::-1], GREY, (0, 0, 0), (255, 255, 255), *BLUES, *GREENS]
    image = np.array([[(*c, 255) for c in colours] + [(255, 0, 255, 90), (0, 0, 0, 0)]], np.uint8)
    found = {ramp.colour: ramp.rgba[:, :3].tolist() for ramp in find_ramps(image)}
    expected = {"red": REDS, "blue": BLUES, "green": GREENS}
    assert found == {name: [list(c) for c in part] for name, part in expected.items()}
    around = np.array([[(200, 0, 30, 255), (200, 30, 0, 255), (90, 9, 0, 255)]], np.uint8)  # both sides of 0 degrees
    [ramp] = find_ramps(around)
    assert len(ramp.rgba) == 3 and ramp.rgba[0].tolist() == [90, 9, 0, 255]
    assert find_ramps(np.array([[(*GREY, 255), (0, 0, 0, 0)]], np.uint8)) == []


def test_the_table_of_colour_words() -> None:
    ends = [end for end, _ in WORDS.values() if end]
    assert ends == sorted(ends) and len(COLOURS) == sum(len(words) for _, words in WORDS.values())
    assert all(words[0] == name for name, (_, words) in WORDS.items())
    for word, rgb in {
        "red": (220, 20, 30), "orange": (240, 140, 20), "yellow": (240, 220, 40), "green": (30, 160, 60),
        "cyan": (30, 190, 200), "blue": (30, 60, 220), "purple": (130, 40, 200), "pink": (250, 90, 180),
        "brown": (110, 70, 30), "rose": (240, 160, 160),
    }.items():  # fmt: skip
        assert colour_name(np.array([*rgb, 255], np.uint8)) == COLOURS[word]


Changes = list[tuple[dict[int, int], dict[str, str]]]


def changes(named: tuple[str, ...], known: tuple[str, ...], colours: list) -> Changes:
    """Of one picture of such colours, among green and blue ones."""
    own = np.array([[(*c, 255) for c in colours] + [(0, 0, 0, 0)] * (7 - len(colours))], np.uint8)
    other = np.array([[(*c, 255) for c in [*GREENS, (60, 220, 80), *BLUES]]], np.uint8)
    recolour = Recolouring(np.stack([own, other]), np.arange(2), seed=0)
    return [recolour(0, epoch, named, known) for epoch in range(40)]


def test_words_of_the_caption_change_with_their_colours() -> None:
    found = [words for _, words in changes(("red",), ("red", "green"), REDS) if words]
    assert found and all(words == {"red": "green"} for words in found)  # the model does not know blue
    assert {"blue"} < {word for _, words in changes(("red",), tuple(WORDS), REDS) for word in words.values()}


def test_colours_that_the_caption_does_not_name_stay_where_it_names_others() -> None:
    reds = {tuple((*c, 255)) for c in REDS}
    for colours, _ in changes(("red",), tuple(WORDS), [*REDS, *BLUES[:2]]):
        changed = {tuple(np.uint32(code).reshape(1).view(np.uint8).tolist()) for code in colours}
        assert changed <= reds
    assert not any(colours for colours, _ in changes(("yellow",), tuple(WORDS), REDS))
    assert any(colours for colours, _ in changes((), (), REDS)) and not any(words for _, words in changes((), (), REDS))


def test_a_single_colour_becomes_the_middle_one_of_a_ramp_and_has_its_name() -> None:
    middle = int(np.array([*BLUES[2], 255], np.uint8).view(np.uint32)[0])
    green = int(np.array([*GREENS[1], 255], np.uint8).view(np.uint32)[0])
    found = [pair for pair in changes(("red",), tuple(WORDS), REDS[2:]) if pair[1]]  # the picture may meet itself
    assert {code: words for colours, words in found for code in colours.values()} == {
        middle: {"red": "blue"},
        green: {"red": "green"},
    }


def test_words_for_colours_of_no_hue_keep_all_ramps() -> None:
    assert not any(colours for colours, _ in changes(("other",), tuple(WORDS), REDS))
    assert any(words == {"red": "blue"} for _, words in changes(("red", "other"), tuple(WORDS), REDS))


def test_two_ramps_of_one_name_are_not_told_apart() -> None:
    greens = [(10, 80, 10), (40, 200, 30), (10, 150, 100), (20, 230, 140)]
    image = np.array([[(*c, 255) for c in greens]], np.uint8)
    assert [ramp.colour for ramp in find_ramps(image)] == ["green", "green"]
    assert not any(colours for colours, _ in changes(("green",), tuple(WORDS), greens))


TABLE = ["potion", "crimson", "red", "blue", "dark", "teal"]  # numbered from 1


def test_colour_words_are_found_and_replaced_in_tags() -> None:
    tags = np.array([[[5, 2, 1], [4, 0, 0]], [[1, 0, 0], [0, 0, 0]]])  # "dark crimson potion, blue"; "potion"
    words = ColourWords(tags, TABLE)
    assert words.named(0) == {"red", "blue", "other"} and words.named(1) == set()
    assert set(words.known) == {"red", "blue", "cyan"}
    swapped = words.changed(tags[0], {"red": "blue", "blue": "red"})
    assert swapped.tolist() == [[5, 4, 1], [3, 0, 0]]
    assert words.changed(tags[0], {"red": "cyan"}).tolist() == [[5, 6, 1], [4, 0, 0]]
    assert words.changed(tags[0], {}).tolist() == tags[0].tolist()


def test_batches_change_the_caption_with_the_picture() -> None:
    images = np.concatenate([art(6, colours=REDS), art(6, 1, colours=REDS), art(6, 2, colours=BLUES)])
    tags = np.zeros((18, 16, 2), np.uint8)
    tags[:, 0] = [[3, 1]] * 12 + [[4, 1]] * 6  # "red potion", "blue potion"
    made = Batches(
        images, np.arange(18), size=(H, W), batch_images=18, augment="recolour", seed=0,
        colour_words=ColourWords(tags, TABLE),
    )  # fmt: skip
    blues, seen = {(*c, 255) for c in BLUES}, set()
    for step in range(12):
        for image, own, number in zip(made(step), made.tags(step, tags), made.numbers(step), strict=True):
            is_blue = {tuple(c) for c in drawn(image).reshape(-1, 4).tolist()} <= blues
            if own.any() and (named := {3, 4} & set(own[0].tolist())):
                assert named == {4 if is_blue else 3}
                seen.add((bool(number >= 12), is_blue))
    assert seen == {(False, False), (False, True), (True, True)}


def test_only_the_given_colours_are_replaced() -> None:
    image = art(1)[0]
    [old, *_] = np.unique(drawn(image).reshape(-1, 4), axis=0)
    new = np.array([1, 2, 3, 255], np.uint8)
    changed = apply_colours(image, {int(old.view(np.uint32)[0]): int(new.view(np.uint32)[0])})
    same = (image == old).all(-1)
    assert (changed[same] == new).all() and np.array_equal(changed[~same], image[~same])


@pytest.mark.parametrize("augment", ["none", *AUGMENTATIONS, "pad-flip", "shift,flip,recolour", "flip,pad,recolour"])
def test_augmentations_that_go_together(augment: str) -> None:
    assert PretrainConfig(augment=augment).augment == augment
    assert augmentations(augment) == set(augment.replace("pad-flip", "pad,flip").split(",")) - {"none"}


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (
            "rotate",
            "none, or some of flip, crop, pad, orient, shift, wrap, recolour, separated by commas, got 'rotate'",
        ),
        ("flip,", "got 'flip,'"),
        ("none,flip", "got 'none,flip'"),
        ("", "got ''"),
        ("shift,wrap", "at most one of crop, pad, shift, wrap, got shift and wrap"),
        ("pad-flip,crop", "got crop and pad"),
        ("orient,flip", "at most one of flip, orient, got flip and orient"),
    ],
)
def test_augmentations_that_do_not(augment: str, message: str) -> None:
    with pytest.raises(InputError, match=f"augment: .*{message}"):
        PretrainConfig(augment=augment)
