"""Few-label probes: several feature sets of the same images, compared on the same random subsets of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Pooling
from nextpixel.data.labels import choose_labels, class_numbers
from nextpixel.representation.extraction import Backbone, features_of, pooled_columns
from nextpixel.representation.logistic import STRENGTHS, middle_strengths, standard
from nextpixel.representation.probing import LinearProbe
from nextpixel.stats import Score

NEIGHBOURS = 20


@dataclass(frozen=True)
class FeatureSet:
    """Features of the training and test images by one method, (N, J, D) each."""

    name: str
    train: NDArray[np.float32]
    test: NDArray[np.float32]
    layers: list[int]
    trials: int | None = None
    """Number of strengths to try, from the middle outwards; default: all."""
    concatenate: bool = False
    """Join the layers into one instead of choosing among them."""
    columns: dict[Pooling, slice] | None = None
    """The poolings to choose among and where they lie along D, see extraction.pooled_columns; None: a single one."""


def layer_features(
    name: str,
    model: Backbone,
    train: NDArray[np.uint8],
    test: NDArray[np.uint8],
    layers: Sequence[int],
    *,
    concatenate: bool = False,
    trials: int | None = None,
    poolings: Sequence[Pooling] = ("mean",),
    mirror: bool = False,
) -> FeatureSet:
    """Features of squares uint8 (N, S, S, 3) at these layers, by these poolings; `mirror` as in features_of."""
    both = [features_of(model, squares, layers, poolings=poolings, mirror=mirror) for squares in (train, test)]
    return FeatureSet(name, both[0], both[1], list(layers), trials, concatenate, pooled_columns(model, poolings))


@dataclass(frozen=True)
class Result:
    """Scores of one feature set with some labels per class (None: all), one for each random subset."""

    method: str
    labels_per_class: int | None
    scores: list[Score]
    nearest_neighbours: list[float]
    """Accuracy of cosine nearest neighbours on the same features: 20, or as many as the rarest class has."""
    layers: list[list[int]]
    poolings: list[Pooling]
    trials: list[list[dict[str, Any]]]
    """The settings tried in each repeat, with their accuracy and log loss on held-out training images."""
    probes: list[LinearProbe] = field(default_factory=list)
    """Those of the repeats, without a model."""


def compare(
    feature_sets: Sequence[FeatureSet],
    labels: NDArray[Any],
    test_labels: NDArray[Any],
    *,
    labels_per_class: Sequence[int | None] = (None,),
    repeats: int = 5,
    seed: int = 0,
    seen: NDArray[np.bool_] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> list[Result]:
    """Probe every feature set on the same random subsets (the few-label protocol of Chen et al. 2020, no augmentation).

    The subset is a function of (seed, labels per class, repeat). Layer, pooling and strength are chosen within the
    subset. With `rows`, the training features are those of these images only, see sampled_rows.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    results = []
    for count in labels_per_class:
        subsets = _subsets(labels, count, repeats, seed)
        for features in feature_sets:
            result = Result(features.name, count, [], [], [], [], [])
            layers, columns = features.layers, features.columns
            strengths = STRENGTHS if features.trials is None else middle_strengths(features.trials)
            for subset in subsets:
                probe = LinearProbe(None, layers if features.concatenate else "best", seed=seed, strengths=strengths)
                own = features.train[np.searchsorted(rows, subset)]
                probe.fit_features(own, labels[subset], layers=layers, columns=columns)
                result.probes.append(probe)
                result.trials.append(probe.trials_)
                train, test = (probe.chosen_features(both, layers, columns) for both in (own, features.test))
                result.scores.append(probe.evaluate_features(test, test_labels, seen=seen))
                result.nearest_neighbours.append(_neighbour_accuracy(train, labels[subset], test, test_labels))
                result.layers.append(probe.layers_)
                result.poolings.append(probe.pooling_)
            results.append(result)
    return results


def sampled_rows(
    labels: NDArray[Any], labels_per_class: Sequence[int | None], repeats: int, seed: int
) -> NDArray[np.int64]:
    """Sorted rows of the images in any subset of `compare`: only they need features."""
    subsets = [rows for count in labels_per_class for rows in _subsets(labels, count, repeats, seed)]
    return np.unique(np.concatenate(subsets))


def _subsets(labels: NDArray[Any], count: int | None, repeats: int, seed: int) -> list[NDArray[np.int64]]:
    return [choose_labels(labels, count, seed, repeat) for repeat in range(1 if count is None else repeats)]


def _neighbour_accuracy(
    train: NDArray[np.float32], labels: NDArray[Any], test: NDArray[np.float32], test_labels: NDArray[Any]
) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    mean, scale = standard(train)
    classes, numbers = np.unique(labels, return_inverse=True)
    count = min(NEIGHBOURS, int(np.bincount(numbers).min()))
    nearest = KNeighborsClassifier(count, metric="cosine").fit((train - mean) / scale, numbers)
    return float(nearest.score((test - mean) / scale, class_numbers(test_labels, classes)))
