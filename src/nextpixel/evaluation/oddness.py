"""Odd images of a set by likelihood, file size and distances, with p-values against normal images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import check_keywords
from nextpixel.data.decoded import decode, split_indices
from nextpixel.data.labels import seen_before
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import require_autoregressive
from nextpixel.images import png_bytes
from nextpixel.network.losses import cross_entropy
from nextpixel.network.model import ImageGPT
from nextpixel.representation.extraction import check_layers, model_hash
from nextpixel.representation.logistic import standard
from nextpixel.representation.scoring import CHUNK_IMAGES, Runner, batches, joined_arrays, pixel_maps
from nextpixel.stats import conformal_p_values

NEIGHBOURS = 5
REFERENCES_AT_MOST = 5_000
POINTS_AT_ONCE = 2_048  # images whose pixels are in memory as fp32
CALIBRATION_SHARE = 0.5
DEFAULT_COLUMN = "feature_distance"  # finds kinds of images that likelihood misses: docs/guide/odd-images.md
SIGNIFICANCE = 0.01  # of the separation by a column, corrected for the number of columns


@dataclass(frozen=True)
class Column:
    """One score: its title in pages and tables, its unit, and which end of it is odd."""

    title: str
    unit: str
    meaning: str
    smaller_is_odder: bool = False


COLUMNS = {
    "nats_per_pixel": Column(
        "nats per pixel", "nats", "How little the model expected the pixels: the mean of -ln p over all of them."
    ),
    "nats_corrected": Column(
        "nats for its file size",
        "nats",
        "Nats per pixel above what a normal image with as large a PNG file has, by a straight line through the normal "
        "images: simple pictures no longer pass as likely, busy ones no longer as odd. After Serra et al. 2020, who "
        "subtract the compressed bits themselves; here those code 24-bit colours and the nats a palette's.",
    ),
    "peak_nats": Column(
        "hottest spot",
        "nats",
        "The largest mean of nats over 3 x 3 pixels anywhere in the image: for flaws that are small.",
    ),
    "feature_distance": Column(
        "feature distance",
        "standard deviations",
        f"Mean distance to the {NEIGHBOURS} nearest normal images in the features of the model's middle layer, each "
        "feature measured in its standard deviations: root mean square over features.",
    ),
    "pixel_distance": Column(
        "pixel distance",
        "grey levels",
        f"Mean distance to the {NEIGHBOURS} nearest normal images pixel by pixel: root mean square over pixels and "
        "channels. Uses no model.",
    ),
    "png_bytes": Column(
        "file size",
        "bytes",
        "The square as a PNG file; a small file counts as odd. Uses no model.",
        smaller_is_odder=True,
    ),
}


@dataclass(frozen=True)
class Measurements:
    """What the columns are computed from: N images uint8 (N, H, W, 3), and a row of each array for each."""

    images: NDArray[np.uint8]
    nats_per_pixel: NDArray[np.float64]
    peak_nats: NDArray[np.float64]
    features: NDArray[np.float32]
    png_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Oddness:
    """A table with a row for each image, in the order of the source, and a number for each of COLUMNS."""

    names: Sequence[str]
    values: dict[str, NDArray[np.float64]]
    """(N,) of each of COLUMNS, in its unit."""
    p_values: dict[str, NDArray[np.float64]]
    """(N,) of each of COLUMNS: the share of held-out normal images at least as odd; empty without normal images."""
    calibration: dict[str, NDArray[np.float64]]
    """(n,) of each of COLUMNS, of the held-out normal images; empty without them."""
    images: NDArray[np.uint8]
    """uint8 (N, H, W, 3): the images as they were scored."""
    unreadable: list[str]
    """A line for each file that was skipped because it cannot be read."""

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Oddness({len(self)} images by {', '.join(self.values)}{'; p-values' if self.p_values else ''})"

    @cached_property
    def clearest(self) -> str:
        """The column that separates the images most significantly from held-out normal ones.

        By Mann-Whitney U tests with Bonferroni's correction; DEFAULT_COLUMN where no column is significant, or without
        normal images.
        """
        from scipy.stats import mannwhitneyu

        if not self.calibration:
            return DEFAULT_COLUMN
        significance = {
            name: mannwhitneyu(oriented(name, self.values[name]), oriented(name, normal), alternative="greater").pvalue
            for name, normal in self.calibration.items()
        }
        best = min(significance, key=lambda name: (significance[name], name != DEFAULT_COLUMN))
        return best if significance[best] * len(significance) < SIGNIFICANCE else DEFAULT_COLUMN

    def order(self, by: str | None = None) -> NDArray[np.int64]:
        """Row numbers, the oddest by that column first; default: by `clearest`."""
        by = by or self.clearest
        return np.argsort(-oriented(by, self.values[by]), kind="stable")

    def threshold(self, false_alarms: float, by: str = DEFAULT_COLUMN) -> float:
        """The value of that column beyond which p <= false_alarms. Raises InputError for too few normal images."""
        normal = np.sort(oriented(by, self.calibration.get(by, np.empty(0))))
        check_false_alarms(false_alarms, len(normal))
        above = math.floor(false_alarms * (len(normal) + 1) + 1e-9) - 1  # number of normal images allowed above
        return float(oriented(by, normal[len(normal) - 1 - above]))


def oriented(column: str, values: Any) -> Any:
    """Values of a column, negated where smaller is odder; its own inverse."""
    return -values if COLUMNS[column].smaller_is_odder else values


@check_keywords()
def odd_images(
    model: ImageGPT,
    images: Any,
    *,
    split: str | None = None,
    against: Any = None,
    layer: int | None = None,
    false_alarms: float | None = None,
    dtype: str = "fp32",
    seed: int = 0,
    run: Runner | None = None,
) -> Oddness:
    """How odd each image is, by each of COLUMNS; images are anything that open_source takes.

    against  normal images. A random half (by `seed`, at most 5,000) is the reference for distances, the other half
             calibrates: an image's p-value is (1 + the number of those at least as odd) / (their number + 1), so at
             most a share a of new normal images gets p <= a (conformal; Vovk, Gammerman & Shafer 2005). Without
             `against`, distances are to the other images of the set, and there are no p-values
    layer    of the features; default: the middle one
    run      computes the measurements, a list of tasks; tasks of other facts have other results
    false_alarms  a rate that Oddness.threshold will be asked for; checks early that there are enough normal images

    Raises InputError for bad images, fewer than 2 of them (4 normal ones), a set compared with itself, a masked model.
    """
    require_autoregressive(model)
    normal = None if against is None else decode(against, model.size, fit=model.fit, levels=model.levels)
    levels = model.levels if normal is None else normal.levels
    found = decode(images, model.side, split=split, fit=model.fit, levels=levels)
    squares, names, unreadable = found.images, found.names, found.unreadable
    if normal is None:
        if len(squares) < 2:
            raise InputError(
                "expected at least 2 images, to compare each with the others, got 1; add some, or normal images with "
                "`against`"
            )
        [measured] = _measure_all(model, [squares], layer, dtype, run)
        return Oddness(names, table(measured, None, seed=seed), {}, {}, squares, unreadable)
    if len(normal.images) < 4:
        raise InputError(f"expected at least 4 normal images, got {len(normal.images)}; add some", argument="against")
    if normal.digest() == found.digest():
        raise InputError(
            "expected other images than those to score, got the same; leave it out, or split", argument="against"
        )
    seen_before(normal.images, squares, "against", "images to score", "normal images, so that they look too normal")
    fit, held = split_indices(len(normal.images), CALIBRATION_SHARE, seed)
    if false_alarms is not None:
        check_false_alarms(false_alarms, len(held))
    fit = fit[_subset(len(fit), seed)]
    sets = squares, normal.images[fit], normal.images[held]
    measured, fitted, calibrating = _measure_all(model, sets, layer, dtype, run)
    values, calibration = (table(part, fitted, seed=seed) for part in (measured, calibrating))
    p_values = {
        name: conformal_p_values(oriented(name, values[name]), oriented(name, calibration[name])) for name in COLUMNS
    }
    return Oddness(names, values, p_values, calibration, squares, unreadable + normal.unreadable)


def check_false_alarms(false_alarms: float, calibrating: int) -> None:
    """Raises InputError for a number that is not a rate, or a rate too low for so many normal images."""
    if not 0 < false_alarms < 1:
        raise InputError(f"expected a rate between 0 and 1, got {false_alarms}", argument="false_alarms")
    needed = math.ceil(1 / false_alarms - 1e-9) - 1
    if calibrating < needed:
        raise InputError(
            f"{false_alarms:g} needs at least {needed} held-out normal images, got {calibrating} (half of `against`); "
            "give more of them or a higher rate",
            argument="false_alarms",
        )


def _subset(count: int, seed: int) -> NDArray[np.int64]:
    """At most REFERENCES_AT_MOST of the first `count` numbers, in order."""
    if count <= REFERENCES_AT_MOST:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 0x0DD]).choice(count, REFERENCES_AT_MOST, replace=False))


def measure(
    model: ImageGPT, squares: NDArray[np.uint8], layer: int | None = None, *, dtype: str = "fp32"
) -> Measurements:
    """Measurements of squares at the model's side."""
    means, peaks, features = [], [], []
    for maps, pooled, _ in score_batches(model, squares, layer, dtype=dtype):
        means.append(maps.mean((1, 2), dtype=np.float64))
        peaks.append(local_nats(maps).max((1, 2)).astype(np.float64))
        features.append(pooled)
    sizes = np.array([len(png_bytes(square)) for square in squares], np.int64)
    return Measurements(squares, np.concatenate(means), np.concatenate(peaks), np.concatenate(features), sizes)


