"""Captions as tags of words, and the table that numbers them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextpixel import InputError
from nextpixel.config import TAGS
from nextpixel.data.decoded import all_tags
from nextpixel.tokens.words import WORDS_PER_TAG, Words, tags_of

WORDS = Words(["red", "hair", "glasses", "long", "shirt", "green"])


def test_a_caption_is_cut_at_commas_into_tags_and_these_into_words() -> None:
    assert tags_of("Long RED hair, glasses") == [["long", "red", "hair"], ["glasses"]]
    assert tags_of(" , red ,, \n") == [["red"]]
    assert tags_of("a “green” shirt.") == [["a", "green", "shirt"]]
    assert tags_of("light-blue t-shirt; don't") == [["light-blue", "t-shirt", "don't"]]
    assert tags_of("ＲＥＤ，hair") == [["red"], ["hair"]]  # full width, as typed in East Asia
    assert tags_of("") == tags_of("...") == []


def test_the_table_has_the_most_frequent_words_first_and_their_shares() -> None:
    captions = ["red hair, red shirt", "red hair", "green hair, glasses", "green shirt, glasses", "glasses", ""]
    words = Words.fit(captions, at_least=2)
    assert words.table == ("glasses", "hair", "green", "red", "shirt")
    assert words.shares == pytest.approx((3 / 6, 3 / 6, 2 / 6, 2 / 6, 2 / 6))
    assert Words.fit(captions).table == ("glasses", "hair")
    assert Words.fit(captions, words=1).table == ("glasses",)
    assert Words.from_values(words.values()).values() == words.values()


def test_captions_become_padded_numbers_from_one() -> None:
    found = WORDS.encode(["long red hair, glasses", "", "Shirt"])
    assert found.shape == (3, TAGS, 3) and found.dtype == torch.int64
    assert found[0, :3].tolist() == [[4, 1, 2], [3, 0, 0], [0, 0, 0]]
    assert not found[1].any()
    assert found[2, :2].tolist() == [[5, 0, 0], [0, 0, 0]]
    assert WORDS.encode([""]).shape == (1, TAGS, 1)
    assert WORDS.encode([]).shape == (0, TAGS, 1)


def test_many_captions_take_no_more_than_their_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextpixel.tokens.words.CAPTIONS_AT_ONCE", 2)
    captions = np.array(["red", "", "Shirt, red", "zebra, long red hair", "zebra"], object)
    packed = WORDS.pack(captions)
    assert packed.shape == (5, 2, 3) and packed.dtype == np.uint8
    assert np.array_equal(all_tags(packed), WORDS.encode(captions.tolist(), strict=False))


def test_unknown_words_are_named_with_the_nearest_ones() -> None:
    known = r"it knows 6 \(model.words.table, or nextpixel info with `words`\): red, hair"
    with pytest.raises(InputError, match=rf"caption: .*'glases' \(near: glasses\), 'zebra'; {known}"):
        WORDS.encode(["red hair", "glases, zebra"])
    assert WORDS.encode(["zebra, red zebra"], strict=False)[0, :2].tolist() == [[1], [0]]


def test_too_many_tags_or_words_are_refused_and_left_out_of_training_captions() -> None:
    many = ", ".join(["red"] * (TAGS + 1))
    with pytest.raises(InputError, match=r"at most 16 tags, .* got 17 tags"):
        WORDS.encode([many])
    assert WORDS.encode([many], strict=False).sum() == TAGS
    long = " ".join(["red"] * (WORDS_PER_TAG + 1))
    with pytest.raises(InputError, match="got 17 words in one"):
        WORDS.encode([long])
    assert WORDS.encode([long], strict=False).shape == (1, TAGS, WORDS_PER_TAG)


@pytest.mark.parametrize("captions", [[], ["", " , "], ["red", "green", "blue"], ["red", "red"]])
def test_captions_without_a_frequent_word_are_refused(captions: list[str]) -> None:
    with pytest.raises(InputError, match=rf"captions: expected words .* got none in {len(captions)} captions"):
        Words.fit(captions)


@pytest.mark.parametrize(
    "values",
    [
        {"table": []},
        {"table": ["red", "red"]},
        {"table": ["Red"]},
        {"table": ["red hair"]},
        {"table": ["a,b"]},
        {"table": [7]},
        {"table": ["red"], "shares": [0.0]},
        {"table": ["red"], "shares": [0.5, 0.5]},
        {"table": ["red"], "shares": ["often"]},
        {},
    ],
)
def test_damaged_tables_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises((InputError, KeyError, TypeError)):
        Words.from_values(values)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_any_captions_survive_their_own_table(captions: list[str]) -> None:
    try:
        words = Words.fit(captions, words=10_000, at_least=1)
    except InputError:
        assert not any(tags_of(caption) for caption in captions)
        return
    table = ("", *words.table)
    for caption, numbers in zip(captions, words.encode(captions, strict=False).tolist()):
        found = [[table[number] for number in tag if number] for tag in numbers]
        expected = [tag[:WORDS_PER_TAG] for tag in tags_of(caption)[:TAGS]]
        assert [tag for tag in found if tag] == expected
        assert found[: len(expected)] == expected  # no gaps
