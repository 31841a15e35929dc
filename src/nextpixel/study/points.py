"""Results of a study: a point for each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextpixel.config import StudyConfig
from nextpixel.stats import middle_best


@dataclass(frozen=True)
class LayerScore:
    """Accuracies of the probe of one layer."""

    layer: int
    held_out: float
    """Accuracy on held-out training images, by which layers are chosen."""
    accuracy: float
    """Accuracy on the test images."""
    accuracy_without_them: float | None = None
    """Without test images that are training images; None where there are none, or no others."""


@dataclass(frozen=True)
class Point:
    """Measurements of one checkpoint."""

    run: str
    shape: str
    """Layers x width, and options that tell it from the other shapes of the study."""
    parameters: int
    seed: int
    """The run's."""
    step: int
    images: int
    """Training images seen, including repeats."""
    flops: float
    """Of all training steps so far, see cost.flops_per_image."""
    nats: float
    """Nats per pixel on the test images."""
    nats_error: float
    """Its standard error, over images."""
    layers: list[LayerScore]
    nats_without_them: float | None = None
    """Without test images that are training images; None where there are none, or no others."""

    @property
    def best(self) -> LayerScore:
        """The layer chosen on held-out images."""
        return best_layer(self.layers)

    @property
    def accuracy(self) -> float:
        return self.best.accuracy


@dataclass(frozen=True)
class Study:
    """All measurements; `points` are sorted by run, then step."""

    config: StudyConfig
    train_images: int
    test_images: int
    palette: str
    points: list[Point]
    controls: dict[str, float]
    """Test accuracies of baselines: the most common class, raw pixels, an untrained model of each shape."""


def best_layer(layers: Sequence[LayerScore]) -> LayerScore:
    """The layer with the highest held-out accuracy, as in the paper; ties go to the middle one."""
    return layers[middle_best([score.held_out for score in layers])]


def points_by_run(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each run, oldest step first."""
    runs: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.step):
        runs.setdefault(point.run, []).append(point)
    return {run: runs[run] for run in dict.fromkeys(point.run for point in points)}
