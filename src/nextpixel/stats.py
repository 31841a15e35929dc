"""Arrays to numbers: accuracies, confusion, areas, correlations, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_k_accuracy(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int = 1) -> float:
    """Part of the rows of scores (N, C) whose label is among the k highest; a tie counts against the label."""
    own = scores[np.arange(len(labels)), labels]
    rivals = (scores >= own[:, None]).sum(1) - 1
    return float((rivals < k).mean())


def likeliest(chances: NDArray[np.floating], seed: int = 0) -> NDArray[np.int64]:
    """Place of the highest in each row of chances (N, C), (N,); ties fall at random, by the seed and the row."""
    ties = chances == chances.max(1, keepdims=True)
    return (ties * (1 + np.random.default_rng([seed, 0x71E5]).random(chances.shape))).argmax(1)


def middle_best(values: Sequence[float]) -> int:
    """Place of the highest value; of equal ones that nearest to the middle, and of two as near the first."""
    return max(range(len(values)), key=lambda place: (values[place], -abs(place - len(values) // 2)))


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


@dataclass(frozen=True)
class Score:
    """Predicted classes of test images against the true ones."""

    images: int
    accuracy: float
    top_5: float | None
    """Where there are more than five classes."""
    auc: float | None
    """Area under the ROC curve of the second class, where there are two and images of both."""
    confusion: NDArray[np.int64]
    """(C, C), row the true class."""
    training_images: int = 0
    """How many of the test images are training images, pixel by pixel."""
    accuracy_without_them: float | None = None
    """Where there are some, and others; so are those below."""
    top_5_without_them: float | None = None
    auc_without_them: float | None = None


def score_of(
    chances: NDArray[np.float32],
    numbers: NDArray[np.integer],
    classes: int,
    voted: NDArray[np.integer] | None = None,
    seen: NDArray[np.bool_] | None = None,
) -> Score:
    """Probabilities (N, C) against the true classes 0..C-1, (N,); `voted` are the answers where not the likeliest.

    Of equally likely classes one is taken at random. `seen` (N,) are the test images that are training images.
    """
    predicted = likeliest(chances) if voted is None else voted
    without: list[float | None] = []
    if seen is not None and 0 < seen.sum() < len(seen):
        rest = ~seen
        others = score_of(chances[rest], numbers[rest], classes, predicted[rest])
        without = [others.accuracy, others.top_5, others.auc]
    return Score(
        len(numbers),
        float((predicted == numbers).mean()),
        top_k_accuracy(chances, numbers, 5) if classes > 5 else None,
        auroc(chances[:, 1], numbers == 1) if classes == 2 and len(np.unique(numbers)) == 2 else None,
        confusion(predicted, numbers, classes),
        0 if seen is None else int(seen.sum()),
        *without,
    )


def accuracies(scores: Sequence[Score]) -> list[float]:
    return [score.accuracy for score in scores]


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


def outlier_limit(values: NDArray[np.floating], deviations: float = 6.0) -> tuple[float, float]:
    """(median, median + that many standard deviations), the deviation by the median absolute one.

    1.4826 times that is the standard deviation of a normal distribution; neither moves by a few outliers (Leys et al.
    2013).
    """
    median = float(np.median(values))
    return median, median + deviations * 1.4826 * float(np.median(np.abs(values - median)))


def pearson(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Pearson's correlation of x (N,) and y (N,); NaN for fewer than three, or where one of them never changes."""
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Pearson's correlation of the ranks, ties sharing their average (Spearman 1904)."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def partial_correlation(x: NDArray[np.floating], y: NDArray[np.floating], given: NDArray[np.floating]) -> float:
    """Pearson's correlation of x and y once the straight line in `given` that fits each is taken away."""
    basis = np.stack([np.ones_like(given), given - given.mean()], 1)
    left = [values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0] for values in (x, y)]
    return pearson(*left)


def subtract_group_means(values: NDArray[np.floating], groups: NDArray[Any]) -> NDArray[np.float64]:
    """Each of values (N,) less the mean of its group; groups (N,) are any names."""
    _, places = np.unique(groups, return_inverse=True)
    return values - (np.bincount(places, values) / np.bincount(places))[places]


def bootstrap_interval(
    statistic: Callable[[NDArray[np.float64]], float],
    groups: Sequence[NDArray[np.float64]],
    *,
    repeats: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """A 95 % percentile interval of statistic(rows), drawing whole groups of rows (n_i, J) with replacement.

    Rows of one group depend on each other, groups do not: the cluster bootstrap (Field & Welsh 2007). Draws that give
    NaN are left out; NaN for fewer than two groups.
    """
    if len(groups) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng([seed, 0xB007])
    draws = rng.integers(0, len(groups), (repeats, len(groups)))
    values = np.array([statistic(np.concatenate([groups[i] for i in draw])) for draw in draws])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How far two sets of curves lie apart where both are known."""

    x_from: float
    x_to: float
    """The range of x that every curve reaches."""
    mean: float
    """Mean of the second set's y less the first's, over that range and over curves."""
    low: float
    high: float
    """Its 95 % interval over curves (Welch 1947); NaN for a single curve on either side."""


def difference_at_equal_x(
    first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]], points: int = 21
) -> Difference | None:
    """Compare curves, each (n, 2) of x and y, at the same x; None where their ranges of x do not meet.

    Between its points a curve is straight; beyond them it is not guessed.
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


def wilson_interval(proportion: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """A 95 % interval of a proportion that was seen in `count` trials (Wilson 1927)."""
    center = (proportion + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(proportion * (1 - proportion) / count + z * z / (4 * count * count))
    return center - half, center + half


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard deviation and half of the 95 % interval of the mean (Student's t); 0 for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0, 0.0
    from scipy.stats import t

    spread = float(np.std(values, ddof=1))
    return float(np.mean(values)), spread, float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def finite(value: Any) -> Any:
    """The same dicts and lists with None for every number that is not finite: JSON has no other word for it."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
