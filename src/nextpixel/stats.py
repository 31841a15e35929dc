"""Statistics of arrays: accuracies, p-values, correlations, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_k_accuracy(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> float:
    """Share of the rows of scores (N, C) whose label is among the k highest; a tie counts against the label."""
    own = scores[np.arange(len(labels)), labels]
    at_least_as_high = (scores >= own[:, None]).sum(1)
    return float((at_least_as_high <= k).mean())


def likeliest(probabilities: NDArray[np.floating], seed: int = 0) -> NDArray[np.int64]:
    """The most probable class of each row (N, C), (N,); ties are broken at random, by the seed and the row."""
    ties = probabilities == probabilities.max(1, keepdims=True)
    return (ties * (1 + np.random.default_rng([seed, 0x71E5]).random(probabilities.shape))).argmax(1)


def middle_best(values: Sequence[float]) -> int:
    """Index of the highest value; ties go to the one nearest to the middle, then to the first."""
    return max(range(len(values)), key=lambda i: (values[i], -abs(i - len(values) // 2)))


def per_class_accuracy(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Recall of each class (C,) from a confusion matrix (C, C); NaN for a class without rows."""
    totals = counts.sum(1)
    return np.divide(counts.diagonal(), totals, out=np.full(len(counts), np.nan), where=totals > 0)


@dataclass(frozen=True)
class Score:
    """Metrics of the predicted classes of test images."""

    images: int
    accuracy: float
    top_5: float | None
    """None for five classes or fewer."""
    auc: float | None
    """Area under the ROC curve of the second class; None unless there are two, with images of both."""
    confusion: NDArray[np.int64]
    """(C, C) counts; rows are true classes."""
    training_images: int = 0
    """Number of test images that equal a training image in every pixel."""
    accuracy_without_them: float | None = None
    """Without those images, as are the fields below; None where there are none, or no others."""
    top_5_without_them: float | None = None
    auc_without_them: float | None = None

    def report(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return vars(self) | {"confusion": self.confusion.tolist()}


def score_of(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.integer],
    classes: int,
    predicted: NDArray[np.integer] | None = None,
    seen: NDArray[np.bool_] | None = None,
) -> Score:
    """Score probabilities (N, C) against the true classes 0..C-1, (N,).

    predicted  (N,) the predicted classes; default: the most probable, ties broken at random
    seen       (N,) the test images that are training images
    """
    from sklearn.metrics import confusion_matrix, roc_auc_score

    predicted = likeliest(probabilities) if predicted is None else predicted
    without: list[float | None] = []
    if seen is not None and 0 < seen.sum() < len(seen):
        others = score_of(probabilities[~seen], labels[~seen], classes, predicted[~seen])
        without = [others.accuracy, others.top_5, others.auc]
    return Score(
        len(labels),
        float((predicted == labels).mean()),
        top_k_accuracy(probabilities, labels, 5) if classes > 5 else None,
        float(roc_auc_score(labels, probabilities[:, 1])) if classes == 2 == len(np.unique(labels)) else None,
        confusion_matrix(labels, predicted, labels=range(classes)),
        0 if seen is None else int(seen.sum()),
        *without,
    )


def majority(votes: NDArray[np.integer], classes: int, seed: int) -> NDArray[np.int64]:
    """The most common number 0..C-1 in each column of votes (M, N), (N,); ties are broken at random, by the seed."""
    counts = np.stack([(votes == number).sum(0) for number in range(classes)], axis=1)
    return (counts + np.random.default_rng([seed, 0x707E]).random(counts.shape)).argmax(1)


def conformal_p_values(scores: NDArray[np.floating], calibration: NDArray[np.floating]) -> NDArray[np.float64]:
    """p (N,) = (1 + the number of calibration scores >= score) / (n + 1): never 0; larger scores are odder.

    If a score and the n calibration scores are exchangeable, P(p <= a) <= a (Vovk, Gammerman & Shafer 2005).
    """
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + len(calibration) - below) / (len(calibration) + 1)


def outlier_limit(values: NDArray[np.floating], deviations: float = 6.0) -> tuple[float, float]:
    """(median, median + that many standard deviations), robust to outliers (Leys et al. 2013).

    The standard deviation is estimated as 1.4826 times the median absolute deviation.
    """
    median = float(np.median(values))
    return median, median + deviations * 1.4826 * float(np.median(np.abs(values - median)))


