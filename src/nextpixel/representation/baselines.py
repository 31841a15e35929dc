"""Baselines of a probe: the most common class, raw pixels, k-means patches, an untrained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Pooling
from nextpixel.data.labels import class_numbers
from nextpixel.representation.extraction import Backbone, mirror_averaged
from nextpixel.representation.extractors import raw_pixels, untrained
from nextpixel.representation.few_labels import FeatureSet, layer_features

CODES = 200
PATCH = 6
PATCHES = 100_000
BATCH_PIXELS = 64 * 32 * 32
UNTRAINED = "untrained model"


class PatchCodes:
    """k-means on whitened patches, pooled over quadrants (Coates, Ng & Lee 2011): (N, 4 * CODES).

    Patches are normalised and ZCA-whitened, encoded by the paper's "triangle" activation (how much closer than average
    each mean is), and summed over the four quadrants of the image. Fitted to unlabelled training images.
    """

    def __init__(self, squares: NDArray[np.uint8], seed: int = 0) -> None:
        from sklearn.cluster import MiniBatchKMeans

        rng = np.random.default_rng([seed, 0xC0A7])
        count = min(PATCHES, len(squares) * 100)
        images = rng.integers(0, len(squares), count)
        ys, xs = (rng.integers(0, n - PATCH + 1, count) for n in squares.shape[1:3])
        windows = _windows(squares)
        patches = _normalised(windows[images, ys, xs].reshape(count, -1))
        self.mean = patches.mean(0)
        values, vectors = np.linalg.eigh(np.cov(patches - self.mean, rowvar=False))
        self.whiten = (vectors / np.sqrt(values + 0.1) @ vectors.T).astype(np.float32)
        means = MiniBatchKMeans(CODES, n_init=1, batch_size=4096, max_iter=50, random_state=seed)
        self.codes = means.fit((patches - self.mean) @ self.whiten).cluster_centers_.astype(np.float32)

    def __call__(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, 4 * CODES) of uint8 images (N, H, W, 3)."""
        size = max(1, BATCH_PIXELS // math.prod(squares.shape[1:3]))
        batches = (squares[i : i + size] for i in range(0, len(squares), size))
        return np.concatenate([self._batch(batch) for batch in batches])

    def _batch(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        windows = _windows(squares)
        count, rows, columns = windows.shape[:3]
        patches = (_normalised(windows.reshape(count * rows * columns, -1)) - self.mean) @ self.whiten
        square = (patches**2).sum(1, keepdims=True) - 2 * patches @ self.codes.T + (self.codes**2).sum(1)
        distances = np.sqrt(np.maximum(square, 0))
        codes = np.maximum(0, distances.mean(1, keepdims=True) - distances).reshape(count, rows, columns, CODES)
        quadrants = [part for half in np.split(codes, [rows // 2], 1) for part in np.split(half, [columns // 2], 2)]
        return np.concatenate([quadrant.sum((1, 2)) for quadrant in quadrants], 1)


def _windows(squares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every patch, (N, rows, columns, 3, PATCH, PATCH), as a view."""
    return np.lib.stride_tricks.sliding_window_view(squares, (PATCH, PATCH), axis=(1, 2))


def _normalised(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each row with mean 0 and variance 1; 10 is added to the variance, as in the paper."""
    values = patches.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values / np.sqrt(values.var(1, keepdims=True) + 10)


def majority_accuracy(labels: NDArray[Any], test_labels: NDArray[Any]) -> float:
    """Test accuracy of always predicting the most common training class."""
    classes, counts = np.unique(labels, return_counts=True)
    return float((class_numbers(test_labels, classes) == counts.argmax()).mean())


def baseline_features(
    model: Backbone,
    train: NDArray[np.uint8],
    test: NDArray[np.uint8],
    layers: Sequence[int],
    *,
    concatenate: bool = False,
    seed: int = 0,
    unlabelled: NDArray[np.uint8] | None = None,
    poolings: Sequence[Pooling] = ("mean",),
    mirror: bool = False,
) -> list[FeatureSet]:
    """Baseline features of the same squares: raw pixels, k-means patches where one fits in a quadrant, an untrained
    model.

    The untrained model has the same layers and poolings, see few_labels.layer_features. Patches are learned from the
    `unlabelled` squares, by default the training squares. `mirror` as in features_of.
    """

    def feature_set(name: str, extract: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> FeatureSet:
        both = [mirror_averaged(extract, part) if mirror else extract(part) for part in (train, test)]
        return FeatureSet(name, both[0][:, None], both[1][:, None], [0])

    found = [feature_set("raw pixels", raw_pixels)]
    if min(train.shape[1:3]) > PATCH:
        codes = PatchCodes(train if unlabelled is None else unlabelled, seed)
        found.append(feature_set("k-means patches", codes))
    how: dict[str, Any] = {"concatenate": concatenate, "poolings": poolings, "mirror": mirror}
    found.append(layer_features(UNTRAINED, untrained(model, seed), train, test, layers, **how))
    return found
