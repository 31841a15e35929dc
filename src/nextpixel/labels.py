"""Labels: where those of images come from, which class each one is, and parts of the images that have every class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextpixel.data import DecodedSet
from nextpixel.errors import InputError

HELD_OUT = 0.1
FOLDS = 5
FOLDS_BELOW = 2_000  # training images: one held-out tenth of fewer is too noisy to choose by


def labels_from_csv(path: str | Path, names: Sequence[str]) -> NDArray[Any]:
    """The label of each name, by a CSV file with the columns file and label."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:  # Excel begins its files with a mark
            rows = csv.DictReader(file)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise InputError(f"{path}: expected the columns file and label, got {rows.fieldnames}")
            found = {row["file"]: row["label"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a CSV file of file,label, got something unreadable: {error}") from None
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise InputError(
            f"{path}: expected a label for each picture, got none for {missing[0]} ({len(missing)} in all); add rows"
        )
    return np.array([found[name] for name in names])


def labels_of(source: Any) -> NDArray[Any]:
    """The labels of a source, or of what was decoded of one that has labels, as class names where it has them."""
    if source.labels is None:
        raise InputError(
            f"{source.source_name}: expected labelled images: a sub-folder for each class, a label column, or a CSV of "
            "file,label; got images without labels"
        )
    return source.labels if source.classes is None else np.asarray(source.classes)[source.labels]


def given_labels(source: Any, labels: ArrayLike | str | Path | None) -> NDArray[Any]:
    """The label of each picture of a source: those given, or in a CSV file (see labels_from_csv), or its own."""
    if labels is None:
        return labels_of(source)
    if isinstance(labels, str | Path):
        return labels_from_csv(labels, source.names)
    names = np.asarray(labels)
    if names.shape != (len(source),):
        raise InputError(f"expected {len(source)}, one for each image, got {names.shape}", argument="labels")
    return names


def labels_of_readable(labels: NDArray[Any], source: Any, decoded: DecodedSet) -> NDArray[Any]:
    """Those of the pictures of a source that could be decoded.

    Raises InputError where their names do not tell which these are.
    """
    if len(decoded) == len(labels):
        return labels
    readable = np.isin(list(source.names), list(decoded.names))
    if readable.sum() != len(decoded):
        raise InputError(
            f"{source.source_name}: some pictures cannot be read and have the names of others, so it is not known "
            "which labels are theirs; remove or repair them"
        )
    return labels[readable]


def class_numbers(labels: ArrayLike, classes: NDArray[Any], what: str = "labels") -> NDArray[np.int64]:
    """The place in `classes` of each label, (N,); a number and its digits are the same class.

    Raises InputError, which begins with `what`, for a label that is none of the classes.
    """
    names, known = np.asarray(labels).astype(str), classes.astype(str)
    strangers = np.setdiff1d(names, known)
    if len(strangers):
        raise InputError(f"{what}: expected the classes of the training images, got {str(strangers[0])!r} as well")
    order = np.argsort(known)
    return order[np.searchsorted(known, names, sorter=order)]


def refuse_overlap(train: Any, test: Any) -> None:
    """Raises InputError where test images are the training images: a figure from them would say nothing."""
    if train.fingerprint() == test.fingerprint():
        raise InputError(
            f"{test.source_name}: expected test images other than the training images, got the same; keep some apart "
            "for `test`"
        )


def choose_labels(labels: NDArray[Any], per_class: int | None, seed: int, repeat: int) -> NDArray[np.int64]:
    """Places of that many images of each class, in order; all of them for None."""
    if per_class is None:
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, 0xFE7, per_class, repeat])
    chosen = []
    for name in np.unique(labels):
        members = np.flatnonzero(labels == name)
        if len(members) < per_class:
            raise InputError(
                f"expected at most {len(members)}, all of class {name}, got {per_class}", argument="labels_per_class"
            )
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def folds_of(labels: NDArray[np.integer], seed: int) -> list[NDArray[np.bool_]]:
    """What is held out to choose by, as masks (N,): a tenth of many images, or each of some folds of few.

    Stratified: every class is on both sides, but for those of a single image, which is never held out. None where
    all are of a single image.
    """
    counts = np.bincount(labels)
    several = counts > 1
    if not several.any():
        return []
    if len(labels) >= FOLDS_BELOW:
        return [held_out(labels, HELD_OUT, seed)]
    place = _places(labels, seed)
    folds = min(FOLDS, int(counts[several].min()))
    return [(place % folds == fold) & several[labels] for fold in range(folds)]


def held_out(labels: NDArray[np.integer], fraction: float, seed: int) -> NDArray[np.bool_]:
    """A stratified part (N,) of labels 0..C-1: that fraction of each class, at least one image but never all of it."""
    counts = np.bincount(labels)
    held = np.minimum(np.maximum(1, counts * fraction).astype(np.int64), counts - 1)
    return np.asarray(_places(labels, seed) < held[labels])


def _places(labels: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """0, 1, 2, ... within each class, in random order, (N,)."""
    rng = np.random.default_rng([seed, 0xF01D])
    place = np.empty(len(labels), np.int64)
    for number in range(labels.max() + 1):
        members = np.flatnonzero(labels == number)
        place[members] = rng.permutation(len(members))
    return place
