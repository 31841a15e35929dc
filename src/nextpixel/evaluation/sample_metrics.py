"""Metrics that compare samples with real images by their features, (N, D) and (M, D).

Distances are Euclidean, arithmetic is float64. Distances take about 1 GB at most (scikit-learn's
`working_memory`), the kernel distance 8 bytes for each pair within a tenth of each set. Identical sets have Frechet
distance 0, and without duplicates precision, recall and coverage 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating[Any]]
KERNEL_DEGREE = 3


def frechet_distance(reference: Features, samples: Features) -> float:
    """Squared Frechet distance of Gaussians fitted to (N, D) and (M, D) (Heusel et al. 2017, section 2; FID).

    |m - m'|^2 + tr(C + C' - 2 (C C')^1/2) with covariances over N - 1. The trace of the root is the sum of the roots of
    the eigenvalues of C C', which are the singular values of F F'^T for any F^T F = C, F'^T F' = C'. So neither
    covariances nor matrix roots are computed, and fewer rows than columns need no special case. The estimate is biased
    upwards by an amount that shrinks with N and depends on the features: compare it only at the same N and extractor
    (Chong & Forsyth 2020).
    """
    (mean, factor), (mean2, factor2) = _gaussian(reference), _gaussian(samples)
    shift = float(((mean - mean2) ** 2).sum())
    traces = float((factor**2).sum() + (factor2**2).sum())
    overlap = float(np.linalg.svd(factor @ factor2.T, compute_uv=False).sum())
    return max(0.0, shift + traces - 2 * overlap)  # rounding can make it negative


def _gaussian(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and F (min(N, D), D) with F^T F the covariance."""
    values = features.astype(np.float64)
    mean = values.mean(0)
    factor = (values - mean) / math.sqrt(len(values) - 1)
    if len(factor) > factor.shape[1]:
        factor = np.asarray(np.linalg.qr(factor, mode="r"))
    return mean, factor


def kernel_distance(reference: Features, samples: Features, *, subsets: int = 10, seed: int = 0) -> tuple[float, float]:
    """Squared maximum mean discrepancy and its standard error (Binkowski et al. 2018, section 3; KID).

    The kernel is (x . y / D + 1)^3, the estimate unbiased (Gretton et al. 2012, eq. 3): its mean is 0 for equal
    distributions, so it can be negative. Both sets are split at random, by `seed`, into disjoint subsets, and the mean
    over them is returned with its standard error. The published protocol draws overlapping subsets, whose spread
    underestimates the error of small sets. With one subset, the whole sets, the error is NaN.
    """
    rng = np.random.default_rng([seed, 0x4B1D])
    sizes = len(reference) // subsets, len(samples) // subsets
    if min(sizes) < 2:
        raise ValueError(f"{subsets} subsets of at least 2 need as many rows, got {len(reference)} and {len(samples)}")
    order, order2 = rng.permutation(len(reference)), rng.permutation(len(samples))
    values = [
        _discrepancy(reference[order[i::subsets][: sizes[0]]], samples[order2[i::subsets][: sizes[1]]])
        for i in range(subsets)
    ]
    error = float(np.std(values, ddof=1)) / math.sqrt(subsets) if subsets > 1 else math.nan
    return float(np.mean(values)), error


def _discrepancy(x: Features, y: Features) -> float:
    from sklearn.metrics.pairwise import polynomial_kernel

    kernel = partial(polynomial_kernel, degree=KERNEL_DEGREE)  # by default of x . y / D + 1

    def among(a: NDArray[np.float64]) -> float:
        own = ((a**2).sum(1) / a.shape[1] + 1) ** KERNEL_DEGREE
        return float(kernel(a, a).sum() - own.sum()) / (len(a) * (len(a) - 1))

    a, b = x.astype(np.float64), y.astype(np.float64)
    return among(a) + among(b) - 2 * float(kernel(a, b).mean())


def precision_recall(reference: Features, samples: Features, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    Precision is the share of samples within the ball of some real image, whose radius is the distance to its k-th
    nearest real image; recall is the same with the roles exchanged. Needs more than k rows each.
    """
    x, y = reference.astype(np.float64), samples.astype(np.float64)
    return _share_within(y, x, _radii(x, k)), _share_within(x, y, _radii(y, k))


def density_coverage(reference: Features, samples: Features, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eq. 3 and 4), with balls around the real images only.

    Density is the mean number of real images' balls that a sample lies in, divided by k: 1 for equal distributions,
    more where samples crowd the centre. Coverage is the share of balls that contain a sample: about 1 - 2^-k for equal
    distributions and sizes. Needs more than k real images.
    """
    x, y = reference.astype(np.float64), samples.astype(np.float64)
    radii = _radii(x, k)
    inside = _by_rows(x, y, lambda found, start: (found < radii[start : start + len(found), None]).sum(1))
    return float(inside.sum()) / (k * len(y)), float((inside > 0).mean())


def _radii(x: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Distance of each row to its k-th nearest other row, (N,)."""
    if len(x) <= k:
        raise ValueError(f"the {k}-th nearest of the others needs more than {k} rows, got {len(x)}")

    def kth(distances: NDArray[np.float64], start: int) -> NDArray[np.float64]:
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        return np.partition(distances, k - 1, axis=1)[:, k - 1]

    return _by_rows(x, x, kth)


def _share_within(points: NDArray[np.float64], centers: NDArray[np.float64], radii: NDArray[np.float64]) -> float:
    return float(_by_rows(points, centers, lambda distances, _: (distances <= radii).any(1)).mean())


def _by_rows(x: NDArray[np.float64], y: NDArray[np.float64], reduce: Callable[..., Any]) -> NDArray[Any]:
    """reduce(distances (n, M), index of their first row) for blocks of rows of x (N, D) and all y (M, D), (N,)."""
    from sklearn.metrics import pairwise_distances_chunked

    return np.concatenate(list(pairwise_distances_chunked(x, y, reduce_func=reduce)))


def nearest(x: Features, blocks: Iterable[Features], k: int = 1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest rows of a set, given in blocks (b, D), to each row of x (N, D): indices and distances (N, k).

    Sorted, the nearest first; ties go to the earlier row. Distances are computed from differences, so a copy has
    distance 0. Where the set has fewer than k rows, distances end with inf and indices with -1.
    """
    from sklearn.neighbors import NearestNeighbors

    values = x.astype(np.float64)
    indices, distances = np.full((len(x), k), -1), np.full((len(x), k), np.inf)
    start = 0
    for block in blocks:
        others = block.astype(np.float64)
        search = NearestNeighbors(n_neighbors=min(k, len(others)), algorithm="brute").fit(others)
        found = np.sort(search.kneighbors(values, return_distance=False), axis=1)
        exact = np.stack([np.linalg.norm(others[column] - values, axis=1) for column in found.T], 1)
        candidates = np.concatenate([distances, exact], 1)
        order = np.argsort(candidates, axis=1, kind="stable")[:, :k]
        distances = np.take_along_axis(candidates, order, 1)
        indices = np.take_along_axis(np.concatenate([indices, found + start], 1), order, 1)
        start += len(block)
    return indices, distances