def _measure_all(
    model: ImageGPT, sets: Sequence[NDArray[np.uint8]], layer: int | None, dtype: str, run: Runner | None
) -> list[Measurements]:
    if run is None:
        return [measure(model, part, layer, dtype=dtype) for part in sets]

    def task(part: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        found = vars(measure(model, part, layer, dtype=dtype))
        return {name: values for name, values in found.items() if name != "images"}

    numbers = [(i, start) for i, part in enumerate(sets) for start in range(0, len(part), CHUNK_IMAGES)]
    tasks = [functools.partial(task, sets[i][start : start + CHUNK_IMAGES]) for i, start in numbers]
    results = run(tasks, [model_hash(model), layer, dtype, *sets])
    found = []
    for i, images in enumerate(sets):
        own = [result for (number, _), result in zip(numbers, results, strict=True) if number == i]
        found.append(Measurements(images, **joined_arrays(own)))
    return found


def score_batches(
    model: ImageGPT, squares: NDArray[np.uint8], layer: int | None = None, *, dtype: str = "fp32"
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], Tensor]]:
    """For each batch: nats (b, H, W), features (b, D) of that layer, logits (b, T, K)."""
    require_autoregressive(model)
    [layer] = check_layers(model, layer)

    def score(tokens: Tensor, _: Tensor | None) -> tuple[NDArray[np.float32], NDArray[np.float32], Tensor]:
        for number, hidden in model.hidden(tokens, {layer, model.config.layers}):
            if number == layer:
                features = hidden.float().mean(1).cpu().numpy()
        logits = model.logits(hidden)
        return pixel_maps(model, cross_entropy(logits, tokens, reduction="none")), features, logits

    return batches(model, squares, score, dtype=dtype)


