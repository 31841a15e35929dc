"""The probe that monitors a pretraining run: ridge regression on the pooled features of its middle layer.

The closed form takes seconds where logistic regression takes minutes; accuracies are slightly below those of nextpixel
probe. It is scored on part of the labelled images given, never on test images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import Fit, Levels, Size
from nextpixel.data.labels import folds_of, has_label, held_out, labels_of
from nextpixel.devices import compiled_code
from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage
from nextpixel.images.sources import open_source, settle
from nextpixel.images.sources.base import NO_LEVELS
from nextpixel.network.model import ImageGPT
from nextpixel.representation.extraction import features_of

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the number of images, on standardised features
MIDDLE_PENALTY = PENALTIES[2]
SCORED = 0.25  # share of the labelled images


def ridge_images(
    images: Any, size: Size, fit: Fit, count: int, seed: int, levels: Levels = NO_LEVELS
) -> dict[str, NDArray[Any]]:
    """The arrays a run keeps for its probe, from at most `count` labelled images.

    {"probe_squares": uint8 (N, H, W, 3), "probe_labels": (N,) numbers 0..C-1, "probe_scored": bool (N,), the
    images to score on}. Classes get equal numbers of images, or all that they have. Raises InputError for images
    without labels, of fewer than two classes, or with a single image of each.
    """
    source = open_source(images)
    source, levels, _ = settle(source, size, fit, levels)
    names = labels_of(source)
    known = np.flatnonzero(has_label(names))
    classes, numbers = np.unique(names[known].astype(str), return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"expected images of at least two classes in {source.source_name}, got one", argument="probe_data"
        )
    rng = np.random.default_rng([seed, 0x41D6E])
    order = rng.permutation(len(numbers))
    ranks = np.empty(len(numbers), np.int64)  # of each image within its class
    for number in range(len(classes)):
        ranks[order[numbers[order] == number]] = np.arange((numbers == number).sum())
    squares: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    for i in order[np.argsort(ranks[order], kind="stable")].tolist():
        if len(kept) == count:
            break
        try:
            squares.append(source.image(int(known[i]), size, fit, levels))
            kept.append(i)
        except UnreadableImage:
            continue
    labels = np.unique(numbers[kept], return_inverse=True)[1]
    scored = held_out(labels, SCORED, seed) if len(kept) else np.zeros(0, bool)
    if not scored.any() or len(np.unique(labels)) < 2:
        raise InputError(
            f"expected at least two readable images of some class in {source.source_name}, to score one "
            f"of them, got {len(kept)} images of {len(np.unique(labels))} classes; add some, or raise `probe_images`",
            argument="probe_data",
        )
    return {"probe_squares": np.stack(squares), "probe_labels": labels, "probe_scored": scored}


def ridge_accuracy(model: ImageGPT, arrays: dict[str, NDArray[Any]], *, dtype: str = "fp32", seed: int = 0) -> float:
    """Accuracy of the probe on the scored images of ridge_images; leaves torch's random state alone."""
    with compiled_code("eager_on_recompile"):  # the blocks may be compiled for training
        layers = [model.config.layers // 2]
        features = features_of(model, arrays["probe_squares"], layers, dtype=dtype, compiled=False)[:, 0].astype(
            np.float64
        )
    labels, scored = arrays["probe_labels"], arrays["probe_scored"]
    ridge = fit_ridge(features[~scored], labels[~scored], seed=seed)
    return float(ridge.score(features[scored], labels[scored]))


def fit_ridge(features: NDArray[np.float64], labels: NDArray[np.integer], *, seed: int = 0) -> Any:
    """A scikit-learn classifier: ridge regression of the classes on standardised features (N, D).

    The penalty is the one of the highest held-out accuracy; of equally accurate ones, the weakest.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(rows: NDArray[np.bool_], penalty: float) -> Any:
        ridge = make_pipeline(StandardScaler(), RidgeClassifier(penalty * rows.sum()))
        return ridge.fit(features[rows], labels[rows])

    def correct(penalty: float) -> int:
        return sum(int((fit(~held, penalty).predict(features[held]) == labels[held]).sum()) for held in folds)

    folds = folds_of(labels, seed)
    return fit(np.ones(len(labels), bool), max(PENALTIES, key=correct) if folds else MIDDLE_PENALTY)
