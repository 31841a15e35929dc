"""Probes of few labels: every way to describe the same images, on the same random subsets of their labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Pooling
from nextpixel.data.labels import choose_labels
from nextpixel.representation.extraction import Backbone, described, described_rows
from nextpixel.representation.probing import STRENGTHS, LinearProbe, middle_strengths
from nextpixel.stats import Score

NEIGHBOURS = 20


@dataclass(frozen=True)
class Reading:
    """One way to describe the same images: features of the training and test images, (N, J, D) each."""

    name: str
    train: NDArray[np.float32]
    test: NDArray[np.float32]
    layers: list[int]
    trials: int | None = None
    """Strengths to choose among, from the middle outwards; all of them unless told."""


def layer_reading(
    name: str,
    model: Backbone,
    train: NDArray[np.uint8],
    test: NDArray[np.uint8],
    layers: Sequence[int],
    *,
    together: bool = False,
    trials: int | None = None,
    rows: NDArray[np.int64] | None = None,
    pooling: Pooling = "mean",
) -> Reading:
    """Squares uint8 (N, S, S, 3) in these layers of a model: to choose among, or `together`, concatenated into one.

    With `rows`, only these training squares are looked at, as many as drawn_rows tells; the others are NaN.
    """
    describe = partial(described, model, layers=layers, pooling=pooling)
    own = described_rows(describe, train, np.arange(len(train)) if rows is None else rows)
    others = describe(test)
    if together:
        own, others = (features.reshape(len(features), 1, -1) for features in (own, others))
    return Reading(name, own, others, list(layers[:1] if together else layers), trials)


@dataclass(frozen=True)
class Result:
    """What one reading reached with some labels per class (None: all), over repeats with other labels drawn."""

    reading: str
    labels_per_class: int | None
    scores: list[Score]
    neighbours: list[float]
    """Accuracy of nearest neighbours in the same features: cosine, 20 or as many as the rarest class has."""
    layers: list[list[int]]
    seconds: list[float]
    """Of choosing layer and strength and of fitting, without those of the features."""
    train_images: list[int]
    trials: list[list[dict[str, Any]]]
    """For each repeat what was tried, with its accuracy on held-out training images."""


def compare(
    readings: Sequence[Reading],
    labels: NDArray[Any],
    test_labels: NDArray[Any],
    *,
    labels_per_class: Sequence[int | None] = (None,),
    repeats: int = 5,
    seed: int = 0,
    seen: NDArray[np.bool_] | None = None,
) -> list[Result]:
    """Every reading on the same random subsets (the few-label protocol of Chen et al. 2020, no augmentation).

    The subset is a function of (seed, labels per class, repeat). Layer and strength are chosen within the subset.
    """
    results = []
    for count in labels_per_class:
        subsets = _subsets(labels, count, repeats, seed)
        for reading in readings:
            scores, neighbours, layers, seconds, trials = [], [], [], [], []
            images = [len(rows) for rows in subsets]
            for rows in subsets:
                several, began = len(reading.layers) > 1, time.perf_counter()
                strengths = STRENGTHS if reading.trials is None else middle_strengths(reading.trials)
                probe = LinearProbe(None, "best" if several else reading.layers[0], seed=seed, strengths=strengths)
                probe.fit_features(reading.train[rows], labels[rows], layers=reading.layers)
                seconds.append(time.perf_counter() - began)
                trials.append(probe.trials_)
                place = reading.layers.index(probe.layers_[0])
                train, test = reading.train[rows, place], reading.test[:, place]
                scores.append(probe.evaluate_features(test, test_labels, seen=seen))
                neighbours.append(_neighbours(train, labels[rows], test, test_labels))
                layers.append(probe.layers_)
            results.append(Result(reading.name, count, scores, neighbours, layers, seconds, images, trials))
    return results


def drawn_rows(
    labels: NDArray[Any], labels_per_class: Sequence[int | None], repeats: int, seed: int
) -> NDArray[np.int64]:
    """Places of the images that any subset of `compare` holds, in order: only their features are ever asked for."""
    return np.unique(
        np.concatenate([rows for count in labels_per_class for rows in _subsets(labels, count, repeats, seed)])
    )


def _subsets(labels: NDArray[Any], count: int | None, repeats: int, seed: int) -> list[NDArray[np.int64]]:
    return [choose_labels(labels, count, seed, repeat) for repeat in range(1 if count is None else repeats)]


def _neighbours(
    train: NDArray[np.float32], labels: NDArray[Any], test: NDArray[np.float32], test_labels: NDArray[Any]
) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    mean, scale = train.mean(0), np.maximum(train.std(0), 1e-6)
    count = min(NEIGHBOURS, int(np.unique(labels, return_counts=True)[1].min()))
    nearest = KNeighborsClassifier(count, metric="cosine").fit((train - mean) / scale, labels)
    return float(nearest.score((test - mean) / scale, test_labels))
