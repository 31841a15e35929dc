"""What a study finds: a point for each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextpixel.config import StudyConfig
from nextpixel.stats import middle_best


@dataclass(frozen=True)
class LayerScore:
    """A probe of one layer."""

    layer: int
    held_out: float
    """Accuracy on held-out training images: what layers are chosen by."""
    accuracy: float
    """Accuracy on the test images."""
    accuracy_without_them: float | None = None
    """On those that are no training images, where there are some and others."""


@dataclass(frozen=True)
class Point:
    """One checkpoint."""

    run: str
    shape: str
    """Layers x width, and what differs from the paper's network."""
    parameters: int
    seed: int
    """Of the run."""
    step: int
    images: int
    """Training images seen, repeats counted."""
    flops: float
    """Of all training steps so far, see plan.flops_per_image."""
    nats: float
    """Nats per pixel on the test images."""
    nats_error: float
    """Its standard error, over images."""
    layers: list[LayerScore]
    nats_without_them: float | None = None
    """On test images that are no training images, where there are some and others."""

    @property
    def best(self) -> LayerScore:
        """The layer that the held-out images choose."""
        return chosen(self.layers)

    @property
    def accuracy(self) -> float:
        return self.best.accuracy


@dataclass(frozen=True)
class Study:
    """What was measured; `points` run by run, oldest step first."""

    config: StudyConfig
    train_images: int
    test_images: int
    palette: str
    points: list[Point]
    controls: dict[str, float]
    """Test accuracies of what no training made: the commonest class, raw pixels, an untrained model of each shape."""


def chosen(layers: Sequence[LayerScore]) -> LayerScore:
    """The one with the highest held-out accuracy, the middle one of several; test accuracies have no say."""
    return layers[middle_best([score.held_out for score in layers])]
