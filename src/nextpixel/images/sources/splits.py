"""Splits: train, validation and test, recognised by the names of folders, tables, shards and arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nextpixel.errors import InputError
from nextpixel.progress import say_once

WORDS = {
    "train": "train training trainval",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation holdout heldout",
    "unlabeled": "unlabeled unlabelled",
}
MEANING = {word: split for split, words in WORDS.items() for word in words.split()}
ENDINGS = frozenset({"", "set", "data", "dataset", "images", "imgs", "split"})  # of a word, or words of their own
HUB_NUMBER = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")  # train-00000-of-00002, until 2023 with a hash


class NoSplit(InputError):
    """A source lacks the requested split; `available` are those that it has, if any."""

    def __init__(self, source_name: str, split: str, available: Sequence[str] = ()) -> None:
        asked = f"has no splits, but split {split!r} was asked for; leave it out"
        super().__init__(
            f"{source_name} {f'has no split {split!r}, only ' + ', '.join(available) if available else asked}"
        )
        self.source_name, self.available = source_name, available


def split_word(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split in a name, and its other words: coco_train2017 -> ("train", ("coco",)).

    Words end at digits, punctuation and capital letters. None for a name with several splits.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", re.sub(r"(?i)held[-_ ]out", "heldout", name))
    splits, others = set(), []
    for word in map(str.lower, words):
        known = next((known for known in MEANING if word.startswith(known) and word[len(known) :] in ENDINGS), None)
        if known:
            splits.add(MEANING[known])
        elif word not in ENDINGS:
            others.append(word)
    return (splits.pop() if len(splits) == 1 else None), tuple(others)


def canonical_split(name: str) -> str:
    """val, valid, Dev and val2017 -> validation, training_set -> train, eval -> test; any other name in lower case."""
    return split_word(name)[0] or name.lower()


def is_split(name: str) -> bool:
    """Whether a name is only that of a split: val2017 and training_set, not train_station."""
    split, others = split_word(name)
    return split is not None and not others


def are_splits(names: Iterable[str]) -> bool:
    """Whether some of the names are splits of one set: train2017 and val2017, not train_station and test_tube."""
    found: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        split, others = split_word(name)
        if split:
            found.setdefault(others, set()).add(split)
    return any(len(splits) > 1 for splits in found.values())


def choose_split(available: Iterable[str], split: str | None, source_name: str, *, beside: int = 0) -> str:
    """The name in `available` that matches `split`; by default the only one, or else train.

    By default, reports once which splits are not used; `beside` is the number of files outside all splits.
    """
    available = sorted(available)
    if split is None and len(available) == 1 and not beside:
        return available[0]
    chosen = split if split in available else None
    for name in available:
        if chosen is None and canonical_split(name) == canonical_split(split or "train"):
            chosen = name
    if chosen is None and split is not None:
        raise NoSplit(source_name, split, available)
    if chosen is None:
        raise InputError(f"{source_name} has several splits, none of them train: {', '.join(available)}; choose one")
    if split is None:
        others = [name for name in available if name != chosen] + [f"{beside:,} files beside them"] * bool(beside)
        say_once(f"{source_name}: {chosen} split; not used: {', '.join(others)}")
    return chosen


def refuse_split(split: str | None, source_name: str) -> None:
    """Raise NoSplit if a split was requested."""
    if split is not None:
        raise NoSplit(source_name, split)


def folder_level(names: Sequence[str], split: str | None, source_name: str) -> tuple[int | None, bool]:
    """The depth of split folders in paths, 0 for train/cat/1.png, and whether all other files are train.

    None if no folders are splits. Splits are sibling folders of which two have known names, a single folder with such a
    name that contains everything, or the requested one. A val/ or test/ that repeats its sibling folders, as in cat/,
    dog/, test/cat/, is a split too, and these siblings are train. Reports once if a folder that looks like a split is
    merged with the rest.
    """
    folders = {tuple(name.split("/")[:-1]) for name in names}
    doubtful = None
    for level in range(max(map(len, folders), default=0)):
        at = {folder[level] for folder in folders if len(folder) > level}
        known = sorted(name for name in at if is_split(name))
        if _repeat_siblings(folders, level) and "train" not in map(canonical_split, known):
            return level, True
        around = len(at) == 1 and all(len(folder) > level for folder in folders)
        asked = split is not None and any(canonical_split(name) == canonical_split(split) for name in at)
        if asked or are_splits(at) or (around and known):
            return level, False
        doubtful = doubtful or (known and known[0])
    if doubtful:
        say_once(f"{source_name}: uses all folders, also {doubtful}, which looks like a split")
    return None, False


def _repeat_siblings(folders: Iterable[tuple[str, ...]], level: int) -> bool:
    """Whether a folder inside a split, at that level, has the name of a sibling of the split."""
    at = [folder for folder in folders if len(folder) > level]
    beside = {folder[: level + 1] for folder in at if not is_split(folder[level])}
    return any(folder[:level] + folder[level + 1 : level + 2] in beside for folder in at if is_split(folder[level]))


def by_folder(names: Sequence[str], level: int, rest_is_train: bool) -> dict[str, list[str]]:
    """Group paths by their folder at that level, "" if they are above it; see folder_level for `rest_is_train`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folder = "".join(name.split("/")[:-1][level : level + 1])
        groups.setdefault("train" if rest_is_train and not is_split(folder) else folder, []).append(name)
    return groups


def stem_splits(names: Sequence[str], split: str | None) -> dict[str, list[str]]:
    """Group tables or shards by the split in their names; empty if there is none.

    As in train.parquet, train-00000-of-00002.parquet or imagenet-train-000000.tar.
    """
    groups: dict[str, list[str]] = {}
    are_named = split is not None
    for name in names:
        stem, numbered = HUB_NUMBER.subn("", name.rpartition("/")[2].rpartition(".")[0])
        if not numbered and split_word(stem)[0]:
            stem = re.sub(r"[-_.]?\d+$", "", stem)
        are_named = are_named or bool(numbered) or is_split(stem)
        groups.setdefault(stem, []).append(name)
    return groups if are_named or are_splits(groups) else {}
