"""Captions <-> numbers: a caption is a set of tags, a tag a bag of words, and each word has a row in the table."""

from __future__ import annotations

import difflib
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import TAGS
from nextpixel.errors import InputError, shortened

WORDS_PER_TAG = 16
CAPTIONS_AT_ONCE = 4_096  # encoded, they take 2 KB each
AT_LEAST = 3  # captions that a word of the table is in
AROUND = string.punctuation + "“”‘’«»„…–—。"  # no part of the word that it stands beside


class Words:
    """The words a model knows, numbered from 1 in the order of `table`; 0 is no word.

    shares  the share of the training captions that have each word, if known; the prior of naming pictures
    """

    def __init__(self, table: Sequence[str], shares: Sequence[float] | None = None) -> None:
        self.table, self.shares = tuple(table), None if shares is None else tuple(shares)
        self.numbers = {word: number for number, word in enumerate(self.table, 1)}
        plain = all(isinstance(word, str) and tags_of(word) == [[word]] for word in self.table)
        if not self.table or not plain or len(self.numbers) < len(self.table):
            raise InputError(
                f"expected different words in lower case, at least one, got {shortened(list(self.table))}",
                argument="words",
            )
        if self.shares is not None and (
            len(self.shares) != len(self.table)
            or not all(isinstance(share, int | float) and 0 < share <= 1 for share in self.shares)
        ):
            raise InputError("shares: expected a number above 0 and at most 1 for each word")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Words({len(self)} words)"

    @classmethod
    def fit(cls, captions: Iterable[str], words: int = 1000, at_least: int = AT_LEAST) -> Words:
        """The most frequent words of captions, at most so many, each in at least `at_least` captions.

        The most frequent come first, ties in alphabetical order. Raises InputError where no word is frequent enough.
        """
        counts: Counter[str] = Counter()
        total = 0
        for caption in captions:
            counts.update({word for tag in tags_of(caption) for word in tag})
            total += 1
        frequent = sorted((-count, word) for word, count in counts.items() if count >= at_least)[:words]
        if not frequent:
            raise InputError(
                f"expected words in at least {at_least} captions each, got none in {total:,} captions with "
                f"{len(counts):,} different words, such as {shortened([word for word, _ in counts.most_common(3)])}",
                argument="captions",
            )
        return cls([word for _, word in frequent], [-count / total for count, _ in frequent])

    def encode(self, captions: Sequence[str], *, strict: bool = True, argument: str = "caption") -> Tensor:
        """The numbers of words int64 (B, TAGS, w), 0 where there is none; w is the most words of any tag, at least 1.

        Raises InputError, which names `argument`, for an unknown word or too many tags or words in one; if not
        `strict`, these are left out.
        """
        parts = [tags_of(caption) for caption in captions]
        for tags in parts if strict else ():
            self._check(tags, argument)
        numbers = [self._numbers(tags) for tags in parts]
        most = max((len(tag) for caption in numbers for tag in caption), default=1)
        encoded = torch.zeros(len(numbers), TAGS, most, dtype=torch.int64)
        for row, caption in enumerate(numbers):
            for slot, tag in enumerate(caption):
                encoded[row, slot, : len(tag)] = torch.tensor(tag)
        return encoded

    def pack(self, captions: NDArray[Any]) -> NDArray[np.unsignedinteger]:
        """`encode` of many captions, not strict: (B, t, w) in the smallest type, t the most tags of any caption."""
        smallest, parts = np.min_scalar_type(len(self)), []
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            part = self.encode(captions[start : start + CAPTIONS_AT_ONCE].tolist(), strict=False).numpy()
            parts.append(part[:, : part.any((0, 2)).sum()].astype(smallest))
        packed = np.zeros((len(captions), *(max(part.shape[axis] for part in parts) for axis in (1, 2))), smallest)
        for number, part in enumerate(parts):
            rows = packed[number * CAPTIONS_AT_ONCE :][: len(part)]
            rows[:, : part.shape[1], : part.shape[2]] = part
        return packed

    def decode(self, tags: Tensor | NDArray[np.integer]) -> str:
        """The caption of tags (TAGS, w)."""
        named = ([self.table[number - 1] for number in tag if number] for tag in tags.tolist())
        return ", ".join(" ".join(tag) for tag in named if tag)

    def _numbers(self, tags: list[list[str]]) -> list[list[int]]:
        known = [[self.numbers[word] for word in tag if word in self.numbers][:WORDS_PER_TAG] for tag in tags]
        return [tag for tag in known if tag][:TAGS]

    def _check(self, tags: list[list[str]], argument: str) -> None:
        unknown = sorted({word for tag in tags for word in tag if word not in self.numbers})
        if unknown:
            some = ", ".join(self.table[:5]) + ", ..." * (len(self) > 5)
            raise InputError(
                f"expected words that the model knows, got {', '.join(map(self._hint, unknown[:5]))}"
                f"{', ...' * (len(unknown) > 5)}; it knows {len(self):,} (model.words.table, or nextpixel info "
                f"with `words`): {some}",
                argument=argument,
            )
        longest = max(tags, key=len, default=[])
        if len(tags) > TAGS or len(longest) > WORDS_PER_TAG:
            what = f"{len(tags)} tags" if len(tags) > TAGS else f"{len(longest)} words in one"
            raise InputError(
                f"expected at most {TAGS} tags, separated by commas, of at most {WORDS_PER_TAG} words each, got {what}",
                argument=argument,
            )

    def _hint(self, word: str) -> str:
        near = ", ".join(difflib.get_close_matches(word, self.table, n=3))
        return shortened(word) + (f" (near: {near})" if near else "")

    def values(self) -> dict[str, Any]:
        """The arguments of `from_values` as JSON, written beside the weights."""
        return {"table": list(self.table)} | ({} if self.shares is None else {"shares": list(self.shares)})

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Words:
        """Raises InputError, KeyError or TypeError for values of anything else."""
        return cls(values["table"], values.get("shares"))


def tags_of(caption: str) -> list[list[str]]:
    """The tags of a caption, lower-cased and split at commas, as lists of their words; empty ones are left out."""
    parts = unicodedata.normalize("NFKC", caption).lower().split(",")
    tags = [[word for part in tag.split() if (word := part.strip(AROUND))] for tag in parts]
    return [tag for tag in tags if tag]


def encode_captions(words: Words | None, captions: str | Sequence[str], argument: str = "caption") -> Tensor:
    """Words.encode of one caption or several. Raises InputError where `words` is None: for a model without captions."""
    if words is None:
        raise InputError("expected none, as the model was trained without captions, got one", argument=argument)
    several = [captions] if isinstance(captions, str) else captions
    if not isinstance(several, Sequence) or not all(isinstance(one, str) for one in several):
        raise InputError(f"expected text, or several texts, got {shortened(captions)}", argument=argument)
    return words.encode(several, argument=argument)
