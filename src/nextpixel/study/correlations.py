"""Correlation of loss and probe accuracy over the points of a study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextpixel.stats import (
    Difference,
    bootstrap_interval,
    bootstrap_within,
    difference_at_equal_x,
    partial_correlation,
    pearson,
    spearman,
    subtract_group_means,
)
from nextpixel.study.points import Point, points_by_run


@dataclass(frozen=True)
class Estimate:
    """A correlation and its 95% interval over runs; NaN where there are too few."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """Accuracy of a larger shape minus that of a smaller one, at equal loss."""

    smaller: str
    larger: str
    runs: int
    difference: Difference | None
    """None where the losses of the two do not overlap."""


@dataclass(frozen=True)
class Prediction:
    """Accuracy of the largest shape's last checkpoints, by a straight line in loss through those of the others."""

    shape: str
    predicted: Estimate
    measured: float
    """Mean over its runs."""


@dataclass(frozen=True)
class Statistics:
    """Correlations of loss (nats per pixel) and accuracy; negative: the lower the loss, the better the probe."""

    runs: int
    checkpoints: int
    within_runs: float
    """Mean over runs of Spearman's correlation within each."""
    pearson: Estimate
    spearman: Estimate
    """Over all checkpoints."""
    given_compute: Estimate
    """Pearson's partial correlation given the logarithm of training FLOPs."""
    same_step: Estimate
    """Pearson's between runs: each checkpoint minus the mean of all runs at its step."""
    final_pearson: Estimate
    final_spearman: Estimate
    """Between runs: the last checkpoint of each."""
    equal_loss: list[Gap]
    largest: Prediction | None
    """None where the others are of fewer than two shapes."""


def statistics(points: Sequence[Point], *, seed: int = 0) -> Statistics:
    """Correlations, and differences at equal loss.

    Intervals resample whole runs, since the checkpoints of a run are not independent.
    """
    by_run = points_by_run(points)
    groups = [
        np.array([(p.nats, p.accuracy, math.log10(p.flops), p.step) for p in found], float) for found in by_run.values()
    ]
    finals = [group[[group[:, 3].argmax()]] for group in groups]
    within = [spearman(group[:, 0], group[:, 1]) for group in groups]

    def estimate(statistic: Callable[[NDArray[np.float64]], float], rows: Sequence[NDArray[np.float64]]) -> Estimate:
        return Estimate(statistic(np.concatenate(rows)), *bootstrap_interval(statistic, rows, seed=seed))

    def same_step(rows: NDArray[np.float64]) -> float:
        return pearson(*(subtract_group_means(rows[:, column], rows[:, 3]) for column in (0, 1)))

    return Statistics(
        runs=len(groups),
        checkpoints=len(points),
        within_runs=float(np.mean(known)) if (known := [v for v in within if not math.isnan(v)]) else math.nan,
        pearson=estimate(lambda rows: pearson(rows[:, 0], rows[:, 1]), groups),
        spearman=estimate(lambda rows: spearman(rows[:, 0], rows[:, 1]), groups),
        given_compute=estimate(lambda rows: partial_correlation(*rows[:, :3].T), groups),
        same_step=estimate(same_step, groups),
        final_pearson=estimate(lambda rows: pearson(rows[:, 0], rows[:, 1]), finals),
        final_spearman=estimate(lambda rows: spearman(rows[:, 0], rows[:, 1]), finals),
        equal_loss=_gaps(list(by_run.values())),
        largest=_largest([found[-1] for found in by_run.values()], seed),
    )


def _largest(finals: Sequence[Point], seed: int) -> Prediction | None:
    """The prediction for the largest shape, from the last checkpoints of all runs."""
    shapes = sorted({(p.parameters, p.shape) for p in finals})
    if len(shapes) < 3:
        return None
    name = shapes[-1][1]
    ours = np.array([(p.nats, p.accuracy) for p in finals if p.shape == name])
    others: dict[str, list[tuple[float, float]]] = {}
    for p in finals:
        if p.shape != name:
            others.setdefault(p.shape, []).append((p.nats, p.accuracy))

    def line(rows: NDArray[np.float64]) -> float:
        nats, accuracy = rows.T
        if np.ptp(nats) == 0:
            return math.nan
        slope, height = np.polyfit(nats - nats.mean(), accuracy, 1)
        return float(height + slope * (ours[:, 0].mean() - nats.mean()))

    groups = [np.array(rows) for rows in others.values()]
    predicted = Estimate(line(np.concatenate(groups)), *bootstrap_within(line, groups, seed=seed))
    return Prediction(name, predicted, float(ours[:, 1].mean()))


def _gaps(runs: Sequence[Sequence[Point]]) -> list[Gap]:
    """Every pair of shapes, smaller first."""
    curves: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
    for points in runs:
        shape = points[0].parameters, points[0].shape
        curves.setdefault(shape, []).append(np.array([(p.nats, p.accuracy) for p in points]))
    shapes = sorted(curves)
    return [
        Gap(small[1], large[1], len(curves[small] + curves[large]), difference_at_equal_x(curves[small], curves[large]))
        for small, large in itertools.combinations(shapes, 2)
    ]