def local_nats(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nats (N, H, W) averaged over the 3 x 3 pixels around each, which shows flaws better (docs/results.md)."""
    from scipy.ndimage import uniform_filter

    inside = uniform_filter(np.ones_like(maps[:1]), (1, 3, 3), mode="constant")  # smaller at the border
    return uniform_filter(maps, (1, 3, 3), mode="constant") / inside


def table(measured: Measurements, normal: Measurements | None, *, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Each of COLUMNS (N,), with distances to `normal`, or to the other images (at most 5,000) for None."""
    reference = measured if normal is None else normal
    own = _subset(len(measured), seed) if normal is None else None
    center, scale = standard(reference.features)

    def standardised(features: NDArray[np.float32]) -> NDArray[np.float32]:
        return (features - center) / scale

    def flat(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images.reshape(len(images), -1).astype(np.float32)

    return {
        "nats_per_pixel": measured.nats_per_pixel,
        "nats_corrected": measured.nats_per_pixel - _expected_nats(measured.png_bytes, reference),
        "peak_nats": measured.peak_nats,
        "feature_distance": _neighbour_distance(measured.features, reference.features, own, standardised),
        "pixel_distance": _neighbour_distance(measured.images, reference.images, own, flat),
        "png_bytes": measured.png_bytes.astype(np.float64),
    }


def _expected_nats(png_bytes: NDArray[np.int64], normal: Measurements) -> NDArray[np.float64]:
    """Nats per pixel of normal images by file size, a least-squares line; their mean where all files have one size."""
    sizes = normal.png_bytes - normal.png_bytes.mean()
    slope = float(sizes @ normal.nats_per_pixel) / max(float(sizes @ sizes), 1e-9)
    return normal.nats_per_pixel.mean() + slope * (png_bytes - normal.png_bytes.mean())


def _neighbour_distance(
    points: NDArray[Any],
    references: NDArray[Any],
    own: NDArray[np.int64] | None,
    coordinates: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> NDArray[np.float64]:
    """Mean distance (N,) to the nearest references, root mean square over `coordinates(points)` (N, D).

    With `own`, the references are these of the points, and none of them is its own neighbour.
    """
    from sklearn.neighbors import NearestNeighbors

    references = coordinates(references if own is None else points[own])
    count = min(NEIGHBOURS, len(references) - (own is not None))
    nearest = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(references)
    parts = (points[start : start + POINTS_AT_ONCE] for start in range(0, len(points), POINTS_AT_ONCE))
    found = np.concatenate([nearest.kneighbors(coordinates(part))[0].mean(1) for part in parts])
    if own is not None:
        found[own] = nearest.kneighbors()[0].mean(1)
    return found / math.sqrt(references.shape[1])
