"""Networks that probe --against trains on the same labels, and the costs of each method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nextpixel.cli.arguments import show
from nextpixel.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from nextpixel.network.resnet import ResNet
    from nextpixel.representation.extraction import Backbone
    from nextpixel.representation.few_labels import Result
    from nextpixel.training.convnet import TrainedResult

SCRATCH = "resnet20"
TIMED_IMAGES = 64
MOST_TRIALS = 5  # the length of convnet.TRIALS and probing.STRENGTHS, whose modules import torch


def check_peers(against: str | None, trials: int, epochs: int | None) -> None:
    """Raise InputError for invalid options."""
    if not 1 <= trials <= MOST_TRIALS:
        raise InputError(f"--trials: expected 1 to {MOST_TRIALS}, got {trials}")
    if epochs is not None and epochs < 1:
        raise InputError(f"--epochs: expected at least 1, got {epochs}")
    if against is not None and not all(names(against)):
        raise InputError(
            f"--against: expected {SCRATCH} or a student's folder, or several comma-separated, got {against!r}"
        )


def names(against: str | None) -> list[str]:
    return [] if against is None else [name.strip() for name in against.split(",")]


def load_students(against: str | None, model: Backbone) -> dict[str, ResNet]:
    """Load the students among the peers. Raises InputError if one has another side than the model."""
    from nextpixel.checkpoints import load_backbone
    from nextpixel.network.resnet import ResNet

    found = {}
    for name in names(against):
        if name == SCRATCH:
            continue
        try:
            student = load_backbone(name, device=str(model.device))
        except InputError as error:
            raise InputError(f"--against: expected {SCRATCH} or a student of nextpixel distill, got {error}") from None
        if not isinstance(student, ResNet):
            raise InputError(
                f"--against: expected {SCRATCH} or a student of nextpixel distill, got an Image GPT: {name}"
            )
        if student.side != model.side:
            raise InputError(f"--against: expected a student of side {model.side}, as the model, got {student.side}")
        found[name] = student
    return found


def fit_peers(
    against: str | None,
    students: Mapping[str, ResNet],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    **how: Any,
) -> list[TrainedResult]:
    """Train and evaluate each peer, see convnet.evaluate_convnet."""
    if against is None:
        return []
    from nextpixel.training.convnet import evaluate_convnet

    found = []
    for name in names(against):
        student = students.get(name)
        title = f"{SCRATCH}, from scratch" if student is None else f"{name}, fine-tuned"
        found += evaluate_convnet(title, train, test, init=student, **how)
    return found


def costs_of(
    model: Backbone,
    feature_seconds: float,
    deepest: int,
    searched: bool,
    results: Sequence[Result],
    peers: Sequence[TrainedResult],
    students: Mapping[str, ResNet],
) -> list[dict[str, Any]]:
    """Training and inference costs of the model's probe, the students' probes and each peer, averaged over repeats.

    A probe's seconds include the features of its training images. Training FLOPs count forward and backward passes
    (three forward passes per image), or for a probe the forward pass to the `deepest` layer. They exclude logistic
    regression, pretraining and distillation. If layers were `searched`, inference runs to the deepest chosen one.
    """
    import numpy as np

    from nextpixel.config import ResNetConfig
    from nextpixel.network.cost import feature_flops_per_image
    from nextpixel.network.resnet import ResNet

    side = model.side
    backbones: dict[str, tuple[Backbone, float]] = {"this model": (model, feature_seconds)}
    for name, student in students.items():
        backbones[f"{name}, probe"] = student, milliseconds(student) / 1e3
    rows = []
    for result in results:
        if result.reading not in backbones:
            continue
        backbone, per_image = backbones[result.reading]
        seen = 0 if isinstance(backbone, ResNet) else deepest
        used = max(max(layers) for layers in result.layers) if searched and seen else seen
        flops = feature_flops_per_image(backbone.config, used)
        images = int(np.mean(result.train_images))
        rows.append(
            _cost(
                result,
                seconds=float(np.mean(result.seconds)) + images * per_image,
                passes=images,
                flops=images * feature_flops_per_image(backbone.config, seen),
                inference_flops=flops,
                inference_ms=milliseconds(backbone, used),
            )
        )
    for fitted in peers:
        of = students.get(fitted.reading.removesuffix(", fine-tuned"))
        network = of or ResNet(ResNetConfig(side=side)).eval()
        flops = feature_flops_per_image(network.config)
        passes = int(np.mean(fitted.image_passes))
        rows.append(
            _cost(
                fitted,
                seconds=float(np.mean(fitted.seconds)),
                passes=passes,
                flops=3 * passes * flops,
                inference_flops=flops,
                inference_ms=milliseconds(network),
            )
        )
    return rows


def _cost(
    result: Result | TrainedResult,
    *,
    seconds: float,
    passes: int,
    flops: int,
    inference_flops: int,
    inference_ms: float,
) -> dict[str, Any]:
    return {
        "reading": result.reading,
        "labels_per_class": result.labels_per_class,
        "training_seconds": seconds,
        "training_image_passes": passes,
        "training_flops": flops,
        "inference_flops_per_image": inference_flops,
        "inference_ms_per_image": inference_ms,
    }


def milliseconds(model: Backbone, layer: int = 0) -> float:
    """Milliseconds per image for features of a batch of black squares: the better of two runs after a warm-up."""
    import numpy as np

    from nextpixel.representation.extraction import features_of

    squares = np.zeros((TIMED_IMAGES, model.side, model.side, 3), np.uint8)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        features_of(model, squares, [layer])
        taken.append(time.perf_counter() - began)
    return 1e3 * min(taken[1:]) / TIMED_IMAGES


def peers_report(peers: Sequence[TrainedResult], costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of --json; empty without peers."""
    if not peers:
        return {}
    rows = []
    for fitted in peers:
        scores = [asdict(score) | {"confusion": score.confusion.tolist()} for score in fitted.scores]
        rows.append(asdict(fitted) | {"scores": scores})
    return {"rivals": rows, "costs": list(costs)}


def print_costs(costs: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per method and number of labels."""
    widest = max((len(str(row["reading"])) for row in costs), default=0) + 2
    for row in costs:
        count = "all labels" if row["labels_per_class"] is None else f"{row['labels_per_class']:>4} a class"
        show(
            f"{row['reading']:<{widest}}{count}  training {row['training_seconds']:.1f} s, "
            f"{row['training_image_passes']:,} images, {row['training_flops'] / 1e9:,.0f} GFLOP; inference "
            f"{row['inference_ms_per_image']:.2f} ms, {row['inference_flops_per_image'] / 1e6:,.0f} MFLOP an image"
        )
