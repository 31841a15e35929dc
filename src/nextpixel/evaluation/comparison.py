"""Compare samples with real images by their features, and find the nearest training images.

Every metric depends on the number of images, so it is reported with that number and a floor: the same metric of real
images against as many other real images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import COMPARED_AT_LEAST, SamplingConfig, SamplingKeywords, check_keywords
from nextpixel.drawing.sampling import draw
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import read_squares
from nextpixel.evaluation.sample_metrics import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    nearest,
    precision_recall,
)
from nextpixel.network.model import ImageGPT
from nextpixel.representation.extractors import PIXELS, Extractor, open_extractors, read_features
from nextpixel.tokens import Tokenizer, reconstruct

METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Figures:
    """Metrics of two sets of features, see sample_metrics."""

    samples: int
    references: int
    frechet: float
    kernel: float
    kernel_error: float
    """The standard error of `kernel`."""
    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Comparison:
    """Samples against real images under one extractor."""

    extractor: str
    width: int
    """Features per image (D)."""
    drawn: Figures
    floor: Figures
    """Real images against other real images: what perfect samples would reach."""
    palette: Figures | None
    """Those other real images, decoded from their tokens: what a perfect model with this tokenizer would reach."""

    def metrics(self) -> dict[str, dict[str, float]]:
        """Each metric by its full name, as in frechet[pixels-32]: its value, the floor, and so on."""
        sets = {"value": self.drawn, "floor": self.floor} | ({"palette": self.palette} if self.palette else {})
        found = {f"{name}[{self.extractor}]": {k: getattr(v, name) for k, v in sets.items()} for name in METRICS}
        found[f"kernel[{self.extractor}]"]["standard_error"] = self.drawn.kernel_error
        return found


@dataclass(frozen=True)
class Choice:
    """Indices of the real images used for each purpose."""

    reference: NDArray[np.int64]
    """The images that samples are compared with."""
    floor: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Two disjoint sets to compare with each other, as large as the comparison where there are enough images."""


@check_keywords(SamplingKeywords)
def compare_samples(
    model: ImageGPT,
    images: Any,
    pictures: Any = 1_000,
    *,
    extractor: str | os.PathLike[str] | Extractor | Sequence[str | os.PathLike[str] | Extractor] = PIXELS,
    layer: int | None = None,
    references: int | None = None,
    split: str | None = None,
    **settings: Unpack[SamplingKeywords],
) -> list[Comparison]:
    """Compare samples of the model with real images; returns a Comparison for each extractor.

    pictures    the number to draw, or existing pictures to evaluate: a folder, an array, anything that `images` may be
    extractor   the features to compare by, see extractors.open_extractor; `layer` for those with layers
    references  number of real images to compare with; default: as many as there are pictures
    settings    those of SamplingConfig; `seed` also chooses the real images

    A model evaluated by its own features looks better than it is; extractors differ in what they detect.
    Raises InputError for bad images or settings, or fewer than 20 pictures or 40 real images.
    """
    sampling = SamplingConfig(**settings)
    names = [extractor] if isinstance(extractor, str | os.PathLike | Extractor) else list(extractor)
    extractors = open_extractors(names, model, layer)  # refuses before drawing
    real, _ = read_squares(model, images, split)
    tokenizer = model.tokenizer if isinstance(pictures, int) else None
    drawn = None if isinstance(pictures, int) else read_squares(model, pictures)[0]
    count = pictures if drawn is None else len(drawn)
    choice = choose_real(len(real), count, references, sampling.seed)  # refuses before drawing
    if drawn is None:
        drawn = draw(model, None, n=count, sampling=sampling).images
    return [compare_by(one, real, drawn, choice, tokenizer, seed=sampling.seed) for one in extractors]


def choose_real(count: int, samples: int, references: int | None, seed: int) -> Choice:
    """Choose among `count` real images those to compare `samples` with and those for the floor, by seed."""
    if samples < COMPARED_AT_LEAST:
        raise InputError(f"expected at least {COMPARED_AT_LEAST} pictures, got {samples}", argument="pictures")
    if count < 2 * COMPARED_AT_LEAST:
        raise InputError(
            f"expected at least {2 * COMPARED_AT_LEAST} real images, half of them for the floor, got {count}; add some"
        )
    if references is not None and not COMPARED_AT_LEAST <= references <= count:
        raise InputError(
            f"expected {COMPARED_AT_LEAST} to {count:,}, as many as there are real images, got {references}",
            argument="references",
        )
    order = np.random.default_rng([seed, 0x5EA1]).permutation(count)
    chosen = min(samples, count) if references is None else references
    reference, others = np.sort(order[:chosen]), np.sort(order[chosen : chosen + samples])
    halves = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    return Choice(reference, (reference, others) if len(others) == samples else halves)


