"""Drawn pictures against real ones: distances of their features beside what real pictures reach, and copies.

Every figure depends on how many pictures there are, so that number stands beside it, together with a floor: the same
figure of real images against other real images, in the same numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import SamplingConfig, SamplingKeywords, check_keywords
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
from nextpixel.representation.extractors import PIXELS, Extractor, open_extractor, read_features
from nextpixel.tokens import Tokenizer

PICTURES_AT_LEAST = 20  # ten subsets of two, for the kernel distance's error
METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Figures:
    """Two sets of features compared, see sample_metrics."""

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
    """Pictures against real images under one extractor."""

    extractor: str
    width: int
    """Numbers a picture (D)."""
    drawn: Figures
    floor: Figures
    """Real images against other real images: what perfect pictures would reach."""
    palette: Figures | None
    """Those other real images in the model's colours: what a perfect model with this palette would reach."""

    def metrics(self) -> dict[str, dict[str, float]]:
        """Each metric under its whole name, as in frechet[pixels-32]: its value, the floor, and so on."""
        sets = {"value": self.drawn, "floor": self.floor} | ({"palette": self.palette} if self.palette else {})
        found = {f"{name}[{self.extractor}]": {k: getattr(v, name) for k, v in sets.items()} for name in METRICS}
        found[f"kernel[{self.extractor}]"]["standard_error"] = self.drawn.kernel_error
        return found


@dataclass(frozen=True)
class Choice:
    """Which real images take which part; numbers of images."""

    reference: NDArray[np.int64]
    """What the pictures are compared with."""
    floor: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Two disjoint sets that are compared with each other, of the same sizes where there are enough images."""


@check_keywords(SamplingKeywords)
def compare_samples(
    model: ImageGPT,
    images: Any,
    pictures: Any = 1_000,
    *,
    extractor: str | Extractor | Sequence[str | Extractor] = PIXELS,
    layer: int | None = None,
    references: int | None = None,
    split: str | None = None,
    **settings: Unpack[SamplingKeywords],
) -> list[Comparison]:
    """Draw so many pictures from the model and compare them with real images; one Comparison an extractor.

    pictures    a number, or existing pictures to judge instead: a folder, an array, anything that `images` may be
    extractor   what the pictures are compared by, see extractors.open_extractor; `layer` for those with layers
    references  real images to compare with; as many as there are pictures unless told
    settings    those of SamplingConfig; `seed` also chooses the real images

    A model judged by its own features looks better than it is, and one extractor sees what another does not.
    Raises InputError for bad images or settings, or fewer than 20 pictures or 40 real images.
    """
    sampling = SamplingConfig(**settings)
    wanted = [extractor] if isinstance(extractor, str | Extractor) else list(extractor)
    opened = [open_extractor(one, model, layer) for one in wanted]  # before anything is drawn
    real, _ = read_squares(model, images, split)
    if isinstance(pictures, int):
        choice = choose_real(len(real), pictures, references, sampling.seed)
        drawn, tokenizer = draw(model, None, n=pictures, sampling=sampling).images, model.tokenizer
    else:
        drawn, tokenizer = read_squares(model, pictures)[0], None
        choice = choose_real(len(real), len(drawn), references, sampling.seed)
    return [compare_by(one, real, drawn, choice, tokenizer, seed=sampling.seed) for one in opened]


def choose_real(count: int, samples: int, references: int | None, seed: int) -> Choice:
    """Of `count` real images, those to compare `samples` pictures with, and those for the floor; by seed."""
    if samples < PICTURES_AT_LEAST:
        raise InputError(f"expected at least {PICTURES_AT_LEAST} pictures, got {samples}", argument="samples")
    if count < 2 * PICTURES_AT_LEAST:
        raise InputError(
            f"expected at least {2 * PICTURES_AT_LEAST} real images, half of them for the floor, got {count}; add some"
        )
    if references is not None and not PICTURES_AT_LEAST <= references <= count:
        raise InputError(
            f"expected {PICTURES_AT_LEAST} to {count:,}, as many as there are real images, got {references}",
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
    """Squares uint8 (N, S, S, 3) against real ones (M, S, S, 3), by one extractor.

    The tokenizer is that of the model which drew them, None for pictures of unknown origin.
    """
    reference, drawn = extractor(real[choice.reference]), extractor(pictures)
    one = reference if choice.floor[0] is choice.reference else extractor(real[choice.floor[0]])
    other = extractor(real[choice.floor[1]])
    coloured = None
    if tokenizer is not None:
        coloured = compare_features(one, extractor(reconstructed(tokenizer, real[choice.floor[1]])), seed)
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
    """The same for features that were extracted before, of real images and of pictures: two .npz files.

    See extractors.read_features. Raises InputError where one is no such file, or they are not of one extractor.
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
    """All metrics of features (M, D) of real images and (N, D) of pictures; `seed` cuts the kernel's subsets."""
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
    """Pictures and their nearest training images under one extractor."""

    extractor: str
    places: NDArray[np.int64]
    """(N, k) numbers of the nearest training images, the nearest first."""
    distances: NDArray[np.float64]
    """(N, k) Euclidean distances of the features."""
    real_distances: NDArray[np.float64]
    """(M,) from real images that were not trained on to their nearest training image."""

    @property
    def median(self) -> float:
        return float(np.median(self.distances[:, 0]))

    @property
    def real_median(self) -> float:
        return float(np.median(self.real_distances))

    @property
    def ratio(self) -> float:
        """Medians, pictures over real images: far below 1 where pictures are copies, or blander than real ones."""
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
    """The k nearest training images of each picture, and how near other real images come; squares of one side.

    All are put into the model's colours first: the model has seen no others, and a copy then has distance 0.
    """
    described = [extractor(reconstructed(tokenizer, squares)) for squares in (pictures, real)]
    blocks = extractor.chunks(train, lambda part: reconstructed(tokenizer, part))
    places, distances = nearest(np.concatenate(described), blocks, k)
    count = len(pictures)
    return Nearness(extractor.name, places[:count], distances[:count], distances[count:, 0])


def reconstructed(tokenizer: Tokenizer, squares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Squares uint8 (N, S, S, 3) as their tokens give them back: in a palette's colours."""
    return tokenizer.decode(tokenizer.encode(np.ascontiguousarray(squares)), squares.shape[2] // tokenizer.patch[1])