def pearson(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Pearson's correlation of x (N,) and y (N,); NaN for fewer than three values or a constant."""
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Pearson's correlation of the ranks, with average ranks for ties; NaN as in pearson."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def partial_correlation(x: NDArray[np.floating], y: NDArray[np.floating], given: NDArray[np.floating]) -> float:
    """Pearson's correlation of the residuals of x and y after a linear fit of each to `given`."""
    basis = np.stack([np.ones_like(given), given - given.mean()], 1)
    residuals = [values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0] for values in (x, y)]
    return pearson(*residuals)


def subtract_group_means(values: NDArray[np.floating], groups: NDArray[Any]) -> NDArray[np.float64]:
    """Values (N,) minus the mean of their group; groups (N,) are arbitrary labels."""
    _, numbers = np.unique(groups, return_inverse=True)
    return values - (np.bincount(numbers, values) / np.bincount(numbers))[numbers]


def bootstrap_interval(
    statistic: Callable[[NDArray[np.float64]], float],
    groups: Sequence[NDArray[np.float64]],
    *,
    repeats: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95% percentile interval of statistic(rows) by the cluster bootstrap (Field & Welsh 2007).

    Whole groups of rows (n_i, J) are drawn with replacement: rows within a group may depend on each other. Draws whose
    statistic is NaN are skipped; NaN for fewer than two groups.
    """
    if len(groups) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng([seed, 0xB007])
    draws = rng.integers(0, len(groups), (repeats, len(groups)))
    return _percentiles(statistic(np.concatenate([groups[i] for i in draw])) for draw in draws)


def bootstrap_within(
    statistic: Callable[[NDArray[np.float64]], float],
    groups: Sequence[NDArray[np.float64]],
    *,
    repeats: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95% percentile interval of statistic(rows), drawing rows (n_i, J) with replacement within each group.

    Draws whose statistic is NaN are skipped; NaN where a group has fewer than two rows, which say nothing of their
    spread.
    """
    if min(map(len, groups)) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng([seed, 0xB007])
    draws = (np.concatenate([g[rng.integers(0, len(g), len(g))] for g in groups]) for _ in range(repeats))
    return _percentiles(map(statistic, draws))


def _percentiles(values: Iterable[float]) -> tuple[float, float]:
    low, high = np.percentile([value for value in values if not math.isnan(value)] or [math.nan], [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Difference between two sets of curves over the range of x that all of them cover."""

    x_from: float
    x_to: float
    """The common range of x."""
    mean: float
    """Mean of the second set's y minus the first's, over that range and over curves."""
    low: float
    high: float
    """Its 95% interval over curves (Welch 1947); NaN for a single curve on either side."""


def difference_at_equal_x(
    first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]], points: int = 21
) -> Difference | None:
    """Compare curves, each (n, 2) of x and y, at the same x; None where their ranges of x do not overlap.

    Curves are interpolated linearly and not extrapolated.
    """
    curves = [curve[np.argsort(curve[:, 0])] for curve in (*first, *second)]
    low, high = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    if low > high:
        return None
    grid = np.linspace(low, high, points)
    means = np.array([np.interp(grid, curve[:, 0], curve[:, 1]).mean() for curve in curves])
    one, other = means[: len(first)], means[len(first) :]
    interval = math.nan, math.nan
    if min(len(one), len(other)) > 1:
        from scipy.stats import ttest_ind

        found = ttest_ind(other, one, equal_var=False).confidence_interval()
        interval = float(found.low), float(found.high)
    return Difference(float(low), float(high), float(other.mean() - one.mean()), *interval)


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
    """95% interval of a proportion observed in `count` trials (Wilson 1927)."""
    from scipy.stats import binomtest

    low, high = binomtest(round(proportion * count), count).proportion_ci(method="wilson")
    return float(low), float(high)


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard deviation and half the 95% interval of the mean (Student's t); zeros for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0, 0.0
    from scipy.stats import t

    spread = float(np.std(values, ddof=1))
    return float(np.mean(values)), spread, float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def finite(value: Any) -> Any:
    """Copy dicts and lists with None for every number that is not finite, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