def compare_by(
    extractor: Extractor,
    real: NDArray[np.uint8],
    pictures: NDArray[np.uint8],
    choice: Choice,
    tokenizer: Tokenizer | None,
    *,
    seed: int = 0,
) -> Comparison:
    """Compare images uint8 (N, H, W, 3) with real ones (M, H, W, 3) by one extractor.

    `tokenizer` is that of the model that drew them; None for pictures of unknown origin.
    """
    reference, drawn = extractor(real[choice.reference]), extractor(pictures)
    one = reference if choice.floor[0] is choice.reference else extractor(real[choice.floor[0]])
    other = extractor(real[choice.floor[1]])
    coloured = None
    if tokenizer is not None:
        coloured = compare_features(one, extractor(reconstruct(tokenizer, real[choice.floor[1]])), seed)
    return Comparison(
        extractor.name,
        drawn.shape[1],
        compare_features(reference, drawn, seed),
        compare_features(one, other, seed),
        coloured,
    )


def compare_feature_files(
    real: str | os.PathLike[str], drawn: str | os.PathLike[str], *, references: int | None = None, seed: int = 0
) -> Comparison:
    """Compare the features in two .npz files, of real images and of samples, see extractors.read_features.

    Raises InputError for other files, or features of different extractors.
    """
    (x, name), (y, other_name) = read_features(real), read_features(drawn)
    if x.shape[1] != y.shape[1] or (None not in (name, other_name) and name != other_name):
        raise InputError(
            f"{drawn}: expected features of {name or 'the extractor'} ({x.shape[1]:,} numbers a picture) as in {real}, "
            f"got {other_name or 'features'} ({y.shape[1]:,}); extract both alike"
        )
    name = name or other_name or f"features-{hashlib.sha256(x.tobytes()).hexdigest()[:6]}"
    choice = choose_real(len(x), len(y), references, seed)
    floor = compare_features(x[choice.floor[0]], x[choice.floor[1]], seed)
    return Comparison(name, x.shape[1], compare_features(x[choice.reference], y, seed), floor, None)


def compare_features(reference: NDArray[np.float32], samples: NDArray[np.float32], seed: int = 0) -> Figures:
    """All metrics of features (M, D) of real images and (N, D) of samples; `seed` chooses the kernel's subsets."""
    return Figures(
        len(samples),
        len(reference),
        frechet_distance(reference, samples),
        *kernel_distance(reference, samples, seed=seed),
        *precision_recall(reference, samples),
        *density_coverage(reference, samples),
    )


@dataclass(frozen=True)
class Nearness:
    """The nearest training images of samples under one extractor."""

    extractor: str
    indices: NDArray[np.int64]
    """(N, k) indices of the nearest training images, the nearest first."""
    distances: NDArray[np.float64]
    """(N, k) Euclidean distances of the features."""
    real_distances: NDArray[np.float64]
    """(M,) from real images outside the training set to their nearest training image."""

    @property
    def median(self) -> float:
        return float(np.median(self.distances[:, 0]))

    @property
    def real_median(self) -> float:
        return float(np.median(self.real_distances))

    @property
    def ratio(self) -> float:
        """Median of samples over median of real images: far below 1 for copies, and for samples blander than images."""
        return self.median / self.real_median if self.real_median else float("nan")


def nearest_images(
    extractor: Extractor,
    pictures: NDArray[np.uint8],
    real: NDArray[np.uint8],
    train: NDArray[np.uint8],
    tokenizer: Tokenizer,
    *,
    k: int = 3,
) -> Nearness:
    """The k nearest training images of each picture, with the distances of other real images; images of one size.

    All are converted to the model's colours first, so that a copy has distance 0.
    """
    features = [extractor(reconstruct(tokenizer, squares)) for squares in (pictures, real)]
    blocks = extractor.chunks(train, lambda part: reconstruct(tokenizer, part))
    indices, distances = nearest(np.concatenate(features), blocks, k)
    count = len(pictures)
    return Nearness(extractor.name, indices[:count], distances[:count], distances[count:, 0])
