"""Arrays to numbers: accuracies, confusion, areas, intervals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def top_k_accuracy(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int = 1) -> float:
    """Part of the rows of scores (N, C) whose label is among the k highest; a tie counts against the label."""
    own = scores[np.arange(len(labels)), labels]
    rivals = (scores >= own[:, None]).sum(1) - 1
    return float((rivals < k).mean())


def confusion(predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Counts (C, C): row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class_accuracy(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Recall of each class (C,) of a confusion matrix; NaN for a class without rows."""
    totals = counts.sum(1)
    return np.divide(counts.diagonal(), totals, out=np.full(len(counts), np.nan), where=totals > 0)


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, a tie counting half.

    Mann & Whitney 1947, through average ranks. NaN where one of the two kinds is missing.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return math.nan
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[places]  # average rank of each value, from 1
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def majority(votes: NDArray[np.integer], classes: int, seed: int) -> NDArray[np.int64]:
    """The commonest number 0..C-1 in each column of votes (M, N), (N,); ties fall at random, by the seed."""
    counts = np.stack([(votes == number).sum(0) for number in range(classes)], axis=1)
    return (counts + np.random.default_rng([seed, 0x707E]).random(counts.shape)).argmax(1)


def conformal_p_values(scores: NDArray[np.floating], calibration: NDArray[np.floating]) -> NDArray[np.float64]:
    """p (N,) = (1 + the number of calibration scores >= score) / (n + 1): never 0; larger scores are odder.

    If a score and the n calibration scores are exchangeable, P(p <= a) <= a (Vovk, Gammerman & Shafer 2005).
    """
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + len(calibration) - below) / (len(calibration) + 1)


def wilson_interval(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """A 95 % interval of a proportion (Wilson 1927), from the share `successes` in `count` trials."""
    center = (successes + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(successes * (1 - successes) / count + z * z / (4 * count * count))
    return center - half, center + half


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard deviation and half of the 95 % interval of the mean (Student's t); 0 for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0, 0.0
    from scipy.stats import t

    spread = float(np.std(values, ddof=1))
    return float(np.mean(values)), spread, float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
